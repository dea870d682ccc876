"""Masking: the C function and the Python one are the same function."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.peers import require
from trio_wt._protocol import masking

Mask = Callable[..., bytes]


def implementation(name: str) -> Mask:
    if name == "python":
        return masking.apply_mask_python
    mask: Mask = require("trio_wt._protocol._speedups").apply_mask
    return mask


@pytest.fixture(params=["python", "c"])
def apply_mask(request: pytest.FixtureRequest) -> Mask:
    return implementation(request.param)


def by_hand(data: bytes, key: bytes, phase: int = 0) -> bytes:
    return bytes(byte ^ key[(phase + i) % 4] for i, byte in enumerate(data))


def test_the_example_of_rfc_6455(apply_mask: Mask) -> None:
    # Section 5.7, "a single-frame masked text message".
    assert apply_mask(bytes.fromhex("7f9f4d5158"), bytes.fromhex("37fa213d")) == b"Hello"


@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 32767, 32768, 32769, 32771])
@pytest.mark.parametrize("phase", [0, 1, 2, 3, 6])
def test_every_byte_gets_its_own_of_the_key(apply_mask: Mask, length: int, phase: int) -> None:
    data = bytes(i * 31 & 0xFF for i in range(length))
    masked = apply_mask(data, b"\x01\x82\x43\xc4", 0, length, phase)
    assert masked == by_hand(data, b"\x01\x82\x43\xc4", phase)
    assert type(masked) is bytes


@given(
    st.one_of(
        st.binary(max_size=100),
        st.builds(lambda unit, size: (unit * size)[:size], st.binary(min_size=1), st.just(33000)),
    ),
    st.binary(min_size=4, max_size=4),
    st.integers(0, 2**40),
    st.data(),
)
def test_both_agree_on_any_range_and_phase(
    data: bytes, key: bytes, phase: int, draw: st.DataObject
) -> None:
    start = draw.draw(st.integers(0, len(data)))
    stop = draw.draw(st.integers(start, len(data)))
    expected = by_hand(data[start:stop], key, phase % 4)
    assert masking.apply_mask_python(data, key, start, stop, phase) == expected
    assert implementation("c")(data, key, start, stop, phase) == expected


@given(
    st.binary(max_size=20),
    st.binary(max_size=6),
    st.integers(-2, 25),
    st.integers(0, 25),
    st.integers(-3, 6),
)
def test_both_refuse_the_same(data: bytes, key: bytes, start: int, stop: int, phase: int) -> None:
    def outcome(mask: Mask) -> object:
        try:
            return mask(data, key, start, stop, phase)
        except ValueError as exc:
            return str(exc)

    assert outcome(masking.apply_mask_python) == outcome(implementation("c"))


@pytest.mark.parametrize(
    ("key", "start", "stop", "phase"),
    [
        (b"", 0, 5, 0),
        (b"abc", 0, 5, 0),
        (b"abcde", 0, 5, 0),
        (b"abcd", -1, 5, 0),
        (b"abcd", 4, 3, 0),
        (b"abcd", 0, 6, 0),
        (b"abcd", 6, -1, 0),
        (b"abcd", 0, 5, -1),
    ],
)
def test_a_bad_key_or_range_is_a_value_error(
    apply_mask: Mask, key: bytes, start: int, stop: int, phase: int
) -> None:
    with pytest.raises(ValueError, match="key is not 4 bytes long, or range outside data"):
        apply_mask(b"hello", key, start, stop, phase)


def test_without_a_range_it_takes_all(apply_mask: Mask) -> None:
    assert apply_mask(b"\1\2\3\4\5", b"\1\1\1\1") == b"\0\3\2\5\4"
    assert apply_mask(b"\1\2\3\4\5", b"\1\1\1\1", 3) == b"\5\4"
    assert apply_mask(b"\1\2\3\4\5", b"\1\1\1\1", 3, -1) == b"\5\4"
    assert apply_mask(b"\1\2\3\4\5", b"\1\1\1\1", 5) == b""


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [5, 40_000])
def test_any_buffer_is_read_and_left_as_it_is(
    apply_mask: Mask, kind: type[bytes | bytearray | memoryview], size: int
) -> None:
    original = bytes(size)
    data = kind(bytearray(original))
    assert apply_mask(data, b"\0\1\2\3", 1, size, 1)[:4] == b"\1\2\3\0"
    assert bytes(data) == original


def test_what_is_no_buffer_is_a_type_error(apply_mask: Mask) -> None:
    with pytest.raises(TypeError):
        apply_mask("hello", b"abcd")


def test_the_fast_one_is_used_where_it_was_built() -> None:
    assert masking.apply_mask is implementation("c")


def test_without_the_extension_the_python_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trio_wt._protocol._speedups", None)  # makes importing it fail
    spec = importlib.util.spec_from_file_location("trio_wt._protocol.masking2", masking.__file__)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    assert copy.apply_mask is copy.apply_mask_python
