"""What a server knows of a request, a session and its connection, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

import trio

from .._errors import StreamReset
from .._http.request import Request
from .._protocol.http3_settings import Setting
from .._protocol.route import Sockaddr
from .._quic.receive_stream import ReceiveStream
from .._quic.statistics import QuicStatistics
from .._quic.streams import Stream
from .._transport.transport import Address
from .._websocket.statistics import Statistics
from .._websocket.websocket import WebSocket
from .._webtransport.session import WebTransportSession
from .._webtransport.statistics import SessionStatistics
from ..app import Session
from ._streams import serve_streams, until_closed

__all__ = ["serve_stats", "stats_of_request", "stats_of_session"]

# A peer that answers no pings gets its figures without a round-trip time, after so many seconds.
_PING_PATIENCE: Final = 1.0


def stats_of_request(request: Request) -> dict[str, Any]:
    """What there is to tell of a request that asks for no session."""
    return {"kind": "http", **_request(request)}


def stats_of_session(session: Session) -> dict[str, Any]:
    """What there is to tell of a session at this moment."""
    if isinstance(session, WebSocket):
        return {
            "kind": "websocket",
            **_request(session.request),
            "subprotocol": session.subprotocol,
            "extensions": list(session.extensions),
            "rtt": session.latency,
            "session": _figures(session.statistics()),
        }
    connection = session.connection.statistics()
    statistics = session.statistics()
    return {
        "kind": "webtransport",
        **_request(session.request),
        "peer": _address(session.peer_address),
        "subprotocol": session.subprotocol,
        "drafts": statistics.dialect,
        "session_id": session.session_id,
        "rtt": connection.rtt,
        "max_datagram_size": session.datagrams.max_size,
        "peer_settings": _named(session.connection.peer_settings),
        "flow_control": _flow_control(session),
        "session": _figures(statistics),
        "connection": _figures(connection),
    }


async def serve_stats(session: Session) -> None:
    """A handler that tells what it knows of its session, as JSON.

    A WebSocket gets it as one text message, after a ping that measures the round trip, and is closed. A WebTransport session gets it on
    one unidirectional stream at once, and on each stream that it opens: on the same one, or on a new one if that is unidirectional;
    what the peer sends is not looked at. It lasts until the peer closes it, or it is to come to its end.

    Args:
        session: a session of either kind.
    """
    if isinstance(session, WebSocket):
        with trio.move_on_after(_PING_PATIENCE):
            await session.ping()
        await session.send(_text(session))
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(until_closed, _tell, session)
        await _tell_on_streams(session)
        nursery.cancel_scope.cancel()


async def _tell(session: WebTransportSession) -> None:
    with suppress(StreamReset):
        async with session.open_send_stream() as stream:
            await stream.send_all(_text(session).encode(), eof=True)


async def _tell_on_streams(session: WebTransportSession) -> None:
    async def on_stream(stream: Stream) -> None:
        async with stream:
            with suppress(StreamReset):
                await stream.send_all(_text(session).encode(), eof=True)
            await _drop(stream)

    async def on_receive_stream(stream: ReceiveStream) -> None:
        async with stream:
            await _tell(session)
            await _drop(stream)

    await serve_streams(session, on_stream=on_stream, on_receive_stream=on_receive_stream)


async def _drop(stream: ReceiveStream) -> None:
    """Receive to the end: a peer that is stopped instead may take that for a failure."""
    with suppress(StreamReset):
        async for _ in stream:
            pass


def _text(session: Session) -> str:
    return json.dumps(stats_of_session(session))


def _request(request: Request) -> dict[str, Any]:
    # No header but Origin: others may be secrets of whoever is between.
    return {
        "method": request.method,
        "target": request.target,
        "http_version": request.http_version,
        # Over TCP nobody has kept it.
        "alpn": "h3" if request.http_version == "3" else None,
        "scheme": request.scheme,
        "host": request.host,
        "origin": request.origin,
        "peer": _address(request.peer),
        "client_certificate": request.tls_peer_certificate is not None,
        "subprotocols_offered": list(request.subprotocols),
    }


def _address(address: Address | Sockaddr) -> dict[str, Any] | None:
    if address is None or isinstance(address, str):
        # That of a Unix socket's client is empty, if it is known.
        return None
    return {"host": address[0], "port": address[1]}


def _named(settings: Mapping[int, int]) -> dict[str, int]:
    names = {setting.value: setting.name for setting in Setting}
    return {names.get(key, hex(key)): value for key, value in settings.items()}


def _flow_control(session: WebTransportSession) -> dict[str, Any]:
    ours, theirs = session.connection.settings, session.connection.peer_settings
    return {
        "enabled": session.statistics().send_credit is not None,
        "server": {
            "max_data": ours.session_window,
            "max_streams": ours.max_streams,
            "max_receive_streams": ours.max_receive_streams,
        },
        "client": {
            "max_data": theirs.get(Setting.WT_INITIAL_MAX_DATA),
            "max_streams": theirs.get(Setting.WT_INITIAL_MAX_STREAMS_BIDI),
            "max_receive_streams": theirs.get(Setting.WT_INITIAL_MAX_STREAMS_UNI),
        },
    }


def _figures(statistics: Statistics | SessionStatistics | QuicStatistics) -> dict[str, Any]:
    figures = asdict(statistics)
    # On a clock that nobody else has.
    figures.pop("last_heard", None)
    return figures
