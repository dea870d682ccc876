"""SETTINGS (RFC 9114 section 7.2.4), those of the peers we know among them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from . import varint
from .http3_codes import Http3Code, Http3Error

__all__ = ["MAX_SETTINGS", "Setting", "encode_settings", "parse_settings"]

#: How long a SETTINGS frame may be.
MAX_SETTINGS: Final = 4096


class Setting(IntEnum):
    """Identifiers of settings."""

    QPACK_MAX_TABLE_CAPACITY = 0x01
    MAX_FIELD_SECTION_SIZE = 0x06
    QPACK_BLOCKED_STREAMS = 0x07
    ENABLE_CONNECT_PROTOCOL = 0x08
    H3_DATAGRAM = 0x33
    #: of draft-ietf-masque-h3-datagram-04, still sent and looked for by deployed browsers
    H3_DATAGRAM_DRAFT_04 = 0xFFD277
    WT_ENABLED = 0x2C7CF000
    #: the ways to say so in drafts 02 and 03, 07 to 12, and 13 and 14
    WT_ENABLED_DRAFT_02 = 0x2B603742
    WT_MAX_SESSIONS_DRAFT_07 = 0xC671706A
    WT_MAX_SESSIONS_DRAFT_13 = 0x14E9CD29
    WT_INITIAL_MAX_DATA = 0x2B61
    WT_INITIAL_MAX_STREAMS_UNI = 0x2B64
    WT_INITIAL_MAX_STREAMS_BIDI = 0x2B65


# Settings of HTTP/2 that have no place here (RFC 9114 section 7.2.4.1).
_RESERVED: Final = {0x00, 0x02, 0x03, 0x04, 0x05}
_BOOLEAN: Final = {Setting.ENABLE_CONNECT_PROTOCOL, Setting.H3_DATAGRAM, Setting.WT_ENABLED}


def encode_settings(settings: Mapping[int, int]) -> bytes:
    """The payload of a SETTINGS frame."""
    return b"".join(varint.encode(key) + varint.encode(value) for key, value in settings.items())


def parse_settings(payload: bytes) -> dict[int, int]:
    """What a SETTINGS frame says.

    Raises:
        Http3Error: it must not say that.
    """
    settings: dict[int, int] = {}
    at = 0
    while at < len(payload):
        key = varint.decode(payload, at)
        value = None if key is None else varint.decode(payload, key[1])
        if key is None or value is None:
            raise Http3Error(Http3Code.FRAME_ERROR, "SETTINGS that is cut off")
        if key[0] in settings or key[0] in _RESERVED:
            raise Http3Error(Http3Code.SETTINGS_ERROR, f"setting {key[0]:#x} must not be there")
        if key[0] in _BOOLEAN and value[0] > 1:
            raise Http3Error(Http3Code.SETTINGS_ERROR, f"setting {key[0]:#x} is 0 or 1")
        settings[key[0]] = value[0]
        at = value[1]
    return settings
