"""SETTINGS (RFC 9114 section 7.2.4)."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trio_wt._protocol import varint
from trio_wt._protocol.http3_codes import Http3Code, Http3Error
from trio_wt._protocol.http3_settings import (
    MAX_SETTINGS,
    Setting,
    encode_settings,
    parse_settings,
)

# Of HTTP/2 (RFC 9114 section 7.2.4.1), and 0, which it has kept free.
RESERVED = [0x00, 0x02, 0x03, 0x04, 0x05]
BOOLEAN = [Setting.ENABLE_CONNECT_PROTOCOL, Setting.H3_DATAGRAM, Setting.WT_ENABLED]
GREASE = [0x1F * n + 0x21 for n in (0, 1, 7, 2**40)]


def pair(key: int, value: int) -> bytes:
    return varint.encode(key) + varint.encode(value)


def refused(payload: bytes) -> Http3Code:
    with pytest.raises(Http3Error) as caught:
        parse_settings(payload)
    return caught.value.code


def test_identifiers_are_those_of_the_registries() -> None:
    assert {setting.name: setting.value for setting in Setting} == {
        # RFC 9204 section 5, RFC 9114 section 7.2.4.1, RFC 9220 section 3, RFC 9297 section 2.1.1
        "QPACK_MAX_TABLE_CAPACITY": 0x01,
        "MAX_FIELD_SECTION_SIZE": 0x06,
        "QPACK_BLOCKED_STREAMS": 0x07,
        "ENABLE_CONNECT_PROTOCOL": 0x08,
        "H3_DATAGRAM": 0x33,
        "H3_DATAGRAM_DRAFT_04": 0xFFD277,
        # draft-ietf-webtrans-http3-16 section 9.2
        "WT_ENABLED": 0x2C7CF000,
        "WT_INITIAL_MAX_DATA": 0x2B61,
        "WT_INITIAL_MAX_STREAMS_UNI": 0x2B64,
        "WT_INITIAL_MAX_STREAMS_BIDI": 0x2B65,
        # older ones of the same
        "WT_ENABLED_DRAFT_02": 0x2B603742,
        "WT_MAX_SESSIONS_DRAFT_07": 0xC671706A,
        "WT_MAX_SESSIONS_DRAFT_13": 0x14E9CD29,
    }
    assert MAX_SETTINGS == 4096


def test_settings_on_the_wire() -> None:
    data = encode_settings({Setting.H3_DATAGRAM: 1, Setting.WT_INITIAL_MAX_DATA: 2**20})
    assert data.hex() == "3301" + "6b61" + "80100000"
    assert parse_settings(data) == {0x33: 1, 0x2B61: 2**20}
    assert encode_settings({}) == b""
    assert parse_settings(b"") == {}


def test_our_own_settings_fit_in_what_a_peer_of_our_kind_takes() -> None:
    everything = dict.fromkeys(Setting, 2**62 - 1)
    assert len(encode_settings(everything)) < MAX_SETTINGS


@pytest.mark.parametrize("key", RESERVED)
@pytest.mark.parametrize("value", [0, 1, 100])
def test_settings_of_http_2(key: int, value: int) -> None:
    assert refused(pair(key, value)) == Http3Code.SETTINGS_ERROR
    assert refused(pair(0x33, 1) + pair(key, value)) == Http3Code.SETTINGS_ERROR


@pytest.mark.parametrize("key", [*Setting, *GREASE])
def test_no_setting_may_be_there_twice(key: int) -> None:
    for other in (0, 1):
        data = pair(key, 1) + pair(0x1F * 99 + 0x21, 5) + pair(key, other)
        assert refused(data) == Http3Code.SETTINGS_ERROR
    # However long it is written.
    assert refused(b"\x33\x01\x40\x33\x01") == Http3Code.SETTINGS_ERROR


@pytest.mark.parametrize("key", BOOLEAN)
def test_settings_that_are_0_or_1(key: int) -> None:
    """RFC 8441 section 3, RFC 9297 section 2.1.1, draft-ietf-webtrans-http3-16 section 3.1."""
    assert parse_settings(pair(key, 0)) == {key: 0}
    assert parse_settings(pair(key, 1)) == {key: 1}
    for value in (2, 3, 2**62 - 1):
        assert refused(pair(key, value)) == Http3Code.SETTINGS_ERROR


@pytest.mark.parametrize("key", sorted(set(Setting) - set(BOOLEAN)))
def test_settings_of_any_value(key: int) -> None:
    for value in (0, 1, 2, 2**62 - 1):
        assert parse_settings(pair(key, value)) == {key: value}


@pytest.mark.parametrize("key", [*GREASE, 0x0D, 0x4D44, 0x276, 2**62 - 1])
def test_unknown_settings_are_no_error(key: int) -> None:
    data = pair(key, 2**62 - 1) + pair(Setting.H3_DATAGRAM, 1)
    assert parse_settings(data)[Setting.H3_DATAGRAM] == 1


@pytest.mark.parametrize("data", ["33", "40", "4033", "3340", "6b61801000", "3301" + "c0" * 7])
def test_settings_that_are_cut_off(data: str) -> None:
    """RFC 9114 section 7.1: H3_FRAME_ERROR."""
    assert refused(bytes.fromhex(data)) == Http3Code.FRAME_ERROR


def test_as_many_as_there_is_room_for() -> None:
    keys = [0x40 + n for n in range(0x4000 - 0x40)][: MAX_SETTINGS // 3]
    data = b"".join(pair(key, 0) for key in keys)
    assert MAX_SETTINGS - 3 < len(data) <= MAX_SETTINGS
    assert parse_settings(data) == dict.fromkeys(keys, 0)


valid_keys = st.one_of(st.sampled_from(Setting), st.integers(6, 2**62 - 1)).map(int)


@given(st.dictionaries(valid_keys, st.integers(0, 2**62 - 1), max_size=20))
@settings(deadline=None)
def test_any_settings_come_back(sent: dict[int, int]) -> None:
    for key in BOOLEAN:
        if key in sent:
            sent[key] %= 2
    assert parse_settings(encode_settings(sent)) == sent


@given(st.binary(max_size=60))
@example(b"\x33\x01\x33\x01")
@settings(deadline=None)
def test_any_bytes(payload: bytes) -> None:
    """They say something, or are refused with one of two codes."""
    try:
        found = parse_settings(payload)
    except Http3Error as exc:
        assert exc.code in (Http3Code.FRAME_ERROR, Http3Code.SETTINGS_ERROR)
        return
    assert parse_settings(encode_settings(found)) == found
    assert not found.keys() & set(RESERVED)
    at = 0
    for key, value in found.items():
        for number in (key, value):
            decoded = varint.decode(payload, at)
            assert decoded is not None
            assert decoded[0] == number
            at = decoded[1]
    assert at == len(payload)
