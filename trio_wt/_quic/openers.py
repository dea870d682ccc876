"""Tasks that wait to open streams, while the peer's limit on them is reached."""

from __future__ import annotations

from .._protocol.quic import Engine
from .._util import Wakeup
from .carrier import Carrier

__all__ = ["Openers"]


class _Turn:
    """A task's turn to open a stream; its number once it has come."""

    __slots__ = ("carrier", "stream_id", "wakeup")

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        self.wakeup = Wakeup()
        self.stream_id: int | None = None


class Openers:
    """Opens streams, first come, first served.

    Args:
        engine: knows the limits.
    """

    __slots__ = ("_engine", "_queues")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queues: tuple[list[_Turn], list[_Turn]] = ([], [])

    def __bool__(self) -> bool:
        return any(self._queues)

    def open_now(self, *, unidirectional: bool) -> int | None:
        """Open a stream, if that is possible and nobody waits."""
        if (
            self._queues[unidirectional]
            or self._engine.openable(unidirectional=unidirectional) <= 0
        ):
            return None
        return self._engine.open(unidirectional=unidirectional)

    async def wait(self, carrier: Carrier, *, unidirectional: bool) -> int:
        """Wait for a turn, and open a stream. A checkpoint.

        Raises:
            Exception: the end of the carrier.
        """
        queue = self._queues[unidirectional]
        turn = _Turn(carrier)
        queue.append(turn)
        try:
            await turn.wakeup.park()
        finally:
            if turn.stream_id is None and turn in queue:
                queue.remove(turn)
        if turn.stream_id is None:
            raise carrier.closed_error()
        return turn.stream_id

    def grant(self) -> None:
        """Let those go on for whom there is room now."""
        for unidirectional, queue in enumerate(self._queues):
            # Opened here, not by who waits: tasks that are woken together run in any order.
            while queue and self._engine.openable(unidirectional=bool(unidirectional)) > 0:
                turn = queue.pop(0)
                turn.stream_id = self._engine.open(unidirectional=bool(unidirectional))
                turn.wakeup.wake()

    def give_up(self, carrier: Carrier | None = None) -> None:
        """There will be no more streams, for one carrier or for all."""
        for queue in self._queues:
            for turn in list(queue):
                if carrier is None or turn.carrier is carrier:
                    queue.remove(turn)
                    turn.wakeup.wake()
