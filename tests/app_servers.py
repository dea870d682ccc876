"""Applications served in memory, over HTTP/1.1 and HTTP/3 at once, and clients for both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from math import inf
from typing import Literal

import trio
import trio.testing

from tests.webtransport_pairs import HOST, PORT, certificate, connect, visit
from trio_wt import (
    Headers,
    ServerTLS,
    WebSocket,
    WebTransportConnection,
    WebTransportSession,
)
from trio_wt._http.exchange import Exchange
from trio_wt._websocket.client import wrap_client_stream
from trio_wt._websocket.server import serve_http1
from trio_wt._websocket.settings import Settings
from trio_wt._webtransport.server import serve_http3
from trio_wt._webtransport.settings import WebTransportSettings
from trio_wt.app import App, Response
from trio_wt.testing import Network

__all__ = ["BOTH", "Version", "Served", "parse_response", "serving_in_memory"]

Version = Literal["1.1", "3"]
BOTH: Sequence[Version] = ("1.1", "3")


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """Gives streams that clients have opened without a network."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](inf)

    def connect(self, *, buffered: bool = True) -> trio.abc.Stream:
        pair = (
            trio.testing.memory_stream_pair() if buffered else trio.testing.lockstep_stream_pair()
        )
        self._send.send_nowait(pair[1])
        return pair[0]

    async def accept(self) -> trio.abc.Stream:
        return await self._receive.receive()

    async def aclose(self) -> None:
        self._receive.close()
        await trio.lowlevel.checkpoint()


class Served:
    """An application that is being served."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.listener = MemoryListener()
        self.network = Network()
        self.shutdown = trio.Event()

    async def ask(
        self,
        version: Version,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """What a plain request gets."""
        if version == "3":
            async with self.connect() as connection:
                return await connection.request(method, target, headers=headers or {})
        fields = {"Host": f"{HOST}:{PORT}", **(headers or {})}
        lines = [
            f"{method} {target} HTTP/1.1",
            *(f"{name}: {value}" for name, value in fields.items()),
        ]
        return await self.ask_raw("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def ask_raw(self, request: bytes) -> Response:
        """What these bytes get over HTTP/1.1."""
        stream = self.listener.connect()
        async with stream:
            await stream.send_all(request)
            answer = b""
            while data := await stream.receive_some():
                answer += data
        return parse_response(answer)

    def connect(self) -> AbstractAsyncContextManager[WebTransportConnection]:
        """A connection of HTTP/3."""
        return connect(self.network)

    def webtransport(
        self, path: str, **options: object
    ) -> AbstractAsyncContextManager[WebTransportSession]:
        return visit(self.network, path, **options)

    @asynccontextmanager
    async def websocket(
        self, version: Version, path: str, **options: object
    ) -> AsyncIterator[WebSocket]:
        if version == "1.1":
            async with wrap_client_stream(
                self.listener.connect(),
                f"ws://{HOST}:{PORT}{path}",
                **options,  # type: ignore[arg-type]
            ) as websocket:
                yield websocket
        else:
            async with (
                self.connect() as connection,
                connection.open_websocket(path, **options) as websocket,  # type: ignore[arg-type]
            ):
                yield websocket

    @asynccontextmanager
    async def session(
        self,
        kind: Literal["websocket 1.1", "websocket 3", "webtransport"],
        path: str,
        **options: object,
    ) -> AsyncIterator[WebSocket | WebTransportSession]:
        """A session of any kind."""
        if kind == "webtransport":
            async with self.webtransport(path, **options) as session:
                yield session
        else:
            version: Version = "1.1" if kind == "websocket 1.1" else "3"
            async with self.websocket(version, path, **options) as websocket:
                yield websocket


def parse_response(answer: bytes) -> Response:
    """A response as it came over TCP; nothing at all is an error."""
    head, end, body = answer.partition(b"\r\n\r\n")
    assert end, f"no whole response: {answer!r}"
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = [(line.partition(":")[0], line.partition(":")[2].strip()) for line in lines]
    return Response(int(first.split()[1]), Headers(fields), body)


@asynccontextmanager
async def serving_in_memory(
    app: App,
    *,
    handler_errors: Literal["log", "raise"] = "log",
    handshake_timeout: float = 10,
    shutdown_timeout: float = 10,
    headers: Headers = Headers(),  # noqa: B008
) -> AsyncIterator[Served]:
    """Serve an application for as long as the block lasts, then cancel what is left."""
    served = Served(app)

    async def answer(exchange: Exchange) -> None:
        await app._answer(exchange, headers, raise_errors=handler_errors == "raise")

    common = {
        "handshake_timeout": handshake_timeout,
        "shutdown": served.shutdown,
        "shutdown_timeout": shutdown_timeout,
        "handler_errors": handler_errors,
    }
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                serve_http1,
                answer,
                [served.listener],
                ssl_context=None,
                settings=Settings(),
                **common,  # type: ignore[arg-type]
            )
        )
        await nursery.start(
            partial(
                serve_http3,
                answer,
                [served.network.socket((HOST, PORT))],
                tls=ServerTLS(certificate()),
                settings=WebTransportSettings(),
                websocket_settings=Settings(),
                **common,  # type: ignore[arg-type]
            )
        )
        yield served
        nursery.cancel_scope.cancel()
