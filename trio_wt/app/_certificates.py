"""Certificates for TCP and for QUIC from one place, also renewed ones."""

from __future__ import annotations

import logging
import os
import secrets
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

import trio
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from .._quic.server import ServerTLSSource
from .._quic.tls import Certificate, ServerTLS

__all__ = ["ReloadingTLS", "context_source", "lasting"]

logger = logging.getLogger("trio_wt.app")

_Path: TypeAlias = str | os.PathLike[str]
_ALPN: Final = ["http/1.1"]


class ReloadingTLS:
    """A certificate in files that are read again when they have changed: what `App.serve` and others take as ``tls``.

    Sessions that are open go on; connections that come later are shown the new certificate. Files that cannot be used, as while
    they are being written, are told in the log, and the old certificate serves on.

    Args:
        certfile: the certificate, and after it the intermediate ones.
        keyfile: the private key; None if it is in ``certfile`` too.
        password: what the key is encrypted with, if it is.
        interval: for how many seconds the files are not looked at again.
        client_ca: as for `ServerTLS`.

    Raises:
        OSError: a file cannot be read.
        ValueError: they do not hold a certificate and its key, the password is wrong, ``client_ca`` holds no certificates, or
            the interval is negative.
    """

    def __init__(
        self,
        certfile: _Path,
        keyfile: _Path | None = None,
        *,
        password: str | bytes | None = None,
        interval: float = 1,
        client_ca: bytes | _Path | None = None,
    ) -> None:
        if not interval >= 0:
            raise ValueError(f"interval must be at least 0, and is {interval}")
        self._certfile = certfile
        self._keyfile = keyfile
        self._password = password
        self._interval = interval
        self._client_ca = client_ca
        self._seen = self._stamp()
        self._looked_at = -float("inf")
        self._tls = self._load()

    def __call__(self) -> ServerTLS:
        """What to show now; the same object as long as nothing has changed."""
        now = trio.current_time()
        if now - self._looked_at >= self._interval:
            self._looked_at = now
            self.reload()
        return self._tls

    def reload(self) -> bool:
        """Look at the files now; whether there is a new certificate."""
        try:
            seen = self._stamp()
            if seen == self._seen:
                return False
            self._seen = seen
            self._tls = self._load()
        except (OSError, ValueError) as exc:
            logger.error("the new certificate cannot be used, the old one serves on: %s", exc)
            return False
        logger.info("a new certificate has been taken up")
        return True

    def _stamp(self) -> tuple[tuple[int, ...], ...]:
        files = [self._certfile] if self._keyfile is None else [self._certfile, self._keyfile]
        found = [os.stat(file) for file in files]
        # The time of the last change of any kind, too: what could not be read may be readable now.
        return tuple((s.st_ino, s.st_mtime_ns, s.st_ctime_ns, s.st_size) for s in found)

    def _load(self) -> ServerTLS:
        certificate = Certificate.load(self._certfile, self._keyfile, self._password)
        tls = ServerTLS(certificate, client_ca=self._client_ca)
        tls.verifier()  # what is wrong with client_ca is to be told now
        return tls


def _context_of(tls: ServerTLS) -> ssl.SSLContext:
    """The same for TLS over TCP.

    Raises:
        OSError: ``client_ca`` cannot be read.
        ValueError: a certificate is of a kind that OpenSSL does not take.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(_ALPN)
    if tls.client_ca is not None:
        require = tls.client_certificates == "require"
        context.verify_mode = ssl.CERT_REQUIRED if require else ssl.CERT_OPTIONAL
        # As QUIC judges them; some versions of Python are stricter by themselves.
        context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN
        _load_authorities(context, tls.client_ca)
    if tls.keylog is not None:
        context.keylog_filename = os.fspath(tls.keylog)
    # OpenSSL takes them from a file only: the key is encrypted in it, and the file is gone at once.
    certificate, password = tls.certificate, secrets.token_hex()
    pem = certificate.key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode())
    )
    pem += b"".join(one.public_bytes(Encoding.PEM) for one in certificate.chain)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "certificate.pem")
        file.write_bytes(pem)
        try:
            context.load_cert_chain(file, password=password)
        except ssl.SSLError as exc:
            raise ValueError(f"OpenSSL does not take the certificate: {exc}") from exc
    return context


def _load_authorities(context: ssl.SSLContext, source: bytes | _Path) -> None:
    try:
        if isinstance(source, bytes):
            context.load_verify_locations(cadata=source.decode("ascii"))
        elif Path(source).is_dir():
            context.load_verify_locations(capath=source)
        else:
            context.load_verify_locations(cafile=source)
    except (ssl.SSLError, UnicodeDecodeError) as exc:
        raise ValueError(f"client_ca holds no certificates: {exc}") from exc
    except OSError as exc:
        raise type(exc)(exc.errno, exc.strerror, source) from exc


def lasting(source: ServerTLSSource) -> ServerTLSSource:
    """A source that fails no more once it has been asked: what cannot be used is told in the log, and the old one serves on.

    Raises:
        TypeError: a function has returned something else than a `ServerTLS`.
        OSError: ``client_ca`` cannot be read.
        ValueError: there is no usable certificate in it.
    """
    if not callable(source):
        return source
    tls = _checked(source())

    def current() -> ServerTLS:
        nonlocal tls
        try:
            now = source()
            if now is not tls:
                tls = _checked(now)
        except Exception:
            logger.exception("the new certificate cannot be used, the old one serves on")
        return tls

    return current


def _checked(tls: object) -> ServerTLS:
    if not isinstance(tls, ServerTLS):
        raise TypeError(f"the function for tls returns a ServerTLS, not {type(tls).__name__}")
    tls.verifier()
    return tls


def context_source(source: ServerTLSSource) -> Callable[[], ssl.SSLContext]:
    """What TCP needs of a certificate for QUIC: made anew only when that is another one.

    Raises:
        OSError: ``client_ca`` cannot be read.
        ValueError: a certificate is of a kind that OpenSSL does not take.
    """
    tls = source() if callable(source) else source
    context = _context_of(tls)

    def current() -> ssl.SSLContext:
        nonlocal tls, context
        now = source() if callable(source) else source
        if now is not tls:
            try:
                context = _context_of(now)
            except (OSError, ValueError) as exc:
                logger.error("the new certificate cannot be used over TCP: %s", exc)
            tls = now
        return context

    return current
