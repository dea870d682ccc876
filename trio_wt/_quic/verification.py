"""Whether to believe a peer's certificate.

The TLS engine proves that the peer holds the certificate's key; everything else is decided here, once, when the
handshake completes and before anything else is sent: the chain (RFC 5280 section 6), the dates, the name (RFC 9525),
what the certificate may be used for, and that no key or signature in it is a weak one. Trust stores are read once
for each source and kept, so that a handshake reads no file.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Callable, Sequence
from typing import Final, Literal, ParamSpec, Protocol, TypeAlias

from aioquic.tls import AlertDescription
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.hazmat import DNS_ID, DNSPattern, verify_service_identity

from .._errors import HandshakeFailed
from .._util import safe_text
from .trust import Source, trust_store

__all__ = [
    "CaVerifier",
    "CertificateRejected",
    "HashVerifier",
    "NoVerifier",
    "Purpose",
    "Verifier",
    "no_certificate",
]

#: What the peer is: a server's certificate is checked for its name, a client's is not.
Purpose: TypeAlias = Literal["server", "client"]

#: W3C WebTransport, "custom certificate requirements": browsers have the same bound.
MAX_HASHED_VALIDITY: Final = dt.timedelta(days=14)
# Real chains have three or four; each one costs time to parse and to check.
_MAX_CHAIN: Final = 16
# As OpenSSL's security level 2, which the ssl module asks for: 112 bits.
_MIN_RSA_BITS: Final = 2048
_MIN_EC_BITS: Final = 224
_WEAK_HASHES: Final = ("md5", "sha1")

_P = ParamSpec("_P")

_PURPOSES: Final = {
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
}

_CODES: Final = SSL.X509VerificationCodes
# RFC 8446 section 6.2; what is not here is a bad certificate.
_ALERTS: Final = {
    _CODES.ERR_CERT_NOT_YET_VALID: AlertDescription.certificate_expired,
    _CODES.ERR_CERT_HAS_EXPIRED: AlertDescription.certificate_expired,
    _CODES.ERR_CERT_REVOKED: AlertDescription.certificate_revoked,
    _CODES.ERR_CERT_SIGNATURE_FAILURE: AlertDescription.decrypt_error,
    _CODES.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: AlertDescription.unknown_ca,
    _CODES.ERR_SELF_SIGNED_CERT_IN_CHAIN: AlertDescription.unknown_ca,
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT: AlertDescription.unknown_ca,
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: AlertDescription.unknown_ca,
    _CODES.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: AlertDescription.unknown_ca,
    _CODES.ERR_CERT_CHAIN_TOO_LONG: AlertDescription.unknown_ca,
    _CODES.ERR_PATH_LENGTH_EXCEEDED: AlertDescription.unknown_ca,
    _CODES.ERR_INVALID_CA: AlertDescription.unknown_ca,
}
_HINTS: Final = {
    _CODES.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: "it is self-signed; give it as `ca`, or its hash",
    _CODES.ERR_SELF_SIGNED_CERT_IN_CHAIN: "its root is not among the trusted ones; give that as `ca`",
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: (
        "its issuer is not among the trusted ones, or the peer did not send an intermediate certificate"
    ),
}


class CertificateRejected(HandshakeFailed):
    """A peer's certificate is not good enough.

    Attributes:
        alert: the TLS alert to close with (RFC 8446 section 6.2).
    """

    def __init__(self, alert: int, message: str) -> None:
        super().__init__(alert, message)
        self.alert: int = int(alert)
        self.message: str = message

    def __str__(self) -> str:
        return self.message


class Verifier(Protocol):
    """Decides on peers' certificates."""

    def verify(
        self,
        certificate: x509.Certificate,
        chain: Sequence[x509.Certificate],
        server_name: str | None,
    ) -> None:
        """Return if the certificate is good.

        Args:
            certificate: the peer's own.
            chain: what else it sent, in any order, trusted in nothing.
            server_name: the name or the IP address that the server was to have; None for a client's certificate.

        Raises:
            CertificateRejected: it is not; nothing else is raised, whatever the certificate.
        """


def no_certificate(peer: Purpose) -> CertificateRejected:
    """What to raise where a peer that must show a certificate showed none (RFC 8446 section 4.4.2.4)."""
    return CertificateRejected(
        AlertDescription.certificate_required, f"the {peer} showed no certificate"
    )


class NoVerifier:
    """Takes any certificate: for tests, and for peers that are known in some other way."""

    def verify(
        self,
        certificate: x509.Certificate,
        chain: Sequence[x509.Certificate],
        server_name: str | None,
    ) -> None:
        """Return."""


class HashVerifier:
    """Takes the certificates that have one of some hashes, as browsers do with ``serverCertificateHashes``.

    The certificate must have an ECDSA key on P-256, be valid now, and for at most 14 days in all. Nothing is asked
    of its name or its issuer: whoever gave the hash has vouched for it.

    Args:
        expected: SHA-256 hashes of certificates as DER.
    """

    def __init__(self, expected: Sequence[bytes]) -> None:
        self._expected = frozenset(expected)

    def verify(
        self,
        certificate: x509.Certificate,
        chain: Sequence[x509.Certificate],
        server_name: str | None,
    ) -> None:
        """See `Verifier.verify`."""
        _only_rejects(self._verify, certificate)

    def _verify(self, certificate: x509.Certificate) -> None:
        actual = certificate.fingerprint(hashes.SHA256())
        if actual not in self._expected:
            raise _bad(f"has the SHA-256 {actual.hex()}, which is none of the expected ones")
        if certificate.version is not x509.Version.v3:
            raise _bad("is not an X.509 version 3 certificate")
        _check_dates(certificate)
        key = certificate.public_key()
        if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):
            raise _bad("has a key other than ECDSA on P-256; hashes are taken for that only")
        validity = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        if validity > MAX_HASHED_VALIDITY:
            raise _bad(
                f"is valid for {validity / dt.timedelta(days=1):g} days; hashes are taken for 14 days at most"
            )


class CaVerifier:
    """Takes the certificates that a trusted authority signed for the name and for the purpose.

    What is in the source is trusted, whether it is a root, an intermediate certificate or a server's own.

    Args:
        source: PEM, a file or a directory of certificates to trust; None for the system's.
        peer: what the peers are.

    Raises:
        OSError: the source cannot be read.
        ValueError: there is no usable certificate in it.
    """

    def __init__(self, source: Source, peer: Purpose = "server") -> None:
        self._store = trust_store(source)
        self._peer: Purpose = peer

    def verify(
        self,
        certificate: x509.Certificate,
        chain: Sequence[x509.Certificate],
        server_name: str | None,
    ) -> None:
        """See `Verifier.verify`."""
        _only_rejects(self._verify, certificate, chain, server_name)

    def _verify(
        self,
        certificate: x509.Certificate,
        chain: Sequence[x509.Certificate],
        server_name: str | None,
    ) -> None:
        _check_dates(certificate)
        if len(chain) > _MAX_CHAIN:
            raise _bad(f"came with {len(chain)} others; at most {_MAX_CHAIN} are looked at")
        *path, anchor = self._build(certificate, chain)
        for member in path:
            _check_signature_hash(member)
        for issuer in path[1:]:
            _check_may_issue(issuer)
        for member in (*path, anchor):
            _check_key(member)
            _check_purpose(member, self._peer)
        _check_may_sign(certificate)
        if self._peer == "server":
            if not server_name:
                raise _bad("cannot be checked: there is no server name to check it for")
            _check_name(certificate, server_name)

    def _build(
        self, certificate: x509.Certificate, chain: Sequence[x509.Certificate]
    ) -> list[x509.Certificate]:
        context = crypto.X509StoreContext(
            self._store,
            crypto.X509.from_cryptography(certificate),
            [crypto.X509.from_cryptography(other) for other in chain],
        )
        try:
            verified = [found.to_cryptography() for found in context.get_verified_chain()]
        except crypto.X509StoreContextError as exc:
            code, depth, message = exc.errors
            text: str = _HINTS.get(code) or message
            if depth:
                text += f" (at the issuer {_of(exc.certificate.to_cryptography())})"
            raise CertificateRejected(
                _ALERTS.get(code, AlertDescription.bad_certificate),
                f"the certificate is not trusted: {text}",
            ) from exc
        return verified


def _only_rejects(check: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs) -> None:
    try:
        check(*args, **kwargs)
    except CertificateRejected:
        raise
    except Exception as exc:
        # Extensions, keys and dates are parsed when they are looked at, and hostile ones raise errors of many kinds.
        raise _bad(f"cannot be made sense of: {safe_text(str(exc))}") from exc


def _bad(
    what: str, alert: AlertDescription = AlertDescription.bad_certificate
) -> CertificateRejected:
    return CertificateRejected(alert, f"the certificate {what}")


def _of(certificate: x509.Certificate) -> str:
    return f"'{safe_text(certificate.subject.rfc4514_string())}'"


def _check_dates(certificate: x509.Certificate) -> None:
    now = dt.datetime.now(dt.UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begins:
        raise _bad(
            f"is not valid before {begins:%Y-%m-%d %H:%M:%S} UTC",
            AlertDescription.certificate_expired,
        )
    if now > ends:
        raise _bad(f"expired at {ends:%Y-%m-%d %H:%M:%S} UTC", AlertDescription.certificate_expired)


def _check_key(certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        weak = key.key_size < _MIN_RSA_BITS
    elif isinstance(key, ec.EllipticCurvePublicKey):
        weak = key.curve.key_size < _MIN_EC_BITS
    else:
        weak = isinstance(key, dsa.DSAPublicKey)
    if weak:
        raise _bad(f"rests on a key that is too weak, that of {_of(certificate)}")


def _check_signature_hash(certificate: x509.Certificate) -> None:
    algorithm = certificate.signature_hash_algorithm
    if algorithm is not None and algorithm.name in _WEAK_HASHES:
        raise _bad(f"rests on a signature that is too weak, with {algorithm.name}")


def _check_may_issue(certificate: x509.Certificate) -> None:
    # RFC 5280 section 6.1.4 (k). OpenSSL lets some other extensions stand for it.
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        is_ca = False
    else:
        is_ca = constraints.value.ca
    if not is_ca:
        raise _bad(
            f"was issued by {_of(certificate)}, which is no authority", AlertDescription.unknown_ca
        )


def _check_may_sign(certificate: x509.Certificate) -> None:
    # RFC 8446 section 4.4.2.2.
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound:
        return
    if not usage.value.digital_signature:
        raise _bad("is not for signatures (key usage)", AlertDescription.unsupported_certificate)


def _check_purpose(certificate: x509.Certificate, peer: Purpose) -> None:
    # RFC 5280 section 4.2.1.12; as the ssl module does it: for issuers too, and "any purpose" is none.
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return
    if _PURPOSES[peer] not in usage.value:
        raise _bad(
            f"cannot be a {peer}'s: the extended key usage of {_of(certificate)} does not say so",
            AlertDescription.unsupported_certificate,
        )


def _check_name(certificate: x509.Certificate, server_name: str) -> None:
    """RFC 9525: the name is one of the subject's alternative names; the common name does not count."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise _bad("has no names in it (subjectAltName)") from None
    dns_names = names.get_values_for_type(x509.DNSName)
    addresses = names.get_values_for_type(x509.IPAddress)
    try:
        # A zone says on which link of this machine the address is.
        address = ipaddress.ip_address(server_name.partition("%")[0])
    except ValueError:
        matches = _name_matches(dns_names, server_name)
    else:
        matches = address in addresses
    if not matches:
        held = [*dns_names, *map(str, addresses)]
        shown_held = safe_text(", ".join(held)) or "no name"
        raise _bad(f"is not for '{safe_text(server_name)}', but for {shown_held}")


def _name_matches(dns_names: Sequence[str], server_name: str) -> bool:
    patterns = []
    for name in dns_names:
        try:
            patterns.append(DNSPattern.from_bytes(name.encode()))
        except CertificateError:
            continue  # a wildcard where none may be matches nothing
    try:
        wanted = DNS_ID(server_name.removesuffix("."))
        verify_service_identity(patterns, obligatory_ids=[wanted], optional_ids=[])
    except (CertificateError, VerificationError, ValueError):
        return False  # ValueError: it is no host name at all
    return True
