"""Who reads the transport: the reader task, or the task that waits for a message.

The reader hands a message to the task that waits for it by waking it, which costs a pass of Trio's scheduler. In a
conversation, message after message, the task that waits may as well read itself. So after waking it the reader lends the
transport: while that task waits, it reads, and the reader stands by. When the task stays away from the transport for a
moment, busy with something else, the reader takes it back, so a slow application still delays no ping for longer.

Only transports that can be interrupted are lent: whoever waits must hear at once of an end that another task brings.
"""

from __future__ import annotations

from typing import Final

import trio

from .._transport.transport import Interrupted, Transport
from .._util import Wakeup

__all__ = ["Readership"]

# For how long, in seconds, the borrower may stay away; noticed after twice as long at most.
_PATIENCE: Final = 0.01


class Readership:
    """The right to read a transport, for a reader and one task that waits.

    Attributes:
        lent: the reader must not read, but `stand_by`.
    """

    __slots__ = ("_alarmed", "_reading", "_reads", "_standing_by", "_transport", "_waiting", "lent")

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._waiting = Wakeup()
        self._standing_by = Wakeup()
        self.lent = False
        self._reading = False
        self._reads = 0
        # The reader sleeps without a clock, and is to be woken when the borrower stops reading.
        self._alarmed = False

    @property
    def waiting(self) -> bool:
        """Whether a task is in `wait`."""
        return self._waiting.task is not None or self._reading

    async def wait(self) -> bytes | None:
        """Wait for something to arrive, for the task that wants it. A checkpoint.

        Returns:
            bytes that it has read itself, ``b""`` at their end; None when another task has woken it.

        Raises:
            trio.BrokenResourceError: the transport broke.
            trio.ClosedResourceError: it was closed on this side.
            trio.BusyResourceError: another task waits.
        """
        if self._reading or self._waiting.task is not None:
            await trio.lowlevel.checkpoint()
            raise trio.BusyResourceError("another task is receiving from this connection")
        if not self.lent:
            await self._waiting.park()
            return None
        self._reading = True
        try:
            return await self._transport.receive()
        except Interrupted:
            return None
        finally:
            self._reading = False
            self._reads += 1
            if self._alarmed:
                self._alarmed = False
                self._standing_by.wake()

    def wake(self) -> bool:
        """Wake the task that waits; whether it was parked, and not reading."""
        if self._reading:
            self._transport.interrupt()
            return False
        parked = self._waiting.task is not None
        self._waiting.wake()
        return parked

    def lend(self) -> None:
        """The reader has woken the task that waits, and lets it read next time."""
        self.lent = self._transport.interruptible

    def take_back(self) -> None:
        """Somebody needs the reader to read now."""
        if self.lent:
            self.lent = False
            self._standing_by.wake()
            if self._reading:
                self._transport.interrupt()

    async def stand_by(self) -> None:
        """The reader's wait while the transport is lent; to be called again as long as it is."""
        reads = self._reads
        if not self._reading:
            with trio.move_on_after(_PATIENCE):
                await self._standing_by.park()
        if not self.lent:
            return
        if self._reading:
            self._alarmed = True
            await self._standing_by.park()
        elif reads == self._reads:
            self.lent = False
