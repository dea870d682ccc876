"""The priority of a request (RFC 9218)."""

from __future__ import annotations

from dataclasses import dataclass

import http_sf

__all__ = ["Priority"]


@dataclass(frozen=True, slots=True)
class Priority:
    """How urgent a request is to a client; its session's streams are sent before those of less urgent ones.

    Args:
        urgency: from 0, the most urgent, to 7 (RFC 9218 section 4.1).
        incremental: whether a part of the response is of use (RFC 9218 section 4.2); it is passed on, and changes nothing here.

    Raises:
        ValueError: the urgency is out of its range.
    """

    urgency: int = 3
    incremental: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.urgency <= 7:
            raise ValueError(f"urgency is from 0 to 7, not {self.urgency}")

    @classmethod
    def parse(cls, value: bytes) -> Priority:
        """What a Priority field says; what is not valid in it is as if it were not there (RFC 9218 section 4)."""
        try:
            members = http_sf.parse(value, tltype="dictionary")
        except ValueError:
            return cls()
        assert isinstance(members, dict)
        # Each with its parameters, which mean nothing here.
        values = {name: item[0] for name, item in members.items() if isinstance(item, tuple)}
        urgency = values.get("u")
        if type(urgency) is not int or not 0 <= urgency <= 7:
            urgency = 3
        return cls(urgency, values.get("i") is True)

    def encode(self) -> str:
        """The value of a Priority field."""
        return f"u={self.urgency}, i" if self.incremental else f"u={self.urgency}"

    @property
    def base(self) -> int:
        """What it adds to the priorities of streams, which are higher for more urgent ones."""
        return (3 - self.urgency) * 1_000_000
