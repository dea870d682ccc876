"""What `trio-wt serve` shows to clients: one certificate for TLS over TCP and for QUIC."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .._quic.tls import Certificate
from .._quic.verification import CertificateRejected, HashVerifier
from .certificate import make_certificate
from .errors import CommandFailed

__all__ = ["Identity"]


@dataclass(frozen=True, slots=True)
class Identity:
    """A server's certificate, as each side of it wants it.

    Attributes:
        ssl_context: for TCP; None where that is not encrypted.
        certificate: for QUIC, and for applications; None where there is none that they take.
    """

    ssl_context: ssl.SSLContext | None
    certificate: Certificate | None

    @classmethod
    def make(cls, hosts: Sequence[str], *, tls: bool, quic: bool) -> Self:
        """A certificate made for this run, where it is needed.

        Args:
            hosts: further names and addresses that it is for.
            tls: whether TCP is to be encrypted.
            quic: whether there is QUIC.

        Raises:
            CommandFailed: a name cannot be in a certificate.
        """
        if not (tls or quic):
            return cls(None, None)
        made = make_certificate(hosts)
        return cls(
            made.server_context() if tls else None, Certificate.from_pem(made.certificate, made.key)
        )

    @classmethod
    def load(cls, certfile: Path, keyfile: Path | None, *, quic: bool) -> Self:
        """The certificate in files.

        Args:
            certfile: the certificate.
            keyfile: its key, if that is elsewhere.
            quic: whether it must do for QUIC.

        Raises:
            CommandFailed: it cannot be used.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(certfile, keyfile, password=_no_password)
        except ssl.SSLError as exc:
            files = certfile if keyfile is None else f"{certfile} and {keyfile}"
            raise CommandFailed(
                f"{files}: no certificate and key in PEM form that fit ({exc.reason or exc})"
            ) from None
        try:
            return cls(context, Certificate.load(certfile, keyfile))
        except ValueError as exc:
            if not quic:
                return cls(context, None)
            raise CommandFailed(f"{exc} (--no-webtransport does without QUIC)") from exc

    @property
    def browser_hash(self) -> bytes | None:
        """The SHA-256 that browsers take the certificate by; None if it is of no kind that they take so."""
        if self.certificate is None:
            return None
        digest = self.certificate.sha256
        try:
            HashVerifier([digest]).verify(self.certificate.chain[0], [], None)
        except CertificateRejected:
            return None
        return digest


def _no_password() -> str:
    # Otherwise OpenSSL would ask on the terminal, which a server may not have.
    raise CommandFailed("the key has a password; write it without one")
