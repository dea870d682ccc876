"""What a QUIC engine is told when it is made, and what it tells of its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TextIO, TypeAlias

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import CipherSuite, SessionTicket
from cryptography import x509

from ..packet_router import CID_LENGTH
from ..path_mtu import BASE_SIZE
from .qlog import BoundedFileLogger

__all__ = [
    "ACTIVE_IDS",
    "CID_LENGTH",
    "MAX_DATAGRAM_FRAME",
    "VERSIONS",
    "End",
    "EndKind",
    "EngineConfig",
    "VerifyCertificate",
]

#: How many connection ids the peer may give us at a time: one in use, and some to move with (RFC 9000 section 5.1.1). Each
#: costs memory and a frame of the handshake.
ACTIVE_IDS = 4

#: What we advertise to accept in a DATAGRAM frame (RFC 9221 section 3 recommends it).
MAX_DATAGRAM_FRAME = 65535

#: Wire versions by the number that people use (RFC 9000, RFC 9369).
VERSIONS = {1: int(QuicProtocolVersion.VERSION_1), 2: int(QuicProtocolVersion.VERSION_2)}

#: Raises an exception with an ``alert``, a TLS alert's number, if the peer's chain is not to be trusted; the certificate is
#: None if the peer showed none.
VerifyCertificate: TypeAlias = Callable[
    ["x509.Certificate | None", Sequence[x509.Certificate]], None
]

# RFC 9002 section 6.2.2; a smaller one takes every packet of a long way for lost.
_INITIAL_RTT = 0.333

# The cheapest first: every machine of the last ten years has instructions for AES.
_CIPHER_SUITES = [
    CipherSuite.AES_128_GCM_SHA256,
    CipherSuite.AES_256_GCM_SHA384,
    CipherSuite.CHACHA20_POLY1305_SHA256,
]


class EndKind(Enum):
    """How a connection ended."""

    APPLICATION = auto()  #: an application closed it, with a code of its own
    TRANSPORT = auto()  #: QUIC itself did, with a code of RFC 9000 section 20.1
    LOST = auto()  #: nothing was said: idle timeout, stateless reset, or no path left


@dataclass(frozen=True, slots=True)
class End:
    """The end of a connection.

    Attributes:
        kind: how it ended.
        code: the error code; 0 for a connection that was lost.
        reason: the reason phrase, "" if there was none.
        remote: whether the peer ended it.
    """

    kind: EndKind
    code: int
    reason: str
    remote: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How an engine is to behave; times in seconds, sizes in bytes.

    Attributes:
        is_client: the role.
        alpn: application protocols to offer or support, best first.
        verify: checks the peer's certificate; None for no check.
        versions: wire versions, best first.
        server_name: the name that the client asks for.
        certificate: this side's certificate, with ``chain`` and ``private_key``.
        chain: the intermediate certificates.
        private_key: the certificate's key.
        request_certificate: whether a server asks for the client's certificate.
        session_ticket: what a client resumes a session with.
        early_data: whether a server accepts 0-RTT data.
        token: an address token from an earlier connection.
        idle_timeout: after how long a silent connection ends.
        stream_window: a stream's receive window to start with, and ``max_stream_window`` what it grows to.
        max_stream_window: see there.
        connection_window: the connection's, likewise.
        max_connection_window: see there.
        max_streams: bidirectional streams that the peer may have open.
        max_receive_streams: unidirectional ones.
        max_gaps: gaps in a stream's received ranges.
        max_crypto: bytes of the TLS handshake held.
        datagrams: whether DATAGRAM frames are supported.
        max_datagram_queue: datagrams that wait to be sent.
        max_packet_size: the upper end of path MTU discovery.
        congestion_control: "cubic" or "reno".
        key_update_packets: packets after which the keys are updated.
        reset_token: gives the stateless reset token of a connection id.
        qlog_dir: a folder for qlog files.
        keylog: a file for TLS secrets.
    """

    is_client: bool
    alpn: Sequence[str]
    verify: VerifyCertificate | None = None
    versions: Sequence[int] = tuple(VERSIONS.values())
    server_name: str | None = None
    certificate: x509.Certificate | None = None
    chain: Sequence[x509.Certificate] = ()
    private_key: Any = None
    request_certificate: bool = False
    session_ticket: SessionTicket | None = None
    early_data: bool = False
    token: bytes = b""
    idle_timeout: float = 30.0
    stream_window: int = 2**18
    max_stream_window: int = 2**22
    connection_window: int = 2**20
    max_connection_window: int = 2**24
    max_streams: int = 128
    max_receive_streams: int = 128
    max_gaps: int = 1000
    max_crypto: int = 2**16
    datagrams: bool = True
    max_datagram_queue: int = 256
    max_packet_size: int = 8952
    congestion_control: str = "cubic"
    key_update_packets: int = 2**22
    reset_token: Callable[[bytes], bytes] | None = None
    qlog_dir: str | None = None
    keylog: TextIO | None = None

    def for_aioquic(self) -> QuicConfiguration:
        """The part of it that aioquic takes care of."""
        return QuicConfiguration(
            alpn_protocols=list(self.alpn),
            congestion_control_algorithm=self.congestion_control,
            connection_id_length=CID_LENGTH,
            idle_timeout=self.idle_timeout,
            initial_rtt=_INITIAL_RTT,
            is_client=self.is_client,
            max_data=self.connection_window,
            max_datagram_size=BASE_SIZE,
            max_stream_data=self.stream_window,
            quic_logger=None if self.qlog_dir is None else BoundedFileLogger(self.qlog_dir),
            secrets_log_file=self.keylog,
            server_name=self.server_name,
            session_ticket=self.session_ticket,
            token=self.token,
            certificate=self.certificate,
            certificate_chain=list(self.chain),
            cipher_suites=_CIPHER_SUITES,
            max_datagram_frame_size=MAX_DATAGRAM_FRAME if self.datagrams else None,
            private_key=self.private_key,
            supported_versions=list(self.versions),
            verify_mode=0,  # ssl.CERT_NONE: `verify` is asked instead, before anything else is sent
        )
