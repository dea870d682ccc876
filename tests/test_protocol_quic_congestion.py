"""A congestion window grows only where it is used."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from aioquic.quic.congestion.base import create_congestion_control

from tests.quic_engines import Link, both_roads
from trio_wt._protocol.quic.congestion import hold_unused_window

DATA = bytes(range(251)) * 1000


@pytest.mark.parametrize("algorithm", ["reno", "cubic"])
@pytest.mark.parametrize(
    ("share", "grows"), [(0.1, False), (0.49, False), (0.5, True), (0.51, True), (1.0, True)]
)
def test_a_window_grows_if_half_of_it_is_under_way(
    share: float, grows: bool, algorithm: str
) -> None:
    controller = create_congestion_control(algorithm, max_datagram_size=1200)
    hold_unused_window(controller, lambda _: None)
    window = controller.congestion_window
    controller.bytes_in_flight = int(share * window)
    packet = SimpleNamespace(sent_bytes=1000, sent_time=1.0)
    controller.on_packet_acked(now=1.1, packet=packet)  # type: ignore[arg-type]
    assert (controller.congestion_window > window) is grows
    assert controller.bytes_in_flight == int(share * window) - 1000


@both_roads
def test_a_slow_sender_gets_no_large_window(straight: bool) -> None:
    link = Link(straight=straight, delay=0.02, max_packet_size=1200)
    before = link.client.engine.congestion_window
    stream_id = link.client.open()
    for _ in range(100):
        link.client.send(stream_id, bytes(2000))
        link.run(0.1)
    assert link.client.engine.congestion_window == before


@both_roads
@pytest.mark.parametrize("algorithm", ["reno", "cubic"])
def test_a_busy_sender_gets_one(algorithm: str, straight: bool) -> None:
    link = Link(straight=straight, delay=0.02, max_packet_size=1200, congestion_control=algorithm)
    before = link.client.engine.congestion_window
    link.transfer(link.client, link.client.open(), DATA)
    assert link.client.engine.congestion_window >= 3 * before


@both_roads
@pytest.mark.parametrize("algorithm", ["reno", "cubic"])
def test_losses_make_it_smaller(algorithm: str, straight: bool) -> None:
    link = Link(straight=straight, delay=0.02, max_packet_size=1200, congestion_control=algorithm)
    stream_id = link.client.open()
    link.client.send(stream_id, DATA * 2, fin=True)
    link.run(0.15)
    assert stream_id not in link.server.ended
    before = link.client.engine.congestion_window
    count = 0

    def drop(sender: object, data: bytes) -> bool:
        nonlocal count
        count += sender is link.client
        return sender is link.client and count == 1

    link.drop = drop
    lost = link.client.engine.packets_lost

    def noticed() -> bool:
        nonlocal before
        if link.client.engine.packets_lost > lost:
            return True
        before = link.client.engine.congestion_window
        return False

    link.run(until=noticed)
    # Acknowledgements that came with the news have made it grow before.
    assert 0.4 * before < link.client.engine.congestion_window < 0.8 * before
    link.run(until=lambda: stream_id in link.server.ended)
