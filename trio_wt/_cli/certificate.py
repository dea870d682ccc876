"""Certificates for development: short-lived, self-signed, and of the kind that browsers accept by their hash.

A browser takes a server's certificate by ``serverCertificateHashes`` only if its key is ECDSA on P-256 (or another
curve, but never RSA) and it is valid for 14 days at most.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import ipaddress
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from .errors import CommandFailed

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["Certificate", "cert", "make_certificate"]

HOSTS: Final = ("localhost", "127.0.0.1", "::1")
VALIDITY: Final = dt.timedelta(days=13)
# Clocks differ.
_BACKDATED: Final = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key.

    Attributes:
        certificate: as PEM.
        key: as PEM, without a password.
        der: the certificate as DER.
        expires: when it is no longer valid.
        hosts: the names and addresses it is for.
    """

    certificate: bytes
    key: bytes
    der: bytes
    expires: dt.datetime
    hosts: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """The SHA-256 of the DER, as ``AA:BB:...``."""
        return hashlib.sha256(self.der).digest().hex(":").upper()

    @property
    def sha256_base64(self) -> str:
        """The SHA-256 of the DER, in base64."""
        return base64.b64encode(hashlib.sha256(self.der).digest()).decode()

    def server_context(self) -> ssl.SSLContext:
        """A context for a server that shows this certificate."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # The ssl module loads from files only; this one nobody else may open, and it is gone at once.
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "both.pem")
            path.touch(mode=0o600)
            path.write_bytes(self.certificate + self.key)
            context.load_cert_chain(path)
        return context


def make_certificate(hosts: Sequence[str] = ()) -> Certificate:
    """Make a certificate for this machine.

    Args:
        hosts: further names and IP addresses.

    Raises:
        CommandFailed: a name cannot be in a certificate.
    """
    # Imported late, here and below: the other commands do without, and start faster so.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    all_hosts = tuple(dict.fromkeys([*HOSTS, *hosts]))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trio-wt development")])
    begins = dt.datetime.now(dt.UTC).replace(microsecond=0) - _BACKDATED
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + VALIDITY)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(host) for host in all_hosts]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_only_signatures(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return Certificate(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        der=certificate.public_bytes(serialization.Encoding.DER),
        expires=begins + VALIDITY,
        hosts=all_hosts,
    )


def _general_name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        ascii_host = host.encode("idna").decode()
    except UnicodeError:
        ascii_host = ""
    if not ascii_host or any(not (c.isalnum() or c in "-_.*") for c in ascii_host):
        raise CommandFailed(f"{host!r} is neither a host name nor an IP address")
    return x509.DNSName(ascii_host)


def _only_signatures() -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Put a file in its place at once, with its mode from the beginning."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="The directory to write to; it is made if need be.",
)
@click.option("--certfile", default="cert.pem", metavar="NAME", help="The certificate's file name.")
@click.option("--keyfile", default="key.pem", metavar="NAME", help="The key's file name.")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="HOST",
    help="A further name or IP address to make it for; repeatable.",
)
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
def cert(out: Path, certfile: str, keyfile: str, hosts: tuple[str, ...], force: bool) -> None:
    """Write a development certificate and its key.

    ECDSA on P-256, self-signed, for localhost, 127.0.0.1 and ::1, valid for 13 days: browsers accept
    it by its SHA-256 (serverCertificateHashes), and `trio-wt connect --cafile cert.pem` trusts it.
    """
    certificate_path, key_path = out / certfile, out / keyfile
    if certificate_path == key_path:
        raise click.UsageError("--certfile and --keyfile must be different.")
    if not force:
        for path in (certificate_path, key_path):
            if path.exists() or path.is_symlink():
                raise CommandFailed(f"{path} exists already; --force overwrites it")
    made = make_certificate(hosts)
    out.mkdir(parents=True, exist_ok=True)
    _write(key_path, made.key, 0o600)
    _write(certificate_path, made.certificate, 0o644)
    click.echo(f"certificate  {certificate_path} for {', '.join(made.hosts)}")
    click.echo(f"key          {key_path}")
    click.echo(f"valid until  {made.expires:%Y-%m-%d %H:%M} UTC")
    click.echo(f"SHA-256      {made.sha256}")
    click.echo(f"in base64    {made.sha256_base64}")
