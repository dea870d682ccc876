"""What streams of all directions have in common: their blocks, and the place of their attributes."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

import trio

from .._errors import ConnectionClosed, StreamReset
from .endings import error_code, without_aborts

if TYPE_CHECKING:
    from .carrier import Carrier

__all__ = ["StreamBase"]


class StreamBase(trio.abc.AsyncResource):
    """What streams of both directions share, and the place for all their attributes."""

    __slots__ = (
        "_buffered",
        "_cancel_scope",
        "_carrier",
        "_chunks",
        "_credited",
        "_cut",
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

    def __init__(self, carrier: Carrier, stream_id: int) -> None:
        self._carrier = carrier
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
            self._abort(error_code(exc, self._carrier))
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
        rest = without_aborts(outcome, self._carrier)
        if rest is None or rest is exc:
            return rest is None
        raise rest

    # The engine lets nobody send on a stream, or stop one, that goes the other way.

    def arrived(self, data: bytes, *, fin: bool) -> None:
        """The carrier: bytes, or the end, have come."""
        raise TypeError("this stream receives nothing")

    def was_reset(self, code: int) -> None:
        """The carrier: the peer has reset the stream."""
        raise TypeError("this stream receives nothing")

    def was_stopped(self, code: int) -> None:
        """The carrier: the peer does not want more."""
        raise TypeError("this stream sends nothing")

    def lost(self, end: ConnectionClosed) -> None:
        """The carrier: the connection has ended."""
        raise TypeError("a stream has a direction")

    def _reset_error(self, wire_code: int) -> StreamReset:
        """What the peer's code means."""
        code = self._carrier.application_code(wire_code)
        return StreamReset(code, remote=True, wire_code=wire_code)

    def _finish(self) -> None:
        """The block is over, and all went well."""
        raise TypeError("a stream has a direction")

    def _abort(self, code: int) -> None:
        """The block failed, or was cancelled."""
        raise TypeError("a stream has a direction")

    def _done(self) -> None:
        """Tell the carrier once when neither direction is of use to the application any more."""
        if self._taken and not self._finished and self._is_done():
            self._finished = True
            self._carrier.release(self._stream_id)

    def offer(self) -> None:
        """The carrier: the peer has opened it, and the application has not taken it yet."""
        self._taken = False

    def take(self) -> None:
        """The queue of incoming streams: the application has it now."""
        self._taken = True
        self._done()

    def _is_done(self) -> bool:
        raise TypeError("a stream has a direction")
