"""How a request is answered: middlewares around a handler, and what becomes of their errors."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import trio

from .._errors import ConnectionClosed, TrioWTError
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
    "ClientGone",
    "Finish",
    "kind_of",
    "no_route",
    "refuse",
    "respond",
    "run_page",
    "run_session",
    "sole",
    "surround",
]

#: What is left to do inside of the middlewares.
Finish: TypeAlias = Callable[[], Awaitable[None]]


class ClientGone(TrioWTError):
    """The client has left before its session was open; what it left with is the cause."""

    def __str__(self) -> str:
        return f"the client has left before its session was open: {self.__cause__}"


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
    if request.method == "OPTIONS" and request.raw_path == "*":
        return _Options(())  # of the server as a whole (RFC 9110 section 9.3.7)
    if not found:
        return HTTPError(404, "there is nothing here\n")
    allowed = sorted(set().union(*(leaf.allowed(request.http_version) for leaf in found)))
    allow = [("Allow", ", ".join(allowed))]
    if request.method == "OPTIONS":
        return _Options(allow)
    if request.method in allowed and request.asks_for_session:
        # RFC 9220 section 3
        return HTTPError(501, "this takes another kind of session\n")
    takes_websockets = any("websocket" in leaf.sessions for leaf in found)
    if request.http_version != "3" and request.method == "GET" and takes_websockets:
        # RFC 9110 section 15.5.22
        upgrade = [("Upgrade", "websocket"), ("Connection", "Upgrade")]
        return HTTPError(426, "this is for WebSockets\n", upgrade)
    return HTTPError(405, f"this takes {', '.join(allowed)} only\n", allow)


async def refuse(refusal: HTTPError) -> None:
    """What there is to do for a request that no handler is for."""
    await trio.lowlevel.checkpoint()
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
        if refusal is not None and exchange.answered and context.status is None:
            # A client that does not take its acceptance has no answer to get any more.
            raise ClientGone from exc
        if refusal is None or exchange.answered:
            raise
    if refusal is not None:
        await respond(exchange, context, refusal)


def sole(exc: BaseException) -> BaseException:
    """An exception, out of the groups that nurseries have put it in, if it is alone there."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def _refusal_of(exc: BaseException) -> Reject | None:
    """The answer that an exception asks for; None if it asks for none."""
    exc = sole(exc)
    if isinstance(exc, BadRequest):
        return rejection_of(exc)
    if not isinstance(exc, HTTPError):
        return None
    body = exc.body if exc.body is not None else f"{exc.status}\n"
    return Reject(exc.status, exc.headers, body.encode() if isinstance(body, str) else body)


async def respond(exchange: Exchange, context: Context, response: Reject) -> None:
    """Send a plain response, with the headers that middlewares have added."""
    await trio.lowlevel.checkpoint_if_cancelled()
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
    try:
        block, session = await exchange.accept(Accept(subprotocol, context.headers))
    except (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
        raise ClientGone from exc
    context.status = 101 if request.http_version != "3" else 200
    context.session = session
    kind = context.kind
    figures.opened(kind)
    try:
        async with block:
            running = endpoint.call(context, session)
            if not inspect.isawaitable(running):
                raise TypeError(f"the handler of {context.route} is for sessions and must be async")
            await running
    finally:
        figures.ended(kind)
