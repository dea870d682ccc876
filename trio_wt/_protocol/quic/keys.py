"""Packet protection keys over a key update."""

from __future__ import annotations

from aioquic.quic.crypto import CryptoContext, CryptoError, CryptoPair  # type: ignore[attr-defined]

__all__ = ["UpdatedKeys"]


class UpdatedKeys(CryptoPair):
    """1-RTT keys that remember the phase before the last update, whose packets may still be under way (RFC 9001 section 6.5).

    Args:
        pair: the keys to go on with.
    """

    def __init__(self, pair: CryptoPair) -> None:
        super().__init__()
        self.recv: CryptoContext = pair.recv
        self.send: CryptoContext = pair.send
        self._previous: CryptoContext | None = None

    def decrypt_packet(
        self, packet: bytes, encrypted_offset: int, expected_packet_number: int
    ) -> tuple[bytes, bytes, int]:
        """A packet's header, payload and number.

        Raises:
            CryptoError: it is damaged, or not of this connection.
        """
        try:
            return super().decrypt_packet(packet, encrypted_offset, expected_packet_number)
        except CryptoError:
            if self._previous is None:
                raise
            header, payload, number, updated = self._previous.decrypt_packet(
                packet, encrypted_offset, expected_packet_number
            )
            if updated:
                raise
            return header, payload, number

    def _update_key(self, trigger: str) -> None:
        recv = self.recv
        previous = CryptoContext(key_phase=recv.key_phase)
        for name in ("aead", "cipher_suite", "hp", "secret", "version"):
            setattr(previous, name, getattr(recv, name))
        super()._update_key(trigger)
        self._previous = previous
