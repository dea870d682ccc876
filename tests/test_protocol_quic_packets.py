"""Ordinary QUIC packets: the C functions and the Python ones are the same functions."""

from __future__ import annotations

import gc
import importlib.util
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from aioquic.quic.crypto import CryptoContext
from aioquic.tls import CipherSuite
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st

from tests.peers import require
from tests.quic_frames import ack_frame, frame, parse_frames, stream_frame
from trio_wt._protocol.quic import packets
from trio_wt._protocol.quic.keys import PacketKeys

# RFC 9001 appendix A.5: a PING in a packet without a connection id, protected by ChaCha20-Poly1305.
SECRET = bytes.fromhex("9ac312a7f877468ebe69422748ad00a15443f18203a07d6060f688f30f21632b")
EXAMPLE = bytes.fromhex("4cfe4189655e5cd55c41f69080575d7999c25a5bfb")
EXAMPLE_NUMBER = 654360564
IV = bytes(range(12))
SUITES = [
    CipherSuite.AES_128_GCM_SHA256,
    CipherSuite.AES_256_GCM_SHA384,
    CipherSuite.CHACHA20_POLY1305_SHA256,
]


class Functions:
    """One of the two implementations."""

    def __init__(self, name: str) -> None:
        if name == "python":
            self.open: Callable[..., Any] = packets.open_packet_python
            self.seal: Callable[..., Any] = packets.seal_packet_python
            self.read: Callable[..., Any] = packets.read_frames_python
        else:
            module = require("trio_wt._protocol.quic._packets")
            self.open, self.seal = module.open_packet, module.seal_packet
            self.read = module.read_frames


@pytest.fixture(params=["python", "c"])
def functions(request: pytest.FixtureRequest) -> Functions:
    return Functions(request.param)


def context(suite: CipherSuite, secret: bytes) -> CryptoContext:
    keys = CryptoContext()
    keys.setup(cipher_suite=suite, secret=secret, version=1)
    return keys


def sealing(keys: CryptoContext) -> tuple[Any, ...]:
    made = PacketKeys(keys, opens=False)
    return made.mask, made.crypt, made.iv


def opening(keys: CryptoContext) -> tuple[Any, ...]:
    made = PacketKeys(keys, opens=True)
    return made.mask, made.crypt, made.iv


def mirror(nonce: bytes, data: bytes, header: bytes) -> bytes:
    """A cipher that shows what it was given."""
    return nonce + header + b"|" + data


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except Exception as exc:
        return type(exc)


# ---- opening


def test_the_example_of_rfc_9001(functions: Functions) -> None:
    keys = context(CipherSuite.CHACHA20_POLY1305_SHA256, SECRET)
    # Its packet number has three bytes, and nothing but a PING comes behind it.
    opened = functions.open(EXAMPLE, 0, 0, EXAMPLE_NUMBER, *opening(keys))
    assert opened == (0x42, EXAMPLE_NUMBER, b"\x01")


@pytest.mark.parametrize("suite", SUITES)
def test_what_is_sealed_can_be_opened_as_aioquic_does(
    functions: Functions, suite: CipherSuite
) -> None:
    keys = context(suite, bytes(48))
    data = functions.seal(0x61, b"8 bytes.", 70_000, (b"\x01ready", (b"one",)), *sealing(keys))
    assert functions.open(data, 8, 0, 70_000, *opening(keys)) == (
        0x61,
        70_000,
        b"\x01ready\x31\x03one",
    )
    header, payload, number, updated = keys.decrypt_packet(data, 9, 70_000)
    assert (header[0], payload, number, updated) == (0x61, b"\x01ready\x31\x03one", 70_000, False)


@pytest.mark.parametrize("suite", SUITES)
def test_what_is_damaged_is_not_opened(functions: Functions, suite: CipherSuite) -> None:
    keys = context(suite, bytes(48))
    data = functions.seal(0x41, b"8 bytes.", 5, (b"data",), *sealing(keys))
    for at in range(len(data)):
        damaged = data[:at] + bytes((data[at] ^ 0x20,)) + data[at + 1 :]
        # Under another mask it may look as if it were of the other key phase.
        assert outcome(functions.open, damaged, 8, 0, 5, *opening(keys)) in (InvalidTag, None)


def test_short_packets_and_other_phases_are_for_others(functions: Functions) -> None:
    keys = context(CipherSuite.AES_128_GCM_SHA256, bytes(32))
    data = functions.seal(0x41, b"8 bytes.", 5, (b"data",), *sealing(keys))
    assert functions.open(data, 8, 1, 5, *opening(keys)) is None
    for size in range(9 + 20):
        assert functions.open(data[:size], 8, 0, 5, *opening(keys)) is None


@given(
    st.binary(max_size=80),
    st.integers(0, 20),
    st.integers(0, 1),
    st.one_of(st.integers(0, 2**62), st.integers(0, 300), st.integers(2**62 - 2**33, 2**62)),
    st.binary(min_size=5, max_size=5),
)
def test_both_open_anything_alike(
    data: bytes, cid_length: int, phase: int, expected: int, bits: bytes
) -> None:
    def mask(sample: bytes) -> bytes:
        assert len(sample) == 16
        return bytes(a ^ b for a, b in zip(bits, sample, strict=False))

    args = (data, cid_length, phase, expected, mask, mirror, IV)
    assert outcome(Functions("c").open, *args) == outcome(Functions("python").open, *args)


# ---- sealing

NUMBERS = st.one_of(st.integers(0, 2**62 - 1), st.integers(0, 20_000))


@st.composite
def streams(draw: st.DrawFn) -> Any:
    buffer = draw(st.one_of(st.binary(max_size=70), st.binary(max_size=70).map(bytearray)))
    start = draw(st.integers(0, len(buffer)))
    stop = draw(st.integers(start, len(buffer)))
    return draw(NUMBERS), draw(NUMBERS), draw(st.booleans()), buffer, start, stop


OUTGOING = st.lists(
    st.one_of(st.binary(max_size=40), st.tuples(st.binary(max_size=100)), streams()), max_size=6
).map(tuple)


@given(st.integers(0, 0xFF), st.binary(max_size=20), NUMBERS, OUTGOING, st.binary(min_size=5))
def test_both_seal_alike(first: int, cid: bytes, number: int, frames: Any, bits: bytes) -> None:
    def encrypt(nonce: bytes, data: bytes, header: bytes) -> bytes:
        return mirror(nonce, data, header).ljust(18, b"-")

    args = (first, cid, number, frames, lambda sample: bits, encrypt, IV)
    assert Functions("c").seal(*args) == Functions("python").seal(*args)


def plain(frames: tuple[Any, ...]) -> bytes:
    """The payload that these frames make, whichever way."""
    found: list[bytes] = []

    def encrypt(nonce: bytes, data: bytes, header: bytes) -> bytes:
        found.append(data)
        return bytes(40)

    for name in ("c", "python"):
        Functions(name).seal(0x41, b"", 0, frames, lambda sample: bytes(16), encrypt, IV)
    assert found[0] == found[1]
    return found[0]


def test_frames_are_what_they_should_be() -> None:
    frames = (
        b"\x01",
        (b"abc",),
        (4, 0, True, bytearray(b"-data-"), 1, 5),
        (8, 70, False, b"x", 0, 1),
    )
    assert parse_frames(plain(frames)) == [
        (0x01,),
        (0x30, b"abc"),
        (0x08, 4, 0, b"data", True),
        (0x08, 8, 70, b"x", False),
    ]


@pytest.mark.parametrize("frames", [(), (b"",), (b"\x01",)])
def test_short_packets_are_padded(frames: tuple[Any, ...]) -> None:
    """RFC 9001 section 5.4.2: a sample needs four bytes, of which the packet number takes two."""
    assert plain(frames) == b"".join(frames).ljust(2, b"\0")


@pytest.mark.parametrize(
    "frame",
    [
        (0, 0, False, b"data", 2, 5),
        (0, 0, False, b"data", 3, 2),
        (0, 0, False, b"data", -1, 2),
        (0, 0, False, b"data", 0, 2**70),
        (0, 0, False, bytes(0x4001), 0, 0x4001),
        (2**62, 0, False, b"", 0, 0),
        (0, 2**62, False, b"", 0, 0),
        (-1, 0, False, b"", 0, 0),
    ],
)
def test_frames_out_of_range_are_refused(functions: Functions, frame: Any) -> None:
    with pytest.raises((ValueError, OverflowError)):
        functions.seal(0x41, b"", 0, (frame,), bytes, mirror, IV)


@pytest.mark.parametrize("frames", [("text",), ((),), ((1, 2),), (None,), ((0, 0, 0, "", 0, 0),)])
def test_what_is_no_frame_is_refused(functions: Functions, frames: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        functions.seal(0x41, b"", 0, frames, bytes, mirror, IV)


# ---- frames

ANY_FRAME = st.one_of(
    st.sampled_from([b"\0", b"\0\0\0", b"\x01", b"\x40\x01", b"\x06", b"\x1e", b"\x3f"]),
    st.builds(ack_frame, NUMBERS, first_range=NUMBERS),
    st.builds(lambda *fields: frame(2, *fields), NUMBERS, NUMBERS, st.integers(0, 2), NUMBERS),
    st.builds(stream_frame, NUMBERS, NUMBERS, st.binary(max_size=70), fin=st.booleans()),
    st.builds(lambda kind, rest: frame(kind, rest), st.integers(0x08, 0x0F), st.binary(max_size=9)),
    st.builds(lambda data: frame(0x31, len(data), data), st.binary(max_size=70)),
    st.builds(lambda data: frame(0x30, data), st.binary(max_size=70)),
    st.builds(lambda value: frame(0x10, value), NUMBERS),
)
PAYLOADS = st.one_of(
    st.binary(max_size=50),
    st.lists(ANY_FRAME, max_size=6).map(b"".join),
    st.builds(
        lambda data, size: data[:size], st.lists(ANY_FRAME).map(b"".join), st.integers(0, 60)
    ),
)


@given(PAYLOADS)
def test_both_read_anything_alike(payload: bytes) -> None:
    found = Functions("c").read(payload)
    assert found == Functions("python").read(payload)
    if found is not None:
        frames, eliciting = found
        assert type(eliciting) is bool
        parsed = [each for each in parse_frames(payload) if each != (0x01,)]
        assert [shape(*each) for each in frames] == parsed


def shape(kind: int, at: int, *fields: Any) -> tuple[Any, ...]:
    """A frame as `parse_frames` has it."""
    if kind == 0x02:
        smallest, largest, _ = fields
        return kind, largest, largest - smallest, []
    if kind >= 0x30:
        return 0x30, fields[1]
    return 0x08, *fields, bool(kind & 1)


@given(PAYLOADS, st.integers(0, 100))
def test_positions_lead_to_the_frame(payload: bytes, start: int) -> None:
    found = Functions("c").read(payload)
    for kind, at, *fields in found[0] if found else ():
        assert payload[at - 1] == kind
        assert Functions("c").read(payload[at - 1 :])[0][0][2:] == tuple(fields)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        frame(0x10, 5),
        frame(0x03, 5, 0, 0, 0, 1, 1, 1),  # with ECN counts
        frame(0x02, 5, 0, 1, 0, 0, 0),  # of two ranges
        frame(0x02, 5, 0, 0, 6),
        b"\x40\x01",  # a PING in two bytes
        stream_frame(0, 0, b"data")[:-1],
        b"\x31\xff" + b"\xff" * 7 + b"data",
    ],
)
def test_what_is_out_of_the_ordinary_is_left_to_others(
    functions: Functions, payload: bytes
) -> None:
    assert functions.read(payload) is None


# ---- C


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("read", ("text",)),
        ("read", (bytearray(b"\x01"),)),
        ("open", ()),
        ("open", (b"",)),
        ("open", (bytearray(40), 8, 0, 0, bytes, mirror, IV)),
        ("open", (bytes(40), -1, 0, 0, bytes, mirror, IV)),
        ("open", (bytes(40), 21, 0, 0, bytes, mirror, IV)),
        ("open", (bytes(40), 8, 2, 0, bytes, mirror, IV)),
        ("open", (bytes(40), 8, 0, 2**62 + 1, bytes, mirror, IV)),
        ("open", (bytes(40), 8, 0, 2**70, bytes, mirror, IV)),
        ("open", (bytes(40), 8, 0, 0, lambda sample: b"1234", mirror, IV)),
        ("open", (bytes(40), 8, 0, 0, lambda sample: None, mirror, IV)),
        ("open", (bytes(40), 8, 0, 0, lambda sample: bytes(5), mirror, b"")),
        ("open", (bytes(40), 8, 0, 0, lambda sample: bytes(5), lambda *args: None, IV)),
        ("open", (bytes(40), 8, 0, 0, None, mirror, IV)),
        ("seal", ()),
        ("seal", (0x41, bytearray(8), 0, (), bytes, mirror, IV)),
        ("seal", (0x41, bytes(21), 0, (), bytes, mirror, IV)),
        ("seal", (0x41, b"", 0, [], bytes, mirror, IV)),
        ("seal", (0x100, b"", 0, (), bytes, mirror, IV)),
        ("seal", (0x41, b"", 2**62, (), bytes, mirror, IV)),
        ("seal", (0x41, b"", 0, (), lambda sample: b"", mirror, IV)),
        ("seal", (0x41, b"", 0, (), bytes, lambda *args: b"short", IV)),
        ("seal", (0x41, b"", 0, (), bytes, mirror, bytes(13))),
        ("seal", (0x41, b"", 0, (bytes(60_000), bytes(60_000)), bytes, mirror, IV)),
    ],
)
def test_wrong_arguments_are_errors(name: str, args: Any) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        getattr(Functions("c"), name)(*args)


def test_errors_of_a_cipher_come_through(functions: Functions) -> None:
    def broken(*args: bytes) -> bytes:
        raise ZeroDivisionError

    for mask, crypt in ((broken, mirror), (lambda sample: bytes(16), broken)):
        with pytest.raises(ZeroDivisionError):
            functions.open(bytes(40), 8, 0, 0, mask, crypt, IV)
        with pytest.raises(ZeroDivisionError):
            functions.seal(0x41, b"", 0, (bytes(20),), mask, crypt, IV)


def test_nothing_is_kept(functions: Functions) -> None:
    keys = context(CipherSuite.AES_128_GCM_SHA256, bytes(32))
    buffer = bytearray(b"data" * 10)

    def broken(*args: bytes) -> bytes:
        raise ZeroDivisionError

    def work() -> None:
        frames = (
            b"\x01",
            (b"datagram",),
            (4, 70, False, buffer, 3, 30),
            (2**40, 2**50, True, b"", 0, 0),
        )
        data = functions.seal(0x41, b"8 bytes.", 300, frames, *sealing(keys))
        _, _, payload = functions.open(data, 8, 0, 300, *opening(keys))
        assert len(functions.read(payload)[0]) == 3
        assert functions.open(data, 8, 1, 300, *opening(keys)) is None
        assert functions.read(payload + b"\x31\x40") is None
        assert functions.read(payload + b"\x10\x05") is None
        for mask, crypt in ((broken, mirror), (bytes, broken), (lambda sample: b"", mirror)):
            outcome(functions.open, data, 8, 0, 300, mask, crypt, IV)
            outcome(functions.seal, 0x41, b"8 bytes.", 300, frames, mask, crypt, IV)
        outcome(functions.seal, 0x41, b"", 0, (b"x", (0, 0, 0, buffer, 9, 2)), bytes, mirror, IV)
        outcome(functions.seal, 0x41, b"", 0, (b"x", (0, 0, 0, buffer, 0, 2)), bytes, mirror, b"")
        outcome(functions.open, damaged, 8, 0, 300, *opening(keys))
        buffer.append(0)  # nothing holds on to it
        buffer.pop()

    damaged = bytes(60)
    for _ in range(100):
        work()
    counts = [sys.getrefcount(thing) for thing in (buffer, IV, damaged, None)]
    tracemalloc.start()
    try:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(1000):
            work()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # One object of 40 bytes for each turn would be more than twice that.
    assert after - before < 16_000
    for was, thing in zip(counts, (buffer, IV, damaged, None), strict=True):
        assert sys.getrefcount(thing) < was + 500


def test_the_fast_ones_are_used_where_they_were_built() -> None:
    fast = Functions("c")
    assert packets.open_packet is fast.open
    assert packets.seal_packet is fast.seal
    assert packets.read_frames is fast.read


def test_without_the_extension_the_python_ones_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    # Makes importing it fail.
    monkeypatch.setitem(sys.modules, "trio_wt._protocol.quic._packets", None)
    spec = importlib.util.spec_from_file_location(
        "trio_wt._protocol.quic.packets2", packets.__file__
    )
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    assert copy.open_packet is copy.open_packet_python
    assert copy.seal_packet is copy.seal_packet_python
    assert copy.read_frames is copy.read_frames_python
