"""The endpoints that other implementations are tried out with, for any application."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Final

from .._headers import Headers
from .._http.request import Request, Response
from .._version import __version__
from .._webtransport.session import WebTransportSession
from ..app import App, Context, HTTPError, json_response
from ._baton import serve_baton
from ._baton_rules import BATON_PATH, BatonSettings, Query
from ._echo import serve_echo
from ._stats import serve_stats, stats_of_request

__all__ = ["add_endpoints"]

_DEFAULTS: Final = BatonSettings()
_NOT_KEPT: Final = Headers([("Cache-Control", "no-store")])


def add_endpoints(
    app: App,
    *,
    subprotocols: Sequence[str] = (),
    baton: BatonSettings = _DEFAULTS,
) -> None:
    """Add the interop endpoints to an application.

    - ``/echo`` sends back what comes in a session of either kind: `serve_echo`.
    - ``/stats`` tells in JSON what the server knows of a session of either kind, `serve_stats`, or of a plain request.
    - ``/webtransport/devious-baton`` plays the baton: `serve_baton`. What is no valid request for batons is answered with status 400.
    - ``/status`` tells in JSON how the server is, since when, and how many requests and sessions it has had; ``/health`` says ``ok``.

    Args:
        app: the application; its Origins hold here too. It is its figures that ``/status`` tells.
        subprotocols: the subprotocols that ``/echo`` and ``/stats`` support, best first.
        baton: how to play it.

    Raises:
        ValueError: the application has such a route already, or a subprotocol is not valid.
    """
    # Of no moment to anybody's tests, which have Trio's clock; and there may be none yet.
    started = time.monotonic()

    @asynccontextmanager
    async def check_query(context: Context) -> AsyncIterator[None]:
        try:
            Query.parse(context.request.query, baton.max_count)
        except ValueError as exc:
            raise HTTPError(400, f"{exc}\n") from None
        yield

    async def play(session: WebTransportSession) -> None:
        await serve_baton(session, baton)

    def stats(request: Request) -> Response:
        return json_response(stats_of_request(request), headers=_NOT_KEPT)

    def status(request: Request) -> Response:
        told = {
            "healthy": True,
            "version": __version__,
            "uptime": round(time.monotonic() - started, 3),
            "totals": asdict(app.statistics()),
        }
        return json_response(told, headers=_NOT_KEPT)

    def health(request: Request) -> str:
        return "ok\n"

    app.session("/echo", subprotocols=subprotocols)(serve_echo)
    app.session("/stats", subprotocols=subprotocols)(serve_stats)
    app.http("/stats")(stats)
    app.webtransport(BATON_PATH, middleware=[check_query])(play)
    app.http("/status")(status)
    app.http("/health")(health)
