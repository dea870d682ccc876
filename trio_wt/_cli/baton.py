"""``trio-wt baton``: play the devious baton with a server, and see whether it keeps to the rules."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import click

from .._http.url import parse_https_url
from .._quic.tls import ClientTLS
from .._webtransport.client import open_webtransport
from ..interop import BATON_PATH, BatonMove, BatonResult, run_baton
from .errors import CommandFailed, Interrupted, run_trio
from .mode import until_signalled
from .options import check_trust, read_hashes, read_seconds
from .text import escape
from .webtransport_connect import cannot_find

__all__ = ["baton"]

_MAX_COUNT: Final = 1000
_MAX_VERSION: Final = 2**29


@click.command()
@click.argument("url")
@click.option(
    "--count", type=click.IntRange(1, _MAX_COUNT), help="How many batons to ask for.  [default: 1]"
)
@click.option(
    "--baton",
    "start",
    type=click.IntRange(1, 255),
    metavar="VALUE",
    help="Their first value, 1 to 255.  [default: the server's choice]",
)
@click.option(
    "--version",
    type=click.IntRange(0, _MAX_VERSION),
    help="The version to ask for; only 0 is played, any other is to be refused.  [default: 0]",
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
    help="Believe the server whose certificate has this hash; repeatable.",
)
@click.option("--insecure", is_flag=True, help="Accept any certificate. Dangerous.")
@click.option(
    "--timeout",
    type=float,
    callback=read_seconds,
    default=10.0,
    metavar="SECONDS",
    help="How long connecting may take.",
)
@click.option("--json", "as_json", is_flag=True, help="Print each line as a JSON object.")
def baton(
    url: str,
    count: int | None,
    start: int | None,
    version: int | None,
    cafile: Path | None,
    hashes: tuple[bytes, ...],
    insecure: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Play the devious baton with a WebTransport server.

    A baton is a byte that client and server pass to each other over streams of all kinds, one more at each pass, until it is 0
    (draft-frindell-webtrans-devious-baton-00). Each pass is printed.

    URL begins with https://. Without a path, it is the draft's: /webtransport/devious-baton. A URL that has a query is asked for as it is.

    The exit code is 0 if all batons have come to 0 and the session was closed without an error.
    """
    asked = _complete(url, {"version": version, "count": count, "baton": start})
    check_trust(cafile, hashes, insecure=insecure)
    tls = ClientTLS(ca=cafile, server_certificate_hashes=hashes, verify=not insecure)
    opening = open_webtransport(asked, tls=tls, handshake_timeout=timeout)
    tell = _tell_in_json if as_json else _tell_in_words

    async def main() -> None:
        async with AsyncExitStack() as stack:
            try:
                session = await stack.enter_async_context(opening)
            except socket.gaierror as exc:
                raise cannot_find(asked, exc) from exc

            async def play() -> None:
                tell("open", {"url": asked, "drafts": session.statistics().dialect})
                try:
                    result = await run_baton(session, on_move=partial(_tell_move, tell))
                except ValueError as exc:
                    # Its URL is what the server has accepted.
                    raise CommandFailed(
                        f"the server has accepted an invalid request: {exc}"
                    ) from exc
                tell("end", asdict(result))
                _check(result)

            _, caught = await until_signalled(play)
            if caught is not None:
                # None of the draft's codes: nobody has made a mistake.
                session.close_now(0, "interrupted")
                raise Interrupted(caught)

    run_trio(main)


def _complete(url: str, fields: dict[str, int | None]) -> str:
    """The URL to ask for.

    Raises:
        ValueError: it is no https URL.
        click.UsageError: its query, and the options, say different things.
    """
    parse_https_url(url)
    given = {name: value for name, value in fields.items() if value is not None}
    parts = urlsplit(url)
    if parts.query:
        if given:
            named = ", ".join(f"--{name}" for name in given)
            raise click.UsageError(f"The URL has a query: write it there instead of {named}.")
        return url
    path = parts.path if parts.path.strip("/") else BATON_PATH
    return f"https://{parts.netloc}{path}?{urlencode({'version': 0, 'count': 1, **given})}"


def _check(result: BatonResult) -> None:
    if result.reset:
        lost = "1 baton was" if result.reset == 1 else f"{result.reset} batons were"
        raise CommandFailed(f"{lost} lost: the server has reset or stopped a stream")


# ---- what is printed


def _tell_move(tell: Callable[[str, dict[str, Any]], None], move: BatonMove) -> None:
    told = asdict(move)
    tell(told.pop("what"), told)


def _tell_in_json(what: str, told: dict[str, Any]) -> None:
    click.echo(json.dumps({"what": what, **told}))


def _tell_in_words(what: str, told: dict[str, Any]) -> None:
    match what:
        case "open":
            line = f"opened {told['url']}, drafts {told['drafts']}"
        case "end":
            line = (
                f"{told['finished']} came to 0, {told['reset']} lost; "
                f"on streams {told['received']} received, {told['sent']} sent; "
                f"in datagrams {told['datagrams_received']} received, {told['datagrams_sent']} sent"
            )
        case "lost":
            value = "a baton" if told["value"] is None else told["value"]
            line = f"lost {value}: {told['by']} {told['stream_id']} was reset or stopped"
        case _:
            in_datagram = told["stream_id"] is None
            by = "in a datagram" if in_datagram else f"on {told['by']} {told['stream_id']}"
            line = f"{what} {told['value']} {by}"
    click.echo(escape(line))
