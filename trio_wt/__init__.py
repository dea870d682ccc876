"""WebSocket, WebTransport and QUIC for Trio.

A connection is a nursery, a session and a stream are ``async with`` blocks, and cancelling a block is what resets
it on the wire.
"""

from ._errors import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    HandshakeFailed,
    InternalError,
    Rejected,
    TrioWTError,
)
from ._headers import Headers
from ._http.request import Request
from ._protocol.deflate import Deflate
from ._protocol.extensions import Extension, ExtensionCodec, ExtensionError
from ._version import __version__
from ._websocket.broadcast import broadcast
from ._websocket.client import open_websocket, wrap_client_stream
from ._websocket.reconnect import Attempt, Reconnect, is_transient, reconnect
from ._websocket.server import serve_websocket, wrap_server_stream
from ._websocket.settings import Settings
from ._websocket.statistics import Statistics
from ._websocket.streams import ReceiveMessageStream, SendMessageStream
from ._websocket.websocket import WebSocket

__all__ = [
    "Attempt",
    "ConnectionClosed",
    "ConnectionClosedError",
    "ConnectionClosedOK",
    "Deflate",
    "Extension",
    "ExtensionCodec",
    "ExtensionError",
    "HandshakeFailed",
    "Headers",
    "InternalError",
    "ReceiveMessageStream",
    "Reconnect",
    "Rejected",
    "Request",
    "SendMessageStream",
    "Settings",
    "Statistics",
    "TrioWTError",
    "WebSocket",
    "__version__",
    "broadcast",
    "is_transient",
    "open_websocket",
    "reconnect",
    "serve_websocket",
    "wrap_client_stream",
    "wrap_server_stream",
]
