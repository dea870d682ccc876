"""``trio-wt connect``: a client of WebSocket and WebTransport servers, for people and for scripts."""

from __future__ import annotations

import base64
import signal
import ssl
import sys
from functools import partial
from pathlib import Path

import click

from .._errors import ConnectionClosed, ConnectionClosedOK
from .._protocol.deflate import Deflate
from .._websocket.client import open_websocket
from .._websocket.settings import SettingsKwargs
from .._websocket.websocket import WebSocket
from .errors import CommandFailed, Interrupted, run_trio
from .mode import Mode, until_signalled
from .options import check_trust, read_hashes, read_seconds
from .piped import pipe
from .text import escape
from .webtransport_connect import SessionOptions, talk_over_webtransport
from .webtransport_talk import KINDS, Kind

__all__ = ["connect"]

_SCHEMES = ("ws", "wss", "ws+unix", "https")
_GOING_AWAY = 1001
_ABNORMAL = 1006


def _headers(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> list[tuple[str, str]]:
    headers = []
    for value in values:
        name, colon, content = value.partition(":")
        if not colon:
            raise click.BadParameter(f"{value!r} is not of the form 'Name: value'.")
        headers.append((name.strip(), content.strip()))
    return headers


def _auth(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, str] | None:
    if value is None:
        return None
    user, colon, password = value.partition(":")
    if not colon:
        password = click.prompt(f"Password of {user}", hide_input=True, err=True)
    return user, password


@click.command()
@click.argument("url")
@click.option(
    "-H",
    "--header",
    "headers",
    multiple=True,
    callback=_headers,
    metavar="'NAME: VALUE'",
    help="A further request header; repeatable.",
)
@click.option(
    "-s",
    "--subprotocol",
    "subprotocols",
    multiple=True,
    metavar="NAME",
    help="A subprotocol to offer; repeatable, best first.",
)
@click.option("--origin", metavar="ORIGIN", help="The Origin header.")
@click.option(
    "--auth",
    callback=_auth,
    metavar="USER[:PASSWORD]",
    help="Basic authentication; a password that is left out is asked for.",
)
@click.option(
    "--cafile",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Trust the certificates in this file (PEM), instead of the system's.",
)
@click.option(
    "--server-certificate-hash",
    "hashes",
    multiple=True,
    callback=read_hashes,
    metavar="SHA256",
    help="https: believe the server whose certificate has this hash; repeatable.",
)
@click.option("--insecure", is_flag=True, help="Accept any certificate. Dangerous.")
@click.option("--proxy", metavar="URL", help="Go through this proxy, not the environment's.")
@click.option(
    "--no-proxy", is_flag=True, help="Go through no proxy, whatever the environment says."
)
@click.option("--no-compression", is_flag=True, help="Do not offer permessage-deflate.")
@click.option(
    "--send-as",
    "kind",
    type=click.Choice(KINDS),
    default="stream",
    help="https: what a line goes out as; the answer to a stream is printed.",
)
@click.option(
    "--max-size",
    type=click.IntRange(min=0),
    default=2**20,
    metavar="BYTES",
    help="The largest message to receive; 0 for no limit. https: longer lines are cut up.",
)
@click.option(
    "--ping-interval",
    type=float,
    callback=read_seconds,
    default=20.0,
    metavar="SECONDS",
    help="Ping after so long a silence; 0 for never.",
)
@click.option(
    "--timeout",
    type=float,
    callback=read_seconds,
    default=10.0,
    metavar="SECONDS",
    help="How long connecting may take.",
)
@click.option(
    "--linger",
    type=float,
    callback=read_seconds,
    default=1.0,
    metavar="SECONDS",
    help="Without a terminal: how long to go on receiving after the input's end; inf for ever.",
)
@click.option(
    "--binary",
    is_flag=True,
    help="Send all of standard input as one, write what is received as it is.",
)
@click.option("--no-history", is_flag=True, help="Do not keep what is entered.")
def connect(
    url: str,
    headers: list[tuple[str, str]],
    subprotocols: tuple[str, ...],
    origin: str | None,
    auth: tuple[str, str] | None,
    cafile: Path | None,
    hashes: tuple[bytes, ...],
    insecure: bool,
    proxy: str | None,
    no_proxy: bool,
    no_compression: bool,
    kind: Kind,
    max_size: int,
    ping_interval: float,
    timeout: float,
    linger: float,
    binary: bool,
    no_history: bool,
) -> None:
    """Talk to a WebSocket or WebTransport server.

    URL begins with ws://, wss:// or ws+unix://%2Fpath%2Fof%2Fsocket/ for a WebSocket, with https:// for a WebTransport session.

    On a terminal it prompts for messages, with a history; /help there tells more.

    With standard input or output redirected, or on a dumb terminal, each line of input is sent as a
    text message, and each message received is printed on a line (binary ones as 0x and hexadecimal
    digits, control characters escaped); when the input has ended and --linger has passed, the
    connection is closed.

    In a WebTransport session each line goes out as a stream of its own, or what else --send-as says. Each line of what is
    received is printed behind what it has come by: "stream 4: ", "receive-stream 3: " or "datagram: ".

    The exit code is 0 if the connection was closed cleanly, by either side.
    """
    scheme = url.partition(":")[0].lower()
    if scheme not in _SCHEMES:
        raise CommandFailed("a URL must begin with ws://, wss://, ws+unix:// or https://")
    over_quic = scheme == "https"
    if proxy is not None and no_proxy:
        raise click.UsageError("--proxy and --no-proxy exclude each other.")
    if proxy is not None and over_quic:
        raise click.UsageError("--proxy is not for https://: WebTransport goes over UDP.")
    if hashes and not over_quic:
        raise click.UsageError("--server-certificate-hash is for https:// only.")
    check_trust(cafile, hashes, insecure=insecure)
    if sys.stdout is None:
        raise CommandFailed("standard output is closed")
    mode = Mode(binary=binary, linger=linger, keep_history=not no_history)
    if over_quic:
        options = SessionOptions(
            headers=headers if auth is None else [*headers, _basic(auth)],
            subprotocols=subprotocols,
            origin=origin,
            cafile=cafile,
            hashes=hashes,
            verify=not insecure,
            keep_alive=ping_interval or None,
            timeout=timeout,
            kind=kind,
            limit=max_size or None,
        )
        run_trio(partial(talk_over_webtransport, url, options, mode))
        return
    ssl_context = _ssl_context(cafile, insecure=insecure)
    settings: SettingsKwargs = {
        "compression": None if no_compression else Deflate(),
        "max_message_size": max_size or None,
        "ping_interval": ping_interval or None,
    }

    async def main() -> None:
        async with open_websocket(
            url,
            headers=headers,
            subprotocols=subprotocols,
            origin=origin,
            auth=auth,
            ssl_context=ssl_context,
            proxy=None if no_proxy else proxy or "environment",
            handshake_timeout=timeout,
            **settings,
        ) as websocket:
            end, caught = await until_signalled(partial(_talk, websocket, mode))
            if caught is not None:
                signal.signal(caught, signal.SIG_DFL)  # a second one does not wait
                await websocket.close(_GOING_AWAY)
        _report(websocket, mode, end, caught)

    run_trio(main)


def _basic(auth: tuple[str, str]) -> tuple[str, str]:
    """The header of RFC 7617."""
    user, password = auth
    if ":" in user:
        raise CommandFailed("a user's name must not have a colon in it")
    return "Authorization", f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def _ssl_context(cafile: Path | None, *, insecure: bool) -> ssl.SSLContext | None:
    if cafile is not None:
        try:
            return ssl.create_default_context(cafile=cafile)
        except ssl.SSLError:
            raise CommandFailed(f"{cafile} has no certificates in PEM form") from None
    if insecure:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    return None


async def _talk(websocket: WebSocket, mode: Mode) -> ConnectionClosed | None:
    if not mode.interactive:
        return await pipe(websocket, binary=mode.binary, linger=mode.linger)
    # prompt_toolkit takes a tenth of a second to import; scripts do without.
    from .interactive import interact
    from .prompt import history_path

    return await interact(websocket, history_path() if mode.keep_history else None)


def _report(
    websocket: WebSocket,
    mode: Mode,
    end: ConnectionClosed | None,
    caught: signal.Signals | None,
) -> None:
    """Tell how it ended.

    Raises:
        Interrupted: by a signal, but a person's Ctrl-C is a way to leave like any other.
        CommandFailed: not cleanly.
    """
    if caught is not None and not (mode.interactive and caught == signal.SIGINT):
        raise Interrupted(caught)
    if end is None:
        if websocket.close_code == _ABNORMAL:
            raise CommandFailed("the connection was lost before the peer had answered Close")
        message = f"closed with code {websocket.close_code}"
    else:
        message = str(end)
        if not isinstance(end, ConnectionClosedOK):
            raise CommandFailed(message)
    if mode.interactive:
        click.echo(f"* {escape(message)}")
