"""What can be wrong with a typed message."""

from __future__ import annotations

import trio

from .._errors import IncompleteRead, PeersDoing, TrioWTError
from .._util import safe_text

__all__ = ["IncompleteMessage", "InvalidMessage", "MessageTooLarge", "MissingExtra", "StreamEnded"]


class InvalidMessage(PeersDoing, ValueError):
    """A message has come that is not what it should be.

    A codec's ``decode`` may raise it too, or any other `ValueError`, which `MessageChannel` turns into one of these.

    Args:
        reason: what is wrong.
        path: where in the message.
        kind: what should have come, such as "JSON message of Chat | Join".

    What is given is cut to a line's length, and control characters in it are escaped, since it may hold what the peer sent.

    Attributes:
        reason: what is wrong.
        path: the field that is wrong, such as "$.user.age"; "" if it is not known, or all of the message is wrong.
        kind: what should have come.
    """

    def __init__(self, reason: str, path: str = "", kind: str = "message") -> None:
        self.reason: str = safe_text(reason)
        self.path: str = safe_text(path, 100)
        self.kind: str = safe_text(kind, 100)
        super().__init__(self.reason, self.path, self.kind)

    def __str__(self) -> str:
        where = f", at {self.path}" if self.path else ""
        return f"this is no valid {self.kind}: {self.reason}{where}"


class MessageTooLarge(TrioWTError, ValueError):
    """A message is larger than its channel allows, so it was not sent.

    Attributes:
        size: its size in bytes, encoded.
        max_size: the channel's limit.
    """

    def __init__(self, size: int, max_size: int) -> None:
        super().__init__(size, max_size)
        self.size: int = size
        self.max_size: int = max_size

    def __str__(self) -> str:
        return (
            f"the message has {self.size} bytes, and the max_size of its channel is {self.max_size}"
        )


class IncompleteMessage(IncompleteRead):
    """A stream ended inside a message.

    Attributes:
        received: how many bytes of it have come, its length included.
    """

    def __str__(self) -> str:
        return f"the stream ended inside a message, of which {self.received} bytes have come"


class StreamEnded(PeersDoing, trio.EndOfChannel):
    """The peer has ended a channel's stream: no more messages come."""

    def __str__(self) -> str:
        return "the stream has ended"


class MissingExtra(TrioWTError, ImportError):
    """Something needs a package that is not installed.

    Attributes:
        user: what needs it.
        extra: the extra of this package that installs it.
    """

    def __init__(self, user: str, extra: str) -> None:
        super().__init__(user, extra)
        self.user: str = user
        self.extra: str = extra

    def __str__(self) -> str:
        return f'{self.user} needs a package that is missing: pip install "trio-wt[{self.extra}]"'
