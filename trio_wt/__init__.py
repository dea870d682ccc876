"""WebSocket, WebTransport and QUIC for Trio.

A connection is a nursery, a session and a stream are ``async with`` blocks, and cancelling a block is what resets
it on the wire.
"""

from typing import TYPE_CHECKING

from ._errors import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ConnectionLost,
    DatagramTooLarge,
    HandshakeFailed,
    IncompleteRead,
    InternalError,
    ReadLimitExceeded,
    Rejected,
    StreamAbort,
    StreamReset,
    TransportClosed,
    TrioWTError,
)
from ._headers import Headers
from ._http.priority import Priority
from ._http.request import Request, Response
from ._protocol.deflate import Deflate
from ._protocol.extensions import Extension, ExtensionCodec, ExtensionError
from ._quic.client import QuicEndpoint, open_quic, open_quic_endpoint
from ._quic.connection import Connection
from ._quic.datagrams import Datagrams
from ._quic.incoming import IncomingStreams
from ._quic.receive_stream import ReceiveStream
from ._quic.send_stream import SendStream
from ._quic.server import serve_quic
from ._quic.sessions import SessionStore
from ._quic.settings import QuicSettings
from ._quic.statistics import QuicStatistics
from ._quic.streams import Stream
from ._quic.tls import Certificate, ClientTLS, ServerTLS
from ._quic.verification import CertificateRejected
from ._transport.udp import DatagramSocket, UdpSocket
from ._version import __version__
from ._websocket.broadcast import broadcast
from ._websocket.client import open_websocket, wrap_client_stream
from ._websocket.server import serve_websocket, wrap_server_stream
from ._websocket.settings import Settings
from ._websocket.statistics import Statistics
from ._websocket.streams import ReceiveMessageStream, SendMessageStream
from ._websocket.websocket import WebSocket
from ._webtransport.client import open_webtransport, open_webtransport_connection
from ._webtransport.connection import WebTransportConnection
from ._webtransport.server import serve_webtransport
from ._webtransport.session import WebTransportSession
from ._webtransport.settings import WebTransportSettings
from ._webtransport.statistics import SessionStatistics

if TYPE_CHECKING:
    from .app._reconnect import Attempt, Reconnect, is_transient, reconnect
else:

    def __getattr__(name: str) -> object:
        # These live a floor higher, and whoever uses none of that floor need not load it.
        if name not in {"Attempt", "Reconnect", "is_transient", "reconnect"}:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .app import _reconnect

        found = globals()[name] = getattr(_reconnect, name)
        return found


__all__ = [
    "Attempt",
    "Certificate",
    "CertificateRejected",
    "ClientTLS",
    "Connection",
    "ConnectionClosed",
    "ConnectionClosedError",
    "ConnectionClosedOK",
    "ConnectionLost",
    "DatagramSocket",
    "DatagramTooLarge",
    "Datagrams",
    "Deflate",
    "Extension",
    "ExtensionCodec",
    "ExtensionError",
    "HandshakeFailed",
    "Headers",
    "IncomingStreams",
    "IncompleteRead",
    "InternalError",
    "Priority",
    "QuicEndpoint",
    "QuicSettings",
    "QuicStatistics",
    "ReadLimitExceeded",
    "ReceiveMessageStream",
    "ReceiveStream",
    "Reconnect",
    "Rejected",
    "Request",
    "Response",
    "SendMessageStream",
    "SendStream",
    "ServerTLS",
    "SessionStatistics",
    "SessionStore",
    "Settings",
    "Statistics",
    "Stream",
    "StreamAbort",
    "StreamReset",
    "TransportClosed",
    "TrioWTError",
    "UdpSocket",
    "WebSocket",
    "WebTransportConnection",
    "WebTransportSession",
    "WebTransportSettings",
    "__version__",
    "broadcast",
    "is_transient",
    "open_quic",
    "open_quic_endpoint",
    "open_websocket",
    "open_webtransport",
    "open_webtransport_connection",
    "reconnect",
    "serve_quic",
    "serve_websocket",
    "serve_webtransport",
    "wrap_client_stream",
    "wrap_server_stream",
]
