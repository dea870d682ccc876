"""``trio-wt connect``: a WebSocket client for people, and for scripts."""

from __future__ import annotations

import math
import os
import signal
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import trio

from .._errors import ConnectionClosed, ConnectionClosedOK
from .._protocol.deflate import Deflate
from .._websocket.client import open_websocket
from .._websocket.settings import SettingsKwargs
from .._websocket.websocket import WebSocket
from .errors import CommandFailed, Interrupted, run_trio
from .piped import pipe
from .text import escape

__all__ = ["connect"]

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


def _seconds(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if math.isnan(value) or value < 0:
        raise click.BadParameter(f"{value} is not a number of seconds.")
    return value


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
@click.option("--insecure", is_flag=True, help="Accept any certificate. Dangerous.")
@click.option("--proxy", metavar="URL", help="Go through this proxy, not the environment's.")
@click.option(
    "--no-proxy", is_flag=True, help="Go through no proxy, whatever the environment says."
)
@click.option("--no-compression", is_flag=True, help="Do not offer permessage-deflate.")
@click.option(
    "--max-size",
    type=click.IntRange(min=0),
    default=2**20,
    metavar="BYTES",
    help="The largest message to receive; 0 for no limit.",
)
@click.option(
    "--ping-interval",
    type=float,
    callback=_seconds,
    default=20.0,
    metavar="SECONDS",
    help="Ping after so long a silence; 0 for never.",
)
@click.option(
    "--timeout",
    type=float,
    callback=_seconds,
    default=10.0,
    metavar="SECONDS",
    help="How long connecting may take.",
)
@click.option(
    "--linger",
    type=float,
    callback=_seconds,
    default=1.0,
    metavar="SECONDS",
    help="Without a terminal: how long to go on receiving after the input's end; inf for ever.",
)
@click.option(
    "--binary",
    is_flag=True,
    help="Send all of standard input as one binary message, write what is received as it is.",
)
@click.option("--no-history", is_flag=True, help="Do not keep what is entered.")
def connect(
    url: str,
    headers: list[tuple[str, str]],
    subprotocols: tuple[str, ...],
    origin: str | None,
    auth: tuple[str, str] | None,
    cafile: Path | None,
    insecure: bool,
    proxy: str | None,
    no_proxy: bool,
    no_compression: bool,
    max_size: int,
    ping_interval: float,
    timeout: float,
    linger: float,
    binary: bool,
    no_history: bool,
) -> None:
    """Talk to the WebSocket server at URL (ws://, wss:// or ws+unix://%2Fpath%2Fof%2Fsocket/).

    On a terminal it prompts for messages, with a history; /help there tells more.

    With standard input or output redirected, or on a dumb terminal, each line of input is sent as a
    text message, and each message received is printed on a line (binary ones as 0x and hexadecimal
    digits, control characters escaped); when the input has ended and --linger has passed, the
    connection is closed.

    The exit code is 0 if the connection was closed cleanly, by either side.
    """
    if proxy is not None and no_proxy:
        raise click.UsageError("--proxy and --no-proxy exclude each other.")
    if cafile is not None and insecure:
        raise click.UsageError("--cafile and --insecure exclude each other.")
    if insecure:
        click.echo(
            "WARNING: --insecure: the server's certificate is NOT verified; "
            "anybody in between can read and change everything.",
            err=True,
        )
    if sys.stdout is None:
        raise CommandFailed("standard output is closed")
    ssl_context = _ssl_context(cafile, insecure=insecure)
    settings: SettingsKwargs = {
        "compression": None if no_compression else Deflate(),
        "max_message_size": max_size or None,
        "ping_interval": ping_interval or None,
    }
    mode = _Mode(binary=binary, linger=linger, keep_history=not no_history)

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
            end, caught = await _converse(websocket, mode)
            if caught is not None:
                signal.signal(caught, signal.SIG_DFL)  # a second one does not wait
                await websocket.close(_GOING_AWAY)
        _report(websocket, mode, end, caught)

    run_trio(main)


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


@dataclass(frozen=True, slots=True)
class _Mode:
    binary: bool
    linger: float
    keep_history: bool

    @property
    def interactive(self) -> bool:
        """Whether there is a terminal, on which lines can be edited, to talk to a person."""
        return (
            not self.binary
            and sys.stdin is not None
            and sys.stdin.isatty()
            and sys.stdout.isatty()
            and os.environ.get("TERM") not in ("dumb", "unknown")
        )


async def _converse(
    websocket: WebSocket, mode: _Mode
) -> tuple[ConnectionClosed | None, signal.Signals | None]:
    """Talk until it ends: by the peer, by this side, or by a signal."""
    end: ConnectionClosed | None = None
    caught: signal.Signals | None = None
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal caught
                caught = signal.Signals(await anext(signals))
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            if mode.interactive:
                # prompt_toolkit takes a tenth of a second to import; scripts do without.
                from .interactive import interact
                from .prompt import history_path

                end = await interact(websocket, history_path() if mode.keep_history else None)
            else:
                end = await pipe(websocket, binary=mode.binary, linger=mode.linger)
            nursery.cancel_scope.cancel()
    return end, caught


def _report(
    websocket: WebSocket,
    mode: _Mode,
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
