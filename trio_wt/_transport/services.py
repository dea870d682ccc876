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
- the nursery is left only after the block, without the block's exception, which goes on its way as the same object
  with its own context.

So the nursery itself never sees an exception. If it does, that is a bug of this package: `InternalError`.

A service's scope also is its alarm clock: it may set the scope's deadline, and when that passes it is run again from
its beginning, which costs an idle connection no further scope.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeAlias

import trio

from .._errors import InternalError

__all__ = ["Service", "Services"]

#: Gets its own scope, whose deadline it may set.
Service: TypeAlias = Callable[[trio.CancelScope], Awaitable[None]]


class Services:
    """A block with services around it: an async context manager.

    Args:
        body_scope: the scope to cover the block.
        goodbye: runs after the block, shielded, with what the block raised; it bounds itself. The services still run
            then, and are stopped after it.
        on_failure: gets what a service raised; must not raise.

    Raises:
        InternalError: a service broke the rules.
    """

    __slots__ = (
        "_body_scope",
        "_goodbye",
        "_manager",
        "_nursery",
        "_on_failure",
        "_scopes",
        "_stopped",
    )

    def __init__(
        self,
        body_scope: trio.CancelScope,
        goodbye: Callable[[BaseException | None], Awaitable[None]],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._body_scope = body_scope
        self._goodbye = goodbye
        self._on_failure = on_failure
        self._manager = trio.open_nursery(strict_exception_groups=True)
        self._scopes: list[trio.CancelScope] = []
        self._stopped = False

    async def __aenter__(self) -> Self:
        self._nursery = await self._manager.__aenter__()
        self._body_scope.__enter__()
        return self

    def start_soon(self, service: Service, *, name: str) -> None:
        """Start a service; what it raises goes to ``on_failure``."""
        # Not nursery.start(): under a pending cancellation started() does not move the task (trio#2544).
        self._nursery.start_soon(self._run, service, name=name)

    @trio.lowlevel.enable_ki_protection
    async def _run(self, service: Service) -> None:
        again = True
        while again:
            with trio.CancelScope(shield=True) as scope:
                self._scopes.append(scope)
                if self._stopped:
                    scope.cancel()
                try:
                    await service(scope)
                except Exception as exc:
                    self._on_failure(exc)
                finally:
                    self._scopes.remove(scope)
            again = scope.cancelled_caught and not self._stopped

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        outcome = exc
        try:
            if self._body_scope.__exit__(exc_type, exc, traceback):
                outcome = None
        except BaseException as filtered:  # a group, less what the scope has caught  # noqa: ASYNC103
            outcome = filtered
        failure: BaseException | None = None
        try:
            with trio.CancelScope(shield=True):
                await self._goodbye(exc)
        except BaseException as raised:  # noqa: ASYNC103
            failure = raised
        self._stopped = True
        for scope in self._scopes:
            scope.cancel()
        try:
            await self._manager.__aexit__(None, None, None)
        except BaseExceptionGroup as group:
            if outcome is not None and not isinstance(outcome, trio.Cancelled):
                group.add_note(f"the block itself had raised {outcome!r}")
            raise InternalError("a background task failed; please report this as a bug") from group
        if failure is not None and (outcome is None or isinstance(failure, KeyboardInterrupt)):
            raise failure from outcome
        if outcome is None or outcome is exc:
            return outcome is None
        raise outcome
