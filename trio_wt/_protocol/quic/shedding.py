"""What a connection does not need any more once its handshake is over: most of its memory."""

from __future__ import annotations

from typing import Any, Final

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.crypto import CryptoPair, NoCallback
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import Context, Epoch

__all__ = ["shed_certificates", "shed_handshake"]


class _Queue(list[Any]):
    """In place of a deque that is nearly always empty, of which each takes 760 bytes."""

    def popleft(self) -> Any:
        return self.pop(0)


# One for all connections: nothing is read from these, and nothing written to them.
_NO_BUFFER: Final = Buffer(capacity=1)
_NO_KEYS: Final = CryptoPair()
_NO_STREAM: Final = QuicStream()
_NO_SPACE: Final = QuicPacketSpace()
_NO_SPACE.discarded = True


def shed_certificates(tls: Context) -> None:
    """The peer has been verified: certificates and private keys are not looked at again."""
    tls._peer_certificate = tls._x25519_private_key = tls._x448_private_key = None
    tls._peer_certificate_chain = []
    tls._ec_private_keys = []
    tls._key_schedule_psk = tls._key_schedule_proxy = None


def shed_handshake(connection: Any) -> None:
    """The handshake is confirmed: only 1-RTT packets count from now on (RFC 9001 section 4.9)."""
    # What TLS wrote its messages into, 48 KiB in all; after the handshake it has none to write.
    connection._crypto_buffers = dict.fromkeys(connection._crypto_buffers, _NO_BUFFER)
    for epoch in (Epoch.INITIAL, Epoch.HANDSHAKE):
        connection._cryptos[epoch] = _NO_KEYS
        connection._crypto_streams[epoch] = _NO_STREAM
        connection._spaces[epoch] = _NO_SPACE
    connection._loss.spaces = list(connection._spaces.values())
    if not connection._cryptos[Epoch.ZERO_RTT].recv.is_valid():
        connection._cryptos[Epoch.ZERO_RTT] = _NO_KEYS
    # By version: late packets are still looked up there.
    connection._cryptos_initial = dict.fromkeys(connection._cryptos_initial, _NO_KEYS)
    if connection._quic_logger is None:
        keys = connection._cryptos[Epoch.ONE_RTT]
        for context in (keys.recv, keys.send):
            context._setup_cb = context._teardown_cb = NoCallback
    for path in connection._network_paths:
        path.local_challenges = _Queue(path.local_challenges)
        path.remote_challenges = _Queue(path.remote_challenges)
    connection._datagrams_pending = _Queue(connection._datagrams_pending)
