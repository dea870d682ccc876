"""The drafts of WebTransport over HTTP/3 that are in use, and what tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .http3_settings import Setting

__all__ = [
    "DIALECTS",
    "TOKENS",
    "Dialect",
    "allows_session_limits",
    "dialect_of_request",
    "dialect_of_server",
    "session_settings",
    "supports_datagrams",
]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a range of drafts announces itself.

    Attributes:
        drafts: the drafts, of draft-ietf-webtrans-http3.
        enabled_by: the setting that says that a peer speaks it, with any value but 0.
        token: what a client asks for in ``:protocol``.
        needs_connect_setting: whether a server must also send ENABLE_CONNECT_PROTOCOL.
    """

    drafts: str
    enabled_by: Setting
    token: str
    needs_connect_setting: bool


#: The newest first; a peer that speaks several is spoken to in the first.
DIALECTS: Final = (
    Dialect("15-16", Setting.WT_ENABLED, "webtransport-h3", True),
    Dialect("13-14", Setting.WT_MAX_SESSIONS_DRAFT_13, "webtransport", True),
    Dialect("07-12", Setting.WT_MAX_SESSIONS_DRAFT_07, "webtransport", True),
    Dialect("02-06", Setting.WT_ENABLED_DRAFT_02, "webtransport", False),
)
#: What a server takes for a request for a session.
TOKENS: Final = frozenset(dialect.token for dialect in DIALECTS)

_LIMITS: Final = (
    Setting.WT_INITIAL_MAX_DATA,
    Setting.WT_INITIAL_MAX_STREAMS_UNI,
    Setting.WT_INITIAL_MAX_STREAMS_BIDI,
)


def session_settings(
    *, max_data: int, max_streams: int, max_receive_streams: int
) -> dict[int, int]:
    """The settings that let every peer we know open sessions, ours and theirs.

    Args:
        max_data: what the peer may send on a session's streams to start with, in bytes.
        max_streams: how many bidirectional streams of the peer's a session may have.
        max_receive_streams: how many unidirectional ones.
    """
    return {
        Setting.QPACK_MAX_TABLE_CAPACITY: 0,
        Setting.QPACK_BLOCKED_STREAMS: 0,
        Setting.ENABLE_CONNECT_PROTOCOL: 1,
        Setting.H3_DATAGRAM: 1,
        # 1 for all: to some peers a larger number of sessions means that limits must be negotiated.
        **{dialect.enabled_by: 1 for dialect in DIALECTS},
        Setting.WT_INITIAL_MAX_DATA: max_data,
        Setting.WT_INITIAL_MAX_STREAMS_UNI: max_receive_streams,
        Setting.WT_INITIAL_MAX_STREAMS_BIDI: max_streams,
    }


def dialect_of_server(settings: Mapping[int, int]) -> Dialect | None:
    """How to speak to a server with these settings; None if it does not speak WebTransport."""
    spoken = [dialect for dialect in DIALECTS if settings.get(dialect.enabled_by)]
    if not spoken:
        return None
    best = spoken[0]
    if len(spoken) > 1 and best.token != spoken[1].token:
        # Relays that announce everything refuse the newest token.
        best = spoken[1]
    connects = settings.get(Setting.ENABLE_CONNECT_PROTOCOL) == 1
    return None if best.needs_connect_setting and not connects else best


def dialect_of_request(settings: Mapping[int, int], token: str) -> Dialect:
    """What a client with these settings speaks that asks for a session with one of `TOKENS`: the newest that it announces."""
    possible = [dialect for dialect in DIALECTS if dialect.token == token]
    return next((d for d in possible if settings.get(d.enabled_by)), possible[-1])


def supports_datagrams(settings: Mapping[int, int]) -> bool:
    """Whether a peer takes HTTP Datagrams."""
    return bool(settings.get(Setting.H3_DATAGRAM) or settings.get(Setting.H3_DATAGRAM_DRAFT_04))


def allows_session_limits(settings: Mapping[int, int]) -> bool:
    """Whether a side takes part in the flow control of sessions (draft-ietf-webtrans-http3-16 section 5.1)."""
    return any(settings.get(limit) for limit in _LIMITS)
