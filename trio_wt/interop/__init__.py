"""Programs that implementations of WebSocket and WebTransport try each other out with.

`add_endpoints` gives an application ``/echo``, ``/stats``, ``/status`` and the devious baton; ``trio-wt serve`` has them too::

    app = App(origins="any")
    add_endpoints(app)
    trio.run(partial(app.serve, None, 4433, tls=...))

The devious baton (draft-frindell-webtrans-devious-baton-00): a baton is a byte; it goes back and forth between client and server,
one more at each pass, over streams of all kinds, until it is 0::

    await serve_webtransport(serve_baton, 4433, tls=..., on_request=check_baton_request)

    async with open_webtransport(baton_url("https://localhost:4433", count=3), tls=...) as session:
        result = await run_baton(session)
"""

from ._baton import baton_url, check_baton_request, run_baton, serve_baton
from ._baton_rules import (
    BATON_PATH,
    BatonFailed,
    BatonMove,
    BatonResult,
    BatonSessionError,
    BatonSettings,
    BatonStreamError,
)
from ._echo import serve_echo
from ._endpoints import add_endpoints
from ._stats import serve_stats

__all__ = [
    "BATON_PATH",
    "BatonFailed",
    "BatonMove",
    "BatonResult",
    "BatonSessionError",
    "BatonSettings",
    "BatonStreamError",
    "add_endpoints",
    "baton_url",
    "check_baton_request",
    "run_baton",
    "serve_baton",
    "serve_echo",
    "serve_stats",
]
