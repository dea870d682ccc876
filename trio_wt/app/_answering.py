"""How a request is answered: middlewares around a handler, and what becomes of their errors."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from .._headers import HeadersLike
from .._http.exchange import Exchange, rejection_of
from .._http.request import Accept, Reject, Request
from .._protocol.handshake import (
    BadRequest,
    check_extra_headers,
    choose_subprotocol,
    origin_allowed,
)
from ._context import Context, HTTPError, Kind, Middleware
from ._endpoints import Endpoint, Leaf
from ._figures import Figures
from ._responses import response_of

__all__ = [
    "Finish",
    "kind_of",
    "no_route",
    "refuse",
    "respond",
    "run_page",
    "run_session",
    "surround",
]

#: What is left to do inside of the middlewares.
Finish: TypeAlias = Callable[[], Awaitable[None]]


class _Options(HTTPError):
    """The answer to OPTIONS, which is no error, but has no handler either."""

    def __init__(self, allow: HeadersLike) -> None:
        super().__init__(405, "", allow)
        self.status = 204


def kind_of(request: Request) -> Kind:
    """What a request is for."""
    if request.is_websocket:
        return "websocket"
    return "webtransport" if request.is_webtransport else "http"


def no_route(request: Request, found: Sequence[Leaf]) -> HTTPError:
    """The answer to a request that no handler is for."""
    if not found:
        return HTTPError(404, "there is nothing here\n")
    allowed = sorted({method for leaf in found for method in leaf.allowed()})
    allow = [("Allow", ", ".join(allowed))]
    if request.method == "OPTIONS":
        return _Options(allow)
    takes_websockets = any("websocket" in leaf.sessions for leaf in found)
    if request.http_version != "3" and request.method == "GET" and takes_websockets:
        # RFC 9110 section 15.5.22
        upgrade = [("Upgrade", "websocket"), ("Connection", "Upgrade")]
        return HTTPError(426, "this is for WebSockets\n", upgrade)
    return HTTPError(405, f"this takes {', '.join(allowed)} only\n", allow)


async def refuse(refusal: HTTPError) -> None:
    """What there is to do for a request that no handler is for."""
    raise refusal


async def surround(
    layers: Sequence[Middleware], context: Context, exchange: Exchange, finish: Finish
) -> None:
    """Do what is to be done inside of some middlewares; an error that one raises is answered inside of those around it."""
    refusal: Reject | None = None
    try:
        if layers:
            async with layers[0](context):
                await surround(layers[1:], context, exchange, finish)
        else:
            await finish()
    except (HTTPError, BadRequest, ExceptionGroup) as exc:
        refusal = _refusal_of(exc)
        if refusal is None or exchange.answered:
            raise
    if refusal is not None:
        await respond(exchange, context, refusal)


def _refusal_of(exc: Exception) -> Reject | None:
    """The answer that an exception asks for; None if it asks for none."""
    if isinstance(exc, ExceptionGroup):
        # As a nursery raises it.
        return _refusal_of(exc.exceptions[0]) if len(exc.exceptions) == 1 else None
    if isinstance(exc, BadRequest):
        return rejection_of(exc)
    if not isinstance(exc, HTTPError):
        return None
    body = exc.body if exc.body is not None else f"{exc.status}\n"
    return Reject(exc.status, exc.headers, body.encode() if isinstance(body, str) else body)


async def respond(exchange: Exchange, context: Context, response: Reject) -> None:
    """Send a plain response, with the headers that middlewares have added."""
    context.status = response.status
    headers = context.headers + response.headers.fields
    await exchange.respond(Reject(response.status, headers, response.body))


async def run_page(endpoint: Endpoint, context: Context, exchange: Exchange) -> None:
    """Run the handler of a plain request, and send what it returns."""
    result = endpoint.call(context, context.request)
    if inspect.isawaitable(result):
        result = await result
    await respond(exchange, context, response_of(result))


async def run_session(
    endpoint: Endpoint, context: Context, exchange: Exchange, figures: Figures
) -> None:
    """Open a session, and run its handler."""
    request = context.request
    origins = endpoint.app.origins if endpoint.origins is None else endpoint.origins
    if not origin_allowed(request.origin, request.host, origins):
        raise HTTPError(403, "this Origin is not allowed\n")
    subprotocol = choose_subprotocol(request.subprotocols, endpoint.subprotocols)
    check_extra_headers(context.headers)
    block, session = await exchange.accept(Accept(subprotocol, context.headers))
    context.status = 101 if request.http_version != "3" else 200
    context.session = session
    figures.opened(context)
    async with block:
        await endpoint.call(context, session)
