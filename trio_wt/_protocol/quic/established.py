"""The engine's straight road: 1-RTT packets on one established path, which is what nearly all packets are.

aioquic can do all that is done here, and does it wherever a packet or the state of the connection is out of the ordinary: in
the handshake, on a new path, with frames that are rare, with a log. What remains is the common case written without the
detours, and it costs less than half. Both ways must behave the same; the tests run them against each other.
"""

from __future__ import annotations

from typing import Any, Final

from aioquic.buffer import Buffer, size_uint_var  # type: ignore[attr-defined]
from aioquic.quic.connection import (
    NetworkAddress,
    QuicConnectionError,
    QuicConnectionId,
    QuicConnectionState,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.crypto import CryptoError, CryptoPair  # type: ignore[attr-defined]
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicPacketType,
    decode_packet_number,
    push_ack_frame,
)
from aioquic.quic.packet_builder import QuicDeliveryState, QuicSentPacket
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketSpace
from aioquic.quic.stream import QuicStream, StreamFinishedError
from aioquic.tls import Epoch

from .config import CID_LENGTH, EngineConfig
from .frame_handlers import SHORT_HANDLERS
from .sending import Sending

__all__ = ["Established"]

# First byte of a short header (RFC 9000 section 17.3.1): fixed bit, spin bit, reserved bits, key phase, and the length of the
# packet number, of which we send two bytes.
_FORM_MASK: Final = 0xC0
_SHORT: Final = 0x40
_SPIN: Final = 0x20
_RESERVED: Final = 0x18
_PACKET_NUMBER: Final = 2
_TAG: Final = 16
# Header protection samples four bytes after the beginning of the packet number (RFC 9001 section 5.4.2).
_MIN_PAYLOAD: Final = 2
_SAMPLE: Final = 16
_SHORT_MASK: Final = 0x1F

_ACK_OF_ACK: Final = 8  # aioquic asks for an acknowledgement of acknowledgements so often

_PING: Final = 0x01
_ACK: Final = 0x02
_STREAM: Final = range(0x08, 0x10)
_STREAM_FIN: Final = 0x01
_STREAM_LENGTH: Final = 0x02
_STREAM_OFFSET: Final = 0x04
_DATAGRAM_WITH_LENGTH: Final = 0x31
# Frames that need no acknowledgement (RFC 9000 section 13.2).
_NOT_ELICITING: Final = {0x00, 0x02, 0x03, 0x1C, 0x1D}


class Established(Sending):
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
            first, payload, number = _unprotect(road.crypto, data, space.expected_packet_number)
        except CryptoError:
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
            eliciting = self._handle_frames(context, payload)
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

    def _handle_frames(self, context: QuicReceiveContext, payload: bytes) -> bool:
        """Handle a packet's frames; whether it needs an acknowledgement."""
        buf = Buffer(data=payload)
        eliciting = False
        if not payload:
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, QuicFrameType.PADDING, "a packet without frames"
            )
        while not buf.eof():
            frame_type = 0
            try:
                frame_type = buf.pull_uint_var()
                if frame_type in _STREAM:
                    self._take_stream_frame(context, frame_type, buf)
                else:
                    handler = SHORT_HANDLERS.get(frame_type)
                    if handler is None:
                        raise QuicConnectionError(
                            QuicErrorCode.FRAME_ENCODING_ERROR, frame_type, "unknown frame type"
                        )
                    getattr(self, handler)(context, frame_type, buf)
            except StreamFinishedError:
                pass  # of a stream that is no longer known
            except ValueError as exc:  # BufferReadError, that is
                raise QuicConnectionError(
                    QuicErrorCode.FRAME_ENCODING_ERROR, frame_type, "a frame could not be parsed"
                ) from exc
            if frame_type not in _NOT_ELICITING:
                eliciting = True
        return eliciting

    def _take_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """A STREAM frame (RFC 9000 section 19.8): here if it continues its stream, in the general way otherwise."""
        start = buf.tell()
        stream_id = buf.pull_uint_var()
        offset = buf.pull_uint_var() if frame_type & _STREAM_OFFSET else 0
        length = buf.pull_uint_var() if frame_type & _STREAM_LENGTH else buf.capacity - buf.tell()
        end = offset + length
        stream = self._streams.get(stream_id)
        if stream is not None and not self._resets.awaited:
            receiver = stream.receiver
            if (
                length
                and offset == receiver._buffer_start
                and not receiver._buffer
                and not receiver.is_finished
                and receiver._final_size is None
                and end <= stream.max_stream_data_local
                and self._local_max_data.used + length <= self._local_max_data.value
            ):
                data = buf.pull_bytes(length)
                receiver._buffer_start = receiver.highest_offset = end
                self._local_max_data.used += length
                fin = bool(frame_type & _STREAM_FIN)
                if fin:
                    receiver._final_size = end
                    receiver.is_finished = True
                    self._discard_finished(stream)
                self._events.append(StreamDataReceived(data, fin, stream_id))
                return
        buf.seek(start)
        self._handle_stream_frame(context, frame_type, buf)

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
        )

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
        for stream in self._active:
            if stream.is_blocked or stream.receiver.stop_pending or stream.sender.reset_pending:
                return None
        self._pacing_at = None
        loss, space, size = self._loss, road.space, self._max_datagram_size
        header_size = 1 + len(self._peer_cid.cid) + _PACKET_NUMBER
        buf = Buffer(capacity=size)
        out: list[tuple[bytes, NetworkAddress]] = []
        while True:
            if space.ack_at is None or space.ack_at >= now:
                self._pacing_at = loss._pacer.next_send_time(now=now)
                if self._pacing_at is not None:
                    break
            packet = QuicSentPacket(
                Epoch.ONE_RTT, False, False, False, self._packet_number, QuicPacketType.ONE_RTT, now
            )
            buf.seek(header_size)
            if space.ack_at is not None and space.ack_at <= now + (
                self._ack_delay / 2 if self._active or self._datagrams_pending else 0
            ):
                self._push_ack(buf, space, packet, size - _TAG, now)
            flight = min(size, loss.congestion_window - loss.bytes_in_flight) - _TAG
            self._push_datagrams(buf, packet, flight)
            if self._active:
                self._push_streams(buf, packet, flight)
            if buf.tell() == header_size:
                break
            data = self._protect(road.crypto, buf, header_size, packet)
            loss.on_packet_sent(packet=packet, space=space)
            if packet.is_ack_eliciting and not self._ack_eliciting_sent_since_receipt:
                self._close_at = now + self._patience(now)
                self._ack_eliciting_sent_since_receipt = True
            loss._pacer.update_after_send(now=now)
            out.append((data, road.path.addr))
            if not (self._active or self._datagrams_pending):
                break
        if _is_due(self._local_max_streams_bidi) or _is_due(self._local_max_streams_uni):
            # Streams were discarded just now, and the peer may open others.
            out += self.datagrams_to_send(now)
        return out

    def _push_ack(
        self, buf: Buffer, space: QuicPacketSpace, packet: QuicSentPacket, end: int, now: float
    ) -> None:
        assert space.largest_received_time is not None
        delay = int((now - space.largest_received_time) * 1e6) >> self._local_ack_delay_exponent
        buf.push_uint_var(_ACK)
        ranges = push_ack_frame(buf, space.ack_queue, delay, end - buf.tell())
        packet.delivery_handlers.append(
            (self._on_ack_delivery, (space, space.largest_received_packet))
        )
        space.ack_at = None
        if ranges > 1 and packet.packet_number % _ACK_OF_ACK == 0:
            buf.push_uint_var(_PING)
            packet.in_flight = packet.is_ack_eliciting = True
            packet.delivery_handlers.append((self._on_ping_delivery, ((),)))

    def _push_datagrams(self, buf: Buffer, packet: QuicSentPacket, end: int) -> None:
        pending = self._datagrams_pending
        while pending:
            length = len(pending[0])
            if buf.tell() + 1 + size_uint_var(length) + length > end:
                return
            buf.push_uint_var(_DATAGRAM_WITH_LENGTH)
            buf.push_uint_var(length)
            buf.push_bytes(pending.popleft())
            packet.in_flight = packet.is_ack_eliciting = True

    def _push_streams(self, buf: Buffer, packet: QuicSentPacket, end: int) -> None:
        served = []
        rest = []
        for stream in self._active:
            if self._push_stream(buf, stream, packet, end):
                served.append(stream)
            else:
                rest.append(stream)
        self._active.keep(rest + served)

    def _push_stream(
        self, buf: Buffer, stream: QuicStream, packet: QuicSentPacket, end: int
    ) -> bool:
        """A STREAM frame, if the peer's limits and the packet have room for one; whether they had."""
        sender = stream.sender
        if sender.buffer_is_empty:
            return False
        assert stream.stream_id is not None
        offset = sender.next_offset
        overhead = 3 + size_uint_var(stream.stream_id) + (size_uint_var(offset) if offset else 0)
        before = sender.highest_offset
        room = end - buf.tell() - overhead
        limit = before + self._remote_max_data - self._remote_max_data_used
        limit = min(limit, stream.max_stream_data_remote)
        pending = sender._pending
        if len(pending) == 1 and pending[0].stop <= limit and pending[0].stop - offset <= room:
            # All that there is goes into this packet.
            base, stop = sender._buffer_start, pending.shift().stop
            data = bytes(memoryview(sender._buffer)[offset - base : stop - base])
            sender.highest_offset = max(before, stop)
            fin = sender._buffer_fin == stop
            if fin:
                sender._pending_eof = False
            sender.buffer_is_empty = not sender._pending_eof
        else:
            frame = sender.get_frame(room, limit)
            if frame is None:
                return False
            data, fin, stop = frame.data, frame.fin, frame.offset + len(frame.data)
        frame_type = _STREAM.start | _STREAM_LENGTH | bool(offset) << 2 | fin
        buf.push_uint_var(frame_type)
        buf.push_uint_var(stream.stream_id)
        if offset:
            buf.push_uint_var(offset)
        buf.push_uint16(len(data) | 0x4000)
        buf.push_bytes(data)
        packet.in_flight = packet.is_ack_eliciting = True
        delivered = (sender.on_data_delivery, (offset, stop, fin))
        packet.delivery_handlers.append((self._on_stream_delivery, (stream, *delivered)))
        self._remote_max_data_used += sender.highest_offset - before
        return True

    def _protect(
        self, crypto: CryptoPair, buf: Buffer, header_size: int, packet: QuicSentPacket
    ) -> bytes:
        """Encrypt what is in the buffer, and take note of its packet."""
        missing = _MIN_PAYLOAD - (buf.tell() - header_size)
        if missing > 0:
            buf.push_bytes(bytes(missing))
            packet.in_flight = True
        number = packet.packet_number
        truncated, cid = number & 0xFFFF, self._peer_cid.cid
        first = _SHORT | self._spin_bit << 5 | crypto.key_phase << 2 | _PACKET_NUMBER - 1
        header = bytes((first,)) + cid + truncated.to_bytes(2)
        payload = buf.data_slice(header_size, buf.tell())
        if crypto._update_key_requested:
            data = crypto.encrypt_packet(header, payload, number)
        else:
            # What aioquic's encrypt_packet does, a byte at a time.
            send = crypto.send
            assert send.aead is not None
            assert send.hp is not None
            protected = send.aead.encrypt(payload, header, number)
            mask = send.hp._mask(protected[_MIN_PAYLOAD : _MIN_PAYLOAD + _SAMPLE])
            masked = truncated ^ (mask[1] << 8 | mask[2])
            data = bytes((first ^ mask[0] & _SHORT_MASK,)) + cid + masked.to_bytes(2) + protected
        packet.sent_bytes = len(data)
        self._packet_number += 1
        return data


def _unprotect(crypto: CryptoPair, data: bytes, expected: int) -> tuple[int, bytes, int]:
    """A short packet's first byte, payload and number (RFC 9001 section 5.4).

    Raises:
        CryptoError: it is not one of this connection's, or damaged.
    """
    recv = crypto.recv
    start = 1 + CID_LENGTH
    sample = data[start + 4 : start + 4 + _SAMPLE]
    if len(sample) < _SAMPLE:
        raise CryptoError("too short")
    assert recv.hp is not None
    mask = recv.hp._mask(sample)
    first = data[0] ^ mask[0] & _SHORT_MASK
    if (first >> 2 & 1) != recv.key_phase:
        header, payload, number = crypto.decrypt_packet(data, start, expected)
        return header[0], payload, number
    end = start + (first & 3) + 1
    length = end - start
    truncated = int.from_bytes(data[start:end]) ^ int.from_bytes(mask[1 : 1 + length])
    number = decode_packet_number(truncated, 8 * length, expected)
    header = bytes((first,)) + data[1:start] + truncated.to_bytes(length)
    assert recv.aead is not None
    return first, recv.aead.decrypt(data[end:], header, number), number


def _is_due(limit: Any) -> bool:
    """Whether a raised MAX_STREAMS is worth a frame, as aioquic sees it."""
    due: bool = 2 * limit.sent - limit.used < limit.granted
    return due


class _Road:
    """What the straight road needs at every step."""

    __slots__ = ("context", "crypto", "crypto_stream", "path", "space")

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
