"""Which draft a peer speaks, and what each of the peers that we know needs of us."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_wt._protocol.dialects import (
    DIALECTS,
    TOKENS,
    allows_session_limits,
    dialect_of_request,
    dialect_of_server,
    session_settings,
    supports_datagrams,
)
from trio_wt._protocol.http3_settings import (
    MAX_SETTINGS,
    Setting,
    encode_settings,
    parse_settings,
)

OLD, NEW = "webtransport", "webtransport-h3"
ENABLES = [
    Setting.WT_ENABLED,
    Setting.WT_MAX_SESSIONS_DRAFT_13,
    Setting.WT_MAX_SESSIONS_DRAFT_07,
    Setting.WT_ENABLED_DRAFT_02,
]
OURS = session_settings(max_data=2**20, max_streams=100, max_receive_streams=50)

# ---- what we say


def test_our_settings() -> None:
    assert OURS == {
        0x01: 0,
        0x07: 0,
        0x08: 1,
        0x33: 1,
        0x2B603742: 1,
        0xC671706A: 1,
        0x14E9CD29: 1,
        0x2C7CF000: 1,
        0x2B61: 2**20,
        0x2B64: 50,
        0x2B65: 100,
    }


def test_our_settings_are_valid_ones() -> None:
    encoded = encode_settings(OURS)
    assert len(encoded) < MAX_SETTINGS
    assert parse_settings(encoded) == OURS


def test_tokens_that_a_server_takes() -> None:
    assert TOKENS == {OLD, NEW}


def test_the_dialects() -> None:
    assert [(d.drafts, d.enabled_by, d.token, d.needs_connect_setting) for d in DIALECTS] == [
        ("15-16", 0x2C7CF000, NEW, True),
        ("13-14", 0x14E9CD29, OLD, True),
        ("07-12", 0xC671706A, OLD, True),
        ("02-06", 0x2B603742, OLD, False),
    ]


# ---- the peers, with the SETTINGS that they send

QPACK = {Setting.QPACK_MAX_TABLE_CAPACITY: 0, Setting.QPACK_BLOCKED_STREAMS: 0}
BASE = {Setting.ENABLE_CONNECT_PROTOCOL: 1, Setting.H3_DATAGRAM: 1}
GREASE = {0x1F * 1000 + 0x21: 1797726374}
PYWEBTRANSPORT = {
    **QPACK,
    **BASE,
    Setting.MAX_FIELD_SECTION_SIZE: 65536,
    Setting.WT_ENABLED: 1,
    Setting.WT_INITIAL_MAX_DATA: 4194304,
    Setting.WT_INITIAL_MAX_STREAMS_UNI: 10,
    Setting.WT_INITIAL_MAX_STREAMS_BIDI: 10,
}
AIOPQUIC = {
    **QPACK,
    **BASE,
    Setting.MAX_FIELD_SECTION_SIZE: 65536,
    **dict.fromkeys(ENABLES, 1),
}
WEBTRANSPORT_GO = {**BASE, Setting.WT_ENABLED: 1}
CHROMIUM = {
    Setting.QPACK_MAX_TABLE_CAPACITY: 65536,
    Setting.MAX_FIELD_SECTION_SIZE: 16384,
    Setting.QPACK_BLOCKED_STREAMS: 100,
    Setting.H3_DATAGRAM: 1,
    Setting.H3_DATAGRAM_DRAFT_04: 1,
    Setting.WT_ENABLED_DRAFT_02: 1,
    **GREASE,
}
FIREFOX = {
    Setting.QPACK_MAX_TABLE_CAPACITY: 65536,
    Setting.QPACK_BLOCKED_STREAMS: 20,
    Setting.WT_ENABLED_DRAFT_02: 1,
    Setting.H3_DATAGRAM_DRAFT_04: 1,
    Setting.H3_DATAGRAM: 1,
    Setting.ENABLE_CONNECT_PROTOCOL: 0,
}
SAFARI = {Setting.H3_DATAGRAM: 1, Setting.WT_MAX_SESSIONS_DRAFT_13: 1}
OLDER_SAFARI = {Setting.H3_DATAGRAM: 1, Setting.WT_MAX_SESSIONS_DRAFT_07: 1}
BOTH_SAFARI = {**SAFARI, **OLDER_SAFARI}
# A server with drafts of before extended CONNECT had to be announced.
DRAFT_02_SERVER = {Setting.H3_DATAGRAM_DRAFT_04: 1, Setting.WT_ENABLED_DRAFT_02: 1}


@pytest.mark.parametrize(
    ("theirs", "token", "drafts", "limited"),
    [
        pytest.param(CHROMIUM, OLD, "02-06", False, id="Chromium 156"),
        pytest.param(FIREFOX, OLD, "02-06", False, id="Firefox ESR 153"),
        pytest.param(SAFARI, OLD, "13-14", False, id="Safari 26.4"),
        pytest.param(OLDER_SAFARI, OLD, "07-12", False, id="Safari, draft 07"),
        pytest.param(BOTH_SAFARI, OLD, "13-14", False, id="Safari, both"),
        pytest.param(PYWEBTRANSPORT, NEW, "15-16", True, id="pywebtransport 0.21"),
        pytest.param(AIOPQUIC, NEW, "15-16", False, id="aiopquic 0.6, the new token"),
        pytest.param(AIOPQUIC, OLD, "13-14", False, id="aiopquic 0.6, the old token"),
        pytest.param(WEBTRANSPORT_GO, NEW, "15-16", False, id="webtransport-go 0.12"),
        pytest.param(OURS, NEW, "15-16", True, id="trio_wt, the new token"),
        pytest.param(OURS, OLD, "13-14", True, id="trio_wt, the old token"),
        pytest.param({}, OLD, "02-06", False, id="it says nothing, with the old token"),
        pytest.param({}, NEW, "15-16", False, id="it says nothing, with the new token"),
    ],
)
def test_peers_as_clients(
    theirs: Mapping[int, int], token: str, drafts: str, limited: bool
) -> None:
    """They are known by what they say and ask for, whether or not they send what only a server needs to send."""
    theirs = parse_settings(encode_settings(theirs))
    assert dialect_of_request(theirs, token).drafts == drafts
    assert supports_datagrams(theirs) == bool(theirs)
    assert allows_session_limits(theirs) == limited


@pytest.mark.parametrize(
    ("theirs", "token", "limited"),
    [
        # It refuses any other token.
        pytest.param(PYWEBTRANSPORT, NEW, True, id="pywebtransport 0.21"),
        # It announces everything, as deployed relays do, which refuse the new one.
        pytest.param(AIOPQUIC, OLD, False, id="aiopquic 0.6"),
        pytest.param(WEBTRANSPORT_GO, NEW, False, id="webtransport-go 0.12"),
        pytest.param(OURS, OLD, True, id="trio_wt"),
        pytest.param(DRAFT_02_SERVER, OLD, False, id="a server of draft 02"),
    ],
)
def test_peers_as_servers(theirs: Mapping[int, int], token: str, limited: bool) -> None:
    theirs = parse_settings(encode_settings(theirs))
    dialect = dialect_of_server(theirs)
    assert dialect is not None
    assert dialect.token == token
    assert supports_datagrams(theirs)
    assert allows_session_limits(theirs) == limited


@pytest.mark.parametrize(
    "needs",
    [
        pytest.param({Setting.WT_ENABLED_DRAFT_02: 1, Setting.H3_DATAGRAM: 1}, id="Chromium 156"),
        pytest.param({Setting.WT_ENABLED_DRAFT_02: 1}, id="Firefox ESR 153"),
        pytest.param({Setting.WT_ENABLED_DRAFT_02: 1, **BASE}, id="the next Firefox"),
        # With a very large number it would require limits.
        pytest.param({Setting.WT_MAX_SESSIONS_DRAFT_13: 1, **BASE}, id="Safari 26.4"),
        pytest.param({Setting.WT_MAX_SESSIONS_DRAFT_07: 1, **BASE}, id="Safari, draft 07"),
        pytest.param({Setting.WT_ENABLED: 1, **BASE}, id="pywebtransport 0.21"),
        pytest.param({**dict.fromkeys(ENABLES, 1), **BASE}, id="aiopquic 0.6"),
        pytest.param({Setting.WT_ENABLED: 1, **BASE}, id="webtransport-go 0.12"),
    ],
)
def test_what_each_peer_needs_of_us(needs: Mapping[int, int]) -> None:
    for size in (1, 2**20, 2**62 - 1):
        ours = session_settings(max_data=size, max_streams=size, max_receive_streams=size)
        assert needs.items() <= ours.items()


# ---- every combination


@pytest.mark.parametrize("enables", list(product((0, 1), repeat=4)))
@pytest.mark.parametrize("connects", [None, 0, 1])
def test_any_enables_of_a_server(enables: tuple[int, ...], connects: int | None) -> None:
    """The new token only where nothing else is announced; extended CONNECT must be allowed, but by the oldest drafts."""
    theirs: dict[int, int] = dict(zip(ENABLES, enables, strict=True))
    if connects is not None:
        theirs[Setting.ENABLE_CONNECT_PROTOCOL] = connects
    dialect = dialect_of_server(theirs)
    spoken = [setting for setting in ENABLES if theirs[setting]]
    if not spoken or (not connects and Setting.WT_ENABLED_DRAFT_02 not in spoken):
        assert dialect is None
    elif connects:
        assert dialect is not None
        older = [setting for setting in spoken if setting != Setting.WT_ENABLED]
        assert dialect.enabled_by == (older[0] if older else Setting.WT_ENABLED)
        assert dialect.token == (OLD if older else NEW)
    elif dialect is not None:
        assert dialect.enabled_by == Setting.WT_ENABLED_DRAFT_02
        assert dialect.token == OLD


@pytest.mark.parametrize("enables", list(product((0, 1), repeat=4)))
@pytest.mark.parametrize("connects", [0, 1])
def test_any_enables_of_a_client(enables: tuple[int, ...], connects: int) -> None:
    theirs: dict[int, int] = dict(zip(ENABLES, enables, strict=True))
    theirs[Setting.ENABLE_CONNECT_PROTOCOL] = connects
    old = [setting for setting in ENABLES[1:] if theirs[setting]]
    assert dialect_of_request(theirs, NEW).enabled_by == Setting.WT_ENABLED
    expected = old[0] if old else Setting.WT_ENABLED_DRAFT_02
    assert dialect_of_request(theirs, OLD).enabled_by == expected


@pytest.mark.parametrize("number", [1, 2, 100, 2**62 - 1])
def test_a_number_of_sessions_enables_too(number: int) -> None:
    for setting in (Setting.WT_MAX_SESSIONS_DRAFT_07, Setting.WT_MAX_SESSIONS_DRAFT_13):
        dialect = dialect_of_server({setting: number, **BASE})
        assert dialect is not None
        assert dialect.enabled_by == setting


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ({}, False),
        ({Setting.H3_DATAGRAM: 0}, False),
        ({Setting.H3_DATAGRAM: 1}, True),
        ({Setting.H3_DATAGRAM_DRAFT_04: 1}, True),
        ({Setting.H3_DATAGRAM: 0, Setting.H3_DATAGRAM_DRAFT_04: 0}, False),
        ({Setting.H3_DATAGRAM: 0, Setting.H3_DATAGRAM_DRAFT_04: 1}, True),
    ],
)
def test_datagrams(theirs: Mapping[int, int], expected: bool) -> None:
    assert supports_datagrams(theirs) is expected


@pytest.mark.parametrize("values", list(product((None, 0, 1, 2**62 - 1), repeat=3)))
def test_limits_of_sessions(values: tuple[int | None, ...]) -> None:
    """draft-ietf-webtrans-http3-16 section 5.1: one that is not 0 is enough."""
    names = (
        Setting.WT_INITIAL_MAX_DATA,
        Setting.WT_INITIAL_MAX_STREAMS_UNI,
        Setting.WT_INITIAL_MAX_STREAMS_BIDI,
    )
    theirs = {k: v for k, v in zip(names, values, strict=True) if v is not None}
    assert allows_session_limits({**BASE, **theirs}) is any(values)


keys = st.one_of(st.sampled_from(Setting).map(int), st.integers(0, 2**62 - 1))


@given(st.dictionaries(keys, st.integers(0, 2**62 - 1), max_size=15), st.sampled_from([OLD, NEW]))
@settings(deadline=None)
def test_any_settings_are_somebody_s(theirs: dict[int, int], token: str) -> None:
    assert dialect_of_request(theirs, token).token == token
    dialect = dialect_of_server(theirs)
    if dialect is None:
        return
    assert theirs[dialect.enabled_by]
    assert dialect.token in TOKENS
    if dialect.needs_connect_setting:
        assert theirs[Setting.ENABLE_CONNECT_PROTOCOL] == 1
