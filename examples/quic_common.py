"""What the QUIC and WebTransport examples share: certificates, command lines, errors for people."""

from __future__ import annotations

import argparse
import datetime as dt
import ipaddress
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import trio_wt


class Failed(Exception):
    """The user has to be told something, and the program ends."""


def make_certificate() -> trio_wt.Certificate:
    """A certificate for development, of the kind that is believed by its hash.

    That is ECDSA on P-256, and valid for 14 days at most.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "trio_wt example")])
    now = dt.datetime.now(dt.UTC)
    names = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=10))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    return trio_wt.Certificate.from_pem(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def own_tls() -> tuple[trio_wt.ServerTLS, trio_wt.ClientTLS]:
    """For both ends in one program: a new certificate, and a client that believes it."""
    certificate = make_certificate()
    return (
        trio_wt.ServerTLS(certificate),
        trio_wt.ClientTLS(server_certificate_hashes=[certificate.sha256]),
    )


def port_number(text: str) -> int:
    """For argparse."""
    port = int(text)
    if not 0 <= port < 2**16:
        raise argparse.ArgumentTypeError("a port is from 0 to 65535")
    return port


def positive(text: str) -> float:
    """For argparse."""
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError("it must be greater than 0")
    return number


Parsers = tuple[argparse.ArgumentParser, argparse.ArgumentParser, argparse.ArgumentParser]


def parsers(description: str | None, client: str = "connect") -> Parsers:
    """A parser, and those of its commands for the server and for the client.

    Without a command, both ends are to run.

    Args:
        description: what the program does.
        client: the name of the client's command.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", title="one end only")
    serve = commands.add_parser("serve", help="run the server")
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    serve.add_argument("--port", type=port_number, default=4433, help="the UDP port; 0 for any")
    serve.add_argument("--cert", metavar="FILE", help="the certificate; without, one is made")
    serve.add_argument("--key", metavar="FILE", help="its key, if that is in another file")
    connect = commands.add_parser(client, help="run the client")
    connect.add_argument("host", help="the server's name or address")
    connect.add_argument("port", type=port_number, help="its UDP port")
    connect.add_argument("--hash", metavar="HEX", help="the SHA-256 of the server's certificate")
    connect.add_argument("--ca", metavar="FILE", help="who may have signed it")
    return parser, serve, connect


def server_tls(options: argparse.Namespace) -> trio_wt.ServerTLS:
    """What the options for a server say."""
    try:
        if options.cert is not None:
            return trio_wt.ServerTLS(trio_wt.Certificate.load(options.cert, options.key))
        if options.key is not None:
            raise Failed("--key needs --cert")
    except ValueError as exc:
        raise Failed(str(exc)) from exc
    certificate = make_certificate()
    print(f"clients believe this server by: --hash {certificate.sha256.hex()}")
    return trio_wt.ServerTLS(certificate)


def client_tls(options: argparse.Namespace) -> trio_wt.ClientTLS:
    """What the options for a client say."""
    known = () if options.hash is None else (options.hash.replace(":", ""),)
    try:
        return trio_wt.ClientTLS(
            ca=options.ca, server_certificate_hashes=[bytes.fromhex(text) for text in known]
        )
    except ValueError as exc:
        raise Failed(f"--hash or --ca: {exc}") from exc


def https_url(host: str, port: int, target: str = "/") -> str:
    """The URL of a server."""
    return f"https://{f'[{host}]' if ':' in host else host}:{port}{target}"


async def serve_forever(serve: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Run a server that takes ``task_status``, and say where it listens."""
    async with trio.open_nursery() as nursery:
        for socket in await nursery.start(partial(serve, *args)):
            host, port = socket.local_address[:2]
            print(f"listening on {host} port {port}; stop with Ctrl-C", flush=True)


def run(program: Callable[..., Awaitable[Any]], *args: Any) -> None:
    """As `trio.run`; what is not a bug ends in one line.

    Raises:
        SystemExit: with that line.
    """
    told = ""
    try:
        trio.run(program, *args)
    except* KeyboardInterrupt:
        told = "stopped"
    except* (Failed, OSError, trio_wt.TrioWTError) as group:
        told = "; ".join(dict.fromkeys(describe(exc) for exc in leaves(group)))
    if told:
        sys.exit(told)


def leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    """The exceptions in a group of groups."""
    found: list[BaseException] = []
    for exc in group.exceptions:
        found += leaves(exc) if isinstance(exc, BaseExceptionGroup) else [exc]
    return found


def describe(exc: BaseException) -> str:
    """An error without numbers that nobody knows by heart."""
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
    return str(exc)
