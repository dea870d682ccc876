"""Rooms: one message to many subscribers, whatever carries it to each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar, get_args
from weakref import WeakValueDictionary

import trio

from ._codecs import check_codec
from ._outlets import Offer, Parcel, Subscriber, Via, outlet_for
from ._subscription import Slow, Subscription, Wait

__all__ = ["Encoder", "Rooms", "Topic", "TopicStatistics"]

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

_POLICIES: Final = get_args(Slow)


class Encoder(Protocol[T_contra]):
    """What turns messages into what is sent: the half of a codec that a topic needs."""

    def encode(self, message: T_contra, /) -> str | bytes:
        """The message as text or bytes."""


@dataclass(frozen=True, slots=True)
class TopicStatistics:
    """Figures of a topic at one moment.

    Attributes:
        subscribers: how many there are.
        published: messages that were published since the topic was made.
        taken: how often a subscriber has taken one, summed over all messages.
        dropped: how often one was dropped for a subscriber that had no room, or left before it was sent.
        disconnected: subscribers that were disconnected for being too slow.
        queued: messages that wait, summed over all subscribers.
        queued_bytes: their bytes.
        publishers_waiting: how often a publisher waits for a subscriber.
    """

    subscribers: int
    published: int
    taken: int
    dropped: int
    disconnected: int
    queued: int
    queued_bytes: int
    publishers_waiting: int


class Topic(Generic[T]):
    """Messages for many subscribers: WebSockets, WebTransport sessions, streams, channels, and tasks of this process.

    A message is encoded once and framed once for each kind of carrier. Subscribers that keep up get it before `publish` returns;
    for each that does not, a queue of its own takes it, and a policy of its own says what happens when that is full. No
    subscriber makes another one wait, but all of the policy "wait" make the publisher wait. Each gets its messages in the order
    in which they were published.

    Args:
        codec: what encodes messages for WebSockets, streams and datagrams; None if they are `str` or bytes-like already.

    Raises:
        TypeError: the codec is none.
    """

    __slots__ = (
        "__weakref__",
        "_codec",
        "_disconnected",
        "_dropped",
        "_encoding",
        "_published",
        "_subscribers",
        "_taken",
        "_waiting",
    )

    def __init__(self, codec: Encoder[T] | None = None) -> None:
        if codec is not None:
            check_codec(codec, "encode")
        self._codec = codec
        # In the order in which they have come; those of the policy "wait" once more.
        self._subscribers: dict[Subscription[T], None] = {}
        self._waiting: dict[Subscription[T], None] = {}
        # How many need messages as bytes.
        self._encoding = 0
        self._published = self._taken = self._dropped = self._disconnected = 0

    def __len__(self) -> int:
        """How many subscribers there are."""
        return len(self._subscribers)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<Topic, {len(self)} subscribers>"

    # ---- subscribing

    def subscribe(
        self,
        session: Subscriber | None = None,
        *,
        slow: Slow = "drop oldest",
        limit: int = 64,
        limit_bytes: int = 2**20,
        via: Via | None = None,
    ) -> Subscription[T]:
        """A block in which a subscriber gets the messages: ``async with topic.subscribe(ws):``.

        Args:
            session: where they go.

                - `WebSocket`: each is a message, of text if it is `str`. Server connections share one frame, which is never
                  compressed.
                - `WebTransportSession`, or `Connection` for QUIC: as ``via`` says.
                - any stream: each has its length before it, in 4 bytes, the most significant first. Nothing else may be sent on the
                  stream meanwhile. It stays open after the block, unless that ends in the middle of a message: then it is reset,
                  with the code that a stream's own block would give it, or, if it is none of this package's, closed at once.
                - `Datagrams`: each in a datagram.
                - any `trio.abc.SendChannel`: each as it was published, not encoded.
                - None: nowhere; iterate over the subscription.
            slow: what happens when its queue is full.

                - "drop oldest": the message that has waited longest makes room.
                - "drop newest": the new message is left out for it.
                - "disconnect": it gets what waits, its session is closed with code 1008 and the reason "too slow" (a stream is reset with
                  the code, a channel closed), its block is cancelled, and raises `TooSlow`. With no session, `Subscription.receive` raises
                  that, once what waited was received, and so does the end of the block if it has not.
                - "wait": `publish` waits until there is room.
            limit: how many messages may wait, beyond what the session's own buffer takes.
            limit_bytes: how many bytes those may have, text as UTF-8. A message that alone has more is taken by an empty queue. Other
                objects, if no subscriber needs them encoded, count by number only.
            via: how they go over a session: "stream" is one stream for all, with lengths as above, and the default; "streams" is a stream for
                each, which arrive in any order; "datagrams" is a datagram for each, where one that does not fit is left out and counted.

        Datagrams never wait here: the connection drops the oldest, so for them ``slow`` must be "drop oldest".

        Subscribers whose session has ended are passed over. That neither ends the block nor raises anything: the session says so
        itself. Entering the block raises what opening a stream does, for a session.

        Raises:
            TypeError: nothing can be sent to such a session.
            ValueError: there is no such policy or way, or a limit is less than 1.
        """
        if slow not in _POLICIES:
            raise ValueError(f"slow is one of {', '.join(map(repr, _POLICIES))}, not {slow!r}")
        if limit < 1 or limit_bytes < 1:
            raise ValueError("limit and limit_bytes must be 1 or more")
        if session is None and via is not None:
            raise ValueError("via is for a session, and there is none")
        outlet = None if session is None else outlet_for(session, via)
        if outlet is not None and outlet.never_waits and slow != "drop oldest":
            raise ValueError(f'datagrams never wait: slow can only be "drop oldest", not {slow!r}')
        return Subscription(self, outlet, slow=slow, limit=limit, limit_bytes=limit_bytes)

    def _entered(self, subscription: Subscription[T], *, encodes: bool) -> None:
        self._subscribers[subscription] = None
        self._encoding += encodes
        if subscription.slow == "wait":
            self._waiting[subscription] = None

    def _left(self, subscription: Subscription[T], *, encodes: bool) -> None:
        del self._subscribers[subscription]
        self._encoding -= encodes
        self._waiting.pop(subscription, None)

    # ---- publishing

    async def publish(self, message: T) -> int:
        """Give a message to all subscribers.

        Those that have room have it at once. Then it waits for those of the policy "wait" that have none, or that other
        publishers wait for already: these are served in turn.

        Args:
            message: the message; a buffer may be changed by its owner afterwards.

        Returns:
            how many subscribers have taken it.

        Raises:
            TypeError: it cannot be sent as it is, and there is no codec.
            ValueError: it has 2^32 bytes or more, or is text that cannot be UTF-8.
            Exception: what the codec raised. Nobody got the message then.

        Cancelled, those that had room have it whole, and the others have nothing of it.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            parcel = self._pack(message)
        except BaseException:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise
        full: list[Subscription[T]] = []
        taken = self._spread(parcel, full)
        if not full:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return taken
        wait = Wait(parcel, len(full))
        for subscription in full:
            subscription.wait(wait)
        try:
            await wait.wakeup.park()
        finally:
            for subscription in full:
                subscription.give_up(wait)
            self._taken += wait.taken
        return taken + wait.taken

    def publish_nowait(self, message: T) -> int:
        """`publish` from synchronous code: no subscriber is waited for.

        Raises:
            trio.WouldBlock: a subscriber of the policy "wait" has no room, or publishers wait for it; nobody got the message.
            TypeError, ValueError: as for `publish`.
            Exception: what the codec raised. Nobody got the message then.
        """
        parcel = self._pack(message)
        for subscription in self._waiting:
            if subscription.must_wait_for(parcel.size):
                raise trio.WouldBlock("a subscriber that is to be waited for has no room now")
        return self._spread(parcel, [])

    def _pack(self, message: T) -> Parcel:
        value: Any = message
        if isinstance(value, bytearray | memoryview):
            value = bytes(value)
        if not self._encoding:
            return Parcel(value, None, text=False)
        encoded = value if self._codec is None else self._codec.encode(value)
        if isinstance(encoded, str):
            return Parcel(value, encoded.encode(), text=True)
        if isinstance(encoded, bytes | bytearray | memoryview):
            return Parcel(value, bytes(encoded), text=False)
        if self._codec is None:
            raise TypeError(
                f"a message is str or bytes-like, not {type(value).__name__}: give the topic a codec for others"
            )
        raise TypeError(f"the codec made {type(encoded).__name__} of a message, not str or bytes")

    def _spread(self, parcel: Parcel, full: list[Subscription[T]]) -> int:
        """Give a parcel to all who have room; those that must be waited for are added to ``full``."""
        taken = 0
        # Who is lost on the way leaves the dictionary.
        for subscription in list(self._subscribers):
            offer = subscription.take_in(parcel)
            if offer is Offer.TAKEN:
                taken += 1
            elif offer is Offer.FULL:
                full.append(subscription)
        self._published += 1
        self._taken += taken
        return taken

    # ---- looking

    def statistics(self) -> TopicStatistics:
        """Figures of this moment."""
        subscribers = self._subscribers
        return TopicStatistics(
            subscribers=len(subscribers),
            published=self._published,
            taken=self._taken,
            dropped=self._dropped,
            disconnected=self._disconnected,
            queued=sum(s.queued for s in subscribers),
            queued_bytes=sum(s.queued_bytes for s in subscribers),
            publishers_waiting=sum(s.publishers_waiting for s in subscribers),
        )


class Rooms(Generic[T]):
    """Topics by name: ``rooms["tea"].publish(...)``.

    A topic is made when its name is first asked for, and forgotten when it has no subscriber and nobody holds it, so names that
    nobody subscribes to cost nothing, whoever makes them up. Iterating gives the names that have subscribers.

    Args:
        codec: as for `Topic`, the same for all.
    """

    __slots__ = ("_codec", "_topics")

    def __init__(self, codec: Encoder[T] | None = None) -> None:
        if codec is not None:
            check_codec(codec, "encode")
        self._codec = codec
        # A subscription holds its topic.
        self._topics: WeakValueDictionary[str, Topic[T]] = WeakValueDictionary()

    def __getitem__(self, name: str) -> Topic[T]:
        """The topic of this name."""
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = Topic(self._codec)
        return topic

    def __contains__(self, name: object) -> bool:
        """Whether a topic of this name has subscribers."""
        topic = self._topics.get(name)  # type: ignore[call-overload]
        return topic is not None and len(topic) > 0

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, topic in self._topics.items() if len(topic)])

    def __len__(self) -> int:
        """How many topics have subscribers."""
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<Rooms, {len(self)} with subscribers>"
