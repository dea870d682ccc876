"""``trio-wt serve``: an echo server, for WebSockets and for WebTransport, with all interop endpoints."""

from __future__ import annotations

import base64
import re
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

import click
import trio

from .._http.request import Request
from .._protocol.deflate import Deflate
from .._protocol.handshake import Origins
from .._quic.tls import ServerTLS
from .._websocket.server import serve_websocket
from .._websocket.settings import Settings, SettingsKwargs
from .._webtransport.settings import WebTransportSettings
from ..app import App, Serving
from ..interop import add_endpoints, serve_echo
from .errors import CommandFailed, describe, run_trio
from .identity import Identity
from .page import Page

__all__ = ["serve"]

_HOST = "127.0.0.1"
_PORT = 8765
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LEAST = 0.05
# Browsers send no pings, and lose a connection that is silent for 30 seconds.
_KEEP_ALIVE = 15
# What `App.serve` says behind an error.
_WHERE = re.compile(r" \((TCP|UDP) port \d+\)$")
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
    help="Listen on a Unix socket instead; without WebTransport, / and /health only.",
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

    Sessions at / and /echo do that. For those who test clients, sessions at /stats get what is known of them as JSON, as do plain
    requests; /webtransport/devious-baton plays the baton; /status tells in JSON how the server is.

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
    page = Page(identity) if over_quic else None
    app = _application(origin_policy, page)
    tls = None if identity.certificate is None else ServerTLS(identity.certificate)
    serving_app = partial(
        app.serve,
        host,
        port,
        tls=None if identity.ssl_context is None else tls,
        http3=tls if tls is not None and over_quic else False,
        websocket_settings=Settings(**settings),
        webtransport_settings=WebTransportSettings(
            close_timeout=close_timeout, keep_alive=_KEEP_ALIVE
        ),
        signals=(),
        shutdown=stop,
        shutdown_timeout=patience,
    )
    # What an application does not listen on, and certificates of a kind that it does not take.
    is_simple = unix is not None or (identity.ssl_context is not None and tls is None)
    serving_echo = partial(
        serve_websocket,
        serve_echo,
        port if unix is None else None,
        host=host,
        unix_path=unix,
        ssl_context=identity.ssl_context,
        on_request=_on_request,
        origins=origin_policy,
        shutdown=stop,
        shutdown_timeout=patience,
        **settings,
    )

    async def main() -> None:
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                try:
                    started = await nursery.start(serving_echo if is_simple else serving_app)
                except OSError as exc:
                    raise CommandFailed(_why_not(unix, host, port, exc)) from exc
                if isinstance(started, Serving):
                    if page is not None:
                        page.ipv4_only = all(":" not in address for address, _ in started.addresses)
                    _announce(started.addresses, identity, over_quic=over_quic)
                elif unix is not None:
                    click.echo(f"listening on ws+unix://{quote(str(unix), safe='')}/")
                else:
                    addresses = [listener.socket.getsockname()[:2] for listener in started]
                    _announce(addresses, identity, over_quic=False)
                await anext(signals)
                stop.set()
                for number in _SIGNALS:
                    signal.signal(number, signal.SIG_DFL)

    run_trio(main)


def _application(origins: Origins, page: Page | None) -> App:
    """All that is served where an application can listen."""
    app = App(origins=origins)
    add_endpoints(app)
    app.session("/")(serve_echo)
    if page is not None:
        app.http("/")(page)
    return app


def _why_not(unix: Path | None, host: str, port: int, exc: OSError) -> str:
    said = describe(exc)
    if unix is not None:
        return f"cannot listen on {unix}: {said}"
    protocol = _WHERE.search(said)
    said = _WHERE.sub("", said)
    if protocol is not None and protocol[1] == "UDP":
        return (
            f"cannot listen on UDP port {port} of {host} for WebTransport: {said} "
            "(--no-webtransport does without)"
        )
    return f"cannot listen on {host}:{port}: {said}"


def _on_request(request: Request) -> None:
    if request.path == "/health" and not request.asks_for_session:
        request.respond(200, body="ok\n")


def _announce(addresses: Sequence[tuple[str, int]], identity: Identity, *, over_quic: bool) -> None:
    secure = identity.ssl_context is not None
    for address in addresses:
        click.echo(f"listening on {'wss' if secure else 'ws'}://{_authority(*address)}/")
    if over_quic:
        for address in addresses:
            click.echo(f"listening on https://{_authority(*address)}/ (WebTransport)")
    if (digest := identity.browser_hash) is not None:
        click.echo(f"certificate's SHA-256: {digest.hex(':').upper()}")
        click.echo(f"in base64: {base64.b64encode(digest).decode()}")
    if over_quic:
        # An address that stands for all of them is none to go to.
        host, port = addresses[0]
        shown = _authority(_ANY.get(host, host), port)
        click.echo(f"page for browsers: {'https' if secure else 'http'}://{shown}/")


def _authority(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
