"""Trust stores: who may vouch for a peer. Each source is read once and kept for as long as it does not change."""

from __future__ import annotations

import os
import re
import ssl
import stat
import sys
import threading
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from typing import Final, TypeAlias

import certifi
from cryptography import x509
from OpenSSL import crypto

__all__ = ["Source", "source_key", "trust_store"]

#: Certificates as PEM, the path of a file with such, or of a directory that OpenSSL can look things up in; None for
#: the system's.
Source: TypeAlias = bytes | str | os.PathLike[str] | None

# A program has one or two.
_MAX_STORES: Final = 32
_HASHED_NAME: Final = re.compile(r"[0-9a-f]{8}\.[0-9]+")


_stores: OrderedDict[Hashable, crypto.X509Store] = OrderedDict()
_lock: Final = threading.Lock()


def trust_store(source: Source) -> crypto.X509Store:
    """The store for a source; read now if it was not read before, or has changed since.

    Raises:
        OSError: it cannot be read.
        ValueError: there is no usable certificate in it.
    """
    key = source_key(source)
    with _lock:
        store = _stores.get(key)
        if store is None:
            store = _load(source)
            # As the ssl module does from Python 3.13 on: whatever is in the store is trusted, not only roots.
            store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
            _stores[key] = store
            if len(_stores) > _MAX_STORES:
                _stores.popitem(last=False)
        _stores.move_to_end(key)
        return store


def source_key(source: Source) -> tuple[Hashable, ...]:
    """What a source is now: it differs when the source differs, or its file has changed.

    Raises:
        OSError: there is no such file.
    """
    if isinstance(source, bytes):
        return ("pem", source)
    if source is not None:
        return ("path", *_identity(source))
    paths = ssl.get_default_verify_paths()
    return ("system", *(_identity(path) for path in (paths.cafile, paths.capath) if path))


def _identity(path: str | os.PathLike[str]) -> tuple[Hashable, ...]:
    status = os.stat(path)
    return (os.path.abspath(path), status.st_mtime_ns, status.st_size, status.st_ino)


def _load(source: Source) -> crypto.X509Store:
    if source is None:
        return _load_system()
    if isinstance(source, bytes):
        return _from_pem(source, "the PEM given as ca")
    if stat.S_ISDIR(os.stat(source).st_mode):
        if not _is_hashed(source):
            raise ValueError(
                f"{os.fspath(source)} has no certificates under the names that OpenSSL looks for; "
                "`openssl rehash` makes them"
            )
        store = crypto.X509Store()
        store.load_locations(None, os.fspath(source))
        return store
    return _from_pem(Path(source).read_bytes(), os.fspath(source))


def _from_pem(pem: bytes, where: str) -> crypto.X509Store:
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError as exc:
        raise ValueError(f"{where}: there is no usable certificate in it, as PEM ({exc})") from exc
    store = crypto.X509Store()
    for certificate in certificates:
        store.add_cert(crypto.X509.from_cryptography(certificate))
    return store


def _is_hashed(directory: str | os.PathLike[str]) -> bool:
    with os.scandir(directory) as entries:
        return any(_HASHED_NAME.fullmatch(entry.name) for entry in entries)


def _load_system() -> crypto.X509Store:
    store = crypto.X509Store()
    found = False
    paths = ssl.get_default_verify_paths()
    for cafile, capath in ((paths.cafile, None), (None, paths.capath)):
        if cafile or (capath and _is_hashed(capath)):
            try:
                store.load_locations(cafile, capath)
            except crypto.Error:
                continue  # a file without a certificate
            found = True
    if sys.platform == "win32":
        found = _add_windows(store) or found
    if not found:
        named = [
            name
            for name in (paths.openssl_cafile_env, paths.openssl_capath_env)
            if os.environ.get(name)
        ]
        # Whoever says what to trust does not mean another's list.
        if named:
            raise ValueError(f"no certificate to trust was found where {' or '.join(named)} points")
        store.load_locations(certifi.where())
    return store


if sys.platform == "win32":

    def _add_windows(store: crypto.X509Store) -> bool:
        found = False
        # Not "CA": whatever intermediate certificates Windows has come across are there.
        for der, encoding, trust in ssl.enum_certificates("ROOT"):
            for_servers = trust if isinstance(trust, bool) else ssl.Purpose.SERVER_AUTH.oid in trust
            if encoding == "x509_asn" and for_servers:
                store.add_cert(crypto.load_certificate(crypto.FILETYPE_ASN1, der))
                found = True
        return found
