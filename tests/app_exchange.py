"""Applications asked one request at a time, without a server."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio
import trio.testing

from trio_wt import Headers, Response, Settings, WebSocket
from trio_wt._headers import HeadersLike
from trio_wt._http.exchange import Exchange
from trio_wt._http.request import Accept, Reject, Request
from trio_wt._transport.tcp import transport_of
from trio_wt._websocket.connection import Connection
from trio_wt.app import App

__all__ = ["MemoryExchange", "ask", "logged", "request_of"]


def request_of(
    target: str = "/",
    headers: HeadersLike = (),
    *,
    method: str = "GET",
    peer: Any = ("192.0.2.1", 50000),
    **more: Any,
) -> Request:
    """A request as a server gives it."""
    more = {"http_version": "1.1", "scheme": "http", "host": "server.test", **more}
    return Request(method=method, target=target, headers=Headers(headers), peer=peer, **more)


class MemoryExchange(Exchange):
    """Records what a request is answered with. A WebSocket's other end is a client in memory.

    Attributes:
        response: the plain response.
        accepted: the acceptance.
        block: the client's block, to be entered by the test.
        client: the WebSocket in it.
    """

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.response: Reject | None = None
        self.accepted: Accept | None = None
        self.block: Connection | None = None
        self.client: WebSocket | None = None

    async def accept(self, accepted: Accept) -> tuple[Connection, WebSocket]:
        await trio.lowlevel.checkpoint()
        self.answered = True
        self.accepted = accepted
        ends = []
        for stream, client in zip(trio.testing.memory_stream_pair(), (True, False), strict=True):
            transport = transport_of(stream, owned=True)
            block = Connection(transport, client=client, codecs=(), settings=Settings())
            websocket = WebSocket(
                block,
                request=self.request,
                response_headers=accepted.headers,
                subprotocol=accepted.subprotocol,
            )
            ends.append((block, websocket))
        (self.block, self.client), server = ends
        return server

    async def respond(self, response: Reject) -> None:
        assert not self.answered
        self.answered = True
        self.response = response
        await trio.lowlevel.checkpoint()


async def ask(app: App, target: str = "/", headers: HeadersLike = (), **more: Any) -> Response:
    """What an application answers to a plain request, or to one for a session that it refuses."""
    exchange = MemoryExchange(request_of(target, headers, **more))
    await app._answer(exchange, Headers(), raise_errors=False)
    response = exchange.response
    assert response is not None, "a session was opened"
    return Response(response.status, response.headers, response.body)


@contextmanager
def logged(name: str, level: int = logging.DEBUG) -> Iterator[list[logging.LogRecord]]:
    """What goes to a logger meanwhile."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger, handler = logging.getLogger(name), Keep()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
