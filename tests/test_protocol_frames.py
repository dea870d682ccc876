"""Frames and close codes, byte by byte."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.frames import frame, parse_frames, xor
from trio_wt._protocol.frames import (
    CLOSE_REASON_MAX,
    CONTROL_PAYLOAD_MAX,
    FIN,
    RSV,
    CloseCode,
    MaskingKeys,
    Opcode,
    close_payload,
    encode_frame,
    frame_header,
    is_valid_close_code,
    parse_close_payload,
)

# ---- numbers of the RFC


def test_opcodes_are_those_of_section_5_2() -> None:
    assert {opcode.name: opcode.value for opcode in Opcode} == {
        "CONTINUATION": 0,
        "TEXT": 1,
        "BINARY": 2,
        "CLOSE": 8,
        "PING": 9,
        "PONG": 10,
    }


def test_close_codes_are_those_of_the_registry() -> None:
    assert {code.value: code.name for code in CloseCode} == {
        1000: "NORMAL",
        1001: "GOING_AWAY",
        1002: "PROTOCOL_ERROR",
        1003: "UNSUPPORTED_DATA",
        1005: "NO_STATUS",
        1006: "ABNORMAL",
        1007: "INVALID_DATA",
        1008: "POLICY_VIOLATION",
        1009: "MESSAGE_TOO_BIG",
        1010: "MANDATORY_EXTENSION",
        1011: "INTERNAL_ERROR",
        1012: "SERVICE_RESTART",
        1013: "TRY_AGAIN_LATER",
        1014: "BAD_GATEWAY",
    }


def test_bits_and_limits_are_those_of_sections_5_2_and_5_5() -> None:
    assert (FIN, RSV) == (0b1000_0000, 0b0111_0000)
    assert (CONTROL_PAYLOAD_MAX, CLOSE_REASON_MAX) == (125, 123)


def test_which_close_codes_may_be_on_the_wire() -> None:
    valid = {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}
    assert {code for code in range(65536) if is_valid_close_code(code)} == valid


# ---- headers


@pytest.mark.parametrize(
    ("length", "rest"),
    [
        (0, "00"),
        (125, "7d"),
        (126, "7e007e"),
        (65535, "7effff"),
        (65536, "7f0000000000010000"),
        (2**63 - 1, "7f7fffffffffffffff"),
    ],
)
def test_lengths_are_as_short_as_they_can_be(length: int, rest: str) -> None:
    assert frame_header(0x82, length, 0).hex() == "82" + rest
    masked = f"{int(rest[:2], 16) | 0x80:02x}{rest[2:]}"
    assert frame_header(0xC1, length, 0x80).hex() == "c1" + masked


@given(
    st.sampled_from([0x00, 0x01, 0x81, 0x82, 0x8A, 0xC1, 0x89]),
    st.one_of(
        st.binary(max_size=300),
        st.sampled_from([125, 126, 16379, 16380, 16384, 65535, 65536]).map(bytes),
    ),
)
def test_frames_are_whole_and_say_what_they_carry(first: int, payload: bytes) -> None:
    from_server = b"".join(encode_frame(first, payload, None))
    assert from_server == frame(first & 0x8F, payload, masked=False, fin=False, rsv=first & 0x70)
    from_client = b"".join(encode_frame(first, payload, MaskingKeys()))
    assert from_client[1] & 0x80
    assert len(from_client) == len(from_server) + 4
    assert parse_frames(from_client) == parse_frames(from_server) == [(first, payload)]


def test_the_unmasked_example_of_section_5_7() -> None:
    assert encode_frame(0x81, b"Hello", None) == [bytes.fromhex("810548656c6c6f")]


def test_a_client_masks_with_the_key_it_sends() -> None:
    (data,) = encode_frame(0x81, b"Hello", MaskingKeys())
    assert data[:2] == b"\x81\x85"
    assert xor(data[6:], data[2:6]) == b"Hello"


def test_a_large_payload_of_a_server_is_not_copied() -> None:
    payload = bytes(16384)
    header, body = encode_frame(0x82, payload, None)
    assert header == b"\x82\x7e\x40\x00"
    assert body is payload
    assert len(encode_frame(0x82, payload[1:], None)) == 1
    assert len(encode_frame(0x82, payload, MaskingKeys())) == 2


# ---- masking keys


def test_keys_come_from_the_systems_entropy_and_are_never_used_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[bytes] = []

    def urandom(size: int) -> bytes:
        drawn.append(bytes((len(drawn) * 91 + i) & 0xFF for i in range(size)))
        return drawn[-1]

    monkeypatch.setattr(os, "urandom", urandom)
    keys = MaskingKeys()
    assert drawn == [], "an idle connection has no keys yet"
    given_out = b"".join(keys.next() for _ in range(200))
    assert given_out == b"".join(drawn)[: len(given_out)]
    assert len(given_out) == 800
    assert len(drawn) < 10, "one system call serves many frames"


# ---- payloads of Close


@pytest.mark.parametrize(
    ("code", "reason", "payload"),
    [
        (1000, "", b"\x03\xe8"),
        (1000, "bye", b"\x03\xe8bye"),
        (4999, "é", b"\x13\x87\xc3\xa9"),
        (1014, "x" * 123, b"\x03\xf6" + b"x" * 123),
        (CloseCode.NO_STATUS, "", b""),
    ],
)
def test_close_payloads_both_ways(code: int, reason: str, payload: bytes) -> None:
    assert close_payload(code, reason) == payload
    assert parse_close_payload(payload) == (code, reason)


@pytest.mark.parametrize(
    ("code", "reason", "why"),
    [
        (0, "", "0 is not a close code"),
        (999, "", "999 is not a close code"),
        (1004, "", "1004 is not a close code"),
        (1005, "x", "1005 is not a close code"),
        (1006, "", "1006 is not a close code"),
        (1015, "", "1015 is not a close code"),
        (2999, "", "2999 is not a close code"),
        (5000, "", "5000 is not a close code"),
        (1000, "x" * 124, "at most 123 bytes, not 124"),
        (1000, "é" * 62, "at most 123 bytes, not 124"),
        (1000, "a\nb", "line breaks"),
        (1000, "a\rb", "line breaks"),
        (1000, "\ud800", "surrogates"),
    ],
)
def test_what_a_close_frame_cannot_say(code: int, reason: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        close_payload(code, reason)


@pytest.mark.parametrize("payload", [b"\x03", b"\x03\xe7", b"\x03\xed", b"\x03\xf7x", b"\x0b\xb7"])
def test_close_payloads_that_no_peer_may_send(payload: bytes) -> None:
    with pytest.raises(ValueError, match="invalid close code"):
        parse_close_payload(payload)


def test_a_close_reason_that_is_not_utf8() -> None:
    with pytest.raises(UnicodeDecodeError):
        parse_close_payload(b"\x03\xe8\xed\xa0\x80")


@given(st.binary(max_size=125))
def test_any_close_payload_is_parsed_or_a_value_error(payload: bytes) -> None:
    try:
        code, reason = parse_close_payload(payload)
    except ValueError:
        return
    if "\r" not in reason and "\n" not in reason:
        assert close_payload(code, reason) == payload
