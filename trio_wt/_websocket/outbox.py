"""What waits to be sent, on its way from the protocol to the transport."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

import trio

from .._protocol.websocket import WebSocketProtocol
from .._transport.transport import Pieces, Transport
from .._util import Wakeup

__all__ = ["Outbox"]

# A send that has waited so long, in seconds, is stuck: older pongs are superfluous then. Its deadline moves as seldom.
_STUCK: Final = 0.1


class Outbox:
    """The protocol's frames, sent by whoever has just made one if nothing is queued, and by the writer otherwise.

    Attributes:
        in_flight: bytes taken from the protocol that the transport has not taken yet.
        sent: bytes that the transport has taken.
        sending: whether the writer waits for the transport to take something.
        progress_at: since when, give or take 0.1 s.
        idle: where the writer parks when it has nothing to send.
    """

    __slots__ = (
        "_protocol",
        "_transport",
        "_unsent",
        "idle",
        "in_flight",
        "progress_at",
        "sending",
        "sent",
    )

    def __init__(self, protocol: WebSocketProtocol, transport: Transport) -> None:
        self._protocol = protocol
        self._transport = transport
        self._unsent: Pieces = []
        self.in_flight: int = 0
        self.sent: int = 0
        self.sending: bool = False
        self.progress_at: float = -inf
        self.idle: Wakeup = Wakeup()

    @property
    def size(self) -> int:
        """How many bytes wait, pongs not counted."""
        return self._protocol.outgoing_size + self.in_flight

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self.in_flight and not self._protocol.has_outgoing

    def flush(self) -> None:
        """Send what the protocol has, at once if nothing is queued, and leave the rest to the writer."""
        protocol = self._protocol
        if self.idle.task is not None and not self._unsent:
            data = protocol.take_only_piece()
            if data is not None:
                sent = self._transport.send_nowait(data)
                self.sent += sent
                if sent == len(data):
                    if protocol.closed is None:
                        return
                else:
                    self._unsent.append(memoryview(data)[sent:])
                    self.in_flight = len(data) - sent
        elif self.sending and trio.current_time() > self.progress_at + 2 * _STUCK:
            protocol.forget_old_pongs()
        self.idle.wake()

    async def drain(self, scope: trio.CancelScope, deadline: Callable[[], float]) -> None:
        """Send all there is, for the writer.

        Args:
            scope: the writer's scope, whose deadline is kept at what ``deadline`` says.
            deadline: when to give up, were there no more progress.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: the transport is gone.

        Cancelled, part of a frame may have gone: nothing can follow it.
        """
        self.in_flight += self._protocol.take_outgoing(self._unsent)
        self.sending = True
        try:
            while self._unsent:
                now = trio.current_time()
                if now >= self.progress_at + _STUCK or scope.deadline == inf:
                    self.progress_at = now
                    scope.deadline = deadline()
                await self._transport.send_some(self._unsent)
                left = sum(map(len, self._unsent))
                self.sent += self.in_flight - left
                self.in_flight = left
        finally:
            self.sending = False
