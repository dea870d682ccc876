"""Who we are and whom we trust: certificates, and the TLS settings of clients and servers."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Self, TextIO, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from .keylog import open_keylog
from .trust import source_key
from .verification import CaVerifier, HashVerifier, NoVerifier, Verifier

__all__ = ["Certificate", "ClientTLS", "Key", "ServerTLS"]

#: The keys that sign in TLS 1.3.
Key: TypeAlias = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)
_Path: TypeAlias = str | os.PathLike[str]

_CERTIFICATE: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL
)
_KEY: Final = re.compile(
    rb"-----BEGIN ((?:[A-Z0-9]+ )*PRIVATE KEY)-----.+?-----END \1-----", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate, what leads from it to an authority, and its private key.

    Attributes:
        chain: the certificate itself first, then the intermediate ones, each before that of its issuer.
        key: the private key: RSA, ECDSA on P-256 or P-384, Ed25519 or Ed448.

    Raises:
        ValueError: there is no certificate, or the key is not the first one's, or is of another kind.
    """

    chain: tuple[x509.Certificate, ...]
    key: Key = field(repr=False)

    def __post_init__(self) -> None:
        if not self.chain:
            raise ValueError("there is no certificate")
        _signing_key(self.key)
        public = _public_bytes(self.key.public_key())
        try:
            owners = [
                n for n, c in enumerate(self.chain) if _public_bytes(c.public_key()) == public
            ]
        except UnsupportedAlgorithm as exc:
            raise ValueError(f"a certificate's key is of an unknown kind: {exc}") from exc
        if not owners:
            raise ValueError("the private key does not belong to the certificate")
        if owners[0] != 0:
            raise ValueError(
                f"the private key belongs to certificate number {owners[0] + 1}; that one must come first"
            )

    @classmethod
    def load(
        cls,
        certfile: _Path,
        keyfile: _Path | None = None,
        password: str | bytes | None = None,
    ) -> Self:
        """Read a certificate and its key from files in PEM.

        Args:
            certfile: the certificate, and after it the intermediate ones if there are any.
            keyfile: the private key; None if it is in ``certfile`` too.
            password: what the key is encrypted with, if it is.

        Raises:
            OSError: a file cannot be read.
            ValueError: they do not hold a certificate and its key, or the password is wrong; the message says which
                file and why.
        """
        chain = Path(certfile).read_bytes()
        key = chain if keyfile is None else Path(keyfile).read_bytes()
        certificate_name = os.fspath(certfile)
        key_name = certificate_name if keyfile is None else os.fspath(keyfile)
        return cls._from_pem(chain, key, password, certificate_name, key_name)

    @classmethod
    def from_pem(cls, chain: bytes, key: bytes, password: str | bytes | None = None) -> Self:
        """As `load`, from PEM in memory.

        Raises:
            ValueError: it is not a certificate and its key, or the password is wrong.
        """
        return cls._from_pem(chain, key, password, "the certificate's PEM", "the key's PEM")

    @classmethod
    def _from_pem(
        cls,
        chain: bytes,
        key: bytes,
        password: str | bytes | None,
        certificate_name: str,
        key_name: str,
    ) -> Self:
        certificates = _parse_certificates(chain, certificate_name)
        private_key = _parse_key(key, password, key_name)
        try:
            return cls(certificates, private_key)
        except ValueError as exc:
            where = certificate_name
            if key_name != certificate_name:
                where += f" and {key_name}"
            raise ValueError(f"{where}: {exc}") from exc

    @property
    def sha256(self) -> bytes:
        """The SHA-256 of the certificate as DER: what browsers and `ClientTLS` take as ``server_certificate_hashes``."""
        return self.chain[0].fingerprint(hashes.SHA256())


def _signing_key(key: object) -> Key:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        if not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
            raise ValueError(f"its curve is {key.curve.name}; use P-256 or P-384")
        return key
    if isinstance(key, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return key
    raise ValueError("it is not RSA, ECDSA, Ed25519 or Ed448")


def _public_bytes(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _parse_certificates(pem: bytes, name: str) -> tuple[x509.Certificate, ...]:
    found = _CERTIFICATE.findall(pem)
    if not found:
        hint = "" if b"-----BEGIN" in pem else "; it is not PEM"
        raise ValueError(f"{name}: there is no certificate in it{hint}")
    certificates = []
    for number, block in enumerate(found, 1):
        try:
            certificates.append(x509.load_pem_x509_certificate(block))
        except ValueError as exc:
            raise ValueError(f"{name}: certificate number {number} is damaged: {exc}") from exc
    return tuple(certificates)


def _parse_key(pem: bytes, password: str | bytes | None, name: str) -> Key:
    match = _KEY.search(pem)
    if match is None:
        hint = "" if b"-----BEGIN" in pem else "; it is not PEM"
        raise ValueError(f"{name}: there is no private key in it{hint}")
    block = match[0]
    encrypted = match[1].startswith(b"ENCRYPTED") or b"\nProc-Type: 4,ENCRYPTED" in block
    secret = password.encode() if isinstance(password, str) else password
    if encrypted and not secret:
        raise ValueError(f"{name}: the private key is encrypted; give its password")
    try:
        return _signing_key(load_pem_private_key(block, secret if encrypted else None))
    except (TypeError, ValueError, UnsupportedAlgorithm) as exc:
        why = "; the password may be wrong" if encrypted else ""
        raise ValueError(f"{name}: the private key cannot be used: {exc}{why}") from exc


@dataclass(frozen=True, slots=True)
class ServerTLS:
    """What a server shows, and what it asks of clients.

    Args:
        certificate: the server's.
        client_ca: ask clients for a certificate signed by these: PEM, or the path of a file or of an OpenSSL
            directory. None for not asking. Sessions are not resumed then, since that would leave the question out.
        client_certificates: whether a client without one is turned away, or let in; one that is shown must be good
            either way.
        keylog: a file to append the connections' secrets to, for Wireshark. Whoever reads it reads everything.

    Raises:
        TypeError: the certificate is not a `Certificate`.
        ValueError: ``client_certificates`` is something else, or ``client_ca`` is PEM as `str`.
    """

    certificate: Certificate
    client_ca: bytes | _Path | None = None
    client_certificates: Literal["require", "request"] = "require"
    keylog: _Path | None = None

    def __post_init__(self) -> None:
        _check_certificate(self.certificate)
        _check_source("client_ca", self.client_ca)
        if self.client_certificates not in ("require", "request"):
            raise ValueError(
                f"client_certificates must be 'require' or 'request', and is {self.client_certificates!r}"
            )

    def verifier(self) -> Verifier | None:
        """What decides on clients' certificates; None if there is no asking for them.

        Raises:
            OSError: ``client_ca`` cannot be read.
            ValueError: there is no usable certificate in it.
        """
        return None if self.client_ca is None else CaVerifier(self.client_ca, "client")

    def open_keylog(self) -> TextIO | None:
        """The key log, if there is to be one.

        Raises:
            OSError: it cannot be written to.
        """
        return open_keylog(self.keylog)


@dataclass(frozen=True, slots=True)
class ClientTLS:
    """Which servers a client believes, and what it shows them.

    Args:
        ca: who may sign servers' certificates: PEM, or the path of a file or of an OpenSSL directory; None for the
            authorities that the system trusts. A certificate in it that is a server's own is trusted too.
        server_certificate_hashes: SHA-256 hashes of servers' certificates, 32 bytes each. If there are any, the
            server's must have one of them, and no authority and no name is asked for; it must have an ECDSA key on
            P-256, be valid now, and for 14 days at most (W3C WebTransport, serverCertificateHashes).
        certificate: what to show to servers that ask for one.
        verify: False takes any certificate: whoever is on the way can read and change everything.
        server_name: the name or IP address to check the certificate for and, if it is a name, to ask for (SNI); None for the
            host that is connected to.
        keylog: a file to append the connections' secrets to, for Wireshark; None for the one that the environment
            variable SSLKEYLOGFILE names, if it is set. Whoever reads it reads everything.

    Raises:
        TypeError: the certificate is not a `Certificate`, or a hash is not bytes.
        ValueError: a hash is not 32 bytes long, ``ca`` is PEM as `str`, or more than one of ``ca``, hashes and
            ``verify=False`` is given.
    """

    ca: bytes | _Path | None = None
    server_certificate_hashes: Sequence[bytes] = ()
    certificate: Certificate | None = None
    verify: bool = True
    server_name: str | None = None
    keylog: _Path | None = None

    def __post_init__(self) -> None:
        _check_source("ca", self.ca)
        if self.certificate is not None:
            _check_certificate(self.certificate)
        if isinstance(self.server_certificate_hashes, bytes):
            raise TypeError(
                "server_certificate_hashes must be a sequence of hashes, not one of them"
            )
        for digest in self.server_certificate_hashes:
            if not isinstance(digest, bytes):
                raise TypeError(
                    f"a certificate's hash must be bytes, not {type(digest).__name__}; "
                    "bytes.fromhex() takes it from hexadecimal"
                )
            if len(digest) != hashes.SHA256.digest_size:
                raise ValueError(f"a certificate's hash must be 32 bytes, and is {len(digest)}")
        ways = {
            "ca": self.ca is not None,
            "server_certificate_hashes": bool(self.server_certificate_hashes),
            "verify=False": not self.verify,
        }
        given = [name for name, is_given in ways.items() if is_given]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} contradict each other; give one of them")

    def verifier(self) -> Verifier:
        """What decides on servers' certificates.

        Raises:
            OSError: ``ca`` cannot be read.
            ValueError: there is no usable certificate in it.
        """
        if not self.verify:
            return NoVerifier()
        if self.server_certificate_hashes:
            return HashVerifier(self.server_certificate_hashes)
        return CaVerifier(self.ca, "server")

    def trust(self) -> bytes:
        """A digest of how servers are judged and what they are shown: `SessionKey.trust`.

        Raises:
            OSError: ``ca`` cannot be read.
        """
        judged = source_key(self.ca) if self.verify else "anyone"
        shown = None if self.certificate is None else self.certificate.sha256
        parts = (judged, sorted(self.server_certificate_hashes), shown)
        return hashlib.sha256(repr(parts).encode()).digest()

    def open_keylog(self) -> TextIO | None:
        """The key log, if there is to be one.

        Raises:
            OSError: it cannot be written to.
        """
        return open_keylog(self.keylog or os.environ.get("SSLKEYLOGFILE") or None)


def _check_certificate(certificate: object) -> None:
    if not isinstance(certificate, Certificate):
        raise TypeError(
            f"certificate must be a Certificate, not {type(certificate).__name__}; "
            "Certificate.load() reads one from files"
        )


def _check_source(name: str, source: bytes | _Path | None) -> None:
    # It would be taken for a path, and what comes of that tells nobody what is wrong.
    if isinstance(source, str) and "-----BEGIN" in source:
        raise ValueError(f"{name} is PEM as str, which is for paths; give it as bytes")
