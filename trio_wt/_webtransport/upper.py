"""HTTP/3 with sessions, as it is put on a connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from .._http.h3 import Http3
from .._protocol.dialects import session_settings
from .._protocol.http3 import Http3Protocol
from .._protocol.http3_settings import Setting
from .._quic.driver import Driver
from .router import Sessions
from .settings import WebTransportSettings

__all__ = ["ALPN", "http3_settings", "make_upper"]

ALPN: Final = ["h3"]


def http3_settings(settings: WebTransportSettings) -> dict[int, int]:
    """What to send as SETTINGS."""
    return {
        Setting.MAX_FIELD_SECTION_SIZE: settings.max_field_section,
        **session_settings(
            max_data=settings.session_window,
            max_streams=settings.max_streams,
            max_receive_streams=settings.max_receive_streams,
        ),
    }


def make_upper(
    settings: WebTransportSettings, ours: Mapping[int, int], *, client: bool
) -> Callable[[Driver], Http3]:
    """Makes what stands on each connection.

    Args:
        settings: limits and times.
        ours: what to send as SETTINGS.
        client: this side's role.
    """

    def make(driver: Driver) -> Http3:
        protocol = Http3Protocol(
            client=client,
            settings=ours,
            max_field_section=settings.max_field_section,
            max_fields=settings.max_fields,
        )
        return Http3(driver, protocol, lambda http3: Sessions(http3, settings, ours))

    return make
