"""Packet protection keys over a key update, and secrets for others."""

from __future__ import annotations

from typing import Any, Final

from aioquic import tls
from aioquic.quic.crypto import CryptoContext, CryptoError, CryptoPair  # type: ignore[attr-defined]
from cryptography.hazmat.primitives import hashes

from .packets import Crypt, Mask

__all__ = ["PacketKeys", "UpdatedKeys", "export_keying_material"]


_IV: Final = 12  # bytes (RFC 9001 section 5.3)


class PacketKeys:
    """What protects packets in one direction, as the functions of `packets` take it.

    Args:
        context: whose keys they are.
        opens: whether they are to decrypt.

    Attributes:
        aead: aioquic's, which is another one after a key update.
        crypt: encrypts, or decrypts.
        iv: what nonces are made of.
        mask: of header protection.
    """

    __slots__ = ("aead", "crypt", "iv", "mask")

    def __init__(self, context: CryptoContext, *, opens: bool) -> None:
        aead, protection = context.aead, context.hp
        assert aead is not None
        assert protection is not None
        self.aead: Any = aead
        self.crypt: Crypt = aead._aead.decrypt if opens else aead._aead.encrypt
        self.iv: bytes = aead._iv.to_bytes(_IV)
        # ChaCha20 takes a sample for its nonce, and aioquic knows how; AES just encrypts it.
        is_plain = not protection._is_chacha20
        self.mask: Mask = protection._encryptor.update if is_plain else protection._mask


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


# Of HKDF-Expand, in hashes (RFC 5869 section 2.3).
_MAX_EXPANSION = 255


def export_keying_material(
    schedule: tls.KeySchedule | tls.KeyScheduleProxy | None,
    secret: bytes,
    label: bytes,
    context: bytes,
    length: int,
) -> bytes:
    """A secret for another protocol, from the exporter's secret (RFC 8446 section 7.5).

    Raises:
        ValueError: the length is out of range, or there is no secret yet.
    """
    if not isinstance(schedule, tls.KeySchedule) or not secret:
        raise ValueError("there is no secret before the handshake is complete")
    algorithm = schedule.algorithm
    if not 0 < length <= _MAX_EXPANSION * algorithm.digest_size:
        raise ValueError(
            f"the length is from 1 to {_MAX_EXPANSION * algorithm.digest_size}, not {length}"
        )
    derived = tls.hkdf_expand_label(
        algorithm, secret, label, schedule.hash_empty_value, algorithm.digest_size
    )
    digest = hashes.Hash(algorithm)
    digest.update(context)
    return tls.hkdf_expand_label(algorithm, derived, b"exporter", digest.finalize(), length)
