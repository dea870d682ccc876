"""The receiving half of the engine: what a peer may send, and what it costs us."""

from __future__ import annotations

from typing import Any

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.connection import (
    MAX_STREAM_DATA_FRAME_CAPACITY,
    QuicConnection,
    QuicConnectionError,
    QuicReceiveContext,
)
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from . import contract  # noqa: F401  # before anything relies on what it checks
from .config import ACTIVE_IDS, EngineConfig
from .credit import ReceiveWindow, StreamsLimit
from .frame_handlers import FrameHandlers
from .reset_at import ReliableResets
from .tables import ActiveStreams, Streams

__all__ = ["Receiving"]


class _Quiet:
    """In place of aioquic's logger: its calls cost more than what they would say is worth."""

    def debug(self, *args: object) -> None:
        pass

    info = warning = error = debug


class Receiving(QuicConnection):
    """aioquic's connection, with the receiving side bounded.

    Args:
        config: limits and roles.
        kwargs: the rest of what aioquic's connection takes.
    """

    # A list for aioquic's deque, which takes 760 bytes if it is empty.
    _events: Any

    def __init__(self, config: EngineConfig, **kwargs: Any) -> None:
        self.config: EngineConfig = config
        self._active = ActiveStreams()
        super().__init__(configuration=config.for_aioquic(), **kwargs)
        quiet: Any = _Quiet()
        self._logger = self._loss._logger = quiet
        self._streams: Streams = Streams(self._forget)
        self._window = ReceiveWindow(config.connection_window, config.max_connection_window)
        self._local_max_streams_bidi = StreamsLimit(
            QuicFrameType.MAX_STREAMS_BIDI, "max_streams_bidi", config.max_streams
        )
        self._local_max_streams_uni = StreamsLimit(
            QuicFrameType.MAX_STREAMS_UNI, "max_streams_uni", config.max_receive_streams
        )
        self._windows: dict[int, ReceiveWindow] = {}
        self._resets = ReliableResets()
        # Of the streams that were forgotten since events were taken last.
        self._final_sizes: dict[int, int] = {}
        own = self.__dict__
        own["_QuicConnection__frame_handlers"] = FrameHandlers(
            self, own["_QuicConnection__frame_handlers"]
        )
        self._events = []
        self._local_active_connection_id_limit = ACTIVE_IDS
        self._now = 0.0

    # aioquic's name for what it walks to fill a packet.
    @property
    def _streams_queue(self) -> Any:
        return self._active

    @_streams_queue.setter
    def _streams_queue(self, streams: list[QuicStream]) -> None:
        self._active.keep(streams)

    def _forget(self, stream_id: int) -> None:
        """Aioquic discards a stream."""
        self._resets.awaited.pop(stream_id, None)
        self._active.priorities.pop(stream_id, None)

    def _handle_padding_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        # aioquic looks at each byte by itself, and a probe of the path's MTU has thousands.
        padding = buf.data_slice(buf.tell(), buf.capacity)
        buf.seek(buf.capacity - len(padding.lstrip(b"\0")))

    # ---- credit

    def consume(self, stream_id: int, count: int) -> bool:
        """The application took ``count`` bytes of a stream; whether there is credit to announce."""
        rtt = self._loss._rtt_smoothed
        announce = self._consume(count)
        window = self._windows.get(stream_id)
        if window is None:
            window = self._windows[stream_id] = ReceiveWindow(
                self.config.stream_window, self.config.max_stream_window
            )
        if window.consume(count, self._now, rtt):
            stream = self._streams.get(stream_id)
            if stream is not None and not stream.receiver.is_finished:
                self._streams.dirty.add(stream_id)
                announce = True
        return announce

    def _consume(self, count: int) -> bool:
        """Bytes that count on the connection; whether there is credit to announce."""
        raised = self._window.consume(count, self._now, self._loss._rtt_smoothed)
        self._local_max_data.value = self._window.limit
        return raised

    def widen(self, size: int) -> None:
        """Let the connection's window be at least so large; the peer is told with the next flush."""
        self._window.widen(size)
        self._local_max_data.value = self._window.limit

    def discard(self, stream_id: int, count: int) -> bool:
        """The application does not want ``count`` bytes of a stream that came all the same; as for `consume`.

        They count as consumed on the connection, but the stream gets no further.
        """
        window = self._windows.get(stream_id)
        if window is None:
            window = self._windows[stream_id] = ReceiveWindow(self.config.stream_window, 0)
        window.consumed += count
        return self._consume(count)

    def settle(self, stream_id: int, final_size: int) -> bool:
        """Nothing of a stream will be consumed any more: give the rest of its bytes back to the connection.

        Returns:
            whether there is credit to announce.
        """
        window = self._windows.pop(stream_id, None)
        rest = final_size - (0 if window is None else window.consumed)
        return rest > 0 and self._consume(rest)

    def highest_received(self, stream_id: int) -> int:
        """The highest offset that a stream has reached: its final size once it is finished."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return self._final_sizes.get(stream_id, 0)
        return stream.receiver.highest_offset

    def release(self, stream_id: int) -> None:
        """The application is done with a stream that the peer opened, which may open another for it."""
        limit = self._stream_limit(stream_id)
        assert isinstance(limit, StreamsLimit)
        limit.released += 1

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        # aioquic doubles the limit when half of it has arrived; it takes no notice of a limit nothing of which was used.
        limit = self._local_max_data
        used, limit.used = limit.used, 0
        try:
            super()._write_connection_limits(builder, space)
        finally:
            limit.used = used

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        assert stream.stream_id is not None
        window = self._windows.get(stream.stream_id)
        if window is not None and not stream.receiver.is_finished:
            buf = builder.start_frame(
                QuicFrameType.MAX_STREAM_DATA,
                capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
                handler=self._on_max_stream_data_delivery,
                handler_args=(stream,),
            )
            buf.push_uint_var(stream.stream_id)
            buf.push_uint_var(window.limit)
            stream.max_stream_data_local = stream.max_stream_data_local_sent = window.limit
            if self._quic_logger is not None and builder.quic_logger_frames is not None:
                builder.quic_logger_frames.append(
                    self._quic_logger.encode_max_stream_data_frame(window.limit, stream.stream_id)
                )
        self._streams.dirty.discard(stream.stream_id)

    def _on_max_stream_data_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        assert stream.stream_id is not None
        if delivery is not QuicDeliveryState.ACKED and stream.stream_id in self._streams:
            self._streams.dirty.add(stream.stream_id)

    # ---- frames

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(start)
        held = end - self._crypto_streams[context.epoch].receiver.starting_offset()
        if held + len(self.tls._receive_buffer) > self.config.max_crypto:
            raise QuicConnectionError(
                QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, "the handshake is too large"
            )
        super()._handle_crypto_frame(context, frame_type, buf)

    def _handle_new_connection_id_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        sequence_number, retire_prior_to = buf.pull_uint_var(), buf.pull_uint_var()
        buf.seek(start)
        if retire_prior_to > sequence_number:
            # RFC 9000 section 19.15
            raise QuicConnectionError(
                QuicErrorCode.FRAME_ENCODING_ERROR, frame_type, "it retires a later connection id"
            )
        super()._handle_new_connection_id_frame(context, frame_type, buf)

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        largest = buf.pull_uint_var()
        buf.seek(start)
        self._check_acknowledged(frame_type, largest)
        super()._handle_ack_frame(context, frame_type, buf)

    def _check_acknowledged(self, frame_type: int, largest: int) -> None:
        if largest >= self._packet_number:
            # RFC 9000 section 13.1
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, frame_type, "a packet never sent was acknowledged"
            )

    def _handle_stream_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        stream_id = _peek(buf)
        super()._handle_stream_frame(context, frame_type, buf)
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        receiver = stream.receiver
        awaited = self._resets.awaited.get(stream_id)
        if awaited is not None and not awaited.fits(receiver.highest_offset, receiver._final_size):
            raise QuicConnectionError(
                QuicErrorCode.FINAL_SIZE_ERROR, frame_type, "data beyond the final size"
            )
        if receiver.is_finished:
            self._resets.awaited.pop(stream_id, None)
            self._discard_finished(stream)
        elif len(receiver._ranges) > self.config.max_gaps:
            raise QuicConnectionError(
                QuicErrorCode.FLOW_CONTROL_ERROR, frame_type, "too many gaps in a stream"
            )
        if self._resets.awaited:
            self._deliver_reset(stream)

    def _handle_reset_stream_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        stream_id, _, final_size = (buf.pull_uint_var() for _ in range(3))
        buf.seek(start)
        awaited = self._resets.awaited.pop(stream_id, None)
        if awaited is not None and awaited.final_size != final_size:
            raise QuicConnectionError(
                QuicErrorCode.FINAL_SIZE_ERROR, frame_type, "the final size was another"
            )
        super()._handle_reset_stream_frame(context, frame_type, buf)
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._discard_finished(stream)

    def _handle_stop_sending_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        stream_id = _peek(buf)
        super()._handle_stop_sending_frame(context, frame_type, buf)
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._active.append(stream)  # to be reset

    def _discard_finished(self, stream: QuicStream) -> None:
        """Forget a stream if both of its directions are over; the peer may open another for it in time.

        aioquic does that when it builds packets next, which nothing else may be a reason for.
        """
        if not stream.is_finished:
            return
        stream_id = stream.stream_id
        assert stream_id is not None
        if stream_id in self._streams:
            # An event that is to be taken yet may be about it.
            self._final_sizes[stream_id] = stream.receiver.highest_offset
            self._streams.pop(stream_id)
            self._active.remove(stream_id)
            if (stream_id & 1) == self._is_client:
                self._stream_limit(stream_id).value += 1

    def _handle_reset_stream_at(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        stream_id, code, final_size, reliable_size = (buf.pull_uint_var() for _ in range(4))
        if reliable_size > final_size:
            raise QuicConnectionError(
                QuicErrorCode.FRAME_ENCODING_ERROR, frame_type, "reliable size beyond final size"
            )
        self._assert_stream_can_receive(frame_type, stream_id)
        stream = self._get_or_create_stream(frame_type, stream_id)
        new = max(0, final_size - stream.receiver.highest_offset)
        if (
            final_size > stream.max_stream_data_local
            or self._local_max_data.used + new > self._local_max_data.value
        ):
            raise QuicConnectionError(
                QuicErrorCode.FLOW_CONTROL_ERROR, frame_type, "beyond the data limit"
            )
        receiver = stream.receiver
        known = final_size if receiver._final_size is None else receiver._final_size
        if final_size < receiver.highest_offset or final_size != known:
            raise QuicConnectionError(
                QuicErrorCode.FINAL_SIZE_ERROR, frame_type, "the final size was another"
            )
        if receiver.is_finished:
            return
        if not self._resets.expect(stream_id, code, final_size, reliable_size):
            raise QuicConnectionError(
                QuicErrorCode.FINAL_SIZE_ERROR, frame_type, "the reset was another"
            )
        self._deliver_reset(stream)

    def _deliver_reset(self, stream: QuicStream) -> None:
        """Hand out a RESET_STREAM_AT whose reliable part has arrived."""
        assert stream.stream_id is not None
        receiver = stream.receiver
        due = self._resets.due(stream.stream_id, receiver.starting_offset())
        if due is None:
            return
        self._local_max_data.used += max(0, due.final_size - receiver.highest_offset)
        event = receiver.handle_reset(final_size=due.final_size, error_code=due.code)
        if event is not None:
            self._events.append(event)
        self._discard_finished(stream)


def _peek(buf: Buffer) -> int:
    """The integer that comes next, left where it is."""
    start = buf.tell()
    value = buf.pull_uint_var()
    buf.seek(start)
    return value
