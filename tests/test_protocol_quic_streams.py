"""Streams both ways, and their ends: FIN, RESET_STREAM and STOP_SENDING."""

from __future__ import annotations

from typing import Any

import pytest

from tests.quic_engines import Link, Packet, Side, both_roads

DATA = bytes(range(251)) * 400  # 100,400 bytes

RESET_STREAM, STOP_SENDING, STREAM = 0x04, 0x05, 0x08


def fields(packets: list[Packet], kind: int) -> list[tuple[Any, ...]]:
    return [each[1:] for packet in packets for each in packet.frames if each[0] == kind]


def gone(link: Link, stream_id: int) -> bool:
    """Whether both sides have forgotten a stream."""
    return all(stream_id not in side.engine._streams for side in link.sides)


# ---- streams


@both_roads
@pytest.mark.parametrize("by_client", [True, False])
@pytest.mark.parametrize("unidirectional", [True, False])
def test_streams_arrive_whole(by_client: bool, unidirectional: bool, straight: bool) -> None:
    link = Link(straight=straight)
    opener, other = link.sides if by_client else link.sides[::-1]
    stream_id = opener.open(unidirectional=unidirectional)
    assert stream_id == (0 if by_client else 1) + (2 if unidirectional else 0)
    link.transfer(opener, stream_id, DATA)
    if not unidirectional:
        link.transfer(other, stream_id, DATA[::-1])
    link.run(1)
    assert gone(link, stream_id)
    assert opener.engine.open_streams == other.engine.open_streams == 0


@both_roads
@pytest.mark.parametrize("seed", range(6))
def test_streams_arrive_whole_over_bad_links(seed: int, straight: bool) -> None:
    link = Link(
        seed=seed,
        loss=0.05,
        reorder=0.1,
        duplicate=0.05,
        corrupt=0.02,
        delay=(0.01, 0.02),
        straight=straight,
    )
    stream_ids = [link.client.open() for _ in range(3)]
    for stream_id in stream_ids:
        link.client.send(stream_id, DATA, fin=True)
    link.transfer(link.server, link.server.open(unidirectional=True), DATA)
    link.run(until=lambda: link.server.ended.issuperset(stream_ids))
    for stream_id in stream_ids:
        assert link.server.data[stream_id] == DATA
        link.transfer(link.server, stream_id, DATA)
    link.run(30)
    assert link.client.engine.open_streams == link.server.engine.open_streams == 0
    assert link.client.engine.packets_lost > 0


@both_roads
def test_an_end_without_data(straight: bool) -> None:
    link = Link(straight=straight)
    stream_id = link.client.open()
    link.client.send(stream_id, b"", fin=True)
    link.run(1)
    assert stream_id in link.server.ended
    assert stream_id not in link.server.data or not link.server.data[stream_id]


@both_roads
def test_an_end_behind_the_data(straight: bool) -> None:
    link = Link(straight=straight)
    stream_id = link.client.open()
    link.client.send(stream_id, b"data")
    link.run(1)
    assert stream_id not in link.server.ended
    link.client.send(stream_id, fin=True)
    link.run(1)
    assert stream_id in link.server.ended
    assert link.server.data[stream_id] == b"data"


def test_a_stream_of_which_nothing_was_sent_is_unknown_to_the_peer() -> None:
    link = Link()
    link.client.open()
    link.run(1)
    assert link.server.engine.open_streams == 0


def test_data_may_be_any_bytes_like() -> None:
    link = Link()
    stream_id = link.client.open()
    buffer = bytearray(b"bytearray ")
    link.client.engine.send(stream_id, buffer)
    buffer[:] = b"overwritten"
    link.client.engine.send(stream_id, memoryview(b"..memoryview")[2:])
    link.client.send(stream_id, b" bytes", fin=True)
    link.run(1)
    assert link.server.data[stream_id] == b"bytearray memoryview bytes"


@both_roads
@pytest.mark.parametrize("lost", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1), (0, 1, 2)])
def test_an_end_that_is_lost(lost: tuple[int, ...], straight: bool) -> None:
    """Data, more data, and the end alone, each in a packet of its own."""
    link = Link(straight=straight, delay=0.02)
    stream_id = link.client.open()
    count = -1

    def drop(sender: Side, data: bytes) -> bool:
        nonlocal count
        count += sender is link.client
        return sender is link.client and count in lost

    link.drop = drop
    for data, fin in ((b"some", False), (b" data", False), (b"", True)):
        link.client.send(stream_id, data, fin=fin)
        link.flush(link.client)
    link.run(2)
    assert link.server.data[stream_id] == b"some data"
    assert stream_id in link.server.ended
    link.server.send(stream_id, fin=True)
    link.run(1)
    assert gone(link, stream_id)


@both_roads
def test_the_end_may_come_once_only(straight: bool) -> None:
    link = Link(straight=straight)
    stream_id = link.client.open()
    assert link.client.engine.is_sendable(stream_id)
    link.client.send(stream_id, b"data", fin=True)
    assert not link.client.engine.is_sendable(stream_id)
    link.client.send(stream_id, b"more", fin=True)
    link.client.send(stream_id, b"more")
    link.run(1)
    link.client.send(stream_id, fin=True)
    link.run(1)
    assert link.server.data[stream_id] == b"data"
    assert link.client.end is None


def test_unknown_streams_are_left_alone() -> None:
    link = Link()
    engine = link.client.engine
    for stream_id in (0, 1, 2, 3, 400):
        engine.send(stream_id, b"x", fin=True)
        engine.reset(stream_id, 1)
        engine.stop(stream_id, 1)
        engine.prioritise(stream_id, 1)
        assert not engine.is_sendable(stream_id)
        assert engine.unsent(stream_id) == 0
        assert engine.highest_received(stream_id) == 0
    link.run(1)
    assert link.client.end is link.server.end is None
    assert not engine._active.priorities


# ---- resets


@both_roads
def test_a_reset(straight: bool) -> None:
    link = Link(straight=straight)
    stream_id = link.client.open()
    link.client.send(stream_id, b"data")
    link.run(1)
    link.client.reset(stream_id, 77)
    assert not link.client.engine.is_sendable(stream_id)
    link.run(1)
    assert link.server.resets == {stream_id: 77}
    # The other direction is as it was.
    link.transfer(link.server, stream_id, b"answer")
    link.run(1)
    assert gone(link, stream_id)


@both_roads
def test_a_reset_of_what_was_not_sent_yet(straight: bool) -> None:
    link = Link(straight=straight, stream_window=1000)
    link.server.reading = False
    stream_id = link.client.open(unidirectional=True)
    link.client.send(stream_id, DATA)
    link.run(1)
    assert link.client.engine.unsent(stream_id) == len(DATA) - 1000
    packets = link.log(link.client)
    link.client.reset(stream_id, 0)
    assert link.client.engine.unsent(stream_id) == 0
    link.run(1)
    assert link.server.resets == {stream_id: 0}
    assert fields(packets, RESET_STREAM) == [(stream_id, 0, 1000)]
    assert not fields(packets, STREAM)
    assert gone(link, stream_id)


@both_roads
@pytest.mark.parametrize("fin", [False, True])
def test_resetting_again_changes_nothing(fin: bool, straight: bool) -> None:
    link = Link(straight=straight)
    packets = link.log(link.client)
    stream_id = link.client.open(unidirectional=True)
    link.client.send(stream_id, b"data", fin=fin)
    for code in (1, 2):
        link.client.reset(stream_id, code)
    link.client.send(stream_id, b"more", fin=True)
    link.run(1)
    for code in (3, 4):
        link.client.reset(stream_id, code)
        link.client.stop(stream_id, code)
    link.run(1)
    assert fields(packets, RESET_STREAM) == [(stream_id, 1, 0)]
    assert link.server.resets == {stream_id: 1}
    assert gone(link, stream_id)


@both_roads
def test_a_reset_of_what_was_delivered_does_nothing(straight: bool) -> None:
    link = Link(straight=straight)
    packets = link.log(link.client)
    stream_id = link.client.open()
    link.client.send(stream_id, b"data", fin=True)
    link.run(1)
    link.client.reset(stream_id, 1)
    link.run(1)
    assert not fields(packets, RESET_STREAM)
    assert stream_id not in link.server.resets


@both_roads
def test_a_lost_reset_is_sent_again_but_not_its_data(straight: bool) -> None:
    link = Link(straight=straight)
    packets = link.log(link.client)
    stream_id = link.client.open(unidirectional=True)
    link.drop = lambda sender, data: sender is link.client
    link.client.send(stream_id, b"data")
    link.flush(link.client)
    link.client.reset(stream_id, 5)
    link.flush(link.client)
    del packets[:]
    link.drop = lambda sender, data: False
    link.run(5)
    assert link.server.resets == {stream_id: 5}
    assert stream_id not in link.server.data
    assert not fields(packets, STREAM)
    assert gone(link, stream_id)


# ---- stops


@both_roads
def test_a_stop(straight: bool) -> None:
    link = Link(straight=straight)
    stream_id = link.client.open()
    link.client.send(stream_id, b"data")
    link.run(1)
    link.server.stop(stream_id, 9)
    link.run(1)
    assert link.client.stops == {stream_id: 9}
    assert not link.client.engine.is_sendable(stream_id)
    # It is answered by a reset with the same code (RFC 9000 section 3.5).
    assert link.server.resets == {stream_id: 9}
    link.client.send(stream_id, b"nobody wants it", fin=True)
    link.client.reset(stream_id, 3)
    link.transfer(link.server, stream_id, b"answer")
    link.run(1)
    assert link.client.end is link.server.end is None
    assert gone(link, stream_id)


@both_roads
def test_stopping_again_is_no_harm(straight: bool) -> None:
    link = Link(straight=straight)
    stream_id = link.client.open(unidirectional=True)
    link.client.send(stream_id, b"data")
    link.run(1)
    for _ in range(3):
        link.server.stop(stream_id, 9)
    link.run(1)
    link.server.stop(stream_id, 10)
    link.run(1)
    assert link.client.stops == {stream_id: 9}
    assert link.server.resets == {stream_id: 9}
    assert gone(link, stream_id)


@both_roads
def test_a_stop_at_the_end_does_nothing(straight: bool) -> None:
    link = Link(straight=straight)
    packets = link.log(link.server)
    stream_id = link.client.open()
    link.client.send(stream_id, b"data", fin=True)
    link.run(1)
    link.server.stop(stream_id, 9)
    link.run(1)
    assert not fields(packets, STOP_SENDING)
    assert not link.client.stops


@both_roads
def test_a_lost_stop_is_sent_again(straight: bool) -> None:
    link = Link(straight=straight)
    stream_id = link.client.open(unidirectional=True)
    link.client.send(stream_id, b"data")
    link.run(1)
    link.drop = lambda sender, data: sender is link.server
    link.server.stop(stream_id, 9)
    link.flush(link.server)
    link.drop = lambda sender, data: False
    link.run(5)
    assert link.client.stops == {stream_id: 9}
    assert gone(link, stream_id)
