"""Messages in a stream of bytes: any chunking gives the same, and nothing is held that need not be."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from trio_wt.app._framing import FrameReader, Oversized, frame

MAX_SIZE = 20


def read(reader: FrameReader, data: bytes) -> list[bytes | Oversized]:
    reader.feed(data)
    found = []
    while (message := reader.take()) is not None:
        found.append(message)
    return found


def test_a_frame_is_its_length_and_the_message() -> None:
    assert frame(b"hello") == b"\x00\x00\x00\x05hello"
    assert frame(b"") == bytes(4)
    assert frame(bytes(300))[:4] == b"\x00\x00\x01\x2c"


@given(
    st.lists(st.binary(max_size=2 * MAX_SIZE), max_size=8), st.lists(st.integers(1, 50)), st.data()
)
@settings(deadline=None)
def test_any_chunking_gives_the_same_messages(
    messages: list[bytes], cuts: list[int], data: st.DataObject
) -> None:
    stream = b"".join(map(frame, messages))
    end = data.draw(st.integers(0, len(stream)))
    expected: list[bytes | Oversized] = []
    rest = end
    for message in messages:
        too_large = len(message) > MAX_SIZE
        if rest < 4 or (rest < 4 + len(message) and not too_large):
            break
        expected.append(Oversized(len(message)) if too_large else message)
        if rest < 4 + len(message):
            break
        rest -= 4 + len(message)
    reader, found, at = FrameReader(MAX_SIZE), [], 0
    for cut in [*cuts, end]:
        part = stream[at : min(at + cut, end)]
        at += len(part)
        found += read(reader, part)
        assert reader.buffered < 4 + MAX_SIZE
    assert found == expected
    assert reader.incomplete == rest


@given(st.binary(max_size=200), st.integers(1, 30))
@example(b"\xff" * 100, 1)
@settings(deadline=None)
def test_any_bytes(data: bytes, step: int) -> None:
    whole = read(FrameReader(MAX_SIZE), data)
    reader = FrameReader(MAX_SIZE)
    in_pieces = [m for i in range(0, len(data), step) for m in read(reader, data[i : i + step])]
    assert whole == in_pieces
    assert reader.buffered < 4 + MAX_SIZE
    for message in whole:
        size = message.size if isinstance(message, Oversized) else len(message)
        assert (size > MAX_SIZE) is isinstance(message, Oversized)


def test_what_is_too_large_is_told_before_it_comes_and_never_held() -> None:
    reader = FrameReader(MAX_SIZE)
    assert read(reader, (10_000).to_bytes(4)) == [Oversized(10_000)]
    for _ in range(99):
        assert read(reader, bytes(100)) == []
        assert reader.buffered == 0
    assert reader.incomplete == 4 + 9900
    assert read(reader, bytes(100) + frame(b"next")) == [b"next"]
    assert reader.incomplete == 0
