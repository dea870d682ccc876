"""One subscriber of a topic: its block, its queue, and what becomes of it when it is too slow.

General theory of operation:

A message goes to the outlet at once, from the publisher's task, as long as nothing waits. What the outlet has no room for
waits in the queue, and from then on so does all that follows: a writer, which is started then and ends when the queue is
empty, hands it on. So a subscriber that keeps up costs no task, and the order stays that of publication.

The end: `lost`, which anybody may call, takes the subscription off its topic and tells whoever waits for it. The block goes on;
its session says itself what has happened. Only a subscriber that was too slow has its block cancelled.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Final, Generic, Literal, Self, TypeAlias, TypeVar, cast

import trio

from .._errors import ConnectionClosed, ConnectionClosedError
from .._transport.services import Services
from .._util import Wakeup
from ._outlets import TOO_SLOW, TOO_SLOW_CODE, Offer, Outlet, Parcel

if TYPE_CHECKING:
    from ._topic import Topic

__all__ = ["Slow", "Subscription", "TooSlow", "Wait"]

T = TypeVar("T")

# The queue of all that have queued nothing: an empty deque of their own would cost each some 760 bytes.
_NOTHING: Final[deque[Parcel]] = deque(maxlen=0)

#: What becomes of a subscriber whose queue is full.
Slow: TypeAlias = Literal["drop oldest", "drop newest", "disconnect", "wait"]


class TooSlow(ConnectionClosedError):
    """A subscriber did not keep up, and its policy is to disconnect such ones.

    The block of `Topic.subscribe` raises it, unless `Subscription.receive` has raised it before. ``code`` is 1008, ``reason`` is
    "too slow", ``remote`` is False.
    """

    def __str__(self) -> str:
        return (
            f"the subscriber was too slow, and was disconnected with code {self.code}; raise its limit, "
            "or choose another policy"
        )


class Wait:
    """A publisher that waits for subscribers.

    Args:
        parcel: what for.
        left: for how many.

    Attributes:
        taken: how many have taken it since.
        wakeup: where it is parked.
    """

    __slots__ = ("left", "parcel", "taken", "wakeup")

    def __init__(self, parcel: Parcel, left: int) -> None:
        self.parcel: Parcel = parcel
        self.left: int = left
        self.taken: int = 0
        self.wakeup: Wakeup = Wakeup()

    def resolve(self, *, taken: bool) -> None:
        """One of them has taken it, or never will."""
        self.taken += taken
        self.left -= 1
        if not self.left:
            self.wakeup.wake()


class Subscription(Generic[T]):
    """A subscriber of a topic, for as long as its block lasts; `Topic.subscribe` makes it.

    Leaving the block normally sends what waits, for the ``close_timeout`` of the subscriber's session at most (5 seconds where it
    has none); a deadline of an outer scope that passes meanwhile is heeded only after that. Leaving it by an exception or a
    cancellation drops what waits.

    With no session it is in this process: iterate over it, or call `receive`.

    Attributes:
        cancel_scope: covers the block.
        dropped: messages that it will not get: the policy has left them out, or they still waited at the end.
        sent: messages that its session took, or that `receive` gave.
    """

    __slots__ = (
        "_bug",
        "_bytes",
        "_drained",
        "_ended",
        "_is_cut_short",
        "_is_gone",
        "_is_lost",
        "_is_told",
        "_is_too_slow",
        "_is_writing",
        "_limit",
        "_limit_bytes",
        "_more",
        "_outlet",
        "_queue",
        "_services",
        "_slow",
        "_topic",
        "_under_way",
        "_waits",
        "cancel_scope",
        "dropped",
        "sent",
    )

    def __init__(
        self,
        topic: Topic[T],
        outlet: Outlet | None,
        *,
        slow: Slow,
        limit: int,
        limit_bytes: int,
    ) -> None:
        self.cancel_scope: trio.CancelScope = trio.CancelScope()
        self.dropped: int = 0
        self.sent: int = 0
        self._topic = topic
        self._outlet = outlet
        self._slow: Slow = slow
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._services: Services | None = None
        self._queue: deque[Parcel] = _NOTHING
        self._bytes = 0
        # How many the outlet has taken from the queue, and not yet handed on: none or one.
        self._under_way = 0
        # Everything goes through the queue: the writer is at work, or there is no outlet.
        self._is_writing = outlet is None
        self._is_gone = False
        self._is_too_slow = False
        # Who receives has been told that.
        self._is_told = False
        # Nothing can be sent any more; not all of it was.
        self._is_lost = False
        self._is_cut_short = False
        # What an outlet raised that is no end of its carrier.
        self._bug: Exception | None = None
        # Publishers in line, if the policy is to wait; made when first needed.
        self._waits: deque[Wait] | None = None
        # Where the writer, or who receives, waits for messages; where the block's end waits for the writer.
        self._more = Wakeup()
        self._drained = Wakeup()
        self._ended: trio.Event | None = None

    def __repr__(self) -> str:
        state = "closed" if self._is_gone else "open"
        return f"<Subscription {state}, {self._slow}, {self.queued} queued>"

    # ---- figures

    @property
    def queued(self) -> int:
        """How many messages wait."""
        return len(self._queue) + self._under_way

    @property
    def queued_bytes(self) -> int:
        """How many bytes those are, less the one that is being sent."""
        return self._bytes

    @property
    def publishers_waiting(self) -> int:
        """How many publishers wait for room."""
        return len(self._waits) if self._waits is not None else 0

    @property
    def slow(self) -> Slow:
        """The policy."""
        return self._slow

    @property
    def closed(self) -> bool:
        """Whether it gets nothing more: its block has ended, it was too slow, or its session was found to have ended."""
        return self._is_gone

    async def wait_closed(self) -> None:
        """Wait until it gets nothing more.

        That a stream was stopped by its peer is found out when something is to be sent.
        """
        await trio.lowlevel.checkpoint()
        if not self._is_gone:
            if self._ended is None:
                self._ended = trio.Event()
            await self._ended.wait()

    # ---- the block

    async def __aenter__(self) -> Self:
        if self._services is not None:
            await trio.lowlevel.checkpoint()
            raise RuntimeError("a subscription has one block: subscribe again")
        services = self._services = Services(self.cancel_scope, self._goodbye, self._broke)
        if self._outlet is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._outlet.open()
        await services.__aenter__()
        self._topic._entered(self, encodes=self._encodes)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        assert self._services is not None
        swallowed = False
        try:
            swallowed = await self._services.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102
        finally:
            if self._outlet is not None:
                await self._outlet.close(exc, complete=not self._is_cut_short)  # noqa: ASYNC102
        if exc is None or swallowed:
            if self._bug is not None:
                raise self._bug
            if self._is_too_slow and not self._is_told:
                raise self._error()
        elif self._is_too_slow and self._outlet is not None and isinstance(exc, ConnectionClosed):
            raise self._error() from exc
        return swallowed

    @property
    def _encodes(self) -> bool:
        return self._outlet is not None and self._outlet.encodes

    def _error(self) -> TooSlow:
        return TooSlow(TOO_SLOW_CODE, TOO_SLOW, remote=False)

    async def _goodbye(self, exc: BaseException | None) -> None:
        """Bounded by the outlet's patience."""
        self._leave()
        outlet = self._outlet
        if outlet is not None and (exc is None or self._is_too_slow):
            deadline = trio.current_time() + outlet.patience
            with trio.CancelScope(deadline=deadline):
                while self.queued and not self._is_lost:
                    await self._drained.park()
            self._is_cut_short = bool(self.queued)
            if self._is_too_slow:
                with trio.CancelScope(deadline=deadline):
                    await outlet.part()
        self._drop_all()

    def _leave(self) -> None:
        """Get nothing more."""
        if self._is_gone:
            return
        self._is_gone = True
        self._topic._left(self, encodes=self._encodes)
        if self._waits is not None:
            for wait in self._waits:
                wait.resolve(taken=False)
            self._waits.clear()
        if self._ended is not None:
            self._ended.set()
        if self._outlet is None:
            self._more.wake()

    def lost(self) -> None:
        """Nothing can be sent any more."""
        self._leave()
        self._is_lost = True
        self._drop_all()
        self._drained.wake()

    def _drop_all(self) -> None:
        self._drop(self.queued)
        self._queue = _NOTHING
        self._bytes = self._under_way = 0

    def _drop(self, count: int) -> None:
        self.dropped += count
        self._topic._dropped += count

    def _broke(self, exc: Exception) -> None:
        if not isinstance(
            exc, trio.BrokenResourceError | trio.ClosedResourceError | trio.EndOfChannel
        ):
            self._bug = exc
            self.cancel_scope.cancel()
        self.lost()

    # ---- messages come

    def take_in(self, parcel: Parcel) -> Offer:
        """A message for it: hand it on, or put it into the queue, as the policy says.

        Returns:
            TAKEN; FULL if a publisher must wait; UNFIT if it is left out; GONE if it gets nothing more.
        """
        if not self._is_writing:
            assert self._outlet is not None
            offer = self._outlet.offer(parcel)
            if offer is Offer.TAKEN:
                self.sent += 1
                return offer
            if offer is Offer.GONE:
                self.lost()
                return offer
            if offer is Offer.UNFIT:
                self._drop(1)
                return offer
        elif self.must_wait_for(parcel.size):
            if self._slow == "wait":
                return Offer.FULL
            if self._slow == "drop oldest":
                self._drop_for(parcel.size)
            else:
                self._drop(1)
                if self._slow == "drop newest":
                    return Offer.UNFIT
                self._disconnect()
                return Offer.GONE
        self._enqueue(parcel)
        return Offer.TAKEN

    def must_wait_for(self, size: int) -> bool:
        """Whether a message of so many bytes has no room, or a publisher is in line before it."""
        return bool(self._waits) or self._is_full_for(size)

    def _is_full_for(self, size: int) -> bool:
        """The empty queue has room for any."""
        queue = self._queue
        return bool(queue) and (len(queue) >= self._limit or self._bytes + size > self._limit_bytes)

    def _drop_for(self, size: int) -> None:
        while self._is_full_for(size):
            self._bytes -= self._queue.popleft().size
            self._drop(1)

    def _append(self, parcel: Parcel) -> None:
        if self._queue is _NOTHING:
            self._queue = deque()
        self._queue.append(parcel)
        self._bytes += parcel.size

    def _enqueue(self, parcel: Parcel) -> None:
        self._append(parcel)
        if self._is_writing:
            self._more.wake()
        else:
            self._is_writing = True
            assert self._services is not None
            self._services.start_soon(self._write, name="trio_wt topic writer")

    def _disconnect(self) -> None:
        self._is_too_slow = True
        self._topic._disconnected += 1
        if self._outlet is not None:
            self._outlet.cut(self)
            self._drained.wake()
            self.cancel_scope.cancel()
        self._leave()

    def wait(self, wait: Wait) -> None:
        """A publisher waits for room from now on, behind those that do already."""
        if self._waits is None:
            self._waits = deque()
        self._waits.append(wait)

    def give_up(self, wait: Wait) -> None:
        """It does not any more."""
        if self._waits is not None and wait in self._waits:
            self._waits.remove(wait)
            self._let_in()

    def _let_in(self) -> None:
        """Publishers in line for whose messages there is room now. As long as there is a line, the queue is not empty."""
        waits = self._waits
        while waits:
            wait = waits[0]
            # Else it is cancelled, and has yet to say so: it has sent nothing.
            if wait.wakeup.parked:
                if self._is_full_for(wait.parcel.size):
                    break
                self._append(wait.parcel)
                wait.resolve(taken=True)
            waits.popleft()

    # ---- messages go

    async def _write(self, _: trio.CancelScope) -> None:
        """Hand on what waits, as a service; where nothing can be taken at once, until the block ends."""
        outlet = self._outlet
        assert outlet is not None
        while True:
            await outlet.serve(self)
            self._drained.wake()
            if outlet.is_direct:
                self._is_writing = False
                self._queue = _NOTHING
                return
            while not self._queue:
                await self._more.park()

    @property
    def waiting(self) -> bool:
        """For the outlet: whether messages wait."""
        return bool(self._queue)

    def take(self) -> Parcel:
        """For the outlet: the next one; it is under way from now on."""
        parcel = self._queue.popleft()
        self._bytes -= parcel.size
        self._under_way = 1
        self._let_in()
        return parcel

    def delivered(self) -> None:
        """For the outlet: the one under way is the carrier's."""
        self._under_way = 0
        self.sent += 1

    # ---- in this process

    def receive_nowait(self) -> T:
        """The next message, if one waits. Only for a subscriber in this process.

        Raises:
            trio.WouldBlock: none does.
            TooSlow: it was too slow, and has received all that it had been given until then.
            trio.ClosedResourceError: its block has ended.
            RuntimeError: messages go to its session.
        """
        if self._outlet is not None:
            raise RuntimeError("the messages of this subscription go to its session")
        if self._queue:
            value = cast("T", self.take().value)
            self.delivered()
            return value
        if self._is_too_slow:
            self._is_told = True
            raise self._error()
        if self._is_gone:
            raise trio.ClosedResourceError("the block of the subscription has ended")
        raise trio.WouldBlock

    async def receive(self) -> T:
        """The next message. Only for a subscriber in this process. Cancelled, none was received.

        Raises:
            TooSlow: it was too slow, and has received all that it had been given until then.
            trio.BusyResourceError: another task is receiving.
            trio.ClosedResourceError: its block has ended.
            RuntimeError: messages go to its session.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._more.parked and self._outlet is None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise trio.BusyResourceError("another task is receiving from this subscription")
        while True:
            try:
                value = self.receive_nowait()
            except trio.WouldBlock:
                pass
            except BaseException:
                await trio.lowlevel.cancel_shielded_checkpoint()
                raise
            else:
                break
            await self._more.park()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return value

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        return await self.receive()
