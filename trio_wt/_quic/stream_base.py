"""What streams of all directions have in common: their blocks, and the place of their attributes."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import trio

from .endings import error_code, without_aborts

if TYPE_CHECKING:
    from .driver import Driver

__all__ = ["StreamBase", "check_code"]

_MAX_CODE: Final = 2**62 - 1


class StreamBase(trio.abc.AsyncResource):
    """What streams of both directions share, and the place for all their attributes."""

    __slots__ = (
        "_buffered",
        "_cancel_scope",
        "_chunks",
        "_credited",
        "_cut",
        "_driver",
        "_finished",
        "_head",
        "_priority",
        "_receive_end",
        "_receive_wakeup",
        "_receiving",
        "_send_end",
        "_send_wakeup",
        "_sending",
        "_stream_id",
        "_taken",
    )

    def __init__(self, driver: Driver, stream_id: int) -> None:
        self._driver = driver
        self._stream_id = stream_id
        self._cancel_scope: trio.CancelScope | None = None
        # The application has it; a stream that the peer has opened counts until then, whatever becomes of it.
        self._taken = True
        self._finished = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._stream_id}>"

    @property
    def stream_id(self) -> int:
        """The stream's number on its connection (RFC 9000 section 2.1)."""
        return self._stream_id

    @property
    def cancel_scope(self) -> trio.CancelScope:
        """Covers the stream's block; cancelling it resets the stream."""
        if self._cancel_scope is None:
            self._cancel_scope = trio.CancelScope()
        return self._cancel_scope

    async def __aenter__(self) -> Self:
        self.cancel_scope.__enter__()
        return self

    async def __aexit__(  # type: ignore[override]  # its blocks swallow StreamAbort
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if exc is None:
            self._finish()
        else:
            self._abort(error_code(exc, self._driver.settings))
        outcome = exc
        try:
            if self.cancel_scope.__exit__(exc_type, exc, traceback):
                outcome = None
        except BaseException as filtered:  # a group, less what the scope has caught  # noqa: ASYNC103
            outcome = filtered
        if exc is None:
            await trio.lowlevel.checkpoint()  # noqa: ASYNC102
            return False
        await trio.lowlevel.cancel_shielded_checkpoint()
        rest = without_aborts(outcome)
        if rest is None or rest is exc:
            return rest is None
        raise rest

    def _finish(self) -> None:
        """The block is over, and all went well."""
        raise TypeError("a stream has a direction")

    def _abort(self, code: int) -> None:
        """The block failed, or was cancelled."""
        raise TypeError("a stream has a direction")

    def _done(self) -> None:
        """Tell the driver once when neither direction is of use to the application any more."""
        if self._taken and not self._finished and self._is_done():
            self._finished = True
            self._driver.release(self._stream_id)

    def offer(self) -> None:
        """The driver: the peer has opened it, and the application has not taken it yet."""
        self._taken = False

    def take(self) -> None:
        """The queue of incoming streams: the application has it now."""
        self._taken = True
        self._done()

    def _is_done(self) -> bool:
        raise TypeError("a stream has a direction")


def check_code(code: int) -> None:
    """Raise `ValueError` for what is no error code of an application (RFC 9000 section 20.2)."""
    if not 0 <= code <= _MAX_CODE:
        raise ValueError(f"an error code is at least 0 and less than 2^62, not {code}")
