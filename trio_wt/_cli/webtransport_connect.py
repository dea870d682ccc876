"""What `trio-wt connect` does with an https URL: a WebTransport session."""

from __future__ import annotations

import base64
import re
import signal
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from .._errors import ConnectionClosed, ConnectionClosedOK, ConnectionLost, TransportClosed
from .._http.url import parse_https_url
from .._quic.tls import ClientTLS
from .._webtransport.client import open_webtransport
from .._webtransport.session import WebTransportSession
from .errors import CommandFailed, Interrupted, describe
from .mode import Mode, until_signalled
from .text import escape
from .webtransport_piped import pipe_session
from .webtransport_talk import INTERRUPTED, Kind

__all__ = ["SessionOptions", "cannot_find", "certificate_hash", "talk_over_webtransport"]

_SHA256_BYTES = 32


def certificate_hash(text: str) -> bytes:
    """A SHA-256 as `trio-wt cert` and `trio-wt serve` print it: in hexadecimal or in base64.

    Raises:
        ValueError: it is neither.
    """
    digits = text.replace(":", "").replace(" ", "")
    if re.fullmatch(f"[0-9A-Fa-f]{{{2 * _SHA256_BYTES}}}", digits):
        return bytes.fromhex(digits)
    try:
        digest = base64.b64decode(text, validate=True)
    except ValueError:
        digest = b""
    if len(digest) != _SHA256_BYTES:
        raise ValueError(f"{text!r} is no SHA-256, in hexadecimal or in base64")
    return digest


def cannot_find(url: str, exc: socket.gaierror) -> CommandFailed:
    """What to say where a URL's host is not known."""
    return CommandFailed(f"cannot find {parse_https_url(url).host}: {describe(exc)}")


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What the command line says about a session.

    Attributes:
        headers, subprotocols, origin: of the request.
        cafile: who may have signed the server's certificate; None for the system's authorities.
        hashes: SHA-256 hashes of certificates to believe instead.
        verify: whether certificates are looked at.
        keep_alive: seconds of silence before a ping; None for no pings.
        timeout: seconds that connecting may take.
        kind: what text goes out as.
        limit: the longest line to hold; None for any.
    """

    headers: list[tuple[str, str]]
    subprotocols: tuple[str, ...]
    origin: str | None
    cafile: Path | None
    hashes: tuple[bytes, ...]
    verify: bool
    keep_alive: float | None
    timeout: float
    kind: Kind
    limit: int | None


async def talk_over_webtransport(url: str, options: SessionOptions, mode: Mode) -> None:
    """Open a session, talk, and tell how it ended.

    Raises:
        Interrupted: by a signal.
        CommandFailed: not cleanly.
    """
    tls = ClientTLS(
        ca=options.cafile, server_certificate_hashes=options.hashes, verify=options.verify
    )
    opening = open_webtransport(
        url,
        subprotocols=options.subprotocols,
        headers=options.headers,
        origin=options.origin,
        tls=tls,
        handshake_timeout=options.timeout,
        keep_alive=options.keep_alive,
    )
    async with AsyncExitStack() as stack:
        try:
            session = await stack.enter_async_context(opening)
        except socket.gaierror as exc:
            raise cannot_find(url, exc) from exc

        async def talk() -> ConnectionClosed | None:
            if not mode.interactive:
                return await pipe_session(
                    session,
                    options.kind,
                    binary=mode.binary,
                    linger=mode.linger,
                    limit=options.limit,
                )
            # prompt_toolkit takes a tenth of a second to import; scripts do without.
            from .prompt import history_path
            from .webtransport_interactive import interact_with_session

            history = history_path() if mode.keep_history else None
            return await interact_with_session(session, options.kind, history, options.limit)

        # Before its streams are reset one by one, so that the peer sees the one thing that happens.
        end, caught = await until_signalled(talk, partial(session.close_now, INTERRUPTED))
        if caught is not None:
            signal.signal(caught, signal.SIG_DFL)  # a second one does not wait
    _report(session, mode, end, caught)


def _report(
    session: WebTransportSession,
    mode: Mode,
    end: ConnectionClosed | None,
    caught: signal.Signals | None,
) -> None:
    if caught is not None and not (mode.interactive and caught == signal.SIGINT):
        raise Interrupted(caught)
    closed = end or session.closed
    assert closed is not None
    message = _how(closed)
    if end is not None and not isinstance(end, ConnectionClosedOK):
        raise CommandFailed(message)
    if mode.interactive:
        click.echo(f"* {escape(message)}")


def _how(end: ConnectionClosed) -> str:
    if isinstance(end, ConnectionLost | TransportClosed):
        return str(end)
    if not end.remote:
        return f"closed with code {end.code}"
    because = f": {end.reason}" if end.reason else ""
    return f"the peer closed the session with code {end.code}{because}"
