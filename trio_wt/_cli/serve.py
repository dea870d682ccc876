"""``trio-wt serve``: an echo server, for WebSockets and for WebTransport."""

from __future__ import annotations

import base64
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from socket import AF_INET
from urllib.parse import quote

import click
import trio

from .._http.request import Request
from .._protocol.deflate import Deflate
from .._protocol.handshake import Origins
from .._quic.tls import ServerTLS
from .._transport.listen import Listener
from .._transport.udp import UdpSocket
from .._websocket.server import serve_websocket
from .._websocket.settings import Settings, SettingsKwargs
from .._websocket.websocket import WebSocket
from .._webtransport.server import serve_webtransport
from .errors import CommandFailed, describe, run_trio
from .identity import Identity
from .page import Page
from .webtransport_serve import Echo, open_both

__all__ = ["serve"]

_HOST = "127.0.0.1"
_PORT = 8765
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LEAST = 0.05
# Browsers send no pings, and lose a connection that is silent for 30 seconds.
_KEEP_ALIVE = 15
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


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
    help="Listen on a Unix socket instead; without WebTransport.",
)
@click.option(
    "--certfile",
    "--cert",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Serve wss with this certificate (PEM).",
)
@click.option(
    "--keyfile",
    "--key",
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
@click.option(
    "--no-webtransport", is_flag=True, help="Do not listen on UDP: WebSockets over TCP only."
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
    no_webtransport: bool,
    no_compression: bool,
    max_size: int,
    grace: float,
) -> None:
    """Send everything back: WebSocket messages, and WebTransport's streams and datagrams.

    WebSockets are served on ws or, with a certificate, on wss. WebTransport is served over HTTP/3 on the UDP port of
    the same number, with that certificate, or else with one made for this run that browsers accept by its hash; WebSockets over
    HTTP/3 are, too. / is a page for browsers to try it with, and /health answers with 200.

    SIGTERM and SIGINT (Ctrl-C) stop the server: every WebSocket is closed with code 1001, every session with code 0, and the
    exit code is 0. A second signal ends it at once.
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
    over_quic = unix is None and not no_webtransport
    if certfile is not None:
        identity = Identity.load(certfile, keyfile, quic=over_quic)
    else:
        identity = Identity.make([] if host in _ANY else [host], tls=self_signed, quic=over_quic)
    # What is left of the grace when the handlers are cancelled goes to their closing handshakes.
    close_timeout = max(min(grace / 2, 5), _LEAST)
    settings: SettingsKwargs = {
        "compression": None if no_compression else Deflate(),
        "max_message_size": max_size or None,
        "close_timeout": close_timeout,
    }
    stop = trio.Event()
    origin_policy: Origins = "any" if "any" in origins else origins or "same-host"
    patience = max(grace - close_timeout, 0)

    async def main() -> None:
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                listeners: Sequence[Listener] | None = None
                sockets: Sequence[UdpSocket] = ()
                page = None
                try:
                    if over_quic:
                        listeners, sockets = await open_both(host, port)
                        page = Page(identity, ipv4_only=all(s.family == AF_INET for s in sockets))
                    listeners = await nursery.start(
                        partial(
                            serve_websocket,
                            _echo,
                            port if unix is None and listeners is None else None,
                            host=host,
                            unix_path=unix,
                            listeners=listeners,
                            ssl_context=identity.ssl_context,
                            on_request=partial(_on_request, page),
                            origins=origin_policy,
                            shutdown=stop,
                            shutdown_timeout=patience,
                            **settings,
                        )
                    )
                    if sockets:
                        assert identity.certificate is not None
                        await nursery.start(
                            partial(
                                serve_webtransport,
                                Echo(stop),
                                sockets=sockets,
                                tls=ServerTLS(identity.certificate),
                                websocket_handler=_echo,
                                websocket_settings=Settings(**settings),
                                on_request=partial(_on_request, page),
                                origins=origin_policy,
                                shutdown=stop,
                                shutdown_timeout=patience,
                                close_timeout=close_timeout,
                                keep_alive=_KEEP_ALIVE,
                            )
                        )
                except OSError as exc:
                    where = str(unix) if unix else f"{host}:{port}"
                    raise CommandFailed(f"cannot listen on {where}: {describe(exc)}") from exc
                if unix is not None:
                    click.echo(f"listening on ws+unix://{quote(str(unix), safe='')}/")
                else:
                    _announce(listeners, sockets, identity)
                await anext(signals)
                stop.set()
                for number in _SIGNALS:
                    signal.signal(number, signal.SIG_DFL)

    run_trio(main)


async def _echo(websocket: WebSocket) -> None:
    async for message in websocket:
        await websocket.send(message)


def _on_request(page: Page | None, request: Request) -> None:
    if page is not None and page.answer(request):
        return
    if request.path == "/health" and not request.asks_for_session:
        request.respond(200, body="ok\n")


def _announce(
    listeners: Sequence[Listener], sockets: Sequence[UdpSocket], identity: Identity
) -> None:
    secure = identity.ssl_context is not None
    addresses = []
    for listener in listeners:
        assert isinstance(listener, trio.SocketListener)
        addresses.append(listener.socket.getsockname()[:2])
        click.echo(f"listening on {'wss' if secure else 'ws'}://{_authority(*addresses[-1])}/")
    for socket in sockets:
        click.echo(f"listening on https://{_authority(*socket.local_address[:2])}/ (WebTransport)")
    if (digest := identity.browser_hash) is not None:
        click.echo(f"certificate's SHA-256: {digest.hex(':').upper()}")
        click.echo(f"in base64: {base64.b64encode(digest).decode()}")
    if sockets:
        # An address that stands for all of them is none to go to.
        host, port = addresses[0]
        shown = _authority(_ANY.get(host, host), port)
        click.echo(f"page for browsers: {'https' if secure else 'http'}://{shown}/")


def _authority(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
