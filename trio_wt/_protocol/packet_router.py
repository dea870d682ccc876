"""Where each datagram goes that comes to an endpoint, and what is answered to those that go nowhere.

A connection is found by the connection id that the peer was given (RFC 9000 section 5.2). What remains may be a client's first
packet, a packet of a connection that has ended, or junk; nothing of it may cost much, or make this side send more than it got.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicHeader,
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.retry import QuicRetryTokenHandler

from .path_mtu import BASE_SIZE
from .route import Route

__all__ = ["CID_LENGTH", "Accept", "PacketRouter", "Reply", "ResetKey"]

ConnectionT = TypeVar("ConnectionT", bound=Hashable)

#: The length of the connection ids that we issue, in bytes.
CID_LENGTH: Final = 8

_LONG: Final = 0x80
_FIXED: Final = 0x40
_TOKEN_LENGTH: Final = 16
# RFC 9000 section 10.3: a reset is shorter than what it answers, by one byte at least, and long enough to be one.
_MIN_RESET: Final = 21
_MAX_RESET: Final = 42
# Unasked answers a second of this router, in all; a burst may use up one second's.
_REPLY_RATE: Final = 1000.0
_MAX_CLOSING: Final = 4096
# Handshakes under way, as a multiple of the number from which on clients must prove their address, past which no more begin.
_MAX_HALF_OPEN_FACTOR: Final = 4
# Of the number from which on clients must prove their address, what one address may have under way then.
_ADDRESS_SHARE: Final = 8
# RFC 9000 section 8.1
_AMPLIFICATION: Final = 3
_CLOSE_CAPACITY: Final = 32
# Tells our Retry tokens from all others, such as those that another server gave out in NEW_TOKEN (RFC 9000 section 8.1.1).
_RETRY_TOKEN: Final = b"trio"


class ResetKey:
    """Gives connection ids their stateless reset tokens (RFC 9000 section 10.3.2).

    Args:
        key: a secret; with the same one, a server that has lost its state can still reset its old connections. None for a
            new one.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = os.urandom(32) if key is None else key

    def token(self, cid: bytes) -> bytes:
        """The token of a connection id."""
        return hmac.digest(self._key, cid, hashlib.sha256)[:_TOKEN_LENGTH]


@dataclass(frozen=True, slots=True)
class Accept:
    """A client's first packet: make a connection, and feed it the datagram.

    Attributes:
        original_destination_cid: the id that the client chose first.
        retry_source_cid: the id given in a Retry packet, if one was sent.
        destination_cid: the id that the client uses now; the connection is reached by it too.
        version: the version of QUIC, as on the wire.
    """

    original_destination_cid: bytes
    retry_source_cid: bytes | None
    destination_cid: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Reply:
    """Something to send back.

    Attributes:
        data: the datagram.
    """

    data: bytes


@dataclass(slots=True)
class _Closing:
    """What is left of a connection: how to answer its late packets."""

    data: bytes
    until: float
    packets: int = 0


class PacketRouter(Generic[ConnectionT]):
    """The table of connections, and the answers to strangers.

    Args:
        server: whether to accept connections, and to answer strangers at all.
        versions: the wire versions to accept.
        reset_key: gives the tokens of stateless resets.
        retry: when clients must prove their address (RFC 9000 section 8.1.2).
        max_half_open: how many handshakes may be under way before they must, if that is "under-load".

    Attributes:
        reset_key: see there.
    """

    def __init__(
        self,
        *,
        server: bool,
        versions: Sequence[int] = (),
        reset_key: ResetKey | None = None,
        retry: Literal["under-load", "always", "never"] = "never",
        max_half_open: int = 64,
    ) -> None:
        self.reset_key: ResetKey = reset_key or ResetKey()
        self._server = server
        self._versions = list(versions)
        self._retry = retry
        self._max_half_open = max_half_open
        self._connections: dict[bytes, ConnectionT] = {}
        self._ids: dict[ConnectionT, set[bytes]] = {}
        # Handshakes under way, and where they come from.
        self._half_open: dict[ConnectionT, bytes] = {}
        self._half_open_at: Counter[bytes] = Counter()
        self._closing: OrderedDict[bytes, _Closing] = OrderedDict()
        self._tokens = QuicRetryTokenHandler()
        self._allowance = _REPLY_RATE
        self._allowance_at = 0.0

    # ---- the table

    @property
    def half_open(self) -> int:
        """Connections whose handshake is under way."""
        return len(self._half_open)

    def opened(self, connection: ConnectionT, route: Route) -> None:
        """A connection's handshake has begun."""
        network = self._half_open[connection] = _network(route)
        self._half_open_at[network] += 1

    def add(self, cid: bytes, connection: ConnectionT) -> None:
        """A connection is reached by an id."""
        self._ids.setdefault(connection, set()).add(cid)
        self._connections[cid] = connection

    def remove(self, cid: bytes) -> None:
        """An id is not used any more."""
        connection = self._connections.pop(cid, None)
        if connection is not None:
            self._ids[connection].discard(cid)

    def established(self, connection: ConnectionT) -> None:
        """A connection's handshake is complete, or given up."""
        network = self._half_open.pop(connection, None)
        if network is not None:
            self._half_open_at[network] -= 1
            if not self._half_open_at[network]:
                del self._half_open_at[network]

    def retire(self, connection: ConnectionT, datagrams: Sequence[bytes], until: float) -> None:
        """A connection has ended: until that time, late packets get back what it said last, now and then.

        Args:
            connection: the connection.
            datagrams: its CONNECTION_CLOSE, none if it is to be silent.
            until: when its ids are forgotten.
        """
        self.established(connection)
        # Of several datagrams, the first has what a client in its handshake can read. Even a connection that has nothing to
        # say is no stranger, and is not reset.
        closing = _Closing(datagrams[0] if datagrams else b"", until)
        for cid in self._ids.pop(connection, ()):
            del self._connections[cid]
            self._closing[cid] = closing
        while len(self._closing) > _MAX_CLOSING:
            self._closing.popitem(last=False)

    # ---- datagrams

    def route(self, data: bytes, route: Route, now: float) -> ConnectionT | Accept | Reply | None:
        """Where a datagram goes. Never raises.

        Args:
            data: the datagram.
            route: where it came from.
            now: the time, in seconds.

        Returns:
            the connection to feed it; or what to do else; or None for nothing.
        """
        if not data:
            return None
        if data[0] & _LONG:
            return self._route_long(data, route, now)
        if not data[0] & _FIXED:
            return None
        cid = data[1 : 1 + CID_LENGTH]
        connection = self._connections.get(cid)
        if connection is not None:
            return connection
        closing = self._closing_at(cid, now)
        if closing is not None:
            return self._answer_late(closing, len(data), now)
        return self._reset(cid, len(data), now) if self._server else None

    def _route_long(
        self, data: bytes, route: Route, now: float
    ) -> ConnectionT | Accept | Reply | None:
        ids = _pull_ids(data)
        if ids is None:
            return None
        version, cid, source_cid = ids
        connection = self._connections.get(cid)
        if connection is not None:
            return connection
        if not self._server or not version:
            return None  # version 0 is version negotiation, which is for clients
        if version in self._versions:
            closing = self._closing_at(cid, now)
            if closing is not None:
                return self._answer_late(closing, len(data), now)
        # What a client sends first comes in such datagrams (RFC 9000 section 14.1).
        if len(data) < BASE_SIZE:
            return None
        if version not in self._versions:
            return self._negotiate_version(cid, source_cid, now)
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CID_LENGTH)
        except ValueError:
            return None
        if header.packet_type is not QuicPacketType.INITIAL or len(cid) < CID_LENGTH:
            return None  # RFC 9000 section 7.2: a client's first choice has eight bytes at least
        return self._meet(header, route, now)

    def _meet(self, header: QuicHeader, route: Route, now: float) -> Accept | Reply | None:
        """A client's first packet (RFC 9000 section 8.1)."""
        assert header.version is not None
        cid = header.destination_cid
        if len(self._half_open) >= self._max_half_open * _MAX_HALF_OPEN_FACTOR:
            return None
        if header.token.startswith(_RETRY_TOKEN):
            try:
                original = self._tokens.validate_token(
                    address=_token_address(route),
                    destination_cid=cid,
                    token=header.token[len(_RETRY_TOKEN) :],
                    now=now,
                )
            except Exception:  # a peer's bytes
                return Reply(_refuse_token(header)) if self._may_reply(now) else None
            if len(self._half_open) >= self._max_half_open:
                share = max(1, self._max_half_open // _ADDRESS_SHARE)
                if self._half_open_at[_network(route)] >= share:
                    return None  # one that has shown where it is must not keep all others out
            return Accept(original, cid, cid, header.version)
        # Any other token is as none (RFC 9000 section 8.1.3).
        if self._retry == "always" or (
            self._retry == "under-load" and len(self._half_open) >= self._max_half_open
        ):
            return self._send_retry(header, route, now)
        return Accept(cid, None, cid, header.version)

    # ---- answers

    def _may_reply(self, now: float) -> bool:
        """Whether there were not too many answers; takes one off what is allowed."""
        self._allowance = min(
            _REPLY_RATE, self._allowance + (now - self._allowance_at) * _REPLY_RATE
        )
        self._allowance_at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _negotiate_version(self, cid: bytes, source_cid: bytes, now: float) -> Reply | None:
        """RFC 9000 section 6.1."""
        if not self._may_reply(now):
            return None
        return Reply(
            encode_quic_version_negotiation(
                source_cid=cid,
                destination_cid=source_cid,
                supported_versions=self._versions,
            )
        )

    def _send_retry(self, header: QuicHeader, route: Route, now: float) -> Reply:
        """RFC 9000 section 8.1.2. Not limited: it is what keeps honest clients coming in, and smaller than their packet."""
        assert header.version is not None
        source_cid = os.urandom(CID_LENGTH)
        token = self._tokens.create_token(
            address=_token_address(route),
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=source_cid,
            now=now,
        )
        return Reply(
            encode_quic_retry(
                version=header.version,
                source_cid=source_cid,
                destination_cid=header.source_cid,
                original_destination_cid=header.destination_cid,
                retry_token=_RETRY_TOKEN + token,
            )
        )

    def _reset(self, cid: bytes, size: int, now: float) -> Reply | None:
        """A stateless reset for a packet of a connection that nobody knows (RFC 9000 section 10.3)."""
        length = min(size - 1, _MAX_RESET)
        if length < _MIN_RESET or len(cid) < CID_LENGTH or not self._may_reply(now):
            return None
        noise = bytearray(os.urandom(length - _TOKEN_LENGTH))
        noise[0] = _FIXED | noise[0] & 0x3F
        return Reply(bytes(noise) + self.reset_key.token(cid))

    def _closing_at(self, cid: bytes, now: float) -> _Closing | None:
        """What is left of the connection that had an id. The oldest that have been kept long enough go."""
        while self._closing and next(iter(self._closing.values())).until < now:
            self._closing.popitem(last=False)
        closing = self._closing.get(cid)
        return None if closing is None or closing.until < now else closing

    def _answer_late(self, closing: _Closing, size: int, now: float) -> Reply | None:
        """What a connection said last, to the first packet that comes after its end, the second, the fourth, the eighth..."""
        closing.packets += 1
        rarely = closing.packets & (closing.packets - 1) == 0
        # Whoever asks has proved no address (RFC 9000 section 10.2.1).
        fits = 0 < len(closing.data) <= _AMPLIFICATION * size
        return Reply(closing.data) if rarely and fits and self._may_reply(now) else None


def _pull_ids(data: bytes) -> tuple[int, bytes, bytes] | None:
    """The version, and the connection ids of destination and source, which stand at the same place in every version of QUIC
    (RFC 8999 section 5.1); None if the datagram is too short.
    """
    if len(data) < 7:
        return None
    end = 6 + data[5]
    if len(data) <= end or len(data) < end + 1 + data[end]:
        return None
    return int.from_bytes(data[1:5], "big"), data[6:end], data[end + 1 : end + 1 + data[end]]


def _network(route: Route) -> bytes:
    """The network that a peer is in, as far as one peer may be: an IPv4 address, or the first half of an IPv6 one."""
    host = ipaddress.ip_address(_token_address(route)[0])
    if isinstance(host, ipaddress.IPv6Address):
        if host.ipv4_mapped is None:
            return host.packed[:8]
        host = host.ipv4_mapped
    return host.packed


def _token_address(route: Route) -> tuple[str, int]:
    """A peer's address as tokens hold it: any other kind of host than an IP address, by a digest."""
    host, port = route.remote[:2]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        host = str(ipaddress.IPv6Address(hashlib.sha256(str(host).encode()).digest()[:16]))
    return host, port


def _refuse_token(header: QuicHeader) -> bytes:
    """An Initial packet that closes with INVALID_TOKEN (RFC 9000 section 8.1.3)."""
    assert header.version is not None
    crypto = CryptoPair()
    crypto.setup_initial(cid=header.destination_cid, is_client=False, version=header.version)
    builder = QuicPacketBuilder(
        host_cid=header.destination_cid,
        is_client=False,
        max_datagram_size=BASE_SIZE,
        peer_cid=header.source_cid,
        version=header.version,
    )
    builder.start_packet(QuicPacketType.INITIAL, crypto)
    buf = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, capacity=_CLOSE_CAPACITY)
    for value in (QuicErrorCode.INVALID_TOKEN, QuicFrameType.PADDING, 0):
        buf.push_uint_var(value)
    datagrams, _ = builder.flush()
    return datagrams[0]
