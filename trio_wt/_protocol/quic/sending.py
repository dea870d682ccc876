"""The sending half of the engine: streams, resets, datagrams, and what of them is under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from aioquic.buffer import Buffer, size_uint_var  # type: ignore[attr-defined]
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from ..path_mtu import PathMtu
from .config import EngineConfig
from .receiving import Receiving
from .reset_at import RESET_STREAM_AT, RESET_STREAM_AT_CAPACITY, OutgoingReset

__all__ = ["Sending"]

_AEAD_TAG: Final = 16
_PACKET_NUMBER: Final = 2
# After so many packets, those before them that need no acknowledgement are forgotten.
_SWEEP: Final = 512


class Sending(Receiving):
    """What an application sends, with figures to hold it back by.

    Args:
        config: limits and roles.
        kwargs: the rest of what aioquic's connection takes.

    Attributes:
        mtu: path MTU discovery.
        datagrams_dropped: datagrams that made room for newer ones, or no longer fitted a packet.
    """

    def __init__(self, config: EngineConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.mtu: PathMtu = PathMtu(config.max_packet_size)
        self.datagrams_dropped: int = 0
        self._peer_resets_at = False
        self._reliable_resets: dict[int, OutgoingReset] = {}
        self._swept_at = 0

    # ---- streams

    def openable(self, *, unidirectional: bool) -> int:
        """How many more streams the peer lets this side open."""
        if unidirectional:
            return self._remote_max_streams_uni - self._local_next_stream_id_uni // 4
        return self._remote_max_streams_bidi - self._local_next_stream_id_bidi // 4

    def open(self, *, unidirectional: bool) -> int:
        """Open a stream, which the peer learns of with the first bytes; its id."""
        stream_id = self.get_next_available_stream_id(unidirectional)
        self.send_stream_data(stream_id, b"")
        return stream_id

    def send(
        self, stream_id: int, data: bytes | bytearray | memoryview, *, fin: bool = False
    ) -> bool:
        """Take bytes, and the end, of a stream; whether it was neither ended nor reset, and has taken them."""
        if not self.is_sendable(stream_id):
            return False  # reset by STOP_SENDING a moment ago, which is an event still to be taken
        stream = self._streams[stream_id]
        stream.sender.write(data, end_stream=fin)  # type: ignore[arg-type]
        self._active.append(stream)
        return True

    def is_sendable(self, stream_id: int) -> bool:
        """Whether a stream takes data: it was neither ended nor reset, nor stopped by the peer."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        sender = stream.sender
        return (
            sender._buffer_fin is None
            and sender._reset_error_code is None
            and stream_id not in self._reliable_resets
        )

    def unsent(self, stream_id: int) -> int:
        """Bytes of a stream that have not been in any packet yet."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.sender._reset_error_code is not None:
            return 0
        reset = self._reliable_resets.get(stream_id)
        stop = stream.sender._buffer_stop if reset is None else reset.reliable_size
        return max(0, stop - stream.sender.highest_offset)

    @property
    def undelivered(self) -> bool:
        """Whether something of a stream that was ended or reset has not been acknowledged yet."""
        return any(map(self._is_ending, self._streams.every()))

    def _is_ending(self, stream: QuicStream) -> bool:
        sender = stream.sender
        return not sender.is_finished and (
            sender._buffer_fin is not None
            or sender._reset_error_code is not None
            or stream.stream_id in self._reliable_resets
        )

    def is_ending(self, stream_id: int) -> bool:
        """Whether a stream was ended or reset, and something of it has not been acknowledged yet."""
        stream = self._streams.get(stream_id)
        return stream is not None and self._is_ending(stream)

    def never_sent(self, stream_id: int, offset: int) -> int:
        """Bytes of a stream, from an offset on, that were not in any packet, and, once it is reset, will never be."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return 0
        return max(0, stream.sender._buffer_stop - max(stream.sender.highest_offset, offset))

    def is_undelivered(self, stream_id: int) -> bool:
        """Whether something of a stream was not acknowledged yet, its end among it."""
        stream = self._streams.get(stream_id)
        return stream is not None and not stream.sender.is_finished

    def prioritise(self, stream_id: int, priority: int) -> None:
        """Serve a stream before those of a lower priority; 0 is the usual one."""
        if priority and stream_id in self._streams:
            self._active.priorities[stream_id] = priority
        else:
            self._active.priorities.pop(stream_id, None)

    def priority(self, stream_id: int) -> int:
        """What a stream's is."""
        return self._active.priorities.get(stream_id, 0)

    def reset(self, stream_id: int, code: int, reliable_size: int = 0) -> None:
        """Give up sending on a stream; without effect if it is finished, or reset.

        Args:
            stream_id: the stream.
            code: the application's error code, below 2^62.
            reliable_size: how many bytes from the beginning are to arrive in any case. It counts only with a peer
                that supports RESET_STREAM_AT.
        """
        stream = self._streams.get(stream_id)
        if stream is None or stream.sender.is_finished or stream_id in self._reliable_resets:
            return
        self._active.append(stream)
        sender = stream.sender
        reliable_size = min(reliable_size, sender._buffer_stop)
        if not (self._peer_resets_at and reliable_size > sender._buffer_start):
            sender.reset(code)
        elif sender._reset_error_code is None:
            self._reliable_resets[stream_id] = OutgoingReset(code, reliable_size)
            # What lies beyond is neither sent nor sent again, nor is a FIN.
            if sender._buffer_stop > reliable_size:
                sender._pending.subtract(reliable_size, sender._buffer_stop)
            sender._pending_eof = False

    def stop(self, stream_id: int, code: int) -> None:
        """Ask the peer to stop sending on a stream; without effect where it has finished."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            stream.receiver.stop(code)
            self._active.append(stream)

    # ---- datagrams

    @property
    def max_datagram(self) -> int:
        """The most that a datagram may carry now, in bytes; 0 if the peer takes none."""
        # Whoever asks would send more, if more were possible.
        self.mtu.wanted = True
        peer = self._remote_max_datagram_frame_size
        if not peer:
            return 0
        header = 1 + len(self._peer_cid.cid) + _PACKET_NUMBER
        room = min(self._max_datagram_size - header - _AEAD_TAG, peer) - 1
        return max(0, room - size_uint_var(max(0, room)))

    @property
    def datagrams_queued(self) -> int:
        """Datagrams that wait to be sent."""
        return len(self._datagrams_pending)

    def queue_datagram(self, data: bytes) -> None:
        """Send a datagram of at most `max_datagram` bytes; the oldest makes room if too many wait."""
        pending = self._datagrams_pending
        if len(pending) >= self.config.max_datagram_queue:
            pending.popleft()
            self.datagrams_dropped += 1
        pending.append(data)

    def _drop_large_datagrams(self) -> None:
        """After packets became smaller: what does not fit would block those behind it."""
        fitting = [data for data in self._datagrams_pending if len(data) <= self.max_datagram]
        self.datagrams_dropped += len(self._datagrams_pending) - len(fitting)
        self._datagrams_pending.clear()
        self._datagrams_pending.extend(fitting)

    # ---- packets

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        super()._write_connection_limits(builder, space)
        for stream_id, reset in self._reliable_resets.items():
            stream = self._streams[stream_id]
            # The final size is fixed once all of the reliable part was sent, within the peer's limits.
            if reset.pending and stream.sender.highest_offset >= reset.reliable_size:
                self._write_reset_stream_at(builder, stream, reset)

    def _write_reset_stream_at(
        self, builder: QuicPacketBuilder, stream: QuicStream, reset: OutgoingReset
    ) -> None:
        assert stream.stream_id is not None
        buf: Buffer = builder.start_frame(
            RESET_STREAM_AT,
            capacity=RESET_STREAM_AT_CAPACITY,
            handler=self._on_reset_at_delivery,
            handler_args=(stream, reset),
        )
        final_size = stream.sender.highest_offset
        for value in (stream.stream_id, reset.code, final_size, reset.reliable_size):
            buf.push_uint_var(value)
        reset.pending = False

    def _on_reset_at_delivery(
        self, delivery: QuicDeliveryState, stream: QuicStream, reset: OutgoingReset
    ) -> None:
        if delivery is QuicDeliveryState.ACKED:
            reset.acknowledged = True
            self._finish_reset(stream, reset)
        else:
            reset.pending = True

    def _finish_reset(self, stream: QuicStream, reset: OutgoingReset) -> None:
        """A stream reset by RESET_STREAM_AT is done once the frame and the reliable part have arrived."""
        if reset.acknowledged and stream.sender._buffer_start >= reset.reliable_size:
            stream.sender.is_finished = True
            self._discard_finished(stream)

    def _forget(self, stream_id: int) -> None:
        super()._forget(stream_id)
        self._reliable_resets.pop(stream_id, None)

    def _write_stream_frame(
        self,
        builder: QuicPacketBuilder,
        space: QuicPacketSpace,
        stream: QuicStream,
        max_offset: int,
    ) -> int:
        handlers = _handlers(builder)
        count = len(handlers)
        used = super()._write_stream_frame(builder, space, stream, max_offset)
        self._follow(handlers, count, stream)
        return used

    def _write_reset_stream_frame(self, builder: QuicPacketBuilder, stream: QuicStream) -> None:
        handlers = _handlers(builder)
        count = len(handlers)
        super()._write_reset_stream_frame(builder, stream)
        self._follow(handlers, count, stream)

    def _write_stop_sending_frame(self, builder: QuicPacketBuilder, stream: QuicStream) -> None:
        handlers = _handlers(builder)
        count = len(handlers)
        super()._write_stop_sending_frame(builder, stream)
        self._follow(handlers, count, stream)

    def _follow(self, handlers: list[Any], count: int, stream: QuicStream) -> None:
        """Learn the fate of the frame just written, if one was."""
        if len(handlers) > count:
            handler, args = handlers[-1]
            handlers[-1] = (self._on_stream_delivery, (stream, handler, args))

    def _on_stream_delivery(
        self,
        delivery: QuicDeliveryState,
        stream: QuicStream,
        handler: Callable[..., None],
        args: tuple[Any, ...],
    ) -> None:
        if handler == stream.sender.on_data_delivery and self._on_cut_delivery(
            delivery, stream, args[0], args[1]
        ):
            return
        handler(delivery, *args)
        if delivery is not QuicDeliveryState.ACKED:
            if stream.stream_id in self._streams:
                self._active.append(stream)
        elif stream.sender.is_finished:
            self._discard_finished(stream)

    def _on_cut_delivery(
        self, delivery: QuicDeliveryState, stream: QuicStream, start: int, stop: int
    ) -> bool:
        """The fate of data of a stream that was cut by RESET_STREAM_AT; whether it is one."""
        reset = self._reliable_resets.get(stream.stream_id or 0)
        if reset is None:
            # A stream that is forgotten has nothing to send again.
            return stream.stream_id not in self._streams
        if delivery is QuicDeliveryState.ACKED:
            stream.sender.on_data_delivery(delivery, start, stop, False)
            self._finish_reset(stream, reset)
        else:
            stop = min(stop, reset.reliable_size)
            if start < stop:
                stream.sender.on_data_delivery(delivery, start, stop, False)
                self._active.append(stream)
        return True

    def _sweep_sent(self) -> None:
        """Forget old packets that need no acknowledgement: a peer that never sends one would make us keep them for ever."""
        if self._packet_number - self._swept_at < _SWEEP:
            return
        self._swept_at = self._packet_number
        for space in self._loss.spaces:
            old = [
                number
                for number, packet in space.sent_packets.items()
                if not packet.is_ack_eliciting and number < self._packet_number - _SWEEP
            ]
            for number in old:
                for handler, args in space.sent_packets.pop(number).delivery_handlers:
                    handler(QuicDeliveryState.LOST, *args)


def _handlers(builder: QuicPacketBuilder) -> list[Any]:
    packet = builder._packet
    assert packet is not None
    return packet.delivery_handlers
