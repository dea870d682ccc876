"""Records of a type, a length and a payload: in any chunking, in linear time, and without more memory than is asked for."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trio_wt._protocol import varint
from trio_wt._protocol.records import (
    OVERSIZE,
    RecordReader,
    encode_record,
    encode_record_head,
)

SHORT, LONG, STREAMED, EMPTY = 0x01, 0x2843, 0x00, 0x78AE
HELD = {SHORT: 8, LONG: 1000, EMPTY: 0}
UNKNOWN = 0x1F * 7 + 0x21
MEBIBYTE = 2**20

Given = list[tuple[int, bytes]]


def reader(streamed: int | None = STREAMED) -> RecordReader:
    return RecordReader(HELD, streamed=streamed)


def feed(target: RecordReader, *pieces: bytes) -> Given:
    return [each for piece in pieces for each in target.feed(piece)]


def joined(given_out: Iterable[tuple[int, bytes]]) -> Given:
    """With the pieces of a streamed payload that follow each other as one."""
    whole: Given = []
    for kind, payload in given_out:
        if kind == STREAMED and whole and whole[-1][0] == STREAMED:
            whole[-1] = (kind, whole[-1][1] + payload)
        else:
            whole.append((kind, payload))
    return whole


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """Data cut at these offsets, in pieces of any length, none perhaps."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in zip(places, places[1:], strict=False)]


def number(value: int, size: int) -> bytes:
    """A number in at least so many bytes."""
    size = max(size, len(varint.encode(value)))
    return (value | (size.bit_length() - 1) << (8 * size - 2)).to_bytes(size)


# ---- encoding


def test_a_record_is_its_head_and_its_payload() -> None:
    assert encode_record(0x2843, b"abc") == bytes.fromhex("6843 03") + b"abc"
    assert encode_record_head(0x190B4D3D, 16384) == bytes.fromhex("990b4d3d 80004000")
    assert encode_record(0, b"") == b"\0\0"


# ---- what comes of records


def test_whole_records() -> None:
    data = encode_record(SHORT, b"12345678") + encode_record(LONG, b"x" * 1000)
    assert feed(reader(), data) == [(SHORT, b"12345678"), (LONG, b"x" * 1000)]


def test_an_empty_record_is_given_as_soon_as_its_head_is_there() -> None:
    target = reader()
    assert feed(target, b"\x68") == []
    assert feed(target, b"\x43\x00") == [(LONG, b"")]
    assert target.is_between
    assert feed(target, encode_record(EMPTY, b"")) == [(EMPTY, b"")]


def test_a_streamed_payload_comes_in_pieces() -> None:
    target = reader()
    assert feed(target, b"\x00\x05ab") == [(STREAMED, b"ab")]
    assert target.held == 0
    assert not target.is_between
    assert feed(target, b"c") == [(STREAMED, b"c")]
    assert feed(target, b"de\x00\x01f") == [(STREAMED, b"de"), (STREAMED, b"f")]
    assert target.is_between


class Complete(RecordReader):
    """Also gives records without a payload."""

    __slots__ = ()
    gives_empty = True


def test_a_streamed_record_without_a_payload_is_given_if_asked_for() -> None:
    data = encode_record(STREAMED, b"") + encode_record(STREAMED, b"ab") + b"\x00\x00"
    assert feed(reader(), data) == [(STREAMED, b"ab")]
    expected = [(STREAMED, b""), (STREAMED, b"ab"), (STREAMED, b"")]
    assert feed(Complete(HELD, streamed=STREAMED), data) == expected
    pieces = [data[:1], b"", data[1:2], b"", data[2:4], b"", data[4:6], b"", data[6:]]
    assert feed(Complete(HELD, streamed=STREAMED), *pieces) == expected
    unknown = encode_record(UNKNOWN, b"") + encode_record(EMPTY, b"")
    assert feed(Complete(HELD), unknown + data) == [(EMPTY, b"")]


def test_what_stands_behind_a_record() -> None:
    target = reader()
    data = encode_record(SHORT, b"x") + encode_record(UNKNOWN, b"abc") + b"\x00\x02a"
    left = [target.unread for _ in target.feed(data)]
    assert left == [len(data) - 3, 0]
    for kind in (SHORT, LONG, EMPTY):
        for behind in (b"", b"\x80", encode_record(UNKNOWN, b"")):
            target = reader()
            record = encode_record(kind, b"")
            found = [target.unread for _ in target.feed(record[:1])]
            found += [target.unread for _ in target.feed(record[1:] + behind)]
            assert found == [len(behind)]


def test_a_streamed_payload_is_not_copied() -> None:
    target = reader()
    feed(target, encode_record_head(STREAMED, 2 * MEBIBYTE))
    piece = bytes(MEBIBYTE)
    assert feed(target, piece)[0][1] is piece
    assert feed(target, piece)[0][1] is piece


def test_a_type_that_is_not_streamed_is_unknown() -> None:
    assert feed(reader(None), b"\x00\x05abcde" + encode_record(SHORT, b"x")) == [(SHORT, b"x")]


def test_what_nobody_knows_is_skipped() -> None:
    target = reader()
    unknown = encode_record(UNKNOWN, b"\x01" * 500)
    assert feed(target, unknown + encode_record(SHORT, b"x") + unknown) == [(SHORT, b"x")]
    assert target.is_between
    assert feed(target, unknown[:-1]) == []
    assert not target.is_between
    assert target.held == 0
    assert feed(target, unknown[-1:] + encode_record(SHORT, b"y")) == [(SHORT, b"y")]


@pytest.mark.parametrize(("kind", "limit"), HELD.items())
def test_one_byte_too_many(kind: int, limit: int) -> None:
    target = reader()
    assert feed(target, encode_record(kind, bytes(limit))) == [(kind, bytes(limit))]
    data = encode_record(kind, bytes(limit + 1)) + encode_record(SHORT, b"x")
    assert feed(target, data) == [(OVERSIZE, b""), (SHORT, b"x")]


def test_too_much_is_told_at_once_and_only_once() -> None:
    target = reader()
    head = encode_record_head(LONG, 1001)
    assert feed(target, head[:-1]) == []
    assert feed(target, head[-1:]) == [(OVERSIZE, b"")]
    assert feed(target, *[b"x"] * 1000) == []
    assert not target.is_between
    assert feed(target, b"x") == []
    assert target.is_between
    assert feed(target, encode_record(SHORT, b"y")) == [(SHORT, b"y")]


def test_between_records_and_within_them() -> None:
    target = reader()
    assert target.is_between
    for byte in encode_record(LONG, b"abc")[:-1]:
        feed(target, bytes([byte]))
        assert not target.is_between
    assert target.held == 2
    feed(target, b"c")
    assert target.is_between
    assert target.held == 0


def test_nothing_changes_nothing() -> None:
    target = reader()
    assert feed(target, b"") == []
    assert target.is_between
    feed(target, b"\x68\x43\x02a")
    assert feed(target, b"") == []
    assert target.held == 1
    assert feed(target, b"b") == [(LONG, b"ab")]


def test_payloads_are_bytes_whatever_was_fed() -> None:
    (record,) = feed(reader(), encode_record(LONG, b"abc"))
    assert type(record[1]) is bytes
    assert hash(record) == hash((LONG, b"abc"))


# ---- what must not be there


class Refusal(Exception):
    pass


class Picky(RecordReader):
    """Does not take one type."""

    __slots__ = ("seen",)

    def __init__(self) -> None:
        super().__init__(HELD, streamed=STREAMED)
        self.seen: list[int] = []

    def check(self, kind: int) -> None:
        self.seen.append(kind)
        if kind == UNKNOWN:
            raise Refusal


def test_every_type_is_checked_once_its_length_is_known_and_before_its_payload() -> None:
    target = Picky()
    data = encode_record(SHORT, b"x") + encode_record(0x77, b"skipped") + b"\x00\x01"
    for byte in data:
        list(target.feed(bytes([byte])))
    assert target.seen == [SHORT, 0x77, STREAMED]
    list(target.feed(b"x" + encode_record(LONG, bytes(1001))))
    assert target.seen[3:] == [LONG]


def test_what_comes_before_a_refusal_is_given() -> None:
    target = Picky()
    found = []
    with pytest.raises(Refusal):
        for record in target.feed(encode_record(SHORT, b"x") + encode_record(UNKNOWN, b"")):
            found.append(record)
    assert found == [(SHORT, b"x")]


# ---- any chunking, any bytes

kinds = st.sampled_from([SHORT, LONG, STREAMED, EMPTY, UNKNOWN, 2**62 - 1])
records = st.tuples(
    kinds,
    st.one_of(st.binary(max_size=12), st.integers(990, 1010).map(bytes)),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 4, 8]),
)
cuts = st.lists(st.integers(0, 2**16), max_size=30)


@given(st.lists(records, max_size=8), cuts)
@settings(deadline=None)
def test_any_chunking_gives_the_same_records(
    sent: list[tuple[int, bytes, int, int]], places: list[int]
) -> None:
    data = b"".join(
        number(kind, kind_size) + number(len(payload), length_size) + payload
        for kind, payload, kind_size, length_size in sent
    )
    expected: Given = []
    for kind, payload, _, _ in sent:
        if kind == STREAMED:
            if payload:
                expected.append((kind, payload))
        elif kind in HELD:
            expected.append((kind, payload) if len(payload) <= HELD[kind] else (OVERSIZE, b""))
    target = reader()
    assert joined(feed(target, *split(data, places))) == joined(expected)
    assert target.is_between
    assert joined(feed(reader(), data)) == joined(expected)
    assert joined(feed(reader(), *(bytes([byte]) for byte in data))) == joined(expected)


@given(st.binary(max_size=100), cuts)
@example(b"\xff" * 16, [])
@example(b"\x68\x43\xff" + b"\xff" * 7 + b"x", [])
@settings(deadline=None)
def test_any_bytes(data: bytes, places: list[int]) -> None:
    whole, target = reader(), reader()
    expected = joined(whole.feed(data))
    found = []
    for piece in split(data, places):
        found += feed(target, piece)
        assert target.held <= 1000 + 16
    assert joined(found) == expected
    assert target.held == whole.held
    assert target.is_between == whole.is_between


# ---- memory and time


def peak(action: Callable[[], object]) -> int:
    """The most memory that an action has had at once."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [SHORT, LONG, UNKNOWN, STREAMED])
@pytest.mark.parametrize("length", [2**30, 2**40, 2**62 - 1])
def test_nothing_is_held_of_what_is_too_long(kind: int, length: int) -> None:
    target, piece = reader(), bytes(MEBIBYTE)

    def take() -> None:
        for _ in target.feed(encode_record_head(kind, length)):
            pass
        for _ in range(64):
            for _ in target.feed(piece):
                pass

    assert peak(take) < 65536
    assert target.held == 0
    assert not target.is_between


def test_what_was_skipped_is_counted() -> None:
    target, piece = reader(), bytes(MEBIBYTE)
    feed(target, encode_record_head(UNKNOWN, 128 * MEBIBYTE + 1))
    feed(target, *[piece] * 128)
    assert not target.is_between
    assert feed(target, b"\0" + encode_record(SHORT, b"x")) == [(SHORT, b"x")]


def test_a_record_that_is_announced_costs_nothing_until_it_comes() -> None:
    target = RecordReader({LONG: 2**30})
    assert peak(lambda: feed(target, encode_record_head(LONG, 2**30))) < 16384
    assert target.held == 0


def test_a_record_is_held_once() -> None:
    target = RecordReader({LONG: MEBIBYTE})
    feed(target, encode_record_head(LONG, MEBIBYTE))
    piece = bytes(4096)
    taken: Given = []

    def take() -> None:
        for _ in range(MEBIBYTE // 4096):
            taken.extend(target.feed(piece))

    # What has come, what is given, and what a buffer that grows has besides.
    assert peak(take) < 2.5 * MEBIBYTE
    assert taken == [(LONG, bytes(MEBIBYTE))]
    assert target.held == 0


def test_many_small_records_at_once() -> None:
    """Each costs what it has, and not what stands behind it."""
    data = encode_record(SHORT, b"") * 40_000
    target = reader()
    count = 0

    def take() -> None:
        nonlocal count
        for _ in target.feed(data):
            count += 1

    assert peak(take) < 65536
    assert count == 40_000


def seconds(pieces: Sequence[bytes], times: int) -> float:
    best = float("inf")
    for _ in range(times):
        target = RecordReader({LONG: 2**30}, streamed=STREAMED)
        begun = time.thread_time()
        for piece in pieces:
            for _ in target.feed(piece):
                pass
        best = min(best, time.thread_time() - begun)
        assert target.is_between
    return best


@pytest.mark.parametrize("kind", [LONG, STREAMED, UNKNOWN])
def test_a_megabyte_byte_by_byte(kind: int) -> None:
    """16 times the work of a sixteenth of it; if it were quadratic, 256 times."""

    def pieces(size: int) -> list[bytes]:
        return [encode_record_head(kind, size), *[b"x"] * size]

    assert seconds(pieces(10**6), 1) < 64 * seconds(pieces(10**6 // 16), 3)


def test_as_many_records_as_there_is_room_for_in_one_piece() -> None:
    def pieces(size: int) -> list[bytes]:
        return [encode_record(UNKNOWN, b"") * (size // 3)]

    assert seconds(pieces(640_000), 1) < 64 * seconds(pieces(40_000), 3)
