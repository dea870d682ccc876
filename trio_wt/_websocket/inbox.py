"""Messages that have arrived and were not taken yet: a bounded queue, without any waiting of its own."""

from __future__ import annotations

from codecs import IncrementalDecoder, getincrementaldecoder
from collections import deque
from typing import TypeAlias

from .._protocol.events import Fragment

__all__ = ["Assembly", "Inbox"]

# A piece from here on is kept as it came: joining it in place would cost a copy more.
_LARGE = 4096
# How long a queue may be for the cost of taking from a list's front not to matter.
_SHORT = 64


class Assembly:
    """A message that arrives in pieces; small ones are joined in place, so that only their bytes cost memory.

    Attributes:
        text: whether it is text.
        final: whether all of it has arrived.
        queued: whether it stands in the queue, and not with a stream.
    """

    __slots__ = ("_abandoned", "_decoder", "_pieces", "_size", "final", "queued", "text")

    def __init__(self, text: bool) -> None:
        self.text: bool = text
        self.final: bool = False
        self.queued: bool = True
        self._abandoned = False
        self._pieces: list[bytes | bytearray] = []
        self._size = 0
        self._decoder: IncrementalDecoder | None = None

    def __len__(self) -> int:
        return self._size

    def add(self, data: bytes) -> None:
        """Append a piece."""
        if self._abandoned:
            return
        self._size += len(data)
        last = self._pieces[-1] if self._pieces else None
        if len(data) >= _LARGE:
            self._pieces.append(data)
        elif isinstance(last, bytearray):
            last += data
        else:
            self._pieces.append(bytearray(data))

    def abandon(self) -> None:
        """Nobody wants the rest: drop it, now and as it comes."""
        self._abandoned = True
        self.queued = False
        self._take_bytes()

    def _take_bytes(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        return data

    def whole(self) -> str | bytes:
        """The message, once it is final."""
        data = self._take_bytes()
        return str(data, "utf-8") if self.text else data

    def take(self) -> str | bytes:
        """What has come since the last call; of text, all whole characters."""
        data = self._take_bytes()
        if not self.text:
            return data
        if self._decoder is None:
            self._decoder = getincrementaldecoder("utf-8")()
        return self._decoder.decode(data, self.final)


_Item: TypeAlias = "str | bytes | Assembly"


def weight(message: str | bytes) -> int:
    """What a message counts against the limit: its bytes, for text as many as they can be at most."""
    if isinstance(message, str) and not message.isascii():
        return 4 * len(message)
    return len(message)


class Inbox:
    """Whole messages in order, and at the end perhaps one that is still arriving.

    Args:
        max_messages: how many messages may wait.
        max_bytes: how many bytes may wait.
    """

    __slots__ = (
        "_arriving",
        "_max_bytes",
        "_max_messages",
        "_queue",
        "_size",
        "_streamed",
        "greedy",
    )

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        # A short list costs an idle connection a tenth of what a deque does.
        self._queue: list[_Item] | deque[_Item] = [] if max_messages <= _SHORT else deque()
        self._size = 0  # of the whole messages
        self._arriving: Assembly | None = None
        self._streamed: Assembly | None = None
        #: somebody waits for the whole of a message that is arriving: the limit must not stop it
        self.greedy: bool = False

    @property
    def messages(self) -> int:
        """How many messages wait, one that is arriving included."""
        return len(self._queue)

    @property
    def size(self) -> int:
        """How many bytes wait."""
        size = self._size
        if self._arriving is not None:
            size += len(self._arriving)
        if self._streamed is not None and self._streamed is not self._arriving:
            size += len(self._streamed)
        return size

    def room(self) -> tuple[int, int]:
        """How many messages and bytes may still be put; a zero means full."""
        messages = self._max_messages - len(self._queue)
        arriving = self._arriving
        if arriving is None and self._streamed is None:
            return messages, self._max_bytes - self._size
        if arriving is not None and arriving.queued:
            messages += 1  # it has its place already
        room = self._max_bytes - self.size
        if self.greedy and len(self._queue) == 1 and arriving is not None:
            room = max(room, 65536)
        return messages, room

    def put(self, event: str | bytes | Fragment) -> None:
        """Append a message, or a piece of the one that is arriving."""
        if not isinstance(event, Fragment):
            self._queue.append(event)
            self._size += weight(event)
            return
        if event.first:
            self._arriving = Assembly(event.text)
            self._queue.append(self._arriving)
        assembly = self._arriving
        assert assembly is not None
        assembly.add(event.data)
        if event.final:
            assembly.final = True
            self._arriving = None
            if assembly.queued:
                message = assembly.whole()
                self._queue[-1] = message
                self._size += weight(message)

    def take(self) -> str | bytes | None:
        """The next message, if all of it is there."""
        if not self._queue or isinstance(self._queue[0], Assembly):
            return None
        message = self._pop()
        assert not isinstance(message, Assembly)
        self._size -= weight(message)
        return message

    def take_all(self, limit: int | None) -> list[str | bytes]:
        """All whole messages, at most ``limit``."""
        queue = self._queue
        if self._arriving is None and (limit is None or len(queue) <= limit):
            messages: list[str | bytes] = list(queue)  # type: ignore[arg-type]
            queue.clear()
            self._size = 0
            return messages
        messages = []
        while len(messages) != limit and (message := self.take()) is not None:
            messages.append(message)
        return messages

    def _pop(self) -> _Item:
        return self._queue.pop(0) if isinstance(self._queue, list) else self._queue.popleft()

    @property
    def begun(self) -> bool:
        """Whether a message waits or has begun to arrive, so that `stream` has something."""
        return bool(self._queue)

    @property
    def ready(self) -> bool:
        """Whether `take` would give a message."""
        return bool(self._queue) and not isinstance(self._queue[0], Assembly)

    @property
    def streaming(self) -> bool:
        """Whether a message given by `stream` is not released yet."""
        return self._streamed is not None

    def stream(self) -> Assembly:
        """The next message, to be taken in pieces; `release` it before anything else is taken."""
        head = self._pop()
        if not isinstance(head, Assembly):
            self._size -= weight(head)
            assembly = Assembly(isinstance(head, str))
            assembly.add(head.encode() if isinstance(head, str) else head)
            assembly.final = True
            head = assembly
        head.queued = False
        self._streamed = head
        return head

    def release(self) -> None:
        """The message given by `stream` is done with; what has not arrived of it yet will be dropped."""
        if self._streamed is not None:
            self._streamed.abandon()
            self._streamed = None

    def clear(self) -> None:
        """Drop everything."""
        self._queue.clear()
        self._size = 0
        if self._arriving is not None:
            self._arriving.abandon()
