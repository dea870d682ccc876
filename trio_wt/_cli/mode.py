"""How `trio-wt connect` talks, and to whom: a person or a script; and the signals that end it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from .._errors import ConnectionClosed

__all__ = ["Mode", "until_signalled"]


@dataclass(frozen=True, slots=True)
class Mode:
    """What the options say about the conversation.

    Attributes:
        binary: standard input and output are bytes, not lines.
        linger: seconds to go on receiving after the input's end.
        keep_history: what is entered is kept for the next time.
    """

    binary: bool
    linger: float
    keep_history: bool

    @property
    def interactive(self) -> bool:
        """Whether there is a terminal, on which lines can be edited, to talk to a person."""
        return (
            not self.binary
            and sys.stdin is not None
            and sys.stdin.isatty()
            and sys.stdout.isatty()
            and os.environ.get("TERM") not in ("dumb", "unknown")
        )


async def until_signalled(
    talk: Callable[[], Awaitable[ConnectionClosed | None]],
    goodbye: Callable[[], None] | None = None,
) -> tuple[ConnectionClosed | None, signal.Signals | None]:
    """Talk until it ends: by the peer, by this side, or by a signal.

    Args:
        talk: returns how it ended; None if by this side.
        goodbye: called at a signal, before all that goes on is cancelled.

    Returns:
        that, and the signal.
    """
    end: ConnectionClosed | None = None
    caught: signal.Signals | None = None
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal caught
                caught = signal.Signals(await anext(signals))
                if goodbye is not None:
                    goodbye()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            end = await talk()
            nursery.cancel_scope.cancel()
    return end, caught
