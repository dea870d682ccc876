"""The part of ``trio-wt demo`` that is about WebTransport: sessions, streams, datagrams, and what shares their connection."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from .._errors import ConnectionClosed, StreamReset
from .._http.request import Request
from .._quic.streams import Stream
from .._quic.tls import ClientTLS, ServerTLS
from .._websocket.websocket import WebSocket
from .._webtransport.client import open_webtransport_connection
from .._webtransport.connection import WebTransportConnection
from .._webtransport.server import serve_webtransport
from .._webtransport.session import WebTransportSession
from .identity import Identity

__all__ = ["Check", "Tell", "show_webtransport"]

#: Print a subject, and what there is to say of it.
Tell = Callable[[str, str], None]
#: Fail, with the words, if the first is not so.
Check = Callable[[bool, str], None]

_STREAMS: Final = 100
_LARGE: Final = 2**20
_DATAGRAMS: Final = 20
# On loopback nothing gets lost, but nothing says so.
_PATIENCE: Final = 1.0


class _Server:
    """Echoes what comes on streams and in datagrams, and tells how streams and the session on / end."""

    def __init__(self) -> None:
        self._resets_send, self.resets = trio.open_memory_channel[StreamReset](1)
        self._ends_send, self.ends = trio.open_memory_channel[ConnectionClosed](1)

    async def handle(self, session: WebTransportSession) -> None:
        """Serve one session."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._datagrams, session)
            async for stream in session.incoming_streams:
                nursery.start_soon(self._answer, stream)
        if session.request.path == "/":
            await self._ends_send.send(await session.wait_closed())

    async def _answer(self, stream: Stream) -> None:
        try:
            async with stream:
                async for data in stream:
                    await stream.send_all(data)
        except StreamReset as exc:
            await self._resets_send.send(exc)

    async def _datagrams(self, session: WebTransportSession) -> None:
        async for data in session.datagrams:
            await session.datagrams.send(data)

    async def handle_websocket(self, websocket: WebSocket) -> None:
        """Serve a WebSocket over HTTP/3."""
        async for message in websocket:
            await websocket.send(message)


def _on_request(request: Request) -> None:
    if request.path == "/health" and not request.asks_for_session:
        request.respond(200, body="ok\n")


async def show_webtransport(tell: Tell, check: Check) -> None:
    """Run a server and a client, and tell what happens."""
    server, stop = _Server(), trio.Event()
    certificate = Identity.make([], tls=False, quic=True).certificate
    assert certificate is not None
    serve = partial(
        serve_webtransport,
        server.handle,
        0,
        host="127.0.0.1",
        tls=ServerTLS(certificate),
        websocket_handler=server.handle_websocket,
        on_request=_on_request,
        subprotocols=["demo"],
        shutdown=stop,
    )
    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(serve)
        url = f"https://127.0.0.1:{sockets[0].local_address[1]}/"
        tell("webtransport", f"a server listens on {url}, with a certificate made for this run")
        tls = ClientTLS(server_certificate_hashes=[certificate.sha256])
        async with open_webtransport_connection(url, tls=tls) as connection:
            async with connection.open_session("/", subprotocols=["demo"]) as session:
                check(session.subprotocol == "demo", "the session's subprotocol was not agreed on")
                dialect = session.statistics().dialect
                tell("session", f"HTTP/3 200, subprotocol demo, drafts {dialect}")
                await _streams(session, tell, check)
                await _datagrams(session, tell, check)
                await _cancellation(session, server, tell, check)
                await _neighbours(connection, tell, check)
            end = await server.ends.receive()
            check(end.code == 0 and end.remote, f"at the session's end the server saw: {end}")
            tell("goodbye", f"the client left the session's block; the server saw: {end}")
        stop.set()


async def _ask(session: WebTransportSession, question: bytes) -> bytes:
    async with session.open_stream() as stream, trio.open_nursery() as nursery:
        # Both at once: what comes back would be in the way of what is yet to go.
        nursery.start_soon(partial(stream.send_all, question, eof=True))
        answer = await stream.receive_all(len(question))
    return answer  # noqa: RET504  # not from within a nursery


async def _streams(session: WebTransportSession, tell: Tell, check: Check) -> None:
    answers: list[bool] = []

    async def ask(number: int) -> None:
        question = f"question {number}".encode()
        answers.append(await _ask(session, question) == question)

    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(_STREAMS):
            nursery.start_soon(ask, number)
    check(answers == [True] * _STREAMS, "a stream came back changed")
    took = (trio.current_time() - begin) * 1000
    tell("streams", f"{_STREAMS} at once, each with its answer, in {took:.0f} ms")
    data = bytes(range(256)) * (_LARGE // 256)
    begin = trio.current_time()
    check(await _ask(session, data) == data, "a large stream came back changed")
    took = (trio.current_time() - begin) * 1000
    tell("large stream", f"{_LARGE} bytes there and back in {took:.0f} ms")


async def _datagrams(session: WebTransportSession, tell: Tell, check: Check) -> None:
    expected = {f"datagram {number}".encode() for number in range(_DATAGRAMS)}
    for data in expected:
        await session.datagrams.send(data)
    received: set[bytes] = set()
    with trio.move_on_after(_PATIENCE):
        while received != expected:
            received.add(await session.datagrams.receive())
    check(bool(received) and received <= expected, "no datagram came back unchanged")
    size = session.datagrams.max_size
    tell("datagrams", f"{len(received)} of {_DATAGRAMS} came back; one has {size} bytes at most")


async def _cancellation(
    session: WebTransportSession, server: _Server, tell: Tell, check: Check
) -> None:
    async with session.open_stream() as stream:
        await stream.send_all(b"a question that is given up")
        await stream.receive_some()
        stream.cancel_scope.cancel()
        await trio.sleep_forever()
    reset = await server.resets.receive()
    check(reset.code == 1 and reset.remote, f"after a cancellation the server saw: {reset}")
    check(await _ask(session, b"x") == b"x", "a cancelled stream harmed another")
    tell("cancelled", f"a stream's block was cancelled; the server saw: {reset}")


async def _neighbours(connection: WebTransportConnection, tell: Tell, check: Check) -> None:
    async with connection.open_session("/another") as another:
        check(await _ask(another, b"x") == b"x", "the second session was not answered")
        sessions = connection.open_sessions
    async with connection.open_websocket("/") as websocket:
        await websocket.send("hello")
        check(await websocket.receive() == "hello", "the WebSocket's message came back changed")
    response = await connection.request("GET", "/health")
    check(response.status == 200, f"GET /health was answered with status {response.status}")
    tell("connection", f"{sessions} sessions, a WebSocket and GET /health shared it")
