"""``trio-wt serve``: an echo server."""

from __future__ import annotations

import signal
import ssl
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

import click
import trio

from .._http.request import Request
from .._protocol.deflate import Deflate
from .._transport.listen import Listener
from .._websocket.server import serve_websocket
from .._websocket.settings import SettingsKwargs
from .._websocket.websocket import WebSocket
from .certificate import Certificate, make_certificate
from .errors import CommandFailed, describe, run_trio

__all__ = ["serve"]

_HOST = "127.0.0.1"
_PORT = 8765
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LEAST = 0.05
_ANY = {"0.0.0.0", "::"}  # noqa: S104


@click.command()
@click.option("--host", metavar="ADDRESS", help=f"The address to listen on.  [default: {_HOST}]")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help=f"The port to listen on; 0 takes a free one.  [default: {_PORT}]",
)
@click.option(
    "--unix",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Listen on a Unix socket instead.",
)
@click.option(
    "--certfile",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Serve wss with this certificate (PEM).",
)
@click.option(
    "--keyfile",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Its key (PEM), if it is not in the same file.",
)
@click.option("--self-signed", is_flag=True, help="Serve wss with a certificate made for this run.")
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Allow web pages of this origin, instead of the server's own; repeatable; `any` for all.",
)
@click.option("--no-compression", is_flag=True, help="Do not accept permessage-deflate.")
@click.option(
    "--max-size",
    type=click.IntRange(min=0),
    default=2**20,
    metavar="BYTES",
    help="The largest message to receive; 0 for no limit.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=10.0,
    metavar="SECONDS",
    help="How long connections may take to close when the server is stopped.",
)
def serve(
    host: str | None,
    port: int | None,
    unix: Path | None,
    certfile: Path | None,
    keyfile: Path | None,
    self_signed: bool,
    origins: tuple[str, ...],
    no_compression: bool,
    max_size: int,
    grace: float,
) -> None:
    """Send every message back, on ws or, with a certificate, on wss.

    /health answers plain HTTP requests with 200. SIGTERM and SIGINT (Ctrl-C) stop the server: every connection is
    closed with code 1001, and the exit code is 0. A second signal ends it at once.
    """
    if unix is not None and (host is not None or port is not None):
        raise click.UsageError("--unix excludes --host and --port.")
    if unix is not None and (certfile or self_signed):
        raise click.UsageError("--unix serves without TLS.")
    if self_signed and (certfile or keyfile):
        raise click.UsageError("--self-signed excludes --certfile and --keyfile.")
    if keyfile is not None and certfile is None:
        raise click.UsageError("--keyfile needs --certfile.")
    host = host or _HOST
    port = _PORT if port is None else port
    made = make_certificate([] if host in _ANY else [host]) if self_signed else None
    ssl_context = made.server_context() if made is not None else _load(certfile, keyfile)
    # What is left of the grace when the handlers are cancelled goes to their closing handshakes.
    close_timeout = max(min(grace / 2, 5), _LEAST)
    settings: SettingsKwargs = {
        "compression": None if no_compression else Deflate(),
        "max_message_size": max_size or None,
        "close_timeout": close_timeout,
    }
    stop = trio.Event()
    listen = partial(
        serve_websocket,
        _echo,
        None if unix else port,
        host=host,
        unix_path=unix,
        ssl_context=ssl_context,
        on_request=_on_request,
        origins="any" if "any" in origins else origins or "same-host",
        shutdown=stop,
        shutdown_timeout=max(grace - close_timeout, 0),
        **settings,
    )

    async def main() -> None:
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                try:
                    listeners = await nursery.start(listen)
                except OSError as exc:
                    where = str(unix) if unix else f"{host}:{port}"
                    raise CommandFailed(f"cannot listen on {where}: {describe(exc)}") from exc
                _announce(listeners, unix, made, secure=ssl_context is not None)
                await anext(signals)
                stop.set()
                for number in _SIGNALS:
                    signal.signal(number, signal.SIG_DFL)

    run_trio(main)


def _load(certfile: Path | None, keyfile: Path | None) -> ssl.SSLContext | None:
    if certfile is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certfile, keyfile, password=_no_password)
    except ssl.SSLError as exc:
        files = certfile if keyfile is None else f"{certfile} and {keyfile}"
        raise CommandFailed(
            f"{files}: no certificate and key in PEM form that fit ({exc.reason or exc})"
        ) from None
    return context


def _no_password() -> str:
    # Otherwise OpenSSL would ask on the terminal, which a server may not have.
    raise CommandFailed("the key has a password; write it without one")


async def _echo(websocket: WebSocket) -> None:
    async for message in websocket:
        await websocket.send(message)


def _on_request(request: Request) -> None:
    if request.path == "/health" and not request.is_websocket:
        request.respond(200, body="ok\n")


def _announce(
    listeners: Sequence[Listener], unix: Path | None, made: Certificate | None, *, secure: bool
) -> None:
    scheme = "wss" if secure else "ws"
    if unix is not None:
        click.echo(f"listening on ws+unix://{quote(str(unix), safe='')}/")
    else:
        for listener in listeners:
            assert isinstance(listener, trio.SocketListener)
            address, port = listener.socket.getsockname()[:2]
            host = f"[{address}]" if ":" in address else address
            click.echo(f"listening on {scheme}://{host}:{port}/")
    if made is not None:
        click.echo(f"certificate's SHA-256: {made.sha256}")
        click.echo(f"in base64: {made.sha256_base64}")
