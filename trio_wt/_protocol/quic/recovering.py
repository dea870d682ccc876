"""What becomes of the packets that took the straight road: aioquic's bookkeeping of the ordinary acknowledgement, without detours."""

from __future__ import annotations

from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicSentPacket
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch

from .sending import Sending

__all__ = ["Recovering", "SentPacket"]

_ACKED = QuicDeliveryState.ACKED


class SentPacket(QuicSentPacket):
    """A 1-RTT packet, of which there is no log.

    Args:
        number: its number.
        now: when it is sent.
    """

    epoch: Epoch = Epoch.ONE_RTT
    is_crypto_packet: bool = False
    packet_type: QuicPacketType = QuicPacketType.ONE_RTT

    def __init__(self, number: int, now: float) -> None:
        # Not aioquic's, which sets what all of these have in common too.
        self.packet_number = number
        self.sent_time = now
        self.in_flight = self.is_ack_eliciting = False
        self.delivery_handlers = []


class Recovering(Sending):
    """Acknowledgements, and what they mean for streams."""

    def _take_ack(
        self, space: QuicPacketSpace, smallest: int, largest: int, delay: int, now: float
    ) -> bool:
        """An ACK frame of one range (RFC 9000 section 19.3); False if it is for the general way, and nothing was done.

        Args:
            space: the packet number space.
            smallest: the smallest packet number acknowledged.
            largest: the largest.
            delay: the ACK Delay field.
            now: the time.
        """
        loss = self._loss
        if not (loss._rtt_initialized and loss.peer_completed_address_validation):
            return False
        self._check_acknowledged(QuicFrameType.ACK, largest)
        if largest > space.largest_acked_packet:
            space.largest_acked_packet = largest
        sent = space.sent_packets
        numbers = []
        for number in sent:  # in the order in which they were sent
            if number > largest:
                break
            if number >= smallest:
                numbers.append(number)
        if not numbers:
            return True
        eliciting, sent_time = False, None
        acknowledge = loss._cc.on_packet_acked
        for number in numbers:
            packet = sent.pop(number)
            sent_time = packet.sent_time
            if packet.is_ack_eliciting:
                eliciting = True
                space.ack_eliciting_in_flight -= 1
            if packet.in_flight:
                acknowledge(now=now, packet=packet)
            for handler, args in packet.delivery_handlers:
                handler(_ACKED, *args)
        if numbers[-1] == largest and eliciting:
            assert sent_time is not None
            ack_delay = (delay << self._remote_ack_delay_exponent) / 1e6
            _measure(loss, now - sent_time, ack_delay, now)
        space.loss_time = None
        oldest = next(iter(sent), None)
        if oldest is not None and oldest <= space.largest_acked_packet:
            # Only these can be lost.
            loss._detect_loss(now=now, space=space)
        loss._pto_count = 0
        return True

    def _on_data_delivery(
        self, delivery: QuicDeliveryState, stream: QuicStream, start: int, stop: int, fin: bool
    ) -> None:
        """The fate of a STREAM frame."""
        sender = stream.sender
        if (
            delivery is _ACKED
            and start == sender._buffer_start
            and start < stop
            and not len(sender._acked)
            and sender._reset_error_code is None
            and not self._reliable_resets
            and stream.stream_id in self._streams
        ):
            # It is the oldest of what is under way.
            sender._buffer_start = stop
            del sender._buffer[: stop - start]
            if fin:
                sender._acked_fin = True
            if sender._acked_fin and stop == sender._buffer_fin:
                sender.is_finished = True
                self._discard_finished(stream)
        else:
            self._on_stream_delivery(delivery, stream, sender.on_data_delivery, (start, stop, fin))


def _measure(loss: QuicPacketRecovery, latest: float, ack_delay: float, now: float) -> None:
    """A sample of the round-trip time that is not the first (RFC 9002 section 5.3), as aioquic takes it."""
    rtt = max(latest, 0.001)
    if rtt < loss._rtt_min:
        loss._rtt_min = rtt
    ack_delay = min(ack_delay, loss.max_ack_delay)
    if rtt > loss._rtt_min + ack_delay:
        rtt -= ack_delay
    loss._rtt_latest = rtt
    loss._rtt_variance = 3 / 4 * loss._rtt_variance + 1 / 4 * abs(loss._rtt_min - rtt)
    loss._rtt_smoothed = 7 / 8 * loss._rtt_smoothed + 1 / 8 * rtt
    loss._cc.on_rtt_measurement(now=now, rtt=latest)
    loss._pacer.update_rate(
        congestion_window=loss._cc.congestion_window, smoothed_rtt=loss._rtt_smoothed
    )
