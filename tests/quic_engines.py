"""Two QUIC engines back to back in virtual time, on a link that loses, delays, reorders, duplicates and damages packets."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import pytest
import trustme
from aioquic.quic.crypto import CryptoError
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.tls import Epoch
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.quic_frames import parse_frames
from trio_wt._protocol.quic import (
    CID_LENGTH,
    DatagramFrameReceived,
    End,
    Engine,
    EngineConfig,
    HandshakeCompleted,
    PathChanged,
    PingAcknowledged,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from trio_wt._protocol.route import Route, Sockaddr

HOST = "server.test"
SERVER_ADDRESS: Sockaddr = ("192.0.2.1", 443)
CLIENT_HOST = "198.51.100.1"
ALPN = ["test"]
START = 1000.0

#: Established connections take a road of their own, which must lead where aioquic's does.
both_roads = pytest.mark.parametrize("straight", [True, False], ids=["straight", "general"])

_PACKET_TYPES = {
    Epoch.INITIAL: QuicPacketType.INITIAL,
    Epoch.HANDSHAKE: QuicPacketType.HANDSHAKE,
    Epoch.ONE_RTT: QuicPacketType.ONE_RTT,
}


@dataclass(frozen=True)
class Identity:
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: Any


class Packet(NamedTuple):
    number: int
    key_phase: bool
    frames: list[tuple[Any, ...]]


@cache
def identity(name: str = HOST) -> Identity:
    issued = trustme.CA().issue_cert(name)
    first, *rest = (x509.load_pem_x509_certificate(pem.bytes()) for pem in issued.cert_chain_pems)
    return Identity(
        first, tuple(rest), load_pem_private_key(issued.private_key_pem.bytes(), password=None)
    )


def client_config(**options: Any) -> EngineConfig:
    return EngineConfig(**{"is_client": True, "alpn": ALPN, "server_name": HOST, **options})


def server_config(**options: Any) -> EngineConfig:
    mine = identity()
    defaults = {
        "is_client": False,
        "alpn": ALPN,
        "certificate": mine.certificate,
        "chain": mine.chain,
        "private_key": mine.key,
    }
    return EngineConfig(**{**defaults, **options})


class Side:
    """An engine with a simple application on it, which keeps whatever it is told of.

    Attributes:
        reading: whether what arrives is consumed at once; otherwise `read` does it.
        data: what has arrived, by stream.
        ended: the streams whose end has come.
        resets: the codes of streams that the peer has reset.
        stops: the codes of streams that the peer wants no more of.
        unread: bytes that arrived and were not consumed, by stream.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.is_client = engine.config.is_client
        self.reading = True
        self.data: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.stops: dict[int, int] = {}
        self.unread: dict[int, int] = {}
        self.datagrams: list[bytes] = []
        self.pings: list[int] = []
        self.events: list[QuicEvent] = []
        self.handshake: HandshakeCompleted | None = None
        self.paths: list[Route] = []
        self.touched = True
        self._settled: set[int] = set()
        self._sent: set[int] = set()
        self._released: set[int] = set()

    @property
    def end(self) -> End | None:
        return self.engine.end

    # ---- what the application does

    def open(self, *, unidirectional: bool = False) -> int:
        self.touched = True
        return self.engine.open(unidirectional=unidirectional)

    def send(self, stream_id: int, data: bytes = b"", *, fin: bool = False) -> None:
        self.touched = True
        self.engine.send(stream_id, data, fin=fin)
        if fin:
            self._sent.add(stream_id)
            self._release(stream_id)

    def reset(self, stream_id: int, code: int, reliable_size: int = 0) -> None:
        self.touched = True
        self.engine.reset(stream_id, code, reliable_size)
        self._sent.add(stream_id)
        self._release(stream_id)

    def stop(self, stream_id: int, code: int) -> None:
        self.touched = True
        self.engine.stop(stream_id, code)

    def ping(self, number: int) -> None:
        self.touched = True
        self.engine.send_ping(number)

    def datagram(self, data: bytes) -> None:
        self.touched = True
        self.engine.queue_datagram(data)

    def shut(self, code: int = 0, reason: str = "", *, transport: bool = False) -> None:
        self.touched = True
        self.engine.shut(code, reason, transport=transport)

    def read(self, stream_id: int, count: int | None = None) -> int:
        """Consume what has arrived of a stream; how much that was."""
        self.touched = True
        unread = self.unread.get(stream_id, 0)
        count = unread if count is None else min(count, unread)
        self.unread[stream_id] = unread - count
        if count:
            self.engine.consume(stream_id, count)
        self._settle(stream_id)
        return count

    def _settle(self, stream_id: int) -> None:
        over = stream_id in self.resets or (
            stream_id in self.ended and not self.unread.get(stream_id)
        )
        if over and stream_id not in self._settled:
            self._settled.add(stream_id)
            self.engine.settle(stream_id, self.engine.highest_received(stream_id))
        self._release(stream_id)

    def _release(self, stream_id: int) -> None:
        if (stream_id & 1) != self.is_client or stream_id in self._released:
            return
        if stream_id in self._settled and (stream_id & 2 or stream_id in self._sent):
            self._released.add(stream_id)
            self.engine.release(stream_id)
            self.touched = True

    # ---- what it is told

    def take(self) -> None:
        for event in self.engine.take_events():
            self.events.append(event)
            if isinstance(event, StreamDataReceived):
                self._arrived(event.stream_id, event.data, event.end_stream)
            elif isinstance(event, StreamReset):
                assert event.stream_id not in self.resets
                self.resets[event.stream_id] = event.error_code
                self.unread.pop(event.stream_id, None)
                self._settle(event.stream_id)
            elif isinstance(event, StopSendingReceived):
                self.stops.setdefault(event.stream_id, event.error_code)
                self._sent.add(event.stream_id)
                self._release(event.stream_id)
            elif isinstance(event, DatagramFrameReceived):
                self.datagrams.append(event.data)
            elif isinstance(event, PingAcknowledged):
                self.pings.append(event.uid)
            elif isinstance(event, HandshakeCompleted):
                self.handshake = event
            elif isinstance(event, PathChanged):
                self.paths.append(event.route)

    def _arrived(self, stream_id: int, data: bytes, fin: bool) -> None:
        assert stream_id not in self.ended, "data behind the end"
        assert stream_id not in self.resets, "data behind a reset"
        self.data.setdefault(stream_id, bytearray()).extend(data)
        self.unread[stream_id] = self.unread.get(stream_id, 0) + len(data)
        if fin:
            self.ended.add(stream_id)
        if self.reading or not self.unread[stream_id]:
            self.read(stream_id)

    # ---- packets of a peer that does as it likes

    def packet(self, frames: bytes, epoch: Epoch = Epoch.ONE_RTT) -> bytes:
        """A datagram with these frames, sealed with this side's keys."""
        engine = self.engine
        builder = QuicPacketBuilder(
            host_cid=engine.host_cid,
            is_client=self.is_client,
            max_datagram_size=16_000,
            packet_number=engine._packet_number,
            peer_cid=engine._peer_cid.cid,
            version=engine.wire_version,
        )
        builder.start_packet(_PACKET_TYPES[epoch], engine._cryptos[epoch])
        builder._buffer.push_bytes(frames)
        (datagram,), _ = builder.flush()
        engine._packet_number = builder.packet_number
        return datagram

    def look_into(self, data: bytes) -> Packet | None:
        """A 1-RTT packet that is on its way to this side; None if it is another, or cannot be opened."""
        if data[0] & 0x80:
            return None
        expected = self.engine._spaces[Epoch.ONE_RTT].expected_packet_number
        try:
            header, payload, number, _ = self.engine._cryptos[Epoch.ONE_RTT].recv.decrypt_packet(
                data, 1 + CID_LENGTH, expected
            )
        except CryptoError:
            return None
        return Packet(number, bool(header[0] & 4), parse_frames(payload))


class Link:
    """A client and a server with a link between them.

    Args:
        seed: of everything that happens by chance.
        delay: one way, in seconds; a range is drawn from evenly.
        loss: how likely a packet is lost.
        reorder: how likely it is held back by up to four more delays.
        duplicate: how likely it comes twice.
        corrupt: how likely one of its bytes is changed.
        mtu: larger ones vanish.
        client: the client's options, and ``server`` the server's, where they differ.
        server: see there.
        client_hooks: what the client's engine gets besides its options, and ``server_hooks`` the server's.
        server_hooks: see there.
        connect: whether to begin with a handshake, before the link does any harm.
        straight: whether the engines may take the straight road; otherwise all goes along aioquic's way.
        search: whether larger packets are sought from the start, as if there were use for them.
        both: options of both engines.

    Attributes:
        now: the time.
        drop: what else is lost: gets the sender and the datagram.
        tap: sees all that is sent.
        addresses: of the client's sockets.
        slack: how much later than its time a timer is noticed.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        delay: float | tuple[float, float] = 0.001,
        loss: float = 0,
        reorder: float = 0,
        duplicate: float = 0,
        corrupt: float = 0,
        mtu: int = 65507,
        now: float = START,
        client: dict[str, Any] | None = None,
        server: dict[str, Any] | None = None,
        client_hooks: dict[str, Any] | None = None,
        server_hooks: dict[str, Any] | None = None,
        connect: bool = True,
        straight: bool = True,
        search: bool = True,
        **both: Any,
    ) -> None:
        engine = Engine(client_config(**{**both, **(client or {})}), **(client_hooks or {}))
        self.client = Side(engine)
        self.server = Side(
            Engine(
                server_config(**{**both, **(server or {})}),
                original_destination_cid=engine.original_destination_connection_id,
                **(server_hooks or {}),
            )
        )
        if not straight:
            for side in self.sides:
                assert side.engine._find_road() is None
                side.engine._find_road = lambda: None  # type: ignore[method-assign]
        for side in self.sides:
            side.engine.mtu.wanted = search
        self.now = now
        self.slack = 1e-6
        self.random = random.Random(seed)
        self.delay = delay
        self.loss = self.reorder = self.duplicate = self.corrupt = 0.0
        self.mtu = mtu
        self.drop: Callable[[Side, bytes], bool] = lambda sender, data: False
        self.tap: Callable[[Side, bytes], None] = lambda sender, data: None
        self.addresses: list[Sockaddr] = [(CLIENT_HOST, 5000)]
        self.sent = 0
        self._dark_until = 0.0
        self._numbers = itertools.count()
        self._ports = itertools.count(5001)
        self._queue: list[tuple[float, int, Side, bytes, Sockaddr]] = []
        if connect:
            self.connect()
        self.loss, self.reorder, self.duplicate, self.corrupt = loss, reorder, duplicate, corrupt

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.client, self.server

    def other(self, side: Side) -> Side:
        return self.server if side is self.client else self.client

    def start(self) -> None:
        self.client.engine.start(Route(SERVER_ADDRESS), self.now)

    def connect(self) -> None:
        """Shake hands, and let what follows settle: connection ids, path MTU discovery, and acknowledgements."""
        self.start()
        self.run(until=lambda: bool(self.client.handshake and self.server.handshake))
        self.run(0.5)

    # ---- the network

    def rebind(self, local: int = 0, host: str = CLIENT_HOST) -> Sockaddr:
        """What a NAT does: packets come from, and reach the client at, another address."""
        address: Sockaddr = (host, next(self._ports))
        self.addresses[local] = address
        return address

    def add_socket(self, host: str = CLIENT_HOST) -> Route:
        """Another socket of the client's; the route through it."""
        self.addresses.append((host, next(self._ports)))
        return Route(SERVER_ADDRESS, len(self.addresses) - 1)

    def blackhole(self, seconds: float) -> None:
        self._dark_until = self.now + seconds

    def carry(self, sender: Side, data: bytes, route: Route) -> None:
        """Send a datagram over the link."""
        self.sent += 1
        self.tap(sender, data)
        chance = self.random.random
        lost = chance() < self.loss or len(data) > self.mtu or self.now < self._dark_until
        if lost or self.drop(sender, data):
            return
        if chance() < self.corrupt:
            at = self.random.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ self.random.randrange(1, 256)]) + data[at + 1 :]
        for _ in range(2 if chance() < self.duplicate else 1):
            self._deliver_later(sender, data, route)

    def _deliver_later(self, sender: Side, data: bytes, route: Route) -> None:
        low, high = self.delay if isinstance(self.delay, tuple) else (self.delay, self.delay)
        delay = self.random.uniform(low, high)
        if self.random.random() < self.reorder:
            delay += self.random.uniform(0, 4) * high
        address = self.addresses[route.local] if sender is self.client else route.remote
        item = (self.now + delay, next(self._numbers), self.other(sender), data, address)
        heapq.heappush(self._queue, item)

    def _deliver(self, receiver: Side, data: bytes, address: Sockaddr) -> None:
        if receiver is self.server:
            receiver.engine.receive(data, Route(address), self.now)
        elif address in self.addresses:
            route = Route(SERVER_ADDRESS, self.addresses.index(address))
            receiver.engine.receive(data, route, self.now)

    def inject(self, receiver: Side, data: bytes) -> None:
        """A datagram arrives at this moment, and is answered."""
        self._deliver(receiver, data, self.addresses[0])
        receiver.take()
        self.flush(receiver)

    def log(self, sender: Side) -> list[Packet]:
        """What ``sender`` puts into its 1-RTT packets from now on."""
        packets: list[Packet] = []
        before = self.tap

        def tap(origin: Side, data: bytes) -> None:
            before(origin, data)
            packet = self.other(sender).look_into(data) if origin is sender else None
            if packet is not None:
                packets.append(packet)

        self.tap = tap
        return packets

    def hostile(self, sender: Side, frames: bytes, epoch: Epoch = Epoch.ONE_RTT) -> None:
        """The peer of ``sender`` gets a packet with these frames at this moment, and answers."""
        self.inject(self.other(sender), sender.packet(frames, epoch))

    # ---- time

    def flush(self, side: Side) -> None:
        side.touched = False
        for data, route in side.engine.flush(self.now):
            self.carry(side, data, route)
        side.take()

    def _due(self) -> float:
        """When something happens next."""
        timers = [
            timer + self.slack for side in self.sides if (timer := side.engine.timer) is not None
        ]
        return min([*timers, *(item[0] for item in self._queue[:1])], default=float("inf"))

    def _step(self) -> None:
        """What happens now, as the driver does it: all that has arrived, then timers, events, and what is to be sent."""
        woken = []
        while self._queue and self._queue[0][0] <= self.now:
            _, _, receiver, data, address = heapq.heappop(self._queue)
            self._deliver(receiver, data, address)
            woken.append(receiver)
        for side in self.sides:
            timer = side.engine.timer
            if timer is not None and timer <= self.now:
                side.engine.fire(self.now)
                side.touched = True
                woken.append(side)
            if side in woken:
                side.take()
            if side.touched or (side in woken and side.engine.has_work):
                self.flush(side)

    def run(self, seconds: float = 60, *, until: Callable[[], bool] | None = None) -> None:
        """Let time pass, or let it pass until something is so, which must come true."""
        end = self.now + seconds
        steps_at = 0
        while True:
            for side in self.sides:
                while side.touched:
                    self.flush(side)
            if until is not None and until():
                return
            due = self._due()
            if due > end:
                break
            steps_at = steps_at + 1 if due <= self.now else 0
            assert steps_at < 200, "time stands still"
            self.now = max(self.now, due)
            self._step()
        self.now = end
        assert until is None, (
            f"still not so after {seconds} s: {self.client.end}, {self.server.end}"
        )

    def transfer(self, sender: Side, stream_id: int, data: bytes, *, seconds: float = 60) -> None:
        """Send all of this and the end of the stream, held back as an application is, until it has arrived."""
        receiver, at = self.other(sender), 0

        def refill() -> bool:
            nonlocal at
            while at < len(data) and sender.engine.unsent(stream_id) < 2**18:
                sender.send(stream_id, data[at : at + 2**16], fin=at + 2**16 >= len(data))
                at += 2**16
                self.flush(sender)
            return stream_id in receiver.ended

        self.run(seconds, until=refill)
        assert receiver.data[stream_id] == data
