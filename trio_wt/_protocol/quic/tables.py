"""aioquic walks all open streams for each packet; these hold the few that matter, with the same face."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from aioquic.quic.stream import QuicStream

__all__ = ["ActiveStreams", "Streams"]


class Streams(dict[int, QuicStream]):
    """All streams; but `values`, which is walked for each packet, gives those whose window is to be announced.

    Args:
        on_discard: gets the id of each stream that is forgotten.

    Attributes:
        dirty: the ids of those whose window is to be announced.
    """

    def __init__(self, on_discard: Callable[[int], None]) -> None:
        super().__init__()
        self.dirty: set[int] = set()
        self._on_discard = on_discard

    def pop(self, stream_id: int, *default: Any) -> Any:
        """Forget a stream."""
        self.dirty.discard(stream_id)
        self._on_discard(stream_id)
        return super().pop(stream_id, *default)

    def values(self) -> Any:
        """The streams whose window is to be announced."""
        return [self[stream_id] for stream_id in self.dirty if stream_id in self]

    def every(self) -> Iterable[QuicStream]:
        """All streams."""
        return dict.values(self)


class ActiveStreams:
    """The streams that have something to send, or that are finished, in their order of service.

    A stream gets here by a call, a frame, or the fate of a packet. Those served go behind the others; of two streams the one
    with the higher priority comes first.

    Attributes:
        priorities: the priorities that are not 0, by stream.
    """

    __slots__ = ("_streams", "priorities")

    def __init__(self) -> None:
        self._streams: dict[int, QuicStream] = {}
        self.priorities: dict[int, int] = {}

    def __iter__(self) -> Iterator[QuicStream]:
        return iter(self.in_order())

    def __len__(self) -> int:
        return len(self._streams)

    def in_order(self) -> list[QuicStream]:
        """The streams as they are to be served next."""
        streams = list(self._streams.values())
        if self.priorities:
            streams.sort(key=lambda stream: -self.priorities.get(stream.stream_id or 0, 0))
        return streams

    def append(self, stream: QuicStream) -> None:
        """Something is to be done for a stream."""
        assert stream.stream_id is not None
        self._streams.setdefault(stream.stream_id, stream)

    def remove(self, stream_id: int) -> None:
        """A stream is no more."""
        self._streams.pop(stream_id, None)

    def extend(self, served: Iterable[QuicStream]) -> None:
        """These were served, and go to the end."""
        for stream in served:
            assert stream.stream_id is not None
            self._streams.pop(stream.stream_id, None)
            self._streams[stream.stream_id] = stream

    def review(self, stream: QuicStream) -> None:
        """The only one was served: forget it if nothing is left to do for it."""
        if not _has_work(stream):
            self._streams.clear()

    def keep(self, streams: Iterable[QuicStream]) -> None:
        """Only these, as far as something is left to do for them."""
        self._streams = {
            stream.stream_id: stream
            for stream in streams
            if stream.stream_id is not None and _has_work(stream)
        }


def _has_work(stream: QuicStream) -> bool:
    sender = stream.sender
    return (
        not sender.buffer_is_empty
        or sender.reset_pending
        or stream.receiver.stop_pending
        or stream.is_finished
    )
