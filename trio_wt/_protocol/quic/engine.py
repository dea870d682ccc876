"""The engine itself: how it is driven, its handshake, its paths and its end."""

from __future__ import annotations

import datetime as dt
import hmac
from collections.abc import Callable, Iterable
from typing import Any, Final

from aioquic.buffer import Buffer, encode_uint_var  # type: ignore[attr-defined]
from aioquic.quic import events
from aioquic.quic.connection import (
    QuicConnectionError,
    QuicConnectionState,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.tls import AlertDescription, Direction, Epoch, Group, SessionTicket
from cryptography.hazmat.primitives.serialization import Encoding

from ..path_mtu import BASE_SIZE
from ..route import Route
from .config import End, EndKind, EngineConfig
from .congestion import hold_unused_window
from .figures import Figures
from .keys import UpdatedKeys, export_keying_material
from .pacer import BurstPacer
from .shedding import shed_certificates, shed_handshake

__all__ = ["Datagram", "Engine", "PathChanged"]

#: A UDP payload, and where it goes or came from.
Datagram = tuple[bytes, Route]

# Transport parameters (RFC 9000 section 18.2; draft-ietf-quic-reliable-stream-reset).
_TP_MAX_UDP_PAYLOAD: Final = 0x03
_TP_ACK_DELAY_EXPONENT: Final = 0x0A
_TP_RESET_STREAM_AT: Final = 0x17F7586D2CB571

_MAX_REASON: Final = 512
# Timeouts in a row after which full packets are taken to vanish (RFC 8899 section 4.3).
_BLACK_HOLE_PTOS: Final = 2
_MIN_RESET: Final = 21  # RFC 9000 section 10.3
_AMPLIFICATION: Final = 3  # RFC 9000 section 8.1
# To look into a set would cost a hash in Python each time.
_END_STATES: Final[tuple[QuicConnectionState, ...]] = (
    QuicConnectionState.CLOSING,
    QuicConnectionState.DRAINING,
    QuicConnectionState.TERMINATED,
)


class PathChanged(events.QuicEvent):
    """Packets now go to, and come from, another place.

    Attributes:
        route: that place.
    """

    def __init__(self, route: Route) -> None:
        self.route: Route = route


class Engine(Figures):
    """One side of a QUIC connection.

    Args:
        config: limits and roles.
        original_destination_cid: for servers, the id that the client chose first.
        retry_source_cid: for servers, the id given in a Retry packet, if one was sent.
        fetch_ticket: for servers, finds the session that a client wants to resume.
        store_ticket: gets session tickets, those given out on servers and those received on clients.
        store_token: for clients, gets address tokens.

    Attributes:
        packets_lost: packets declared lost.
        packets_sent: datagrams given out by `flush`; ``bytes_sent`` their bytes.
        packets_received: datagrams taken in by `receive`; ``bytes_received`` their bytes.
        peer_certificate: the peer's certificate as DER once the handshake is complete; None if it showed none.
        rejection: why the peer's certificate was not accepted.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        original_destination_cid: bytes | None = None,
        retry_source_cid: bytes | None = None,
        fetch_ticket: Callable[[bytes], SessionTicket | None] | None = None,
        store_ticket: Callable[[SessionTicket], None] | None = None,
        store_token: Callable[[bytes], None] | None = None,
    ) -> None:
        super().__init__(
            config,
            original_destination_connection_id=original_destination_cid,
            retry_source_connection_id=retry_source_cid,
            session_ticket_fetcher=fetch_ticket,
            session_ticket_handler=store_ticket,
            token_handler=store_token,
        )
        self.packets_lost: int = 0
        self.packets_sent: int = 0
        self.packets_received: int = 0
        self.bytes_sent: int = 0
        self.bytes_received: int = 0
        self.peer_certificate: bytes | None = None
        self._certificate_valid_until: dt.datetime | None = None
        self.rejection: Exception | None = None
        self._loss._pacer = self._pacer = BurstPacer(max_datagram_size=BASE_SIZE)
        hold_unused_window(self._loss._cc, self.mtu.got_through)
        self._count_losses()
        # Only a server's first id may have one (RFC 9000 section 18.2).
        if config.reset_token is not None and not config.is_client:
            self._host_cids[0].stateless_reset_token = config.reset_token(self.host_cid)
        self._is_retried = retry_source_cid is not None
        self._lost = False
        self._closed_by_peer = False
        self._close_datagrams: list[bytes] = []
        self._keys_updated_at = 0
        self._exporter_secret = b""

    def _count_losses(self) -> None:
        on_packets_lost = self._loss._on_packets_lost

        def count(*, packets: Iterable[Any], congestion_event: bool = True, **kwargs: Any) -> None:
            packets = list(packets)
            if congestion_event:
                self.packets_lost += len(packets)
            large = sum(p.in_flight and p.sent_bytes > BASE_SIZE for p in packets)
            if large:
                self.mtu.vanished(large, self._now)
            on_packets_lost(packets=packets, congestion_event=congestion_event, **kwargs)

        self._loss._on_packets_lost = count  # type: ignore[method-assign]

    # ---- driving

    def start(self, route: Route, now: float) -> None:
        """Begin a client's handshake."""
        self._now = now
        self.connect(route, now)

    def receive(self, data: bytes, route: Route, now: float) -> None:
        """Take a datagram in. Never raises."""
        self._now = now
        if not data or self._close_event is not None:
            return
        if not self._events:
            self._final_sizes.clear()
        active = self._network_paths[0] if self._network_paths else None
        try:
            if not self._receive_short(data, route, now):
                self.receive_datagram(data, route, now)
                self._find_road()
                if self._is_retried and self._network_paths:
                    # The token has validated the address (RFC 9000 section 8.1.2).
                    self._is_retried = False
                    self._network_paths[0].is_validated = True
        except Exception:
            self._fail()
            return
        self.packets_received += 1
        self.bytes_received += len(data)
        if self._state is QuicConnectionState.DRAINING:
            self._closed_by_peer = True
        elif active is not None and self._network_paths[0] is not active:
            self._path_changed(active.addr)

    def flush(self, now: float) -> list[Datagram]:
        """The datagrams to send now. Never raises."""
        self._now = now
        if not self._network_paths or self._state in _END_STATES:
            return []
        try:
            out: list[Datagram] | None = self._send_short(now)
            if out is None:
                out = self.datagrams_to_send(now)
                self._sent_long_way()
            if self._handshake_confirmed and self._close_event is None:
                if len(out) > 1:
                    self.mtu.wanted = True
                self._maintain(now, out)
        except Exception:
            self._fail()
            return []
        self._sweep_sent()
        if self._state is QuicConnectionState.CLOSING:
            self._close_datagrams = [data for data, _ in out]
            path = self._network_paths[0]
            if not path.is_validated and path.bytes_sent > _AMPLIFICATION * path.bytes_received:
                # aioquic sends its last packet to anybody.
                out = []
        self.packets_sent += len(out)
        for data, _ in out:
            self.bytes_sent += len(data)
        return out

    def _maintain(self, now: float, out: list[Datagram]) -> None:
        """What is due now and then: key updates, and path MTU discovery."""
        if self._packet_number - self._keys_updated_at >= self.config.key_update_packets:
            self.update_keys()
        full = self.mtu.size > BASE_SIZE and self._loss._rtt_initialized
        if full and (
            self._loss._pto_count >= _BLACK_HOLE_PTOS
            or self.mtu.is_black_hole(now, _BLACK_HOLE_PTOS * self._loss.get_probe_timeout())
        ):
            self.mtu.black_hole(now)
            self._resize()
        # To an address that is not validated only a little may be sent (RFC 9000 section 8.1).
        if self.mtu.is_due(now) and self._network_paths[0].is_validated:
            size = self.mtu.probe(now)
            if size is not None:
                out += self._probe_mtu(size, now)

    @property
    def timer(self) -> float | None:
        """When `fire` is to be called; None for never."""
        if self._close_at is None or not self._network_paths or self._state in _END_STATES:
            return None
        short = self._short_timer
        return self.get_timer() if short is None else short

    def fire(self, now: float) -> None:
        """The timer is due. Never raises."""
        timer = self.timer
        if timer is None:
            return
        # One microsecond more: by rounding, aioquic may find for ever that its own deadline has not come.
        self._now = max(now, timer) + 1e-6
        was_open, path = self._close_event is None, self._network_paths[0]
        try:
            self.handle_timer(self._now)
        except Exception:
            self._fail()
            return
        if was_open and self._close_event is not None:
            self._lost = True
        elif self._network_paths[0] is not path:
            # The new path was not validated in time, and the old one is taken again.
            self._path_changed(path.addr)

    @property
    def now(self) -> float:
        """The time of the last call that told it."""
        return self._now

    @property
    def has_events(self) -> bool:
        """Whether something has happened that was not taken."""
        return bool(self._events)

    def take_events(self) -> list[events.QuicEvent]:
        """What has happened since the last call; to be made use of before the next datagram is taken in."""
        taken: list[events.QuicEvent] = self._events
        if taken:
            self._events = []
        return taken

    # ---- the end

    @property
    def end(self) -> End | None:
        """How the connection ended; None while it has not. It is known before the last packet is out."""
        event = self._close_event
        if event is None:
            return None
        if self._lost:
            return End(EndKind.LOST, 0, event.reason_phrase.lower(), True)
        kind = EndKind.APPLICATION if event.frame_type is None else EndKind.TRANSPORT
        return End(kind, event.error_code, event.reason_phrase, self._closed_by_peer)

    @property
    def is_silent(self) -> bool:
        """Whether the end has been decided, and nothing is left to send."""
        return self._state in _END_STATES

    @property
    def close_datagrams(self) -> list[bytes]:
        """The CONNECTION_CLOSE that was sent, to answer late packets with (RFC 9000 section 10.2.1)."""
        return self._close_datagrams

    @property
    def close_period(self) -> float:
        """For how long late packets are to be expected, in seconds (RFC 9000 section 10.2)."""
        return 3 * self._loss.get_probe_timeout()

    def shut(self, code: int, reason: str = "", *, transport: bool = False) -> None:
        """Decide the end, if it has not been decided: CONNECTION_CLOSE goes out with the next flush.

        Args:
            code: an application's error code, or a transport error code (RFC 9000 section 20.1).
            reason: cut to 512 bytes of UTF-8.
            transport: which of the two ``code`` is.
        """
        reason = reason.encode(errors="replace")[:_MAX_REASON].decode(errors="ignore")
        if self._spaces:
            super().close(code, QuicFrameType.PADDING if transport else None, reason)
        else:
            self.lose(reason)

    def close(
        self,
        error_code: int = QuicErrorCode.NO_ERROR,
        frame_type: int | None = None,
        reason_phrase: str = "",
    ) -> None:
        """What aioquic calls when the peer has violated the protocol; applications have `shut`."""
        # Without a frame type it would go out as an application's code.
        super().close(error_code, frame_type or QuicFrameType.PADDING, reason_phrase)

    def lose(self, reason: str) -> None:
        """The connection is gone without a word, as after a stateless reset."""
        if self._close_event is None:
            self._lost = True
            self._close_event = events.ConnectionTerminated(0, QuicFrameType.PADDING, reason)
            self._close_end()

    def finish(self) -> None:
        """Nothing will be done with this engine any more: let aioquic write its log."""
        if self._state is not QuicConnectionState.TERMINATED:
            if self._close_event is None:
                self._close_event = events.ConnectionTerminated(0, None, "")
            self._close_end()

    def is_stateless_reset(self, data: bytes) -> bool:
        """Whether a datagram for an unknown connection id ends this connection (RFC 9000 section 10.3.1)."""
        if len(data) < _MIN_RESET:
            return False
        # Only ids that were used count (RFC 9000 section 10.3.1).
        used = [self._peer_cid, *(path.peer_cid for path in self._network_paths)]
        tokens = [cid.stateless_reset_token for cid in used if cid and cid.stateless_reset_token]
        return any(hmac.compare_digest(token, data[-len(token) :]) for token in tokens)

    def _fail(self) -> None:
        """A bug, of aioquic's or ours, that a packet has found: it costs this connection only."""
        if self._close_event is None:
            self.shut(QuicErrorCode.INTERNAL_ERROR, transport=True)

    # ---- the handshake

    @property
    def handshake_complete(self) -> bool:
        """Whether TLS is done and the peer's certificate has been accepted."""
        return self._handshake_complete and self._close_event is None

    @property
    def is_ready(self) -> bool:
        """Whether streams may be opened: on servers that is before the handshake is complete, if they ask for no certificate."""
        if self._is_client or self.config.request_certificate:
            return self.handshake_complete
        crypto = self._cryptos.get(Epoch.ONE_RTT)
        return crypto is not None and crypto.send.is_valid()

    @property
    def connection_ids(self) -> list[bytes]:
        """The ids under which the peer may reach this side."""
        return [connection_id.cid for connection_id in self._host_cids]

    @property
    def alpn(self) -> str | None:
        """The application protocol; None before the negotiation."""
        return self.tls.alpn_negotiated

    @property
    def valid_until(self) -> dt.datetime | None:
        """Until when what proved the peer's identity is valid; None if nothing did."""
        if self.tls.session_resumed and self.config.session_ticket is not None:
            return self.config.session_ticket.not_valid_after
        return self._certificate_valid_until

    @property
    def wire_version(self) -> int:
        """The version in use, as on the wire; 0 before there is one."""
        return self._version or 0

    def update_keys(self) -> None:
        """Change the packet protection keys (RFC 9001 section 6); without effect while the last change is under way."""
        space = self._spaces.get(Epoch.ONE_RTT)
        settled = space is not None and space.largest_acked_packet >= self._keys_updated_at
        if settled and self._handshake_confirmed:
            self._keys_updated_at = self._packet_number
            self.request_key_update()

    def _connect(self, now: float) -> None:
        # After a Retry, or another version, all is sent anew, early data too (RFC 9000 section 17.2.5.3).
        for space in self._loss.spaces:
            packets = list(space.sent_packets.values())
            self._loss.discard_space(space)
            for packet in packets:
                for handler, args in packet.delivery_handlers:
                    handler(QuicDeliveryState.LOST, *args)
        super()._connect(now)

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self._cryptos[Epoch.ONE_RTT] = UpdatedKeys(self._cryptos[Epoch.ONE_RTT])
        self.tls._request_client_certificate = self.config.request_certificate
        if not self.config.early_data:
            self.tls._max_early_data = None
        if self._is_client:
            # A key for each of them is made and sent, and every server has one of these (RFC 8446 section 9.1).
            self.tls._supported_groups = [Group.X25519, Group.SECP256R1]

    def _update_traffic_key(
        self, direction: Any, epoch: Any, cipher_suite: Any, secret: bytes
    ) -> None:
        refused = not (self._is_client or self.config.early_data)
        if refused and epoch is Epoch.ZERO_RTT and direction is Direction.DECRYPT:
            # From a client that was not invited to. The answer to it is not written yet, and without a key its data is
            # never read.
            self.tls.early_data_accepted = False
            return
        if epoch is Epoch.ONE_RTT and not self._exporter_secret:
            # The transcript is that up to the server's Finished (RFC 8446 section 7.5).
            assert self.tls.key_schedule is not None
            self._exporter_secret = self.tls.key_schedule.derive_secret(b"exp master")
        super()._update_traffic_key(direction, epoch, cipher_suite, secret)

    def export_keying_material(self, label: bytes, context: bytes, length: int) -> bytes:
        """A secret that both sides have, once the handshake is complete (RFC 8446 section 7.5).

        Raises:
            ValueError: the length is out of range.
        """
        return export_keying_material(
            self.tls.key_schedule, self._exporter_secret, label, context, length
        )

    def _serialize_transport_parameters(self) -> bytes:
        parameter = encode_uint_var(_TP_RESET_STREAM_AT) + encode_uint_var(0)
        return super()._serialize_transport_parameters() + parameter

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        # 0 is no timeout (RFC 9000 section 18.2).
        self._remote_max_idle_timeout = self._remote_max_idle_timeout or None
        buf = Buffer(data=data)
        while not buf.eof():
            parameter, length = buf.pull_uint_var(), buf.pull_uint_var()
            value = Buffer(data=buf.pull_bytes(length))
            if parameter == _TP_RESET_STREAM_AT:
                self._peer_resets_at = True
            elif parameter == _TP_MAX_UDP_PAYLOAD:
                self.mtu.maximum = min(self.mtu.maximum, value.pull_uint_var())
            elif parameter == _TP_ACK_DELAY_EXPONENT:
                self._remote_ack_delay_exponent = value.pull_uint_var()

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        was_complete = self._handshake_complete
        super()._handle_crypto_frame(context, frame_type, buf)
        if self._handshake_complete and not was_complete:
            self._verify_peer(frame_type)

    def _confirm_handshake(self) -> None:
        super()._confirm_handshake()
        shed_handshake(self)

    def _verify_peer(self, frame_type: int) -> None:
        """Judge the peer's certificate before anything is sent to it, or told of it."""
        certificate = self.tls._peer_certificate
        # A resumed session was verified when it began (RFC 8446 section 2.2).
        if self.config.verify is not None and not self.tls.session_resumed:
            try:
                self.config.verify(certificate, self.tls._peer_certificate_chain)
            except Exception as exc:
                self._events.clear()
                alert = getattr(exc, "alert", int(AlertDescription.bad_certificate))
                self.rejection = exc
                reason = str(exc).encode(errors="replace")[:_MAX_REASON].decode(errors="ignore")
                raise QuicConnectionError(
                    QuicErrorCode.CRYPTO_ERROR + alert, frame_type, reason
                ) from None
        if certificate is not None:
            self.peer_certificate = certificate.public_bytes(Encoding.DER)
            self._certificate_valid_until = certificate.not_valid_after_utc
        shed_certificates(self.tls)

    def _replenish_connection_ids(self) -> None:
        known = len(self._host_cids)
        super()._replenish_connection_ids()
        if self.config.reset_token is not None:
            for connection_id in self._host_cids[known:]:
                connection_id.stateless_reset_token = self.config.reset_token(connection_id.cid)

    # ---- paths

    @property
    def route(self) -> Route | None:
        """Where packets go; None before there is a path."""
        route: Route | None = self.get_peer_address()
        return route

    def probe_path(self, route: Route) -> bool:
        """Ask for a sign of life over another path, to move there when it comes (RFC 9000 section 9).

        May be called again for the same route, as the question may have been lost.

        Returns:
            whether that is possible: the peer must have given out a spare connection id.
        """
        if self.route == route:
            return True
        path = next((path for path in self._network_paths if path.addr == route), None)
        if path is None:
            path = QuicNetworkPath(route)
        if path.peer_cid is None:
            if not self._peer_cid_available:
                return False
            # A connection id is never used from two addresses (RFC 9000 section 9.5).
            path.peer_cid = self._peer_cid_available.pop(0)
        path.is_validated = path.local_challenge_sent = False
        if path not in self._network_paths:
            self._add_network_path(path)
        return True

    def abandon_path(self, route: Route) -> None:
        """Give up on `probe_path`, or hear no more over a path that was left."""
        for path in self._network_paths[1:]:
            if path.addr == route:
                self._network_paths.remove(path)
                if path.peer_cid is not None:
                    self._retire_peer_cid(path.peer_cid)

    def _path_changed(self, previous: Route) -> None:
        route: Route = self._network_paths[0].addr
        self._events.append(PathChanged(route))
        self.mtu.restart(self._now)
        self._resize()
        if self._is_client or previous.remote[0] != route.remote[0]:
            # Another network: what was learnt of the old one is void (RFC 9000 section 9.4).
            self._loss._cc.congestion_window = 10 * BASE_SIZE
            self._loss._cc.ssthresh = None
            self._loss._rtt_initialized = False

    def _resize(self) -> None:
        """Build packets of the size that the path is known to carry."""
        size = self.mtu.size
        smaller = size < self._max_datagram_size
        self._max_datagram_size = size
        self._pacer.max_datagram_size = size
        self._loss._cc._max_datagram_size = size  # type: ignore[attr-defined]
        if smaller:
            self._drop_large_datagrams()

    def _probe_mtu(self, size: int, now: float) -> list[Datagram]:
        """A packet of PING and PADDING, which is no loss to the congestion controller (RFC 9000 section 14.4)."""
        path = self._network_paths[0]
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=self._is_client,
            max_datagram_size=size,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            quic_logger=self._quic_logger,
            spin_bit=self._spin_bit,
            version=self.wire_version,
        )
        builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[Epoch.ONE_RTT])
        buf = builder.start_frame(
            QuicFrameType.PING, handler=self._on_mtu_probe_delivery, handler_args=(size,)
        )
        buf.push_bytes(bytes(builder.remaining_buffer_space))
        assert builder._packet is not None
        # Nor does it count for the probe timeout; that it is lost shows when later packets are acknowledged.
        builder._packet.in_flight = builder._packet.is_ack_eliciting = False
        return self._flush_builder(builder, path, self._peer_cid.cid, now)

    def _on_mtu_probe_delivery(self, delivery: QuicDeliveryState, size: int) -> None:
        if delivery is QuicDeliveryState.ACKED:
            self.mtu.acknowledged(size)
            self._resize()
        else:
            self.mtu.lost(size, self._now)
