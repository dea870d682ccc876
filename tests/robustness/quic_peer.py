"""QUIC peers that say what an honest one never would: aioquic's own connection for the handshake, and packets by hand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

import trio
from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import (
    ConnectionTerminated,
    DatagramFrameReceived,
    HandshakeCompleted,
    QuicEvent,
    StreamDataReceived,
)
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.tls import Epoch

from trio_wt.testing import NetworkSocket

__all__ = [
    "ALPN",
    "HOST",
    "PORT",
    "SERVER",
    "HostileClient",
    "HostilePeer",
    "HostileServer",
    "Stalling",
    "ack",
    "crypto",
    "frame",
    "stream",
    "varint",
]

HOST, PORT = "server.test", 4433
SERVER = (HOST, PORT)
ALPN = ["test"]
CID_LENGTH = 8

_PACKET_TYPES = {
    Epoch.INITIAL: QuicPacketType.INITIAL,
    Epoch.ZERO_RTT: QuicPacketType.ZERO_RTT,
    Epoch.HANDSHAKE: QuicPacketType.HANDSHAKE,
    Epoch.ONE_RTT: QuicPacketType.ONE_RTT,
}

# What peers log is of no interest here, and costs time.
_silent = logging.getLogger("tests.robustness.peer")
_silent.disabled = True


# ---- frames


def varint(value: int, size: int = 0) -> bytes:
    """A variable-length integer (RFC 9000 section 16), longer than needed where a size is given."""
    for bits, length in ((0, 1), (1, 2), (2, 4), (3, 8)):
        if value < 1 << (8 * length - 2) and length >= size:
            return (value | bits << (8 * length - 2)).to_bytes(length)
    raise ValueError(value)


def frame(*fields: int | bytes) -> bytes:
    """A frame of integers and bytes, the first of which is its type."""
    return b"".join(field if isinstance(field, bytes) else varint(field) for field in fields)


def stream(
    stream_id: int, offset: int, data: bytes = b"", *, fin: bool = False, length: int | None = None
) -> bytes:
    """A STREAM frame; ``length`` lies about its length."""
    return frame(0x0E | fin, stream_id, offset, len(data) if length is None else length, data)


def crypto(offset: int, data: bytes = b"", *, length: int | None = None) -> bytes:
    return frame(0x06, offset, len(data) if length is None else length, data)


def ack(largest: int, *, first_range: int = 0) -> bytes:
    return frame(0x02, largest, 0, 0, first_range)


# ---- peers


class HostilePeer:
    """One end of a connection; the other is ours.

    It answers as aioquic does, unless it is told to be ``silent``, and says whatever it is given besides.

    Args:
        socket: where it sits.

    Attributes:
        connection: aioquic's side of things.
        silent: it takes everything in, and sends nothing by itself, neither acknowledgements nor retransmissions.
        deaf: it takes nothing in.
        data: what has arrived on streams, unless it is ``forgetful``; ``got`` is how much it was.
        ended: the streams that came to their end.
        datagrams: those that have arrived.
        end: why the connection ended; None while it has not.
        handshake: what came of the handshake.
        received: the datagrams, as they were, while ``keep`` is set.
        sent: likewise those it has sent by itself.
        keep: see there.
    """

    def __init__(self, socket: NetworkSocket) -> None:
        self.socket = socket
        self.connection: QuicConnection
        self.silent = False
        self.deaf = False
        self.keep = False
        self.forgetful = False
        self.got = 0
        self.data: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.datagrams: list[bytes] = []
        self.end: ConnectionTerminated | None = None
        self.handshake: HandshakeCompleted | None = None
        self.received: list[bytes] = []
        self.sent: list[bytes] = []
        self.remote: tuple[Any, ...] = SERVER
        self._gone = False
        self._changed = trio.Event()
        self._scope = trio.CancelScope()

    # ---- life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take in, answer, and mind the timer, until the socket is closed."""
        task_status.started()
        with self._scope:
            while True:
                self._flush()
                self._scope.deadline = inf
                with trio.move_on_at(self._timer()):
                    try:
                        await self.socket.wait_readable()
                    except trio.ClosedResourceError:
                        return
                self._receive()

    def _timer(self) -> float:
        timer = None
        if not self.silent and self.started and self.end is None:
            timer = self.connection.get_timer()
        # One that cannot send what is due, for it is held back, must not spin.
        return inf if timer is None else max(timer + 1e-6, trio.current_time() + 1e-4)

    @property
    def started(self) -> bool:
        """Whether there is a connection yet."""
        return bool(self.connection._network_paths)

    def _receive(self) -> None:
        now = trio.current_time()
        try:
            batch = self.socket.receive()
        except trio.ClosedResourceError:
            return
        for data, source in batch:
            if self.keep:
                self.received.append(data)
            if not self.deaf:
                self.hear(data, source, now)
        if not self.started:
            return
        timer = self.connection.get_timer()
        if not self.silent and timer is not None and timer <= now and self.end is None:
            self.connection.handle_timer(max(now, timer) + 1e-6)
        self._take_events()

    def hear(self, data: bytes, source: tuple[Any, ...], now: float) -> None:
        """A datagram has come."""
        self.connection.receive_datagram(data, source, now)

    def _take_events(self) -> None:
        while (event := self.connection.next_event()) is not None:
            self._on_event(event)
        closed = self.connection._close_event
        if closed is not None and self.end is None:
            self.end = closed
        self._changed.set()
        self._changed = trio.Event()

    def _on_event(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            self.got += len(event.data)
            if not self.forgetful:
                self.data.setdefault(event.stream_id, bytearray()).extend(event.data)
            if event.end_stream:
                self.ended.add(event.stream_id)
        elif isinstance(event, DatagramFrameReceived):
            self.datagrams.append(event.data)
        elif isinstance(event, HandshakeCompleted):
            self.handshake = event

    def _flush(self) -> None:
        if self.silent or not self.started:
            return
        now = trio.current_time()
        for data, _ in self.connection.datagrams_to_send(now):
            self.send_raw(data)
        self._take_events()

    def go_on(self) -> None:
        """Let it say what it has to say."""
        self._flush()

    async def until(self, true: Callable[[], object], seconds: float = 5) -> None:
        """Wait until something is so."""
        with trio.fail_after(seconds):
            while not true():
                await self._changed.wait()

    async def closed(self, seconds: float = 5) -> int:
        """Wait for the end that the other side has decided on; its code."""
        await self.until(lambda: self.end is not None, seconds)
        assert self.end is not None
        return self.end.error_code

    def close(self) -> None:
        """Be gone, without a word."""
        self._gone = True
        self._scope.cancel()
        self.socket.close()

    def leave(self) -> None:
        """Say goodbye, and be gone, if it has not gone yet."""
        if self._gone:
            return
        if self.started and self.end is None:
            self.connection.close(0, None)
            self.silent = False
            self._flush()
        self.close()

    # ---- packets by hand

    def own(self, number: int = 0, *, uni: bool = False) -> int:
        """The id of a stream that this side opens."""
        return 4 * number + 2 * uni + (not self.connection._is_client)

    def other(self, number: int = 0, *, uni: bool = False) -> int:
        """The id of a stream that the other side opens."""
        return 4 * number + 2 * uni + self.connection._is_client

    def claim(self, number: int) -> None:
        """Streams of its own with numbers below this are only ever made by hand: what comes back on them is dropped."""
        self.connection._local_next_stream_id_bidi = self.own(number)
        self.connection._local_next_stream_id_uni = self.own(number, uni=True)

    def packet(self, *frames: bytes, epoch: Epoch = Epoch.ONE_RTT, room: int = 65_000) -> bytes:
        """A datagram with one packet of these frames, sealed with this side's keys."""
        peer = self.connection
        builder = QuicPacketBuilder(
            host_cid=peer.host_cid,
            is_client=peer._is_client,
            max_datagram_size=room if epoch is Epoch.ONE_RTT else 1200,
            packet_number=peer._packet_number,
            peer_cid=peer._peer_cid.cid,
            peer_token=peer._peer_token,
            version=peer._version or 1,
        )
        builder.start_packet(_PACKET_TYPES[epoch], peer._cryptos[epoch])
        builder._buffer.push_bytes(b"".join(frames))
        if epoch is Epoch.INITIAL:
            assert builder._packet is not None
            builder._packet.is_ack_eliciting = True
        (datagram,), _ = builder.flush()
        peer._packet_number = builder.packet_number
        return datagram

    def say(self, *frames: bytes, epoch: Epoch = Epoch.ONE_RTT) -> None:
        """Send a packet of these frames."""
        self.send_raw(self.packet(*frames, epoch=epoch))

    def send_raw(self, data: bytes) -> None:
        """Send a datagram, whatever it is."""
        if self.keep:
            self.sent.append(data)
        self.socket.send([(data, self.remote)])

    async def flood(self, packets: list[bytes], *, batch: int = 50, pause: float = 0.001) -> None:
        """Send many datagrams, as fast as the network takes them without a queue that would itself be a load."""
        for at in range(0, len(packets), batch):
            for data in packets[at : at + batch]:
                self.send_raw(data)
            await trio.sleep(pause)


class HostileClient(HostilePeer):
    """A client of our server.

    Args:
        socket: where it sits.
        kind: of connection.
        options: of aioquic's configuration.
    """

    def __init__(
        self,
        socket: NetworkSocket,
        *,
        kind: type[QuicConnection] = QuicConnection,
        session_ticket_handler: Callable[[Any], None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(socket)
        configuration = QuicConfiguration(
            **{
                "is_client": True,
                "alpn_protocols": ALPN,
                "server_name": HOST,
                "verify_mode": 0,
                "max_datagram_frame_size": 65536,
                "connection_id_length": CID_LENGTH,
                **options,
            }
        )
        self.connection = kind(
            configuration=configuration, session_ticket_handler=session_ticket_handler
        )
        _hush(self.connection)

    def start(self) -> None:
        """Begin the handshake."""
        self.connection.connect(self.remote, trio.current_time())
        self._flush()

    async def shake_hands(self, seconds: float = 5) -> None:
        """Complete the handshake."""
        self.start()
        await self.until(lambda: self.connection._handshake_confirmed, seconds)

    async def echo(self, stream_id: int, data: bytes, seconds: float = 5) -> None:
        """Send something, and get it back."""
        self.connection.send_stream_data(stream_id, data, end_stream=True)
        self._flush()
        await self.until(lambda: stream_id in self.ended, seconds)
        assert self.data[stream_id] == data


class HostileServer(HostilePeer):
    """A server for our client; it takes one connection.

    Args:
        socket: where it sits.
        certificate: what it shows, with ``certificate_chain`` and ``private_key`` among the options.
        first: sees each datagram before there is a connection; False drops it.
        kind: of connection.
        options: of aioquic's configuration.
    """

    def __init__(
        self,
        socket: NetworkSocket,
        *,
        first: Callable[[HostileServer, bytes, tuple[Any, ...]], bool] | None = None,
        kind: type[QuicConnection] = QuicConnection,
        retry_source_connection_id: bytes | None = None,
        original_destination_connection_id: bytes | None = None,
        session_ticket_handler: Callable[[Any], None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(socket)
        self.first = first
        self.retry_source_connection_id = retry_source_connection_id
        self.original_destination_connection_id = original_destination_connection_id
        self._make = partial(
            kind,
            configuration=QuicConfiguration(
                **{
                    "is_client": False,
                    "alpn_protocols": ALPN,
                    "max_datagram_frame_size": 65536,
                    "connection_id_length": CID_LENGTH,
                    **options,
                }
            ),
            session_ticket_handler=session_ticket_handler,
        )
        self._started = False

    @property
    def started(self) -> bool:
        return self._started

    def hear(self, data: bytes, source: tuple[Any, ...], now: float) -> None:
        if not self._started:
            self.remote = source
            if self.first is not None and not self.first(self, data, source):
                return
            header = pull_quic_header(Buffer(data=data), host_cid_length=CID_LENGTH)
            original = self.original_destination_connection_id or header.destination_cid
            self.connection = self._make(
                original_destination_connection_id=original,
                retry_source_connection_id=self.retry_source_connection_id,
            )
            _hush(self.connection)
            self._started = True
        super().hear(data, source, now)

    async def shaken(self, seconds: float = 5) -> None:
        """Wait until the handshake is complete."""
        await self.until(lambda: self.handshake is not None, seconds)


class Stalling(QuicConnection):
    """A client's connection that gets as far as the server's answer, and never says anything of its own then."""

    def _write_handshake(self, builder: QuicPacketBuilder, epoch: Epoch, now: float) -> None:
        if epoch is Epoch.INITIAL:
            super()._write_handshake(builder, epoch, now)

    def _write_application(self, *args: object) -> None:
        pass


def _hush(connection: QuicConnection) -> None:
    logger: Any = logging.LoggerAdapter(_silent, {})
    connection._logger = connection._loss._logger = logger
