"""Applications: routes, middleware, typed messages, rooms, and clients that stay up."""

from .._http.request import Request, Response
from ._app import App, Lifespan
from ._certificates import ReloadingTLS
from ._context import Context, HTTPError, Kind, Middleware, Session, State, StateKey
from ._figures import AppStatistics
from ._responses import html_response, json_response
from ._routing import Converter
from ._serving import Serving

__all__ = [
    "App",
    "AppStatistics",
    "Context",
    "Converter",
    "HTTPError",
    "Kind",
    "Lifespan",
    "Middleware",
    "ReloadingTLS",
    "Request",
    "Response",
    "Serving",
    "Session",
    "State",
    "StateKey",
    "html_response",
    "json_response",
]
