"""Who may send next: first come, first served, when the buffer has room and no other message is half sent."""

from __future__ import annotations

from collections.abc import Callable

import trio

__all__ = ["Turns"]


class Turns:
    """The waiting rooms in front of a send buffer.

    Args:
        is_full: whether senders must wait for room; it says no once the connection has ended, so that they
            go on and find out.

    Attributes:
        fragmenting: a task sends a message in fragments, and no other message may begin.
        granted: somebody was woken for a turn and has not run yet; whoever comes now queues behind.
        queue: who waits for a turn to begin a message; made when first needed, as most connections never make
            anybody wait.
    """

    __slots__ = ("_is_full", "_room", "fragmenting", "granted", "queue")

    def __init__(self, is_full: Callable[[], bool]) -> None:
        self.fragmenting: bool = False
        self._is_full = is_full
        self.granted: bool = False
        self.queue: trio.lowlevel.ParkingLot | None = None
        # Fragments and pings need room only.
        self._room: trio.lowlevel.ParkingLot | None = None

    @property
    def contended(self) -> bool:
        """Whether a message that begins now would have to wait for others."""
        return bool(self.fragmenting or self.granted or self.queue)

    @property
    def must_queue(self) -> bool:
        """Whether a message that begins now would have to wait, for others or for room."""
        return self.contended or self._is_full()

    async def wait_room(self) -> bool:
        """Wait for room; whether it had to, and so was a full checkpoint."""
        if not self._is_full():
            await trio.lowlevel.checkpoint_if_cancelled()
            return False
        if self._room is None:
            self._room = trio.lowlevel.ParkingLot()
        while self._is_full():
            await self._room.park()
        return True

    async def wait_turn(self) -> bool:
        """Wait until a message may begin; whether it had to, and so was a full checkpoint.

        Whoever had to calls `pass_on` when the message is queued, or given up.
        """
        if not self.must_queue:
            await trio.lowlevel.checkpoint_if_cancelled()
            return False
        if self.queue is None:
            self.queue = trio.lowlevel.ParkingLot()
        while True:
            await self.queue.park()
            self.granted = False
            if not (self.fragmenting or self._is_full()):
                return True

    def room_changed(self) -> None:
        """The buffer has drained, or the connection has ended: wake who can go on now."""
        if not self._is_full():
            if self._room is not None:
                self._room.unpark_all()
            self.pass_on()

    def pass_on(self) -> None:
        """Let the next message begin, if one may."""
        if self.queue and not (self.fragmenting or self.granted or self._is_full()):
            self.granted = True
            self.queue.unpark()
