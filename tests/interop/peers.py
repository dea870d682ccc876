"""The peers behind one face: an echo server, and a client that is told what to do.

A peer's server echoes; to the text "close 4001 why" it answers with that Close, and to "drop" by dropping the
connection. A peer's client sends messages one by one (a list as fragments), collects the answers, pings where it can, and
closes with a code.
"""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import trio

from tests.interop.asyncio_thread import asyncio_server, in_asyncio
from tests.peers import require

Message = str | bytes | list[str] | list[bytes]
LIMIT = 8 * 2**20


def command(message: object) -> tuple[int, str] | None:
    """What "close CODE REASON" asks for."""
    if isinstance(message, str) and message.startswith("close "):
        _, code, reason = message.split(" ", 2)
        return int(code), reason
    return None


class Peer(ABC):
    name: ClassVar[str]
    deflates: ClassVar[bool] = True
    fragments: ClassVar[bool] = True
    tls: ClassVar[bool] = True

    @abstractmethod
    def server(self, context: ssl.SSLContext | None) -> Any:
        """An async context manager with the port of an echo server, which speaks the subprotocol "echo"."""

    @abstractmethod
    async def client(
        self, url: str, messages: Sequence[Message], code: int, context: ssl.SSLContext | None
    ) -> list[str | bytes]:
        """Send, collect the answers, ping, and close with ``code`` and the reason "done"."""

    @abstractmethod
    async def closed_by(self, url: str) -> tuple[int, str]:
        """Connect and wait for the server's Close."""

    @abstractmethod
    async def rejected(self, url: str) -> int:
        """Connect, and give the status of the rejection."""


class WebsocketsAsyncio(Peer):
    name = "websockets asyncio"

    @asynccontextmanager
    async def server(self, context: ssl.SSLContext | None) -> AsyncIterator[int]:
        require("websockets")
        from websockets.asyncio.server import serve

        async def echo(ws: Any) -> None:
            async for message in ws:
                if message == "drop":
                    ws.transport.abort()
                elif (close := command(message)) is not None:
                    await ws.close(*close)
                else:
                    await ws.send(message)

        async def start() -> tuple[int, Any]:
            server = await serve(
                echo, "127.0.0.1", 0, ssl=context, subprotocols=["echo"], max_size=LIMIT
            )

            async def close() -> None:
                server.close()
                await server.wait_closed()

            return server.sockets[0].getsockname()[1], close

        async with asyncio_server(start) as port:
            yield port

    async def client(
        self, url: str, messages: Sequence[Message], code: int, context: ssl.SSLContext | None
    ) -> list[str | bytes]:
        require("websockets")
        from websockets.asyncio.client import connect

        async def run() -> list[str | bytes]:
            answers = []
            async with connect(
                url, ssl=context, subprotocols=["echo"], max_size=LIMIT, proxy=None
            ) as ws:
                assert ws.subprotocol == "echo"
                for message in messages:
                    await ws.send(message)
                    answers.append(await ws.recv())
                await (await ws.ping())
                await ws.close(code, "done")
                assert ws.close_code == code
            return answers

        return await in_asyncio(run)

    async def closed_by(self, url: str) -> tuple[int, str]:
        require("websockets")
        from websockets.asyncio.client import connect

        async def run() -> tuple[int, str]:
            async with connect(url, proxy=None) as ws:
                await ws.wait_closed()
                return ws.close_code, ws.close_reason

        return await in_asyncio(run)

    async def rejected(self, url: str) -> int:
        require("websockets")
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidStatus

        async def run() -> int:
            try:
                async with connect(url, proxy=None):
                    return 101
            except InvalidStatus as exc:
                return exc.response.status_code

        return await in_asyncio(run)


class WebsocketsTrio(Peer):
    name = "websockets trio"

    @asynccontextmanager
    async def server(self, context: ssl.SSLContext | None) -> AsyncIterator[int]:
        serve = require("websockets.trio.server").serve

        async def echo(ws: Any) -> None:
            async for message in ws:
                if message == "drop":
                    await trio.aclose_forcefully(ws.stream)
                elif (close := command(message)) is not None:
                    await ws.aclose(*close)
                else:
                    await ws.send(message)

        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                lambda task_status: serve(
                    echo,
                    0,
                    host="127.0.0.1",
                    ssl=context,
                    subprotocols=["echo"],
                    max_size=LIMIT,
                    task_status=task_status,
                )
            )
            yield server.listeners[0].socket.getsockname()[1]
            nursery.cancel_scope.cancel()

    async def client(
        self, url: str, messages: Sequence[Message], code: int, context: ssl.SSLContext | None
    ) -> list[str | bytes]:
        connect = require("websockets.trio.client").connect
        answers = []
        async with connect(
            url, ssl=context, subprotocols=["echo"], max_size=LIMIT, proxy=None
        ) as ws:
            assert ws.subprotocol == "echo"
            for message in messages:
                await ws.send(message)
                answers.append(await ws.recv())
            await ws.ping()
            await ws.aclose(code, "done")
            assert ws.close_code == code
        return answers

    async def closed_by(self, url: str) -> tuple[int, str]:
        connect = require("websockets.trio.client").connect
        exceptions = require("websockets.exceptions")
        async with connect(url, proxy=None) as ws:
            try:
                await ws.recv()
            except exceptions.ConnectionClosed as exc:
                assert exc.rcvd is not None
                return exc.rcvd.code, exc.rcvd.reason
        raise AssertionError("a message came")

    async def rejected(self, url: str) -> int:
        connect = require("websockets.trio.client").connect
        exceptions = require("websockets.exceptions")
        try:
            async with connect(url, proxy=None):
                return 101
        except exceptions.InvalidStatus as exc:
            return int(exc.response.status_code)


class TrioWebsocket(Peer):
    name = "trio-websocket"
    deflates = False
    fragments = False

    @asynccontextmanager
    async def server(self, context: ssl.SSLContext | None) -> AsyncIterator[int]:
        module = require("trio_websocket")

        async def echo(request: Any) -> None:
            ws = await request.accept(subprotocol="echo")
            while True:
                try:
                    message = await ws.get_message()
                    if message == "drop":
                        await trio.aclose_forcefully(ws._stream)
                    elif (close := command(message)) is not None:
                        await ws.aclose(*close)
                    else:
                        await ws.send_message(message)
                except module.ConnectionClosed:
                    return

        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                lambda task_status: module.serve_websocket(
                    echo, "127.0.0.1", 0, context, max_message_size=LIMIT, task_status=task_status
                )
            )
            yield server.port
            nursery.cancel_scope.cancel()

    async def client(
        self, url: str, messages: Sequence[Message], code: int, context: ssl.SSLContext | None
    ) -> list[str | bytes]:
        module = require("trio_websocket")
        answers = []
        async with module.open_websocket_url(
            url, context, subprotocols=["echo"], max_message_size=LIMIT
        ) as ws:
            assert ws.subprotocol == "echo"
            for message in messages:
                await ws.send_message(message)
                answers.append(await ws.get_message())
            await ws.ping()
            await ws.aclose(code, "done")
            assert ws.closed.code == code
        return answers

    async def closed_by(self, url: str) -> tuple[int, str]:
        module = require("trio_websocket")
        async with module.open_websocket_url(url) as ws:
            try:
                await ws.get_message()
            except module.ConnectionClosed as exc:
                return exc.reason.code, exc.reason.reason or ""
        raise AssertionError("a message came")

    async def rejected(self, url: str) -> int:
        module = require("trio_websocket")
        try:
            async with module.open_websocket_url(url):
                return 101
        except module.ConnectionRejected as exc:
            return int(exc.status_code)


class Aiohttp(Peer):
    name = "aiohttp"
    fragments = False

    @asynccontextmanager
    async def server(self, context: ssl.SSLContext | None) -> AsyncIterator[int]:
        aiohttp = require("aiohttp")
        web = require("aiohttp.web")

        async def echo(request: Any) -> Any:
            ws = web.WebSocketResponse(protocols=["echo"], max_msg_size=LIMIT)
            await ws.prepare(request)
            async for message in ws:
                if message.data == "drop":
                    request.transport.abort()
                elif (close := command(message.data)) is not None:
                    await ws.close(code=close[0], message=close[1].encode())
                elif message.type is aiohttp.WSMsgType.TEXT:
                    await ws.send_str(message.data)
                else:
                    await ws.send_bytes(message.data)
            return ws

        async def start() -> tuple[int, Any]:
            app = web.Application()
            app.router.add_get("/", echo)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
            await site.start()
            return runner.addresses[0][1], runner.cleanup

        async with asyncio_server(start) as port:
            yield port

    async def client(
        self, url: str, messages: Sequence[Message], code: int, context: ssl.SSLContext | None
    ) -> list[str | bytes]:
        aiohttp = require("aiohttp")

        async def run() -> list[str | bytes]:
            answers = []
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(
                    url, ssl=context or True, protocols=["echo"], max_msg_size=LIMIT, compress=15
                ) as ws,
            ):
                assert ws.protocol == "echo"
                for message in messages:
                    if isinstance(message, str):
                        await ws.send_str(message)
                    else:
                        await ws.send_bytes(message)
                    answers.append((await ws.receive()).data)
                await ws.ping(b"x")
                await ws.close(code=code, message=b"done")
                assert ws.close_code == code
            return answers

        return await in_asyncio(run)

    async def closed_by(self, url: str) -> tuple[int, str]:
        aiohttp = require("aiohttp")

        async def run() -> tuple[int, str]:
            async with aiohttp.ClientSession() as session, session.ws_connect(url) as ws:
                message = await ws.receive()
                assert message.type is aiohttp.WSMsgType.CLOSE
                return message.data, message.extra

        return await in_asyncio(run)

    async def rejected(self, url: str) -> int:
        aiohttp = require("aiohttp")

        async def run() -> int:
            try:
                async with aiohttp.ClientSession() as session, session.ws_connect(url):
                    return 101
            except aiohttp.WSServerHandshakeError as exc:
                return exc.status

        return await in_asyncio(run)


class Picows(Peer):
    name = "picows"
    deflates = False
    fragments = False
    tls = False

    @asynccontextmanager
    async def server(self, context: ssl.SSLContext | None) -> AsyncIterator[int]:
        picows = require("picows")

        class Echo(picows.WSListener):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                self.parts: list[bytes] = []
                self.kind: Any = None

            def on_ws_frame(self, transport: Any, frame: Any) -> None:
                kinds = picows.WSMsgType
                if frame.msg_type is kinds.CLOSE or frame.msg_type == kinds.CLOSE:
                    transport.send_close(frame.get_close_code(), frame.get_close_message())
                    transport.disconnect()
                    return
                if frame.msg_type == kinds.PING:
                    transport.send_pong(frame.get_payload_as_bytes())
                    return
                if frame.msg_type != kinds.CONTINUATION:
                    self.kind = frame.msg_type
                self.parts.append(frame.get_payload_as_bytes())
                if not frame.fin:
                    return
                data = b"".join(self.parts)
                self.parts.clear()
                text = data.decode() if self.kind == kinds.TEXT else None
                if text == "drop":
                    transport.underlying_transport.abort()
                elif (close := command(text)) is not None:
                    transport.send_close(close[0], close[1].encode())
                else:
                    transport.send(self.kind, data)

        async def start() -> tuple[int, Any]:
            def accept(request: Any) -> Any:
                listener = Echo()
                response = picows.WSUpgradeResponse.create_101_response(
                    extra_headers={"Sec-WebSocket-Protocol": "echo"}
                )
                return picows.WSUpgradeResponseWithListener(response, listener)

            server = await picows.ws_create_server(accept, "127.0.0.1", 0, max_frame_size=LIMIT)

            async def close() -> None:
                server.close()
                await server.wait_closed()

            return server.sockets[0].getsockname()[1], close

        async with asyncio_server(start) as port:
            yield port

    async def _talk(self, url: str, messages: Sequence[Message], code: int | None) -> Any:
        import asyncio

        picows = require("picows")
        kinds = picows.WSMsgType

        class Client(picows.WSListener):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                self.frames: asyncio.Queue[tuple[Any, bytes]] = asyncio.Queue()
                self.closed: tuple[int, str] | None = None

            def on_ws_frame(self, transport: Any, frame: Any) -> None:
                if frame.msg_type == kinds.CLOSE:
                    self.closed = (
                        int(frame.get_close_code()),
                        bytes(frame.get_close_message() or b"").decode(),
                    )
                    if code is None:
                        transport.send_close(frame.get_close_code(), frame.get_close_message())
                    transport.disconnect()
                elif frame.msg_type == kinds.PING:
                    transport.send_pong(frame.get_payload_as_bytes())
                elif frame.msg_type != kinds.PONG:
                    self.frames.put_nowait((frame.msg_type, frame.get_payload_as_bytes()))

        async def run() -> Any:
            transport, client = await picows.ws_connect(
                Client, url, max_frame_size=LIMIT, extra_headers={"Sec-WebSocket-Protocol": "echo"}
            )
            answers: list[str | bytes] = []
            for message in messages:
                if isinstance(message, str):
                    transport.send(kinds.TEXT, message.encode())
                else:
                    transport.send(kinds.BINARY, message)
                kind, data = await client.frames.get()
                answers.append(data.decode() if kind == kinds.TEXT else data)
            if code is not None:
                transport.send_ping(b"x")
                transport.send_close(code, b"done")
            await transport.wait_disconnected()
            return answers if code is not None else client.closed

        return await in_asyncio(run)

    async def client(
        self, url: str, messages: Sequence[Message], code: int, context: ssl.SSLContext | None
    ) -> list[str | bytes]:
        return await self._talk(url, messages, code)  # type: ignore[no-any-return]

    async def closed_by(self, url: str) -> tuple[int, str]:
        return await self._talk(url, [], None)  # type: ignore[no-any-return]

    async def rejected(self, url: str) -> int:
        picows = require("picows")

        async def run() -> int:
            try:
                await picows.ws_connect(picows.WSListener, url)
            except picows.WSHandshakeError as exc:
                return int(exc.response.status)
            return 101

        return await in_asyncio(run)


PEERS = [WebsocketsAsyncio(), WebsocketsTrio(), TrioWebsocket(), Aiohttp(), Picows()]
