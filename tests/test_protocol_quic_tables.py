"""The tables that keep aioquic from walking all streams."""

from __future__ import annotations

from aioquic.quic.stream import QuicStream
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_wt._protocol.quic.tables import ActiveStreams, Streams


def stream(stream_id: int, *, work: bool = True) -> QuicStream:
    made = QuicStream(stream_id=stream_id)
    if work:
        made.sender.write(b"x")
    return made


def ids(active: ActiveStreams) -> list[int | None]:
    return [each.stream_id for each in active]


# ---- all streams


def all_streams(*stream_ids: int) -> tuple[Streams, list[int]]:
    forgotten: list[int] = []
    streams = Streams(forgotten.append)
    for stream_id in stream_ids:
        streams[stream_id] = stream(stream_id)
    return streams, forgotten


def test_only_dirty_streams_are_walked() -> None:
    streams, _ = all_streams(0, 4, 8)
    assert list(streams.values()) == []
    streams.dirty.add(4)
    assert list(streams.values()) == [streams[4]]
    assert list(streams.every()) == [streams[0], streams[4], streams[8]]
    assert len(streams) == 3


def test_a_dirty_stream_that_is_gone_is_left_out() -> None:
    streams, _ = all_streams(0)
    streams.dirty.update((0, 4))
    assert list(streams.values()) == [streams[0]]
    del streams[0]
    assert list(streams.values()) == []


def test_dirty_streams_may_become_clean_while_they_are_walked() -> None:
    streams, _ = all_streams(*range(0, 40, 4))
    streams.dirty.update(streams)
    for each in streams.values():
        streams.dirty.discard(each.stream_id)
    assert list(streams.values()) == []


def test_a_stream_that_is_discarded_is_told_of() -> None:
    streams, forgotten = all_streams(0, 4)
    known = streams[4]
    streams.dirty.update((0, 4))
    assert streams.pop(4) is known
    assert forgotten == [4]
    assert streams.dirty == {0}
    assert list(streams) == [0]
    assert streams.pop(8, None) is None


# ---- the active ones


def test_streams_are_served_in_the_order_they_came() -> None:
    active = ActiveStreams()
    made = {stream_id: stream(stream_id) for stream_id in (8, 0, 4)}
    for each in made.values():
        active.append(each)
    assert ids(active) == [8, 0, 4]
    assert len(active) == 3


def test_a_stream_is_there_once_and_keeps_its_place() -> None:
    active = ActiveStreams()
    first, second = stream(0), stream(4)
    for each in (first, second, first):
        active.append(each)
    assert ids(active) == [0, 4]


def test_those_served_go_behind_the_others() -> None:
    active = ActiveStreams()
    made = [stream(stream_id) for stream_id in (0, 4, 8)]
    for each in made:
        active.append(each)
    active.extend([made[0]])
    assert ids(active) == [4, 8, 0]
    active.extend([made[1], made[2]])
    assert ids(active) == [0, 4, 8]
    active.extend([stream(12)])
    assert ids(active) == [0, 4, 8, 12]


def test_only_those_with_work_are_kept() -> None:
    active = ActiveStreams()
    idle, busy = stream(0, work=False), stream(4)
    for each in (idle, busy):
        active.append(each)
    active.keep([idle, busy])
    assert ids(active) == [4]
    active.keep([])
    assert len(active) == 0


def test_a_stream_that_is_no_more() -> None:
    active = ActiveStreams()
    for stream_id in (0, 4, 8):
        active.append(stream(stream_id))
    active.remove(4)
    active.remove(4)
    active.remove(12)
    assert ids(active) == [0, 8]


def test_what_is_work() -> None:
    reset, stopped, ended, finished, half = (stream(n, work=False) for n in range(0, 20, 4))
    reset.sender.reset(1)
    stopped.receiver.stop(1)
    ended.sender.write(b"", end_stream=True)
    finished.sender.is_finished = finished.receiver.is_finished = True
    half.receiver.is_finished = True
    active = ActiveStreams()
    active.keep([reset, stopped, ended, finished, half])
    assert ids(active) == [0, 4, 8, 12]


def test_a_walk_sees_the_streams_of_its_beginning() -> None:
    active = ActiveStreams()
    active.append(stream(0))
    active.append(stream(4))
    seen = []
    for each in active:
        seen.append(each.stream_id)
        active.append(stream(8))
        active.keep([])
    assert seen == [0, 4]


def test_higher_priorities_come_first() -> None:
    active = ActiveStreams()
    for stream_id in (0, 4, 8, 12, 16):
        active.append(stream(stream_id))
    active.priorities.update({8: 5, 16: 5, 0: -1, 12: 7})
    assert ids(active) == [12, 8, 16, 4, 0]


def test_equal_priorities_take_turns() -> None:
    active = ActiveStreams()
    made = {stream_id: stream(stream_id) for stream_id in (0, 4, 8)}
    for each in made.values():
        active.append(each)
    active.priorities.update({4: 1, 8: 1})
    assert ids(active) == [4, 8, 0]
    active.extend([made[4]])
    assert ids(active) == [8, 4, 0]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["append", "served", "keep"]), st.lists(st.integers(0, 5))),
        max_size=20,
    )
)
def test_it_is_an_ordered_set(steps: list[tuple[str, list[int]]]) -> None:
    made = [stream(4 * n, work=n % 3 > 0) for n in range(6)]
    active, order = ActiveStreams(), []
    for name, numbers in steps:
        chosen = [made[n] for n in numbers]
        if name == "append":
            for each in chosen:
                active.append(each)
                if each not in order:
                    order.append(each)
        elif name == "served":
            active.extend(chosen)
            for each in chosen:
                if each in order:
                    order.remove(each)
                order.append(each)
        else:
            rest = [each for each in order if each not in chosen]
            active.keep(rest)
            order = [each for each in rest if not each.sender.buffer_is_empty]
        assert list(active) == order
        assert len(active) == len(order)
