"""The engine's straight road: 1-RTT packets on one established path, which is what nearly all packets are.

aioquic can do all that is done here, and does it wherever a packet or the state of the connection is out of the ordinary: in
the handshake, on a new path, with frames that are rare, with a log. What remains is the common case written without the
detours, and it costs less than half. Both ways must behave the same; the tests run them against each other.
"""

from __future__ import annotations

from typing import Any, Final

from aioquic.buffer import Buffer, BufferReadError, size_uint_var  # type: ignore[attr-defined]
from aioquic.quic.connection import (
    NetworkAddress,
    QuicConnectionError,
    QuicConnectionId,
    QuicConnectionState,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.crypto import CryptoError, CryptoPair  # type: ignore[attr-defined]
from aioquic.quic.events import DatagramFrameReceived, StreamDataReceived
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, push_ack_frame
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketSpace
from aioquic.quic.stream import QuicStream, StreamFinishedError
from aioquic.tls import Epoch
from cryptography.exceptions import InvalidTag

from .config import CID_LENGTH, EngineConfig
from .frame_handlers import SHORT_HANDLERS
from .keys import PacketKeys
from .packets import Outgoing, open_packet, read_frames, seal_packet
from .recovering import Recovering, SentPacket

__all__ = ["Established"]

# First byte of a short header (RFC 9000 section 17.3.1): fixed bit, spin bit, reserved bits, key phase, and the length of the
# packet number, of which we send two bytes.
_FORM_MASK: Final = 0xC0
_SHORT: Final = 0x40
_SPIN: Final = 0x20
_RESERVED: Final = 0x18
_PACKET_NUMBER: Final = 2
_TAG: Final = 16

_ACK_OF_ACK: Final = 8  # aioquic asks for an acknowledgement of acknowledgements so often

_PING: Final = 0x01
_ACK: Final = 0x02
_STREAM: Final = range(0x08, 0x10)
_STREAM_FIN: Final = 0x01
# Frames that need no acknowledgement (RFC 9000 section 13.2).
_NOT_ELICITING: Final = {0x00, 0x02, 0x03, 0x1C, 0x1D}


class Established(Recovering):
    """Packets of an established connection.

    Args:
        config: limits and roles.
        kwargs: the rest of what aioquic's connection takes.
    """

    def __init__(self, config: EngineConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        # Set once the handshake is confirmed; None sends everything along aioquic's way.
        self._road: _Road | None = None
        self._ids_unsent = False
        # The idle timeout, which hardly changes, and until when it is taken for what it is.
        self._idle = 0.0
        self._idle_until = 0.0

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        self._ids_unsent = True

    def _on_new_connection_id_delivery(
        self, delivery: QuicDeliveryState, connection_id: QuicConnectionId
    ) -> None:
        super()._on_new_connection_id_delivery(delivery, connection_id)
        self._ids_unsent = self._ids_unsent or not connection_id.was_sent

    def _patience(self, now: float) -> float:
        """The idle timeout in seconds (RFC 9000 section 10.1)."""
        if now >= self._idle_until:
            self._idle_until = now + 1
            self._idle = self._idle_timeout()
        return self._idle

    def _sent_long_way(self) -> None:
        """Called after packets were built in aioquic's way."""
        self._ids_unsent = not all(connection_id.was_sent for connection_id in self._host_cids)

    def _find_road(self) -> None:
        """See whether the straight road may be taken from now on; called after each packet that went the other way."""
        self._road = None
        if self._quic_logger is None and self._handshake_confirmed and self._handshake_complete:
            path = self._network_paths[0]
            if path.is_validated and not self._cryptos[Epoch.ZERO_RTT].recv.is_valid():
                self._road = _Road(
                    path,
                    self._spaces[Epoch.ONE_RTT],
                    self._cryptos[Epoch.ONE_RTT],
                    self._crypto_streams[Epoch.ONE_RTT],
                )

    # ---- receiving

    def _receive_short(self, data: bytes, route: NetworkAddress, now: float) -> bool:
        """Take a packet in; False if it is out of the ordinary, and nothing was done.

        Raises:
            Exception: whatever a bug that it found may raise.
        """
        road = self._road
        if (
            road is None
            or data[0] & _FORM_MASK != _SHORT
            or data[1 : 1 + CID_LENGTH] != self.host_cid
            or road.path is not self._network_paths[0]
            or road.path.addr != route
            or self._state is not QuicConnectionState.CONNECTED
        ):
            return False
        space = road.space
        try:
            first, number, payload = road.unprotect(data)
        except (CryptoError, InvalidTag):
            return True  # not for us, or damaged: dropped (RFC 9001 section 5.5)
        if number in space.received_packets:
            return True
        if first & _RESERVED:
            self.close(
                QuicErrorCode.PROTOCOL_VIOLATION,
                QuicFrameType.PADDING,
                "reserved bits must be zero",
            )
            return True
        if number > space.expected_packet_number:
            space.expected_packet_number = number + 1
        if number > self._spin_highest_pn:
            spin = bool(first & _SPIN)
            self._spin_bit = not spin if self._is_client else spin
            self._spin_highest_pn = number
        eliciting = False
        context = road.context
        context.host_cid, context.time = self.host_cid, now
        try:
            eliciting = self._handle_payload(context, space, payload)
        except QuicConnectionError as exc:
            self.close(exc.error_code, exc.frame_type, exc.reason_phrase)
        if self._close_pending or self._state is not QuicConnectionState.CONNECTED:
            return True
        self._close_at = now + self._patience(now)
        self._ack_eliciting_sent_since_receipt = False
        if number > space.largest_received_packet:
            space.largest_received_packet = number
            space.largest_received_time = now
        space.ack_queue.add(number)
        space.received_packets.add(number)
        if len(space.ack_queue) > MAX_ACK_RANGES:
            space.ack_queue.shift()
        if eliciting and space.ack_at is None:
            space.ack_at = now + self._ack_delay
        return True

    def _handle_payload(
        self, context: QuicReceiveContext, space: QuicPacketSpace, payload: bytes
    ) -> bool:
        """Handle a packet's frames; whether it needs an acknowledgement."""
        found = read_frames(payload)
        if found is None:
            return self._handle_frames(context, payload)
        for frame in found[0]:
            if frame[0] == _ACK:
                _, at, smallest, largest, delay = frame
                taken = self._take_ack(space, smallest, largest, delay, context.time)
            elif frame[0] in _STREAM:
                kind, at, stream_id, offset, data = frame
                taken = self._take_stream_data(stream_id, offset, data, bool(kind & _STREAM_FIN))
            else:
                _, at, size, data = frame
                taken = self._take_datagram(size, data)
            if not taken:
                buf = Buffer(data=payload)
                buf.seek(at)
                self._handle_frame(context, frame[0], buf)
        return found[1]

    def _handle_frames(self, context: QuicReceiveContext, payload: bytes) -> bool:
        """The same for frames of any kind, and for what is no frame."""
        buf = Buffer(data=payload)
        eliciting = False
        if not payload:
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, QuicFrameType.PADDING, "a packet without frames"
            )
        while not buf.eof():
            try:
                frame_type = buf.pull_uint_var()
            except BufferReadError as exc:
                raise _malformed(0) from exc
            self._handle_frame(context, frame_type, buf)
            if frame_type not in _NOT_ELICITING:
                eliciting = True
        return eliciting

    def _handle_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """A frame behind its type, in the general way."""
        handler = SHORT_HANDLERS.get(frame_type)
        if handler is None:
            raise QuicConnectionError(
                QuicErrorCode.FRAME_ENCODING_ERROR, frame_type, "unknown frame type"
            )
        try:
            getattr(self, handler)(context, frame_type, buf)
        except StreamFinishedError:
            pass  # of a stream that is no longer known
        except ValueError as exc:  # BufferReadError, that is
            raise _malformed(frame_type) from exc

    def _take_datagram(self, size: int, data: bytes) -> bool:
        """A DATAGRAM frame, of which the body has so many bytes (RFC 9221 section 4)."""
        limit = self._configuration.max_datagram_frame_size
        if limit is None or size >= limit:
            return False
        self._events.append(DatagramFrameReceived(data))
        return True

    def _take_stream_data(self, stream_id: int, offset: int, data: bytes, fin: bool) -> bool:
        """A STREAM frame (RFC 9000 section 19.8) that continues its stream; False if it does not, and nothing was done."""
        stream = self._streams.get(stream_id)
        if stream is None or self._resets.awaited:
            return False
        receiver, credit, length = stream.receiver, self._local_max_data, len(data)
        end = offset + length
        if (
            not length
            or offset != receiver._buffer_start
            or receiver._buffer
            or receiver.is_finished
            or receiver._final_size is not None
            or end > stream.max_stream_data_local
            or credit.used + length > credit.value
        ):
            return False
        receiver._buffer_start = receiver.highest_offset = end
        credit.used += length
        if fin:
            receiver._final_size = end
            receiver.is_finished = True
            self._discard_finished(stream)
        self._events.append(StreamDataReceived(data, fin, stream_id))
        return True

    # ---- sending

    def _is_ordinary(self, road: _Road) -> bool:
        """Whether nothing is to be sent but acknowledgements, stream data and datagrams."""
        return not (
            self._close_pending
            or self._probe_pending
            or self._ping_pending
            or self._handshake_done_pending
            or self._retire_connection_ids
            or self._streams_blocked_pending
            or self._reliable_resets
            or self._streams.dirty
            or self._state is not QuicConnectionState.CONNECTED
            or road.path is not self._network_paths[0]
            or (len(self._network_paths) > 1 and self._is_probing())
            or road.path.remote_challenges
            or not road.crypto_stream.sender.buffer_is_empty
            or self._local_max_data.value != self._local_max_data.sent
            or self._ids_unsent
            or _is_due(self._local_max_streams_bidi)
            or _is_due(self._local_max_streams_uni)
        )

    def _is_probing(self) -> bool:
        """Whether another path is to be asked, or answered, for a sign of life."""
        return any(
            path.remote_challenges or not (path.is_validated or path.local_challenge_sent)
            for path in self._network_paths[1:]
        )

    @property
    def has_work(self) -> bool:
        """Whether something may have to be sent now; if not, the timer tells when."""
        road = self._road
        return (
            road is None
            or bool(self._active)
            or bool(self._datagrams_pending)
            or not self._is_ordinary(road)
            or (self.mtu.is_due(self._now) and road.path.is_validated)
        )

    @property
    def owes_acknowledgement(self) -> bool:
        """Whether an acknowledgement is to be sent soon, with something else or by itself."""
        road = self._road
        return road is None or road.space.ack_at is not None

    @property
    def _short_timer(self) -> float | None:
        """When the timer is due, if the connection is on the straight road; None if it is not."""
        road = self._road
        if road is None or self._close_at is None or road.path is not self._network_paths[0]:
            return None
        loss, space = self._loss, road.space
        at = space.loss_time
        if at is None and space.ack_eliciting_in_flight:
            timeout = loss.get_probe_timeout() * 2**loss._pto_count
            at = loss._time_of_last_sent_ack_eliciting_packet + timeout
        self._loss_at = at
        timer = self._close_at
        for other in (at, space.ack_at, self._pacing_at):
            if other is not None and other < timer:
                timer = other
        return timer

    def _send_short(self, now: float) -> list[tuple[bytes, NetworkAddress]] | None:
        """Packets to send now; None if something is out of the ordinary, and nothing was done."""
        road = self._road
        if road is None or not self._is_ordinary(road):
            return None
        pending, streams = self._datagrams_pending, self._active.in_order()
        for stream in streams:
            if stream.is_blocked or stream.receiver.stop_pending or stream.sender.reset_pending:
                return None
        self._pacing_at = None
        loss, space, size = self._loss, road.space, self._max_datagram_size
        control, pacer = loss._cc, loss._pacer
        header_size = 1 + len(self._peer_cid.cid) + _PACKET_NUMBER
        out: list[tuple[bytes, NetworkAddress]] = []
        while True:
            due = space.ack_at
            if due is None or due >= now:
                self._pacing_at = pacer.next_send_time(now=now)
                if self._pacing_at is not None:
                    break
            packet = SentPacket(self._packet_number, now)
            frames: list[Outgoing] = []
            at = header_size
            if due is not None and due <= now + (self._ack_delay / 2 if streams or pending else 0):
                ack = self._ack_frame(space, packet, size - _TAG - at, now)
                frames.append(ack)
                at += len(ack)
            flight = min(size, control.congestion_window - control.bytes_in_flight) - _TAG
            if pending:
                at += self._push_datagrams(frames, packet, flight - at)
            if streams:
                self._push_streams(frames, streams, packet, flight - at)
            if not frames:
                break
            data = road.protect(self._peer_cid.cid, self._spin_bit, packet.packet_number, frames)
            self._packet_number += 1
            packet.sent_bytes = len(data)
            space.sent_packets[packet.packet_number] = packet
            if packet.is_ack_eliciting:
                space.ack_eliciting_in_flight += 1
                loss._time_of_last_sent_ack_eliciting_packet = now
                control.on_packet_sent(packet=packet)
                if not self._ack_eliciting_sent_since_receipt:
                    self._close_at = now + self._patience(now)
                    self._ack_eliciting_sent_since_receipt = True
            pacer.update_after_send(now=now)
            out.append((data, road.path.addr))
            if streams:
                streams = self._active.in_order()
            if not (streams or pending):
                break
        if _is_due(self._local_max_streams_bidi) or _is_due(self._local_max_streams_uni):
            # Streams were discarded just now, and the peer may open others.
            out += self.datagrams_to_send(now)
        return out

    def _ack_frame(
        self, space: QuicPacketSpace, packet: SentPacket, room: int, now: float
    ) -> bytes:
        """An ACK frame, and a PING now and then."""
        assert space.largest_received_time is not None
        delay = int((now - space.largest_received_time) * 1e6) >> self._local_ack_delay_exponent
        buf = Buffer(capacity=room)
        buf.push_uint_var(_ACK)
        ranges = push_ack_frame(buf, space.ack_queue, delay, room - 1)
        packet.delivery_handlers.append(
            (self._on_ack_delivery, (space, space.largest_received_packet))
        )
        space.ack_at = None
        if ranges > 1 and packet.packet_number % _ACK_OF_ACK == 0:
            buf.push_uint_var(_PING)
            packet.in_flight = packet.is_ack_eliciting = True
            packet.delivery_handlers.append((self._on_ping_delivery, ((),)))
        data: bytes = buf.data
        return data

    def _push_datagrams(self, frames: list[Outgoing], packet: SentPacket, room: int) -> int:
        """DATAGRAM frames, as many as there is room for; how many bytes they take."""
        pending, used = self._datagrams_pending, 0
        while pending:
            length = len(pending[0])
            size = 1 + size_uint_var(length) + length
            if used + size > room:
                break
            frames.append((pending.popleft(),))
            used += size
            packet.in_flight = packet.is_ack_eliciting = True
        return used

    def _push_streams(
        self, frames: list[Outgoing], streams: list[QuicStream], packet: SentPacket, room: int
    ) -> None:
        if len(streams) == 1:
            self._push_stream(frames, streams[0], packet, room)
            self._active.review(streams[0])
            return
        served: list[QuicStream] = []
        rest: list[QuicStream] = []
        for stream in streams:
            size = self._push_stream(frames, stream, packet, room)
            room -= size
            (served if size else rest).append(stream)
        self._active.keep(rest + served)

    def _push_stream(
        self, frames: list[Outgoing], stream: QuicStream, packet: SentPacket, room: int
    ) -> int:
        """A STREAM frame, if the peer's limits and the packet have room for one; how many bytes it takes."""
        sender = stream.sender
        if sender.buffer_is_empty:
            return 0
        stream_id, pending = stream.stream_id, sender._pending
        assert stream_id is not None
        whole = pending[0] if len(pending) == 1 else None
        offset = sender.next_offset if whole is None else whole.start
        overhead = 3 + size_uint_var(stream_id) + (size_uint_var(offset) if offset else 0)
        before = sender.highest_offset
        room -= overhead
        limit = before + self._remote_max_data - self._remote_max_data_used
        limit = min(limit, stream.max_stream_data_remote)
        if whole is not None and whole.stop <= limit and whole.stop - offset <= room:
            # All that there is goes into this packet.
            base, stop = sender._buffer_start, pending.shift().stop
            if stop > before:
                sender.highest_offset = stop
            fin = sender._buffer_fin == stop
            if fin:
                sender._pending_eof = False
            sender.buffer_is_empty = not sender._pending_eof
            frames.append((stream_id, offset, fin, sender._buffer, offset - base, stop - base))
        else:
            frame = sender.get_frame(room, limit)
            if frame is None:
                return 0
            data, fin, stop = frame.data, frame.fin, frame.offset + len(frame.data)
            frames.append((stream_id, offset, fin, data, 0, len(data)))
        packet.in_flight = packet.is_ack_eliciting = True
        packet.delivery_handlers.append((self._on_data_delivery, (stream, offset, stop, fin)))
        self._remote_max_data_used += sender.highest_offset - before
        return overhead + stop - offset


def _malformed(frame_type: int) -> QuicConnectionError:
    return QuicConnectionError(
        QuicErrorCode.FRAME_ENCODING_ERROR, frame_type, "a frame could not be parsed"
    )


def _is_due(limit: Any) -> bool:
    """Whether a raised MAX_STREAMS is worth a frame, as aioquic sees it."""
    due: bool = 2 * limit.sent - limit.used < limit.granted
    return due


class _Road:
    """What the straight road needs at every step."""

    __slots__ = ("_opening", "_sealing", "context", "crypto", "crypto_stream", "path", "space")

    def __init__(
        self,
        path: QuicNetworkPath,
        space: QuicPacketSpace,
        crypto: CryptoPair,
        crypto_stream: QuicStream,
    ) -> None:
        self.path: QuicNetworkPath = path
        self.space: QuicPacketSpace = space
        self.crypto: CryptoPair = crypto
        self.crypto_stream: QuicStream = crypto_stream
        self.context: QuicReceiveContext = QuicReceiveContext(
            Epoch.ONE_RTT, b"", path, None, 0.0, None
        )
        self._opening = PacketKeys(crypto.recv, opens=True)
        self._sealing = PacketKeys(crypto.send, opens=False)

    def unprotect(self, data: bytes) -> tuple[int, int, bytes]:
        """A packet's first byte, number and payload (RFC 9001 section 5.4).

        Raises:
            CryptoError: it is not one of this connection's, or damaged.
            InvalidTag: the same.
        """
        crypto, expected = self.crypto, self.space.expected_packet_number
        recv, keys = crypto.recv, self._opening
        if keys.aead is not recv.aead:
            keys = self._opening = PacketKeys(recv, opens=True)
        opened = open_packet(
            data, CID_LENGTH, recv.key_phase, expected, keys.mask, keys.crypt, keys.iv
        )
        if opened is not None:
            return opened
        header, payload, number = crypto.decrypt_packet(data, 1 + CID_LENGTH, expected)
        return header[0], number, payload

    def protect(self, cid: bytes, spin: bool, number: int, frames: list[Outgoing]) -> bytes:
        """A packet of these frames (RFC 9001 section 5)."""
        crypto, keys = self.crypto, self._sealing
        if crypto._update_key_requested:
            crypto._update_key("local_update")
        if keys.aead is not crypto.send.aead:
            keys = self._sealing = PacketKeys(crypto.send, opens=False)
        first = _SHORT | spin << 5 | crypto.recv.key_phase << 2 | _PACKET_NUMBER - 1
        return seal_packet(first, cid, number, tuple(frames), keys.mask, keys.crypt, keys.iv)
