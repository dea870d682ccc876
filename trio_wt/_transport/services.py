"""Background tasks of a connection that never show in the user's exceptions.

General theory of operation:

A connection's reader and writer need a nursery, and with an async context manager that nursery encloses the
user's block. Left alone it would wrap what the block raises in an ExceptionGroup; an outer cancellation would
stop the writer together with the block, so that no goodbye could be sent; and a KeyboardInterrupt could land in
the reader (python-trio/trio#1521). So:

- each service runs in a shielded cancel scope of its own: a cancellation from outside reaches the block first,
  and services end when the block has ended and said goodbye;
- each service is protected from KeyboardInterrupt and may not raise: what ends it goes to ``on_failure``, which is
  synchronous, stores the end and wakes whoever waits;
- the block's exception is kept out of the nursery's sight and raised again, the same object with its own
  context, once the nursery has closed.

So the nursery itself never sees an exception. If it does, that is a bug of this package: `InternalError`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVarTuple

import trio

from .._errors import InternalError

__all__ = ["Services", "open_services"]

Ts = TypeVarTuple("Ts")


def _reraise(exc: BaseException) -> NoReturn:
    # `raise` sets __context__ to whatever is being handled further up; the block's own context must stay.
    __tracebackhide__ = True
    context = exc.__context__
    try:
        raise exc
    finally:
        exc.__context__ = context
        del exc, context


class Services:
    """Starts the tasks of one connection; `open_services` makes it."""

    __slots__ = ("_nursery", "_on_failure", "_scopes", "_stopped", "body_scope")

    def __init__(
        self,
        nursery: trio.Nursery,
        body_scope: trio.CancelScope,
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._nursery = nursery
        self._on_failure = on_failure
        self._scopes: list[trio.CancelScope] = []
        self._stopped = False
        #: covers the block, and nothing else
        self.body_scope = body_scope

    def start_soon(
        self,
        async_fn: Callable[[*Ts], Awaitable[object]],
        *args: *Ts,
        name: str | None = None,
    ) -> None:
        """Start a service; what it raises goes to ``on_failure``."""
        # Not nursery.start(): under a pending cancellation started() does not move the task (trio#2544).
        self._nursery.start_soon(self._run, async_fn, args, name=name or async_fn)

    @trio.lowlevel.enable_ki_protection
    async def _run(self, async_fn: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> None:
        with trio.CancelScope(shield=True) as scope:
            self._scopes.append(scope)
            if self._stopped:
                scope.cancel()
            try:
                await async_fn(*args)
            except Exception as exc:
                self._on_failure(exc)
            finally:
                self._scopes.remove(scope)

    def stop(self) -> None:
        """End all services."""
        self._stopped = True
        for scope in self._scopes:
            scope.cancel()


@asynccontextmanager
async def open_services(
    on_failure: Callable[[Exception], None],
    goodbye: Callable[[BaseException | None], Awaitable[None]],
    *,
    body_scope: trio.CancelScope,
) -> AsyncIterator[Services]:
    """A block with services around it.

    Args:
        on_failure: gets what a service raised; must not raise.
        goodbye: runs after the block, shielded, with what the block raised; it bounds itself. The services
            still run then, and are stopped after it.
        body_scope: the scope to cover the block.

    Raises:
        InternalError: a service broke the rules.
    """
    body_exc: BaseException | None = None
    goodbye_exc: BaseException | None = None
    try:
        async with trio.open_nursery(strict_exception_groups=True) as nursery:
            services = Services(nursery, body_scope, on_failure)
            try:
                with body_scope:
                    try:
                        yield services
                    except BaseException as exc:
                        body_exc = exc
                        raise
            except BaseException as exc:
                body_exc = exc
                swallowed = False
            else:
                # The scope caught its own Cancelled: goodbye gets to see it, our caller does not.
                swallowed = True
            try:
                with trio.CancelScope(shield=True):
                    await goodbye(body_exc)
            except BaseException as exc:
                goodbye_exc = exc
            finally:
                services.stop()
            if swallowed:
                body_exc = None
    except BaseExceptionGroup as group:
        if body_exc is not None and not isinstance(body_exc, trio.Cancelled):
            group.add_note(f"the block itself had raised {body_exc!r}")
        raise InternalError("a background task failed; please report this as a bug") from group
    if goodbye_exc is not None and (body_exc is None or isinstance(goodbye_exc, KeyboardInterrupt)):
        raise goodbye_exc from body_exc
    if body_exc is not None:
        _reraise(body_exc)
