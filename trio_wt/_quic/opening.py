"""Opening a stream as a block."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Generic, TypeVar

from .carrier import Carrier
from .send_stream import SendStream
from .streams import Stream

__all__ = ["OpenStream"]

StreamT = TypeVar("StreamT", Stream, SendStream)


class OpenStream(AbstractAsyncContextManager[StreamT], Generic[StreamT]):
    """Opens a stream when its block is entered.

    Args:
        carrier: what it will stand on.
        kind: of both directions, or of one.
        priority: streams of a higher priority are sent first.
    """

    __slots__ = ("_carrier", "_kind", "_priority", "_stream")

    def __init__(self, carrier: Carrier, kind: type[StreamT], priority: int) -> None:
        self._carrier = carrier
        self._kind: type[StreamT] = kind
        self._priority = priority

    async def __aenter__(self) -> StreamT:
        carrier = self._carrier
        stream_id = await carrier.open(unidirectional=self._kind is SendStream)
        stream: StreamT = self._kind(carrier, stream_id)
        self._stream: StreamT = stream
        carrier.adopt(stream_id, stream)
        if self._priority:
            stream.priority = self._priority
        return await stream.__aenter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return await self._stream.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102
