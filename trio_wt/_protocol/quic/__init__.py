"""The QUIC engine: aioquic's connection with bounds, credit on consumption, and a narrow face.

General theory of operation:

Datagrams go in with the time, datagrams come out; between them there are a timer, events, and a few figures. Nothing here
raises for what a peer sends: whatever aioquic raises ends this connection.

What is bounded beyond what aioquic bounds: receive windows grow as the application consumes, stream counts as it releases
streams, and gaps in received ranges, bytes of the TLS handshake and datagrams have limits. What an application may still
send is told by `openable`, `unsent` and `max_datagram`.

This package is the only place that knows aioquic's ``QuicConnection`` and its private names. `contract` checks them at import.
In it, `receiving`, `sending` and `engine` are one class in three floors.
"""

from aioquic.quic.events import (
    ConnectionIdIssued,
    ConnectionIdRetired,
    DatagramFrameReceived,
    HandshakeCompleted,
    PingAcknowledged,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from aioquic.tls import SessionTicket

from .config import CID_LENGTH, VERSIONS, End, EndKind, EngineConfig, VerifyCertificate
from .engine import Datagram, Engine, PathChanged

__all__ = [
    "CID_LENGTH",
    "VERSIONS",
    "ConnectionIdIssued",
    "ConnectionIdRetired",
    "Datagram",
    "DatagramFrameReceived",
    "End",
    "EndKind",
    "Engine",
    "EngineConfig",
    "HandshakeCompleted",
    "PathChanged",
    "PingAcknowledged",
    "QuicEvent",
    "SessionTicket",
    "StopSendingReceived",
    "StreamDataReceived",
    "StreamReset",
    "VerifyCertificate",
]
