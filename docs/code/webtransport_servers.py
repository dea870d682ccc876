"""A WebTransport server that faces the world."""

from __future__ import annotations

import signal
from urllib.parse import parse_qs

import trio

import trio_wt

TOKENS = {"s3cret": "ann"}


async def session(session: trio_wt.WebTransportSession) -> None:
    room = session.request.path.removeprefix("/rooms/")
    name = parse_qs(session.request.query).get("name", ["somebody"])[0]
    async with session.open_send_stream() as stream:
        await stream.send_all(f"{name} in {room}, {session.subprotocol}".encode())


def front_desk(request: trio_wt.Request) -> None:
    if not request.asks_for_session:
        if request.path == "/health":
            request.respond(200, body="ok\n")
        return  # the rest gets 404
    if not request.path.startswith("/rooms/"):
        request.reject(404, body="rooms are at /rooms/NAME\n")
        return
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme != "Bearer" or token not in TOKENS:
        request.reject(401, [("WWW-Authenticate", "Bearer")], "who are you?\n")
    elif "chat.v2" in request.subprotocols:
        request.accept(subprotocol="chat.v2", headers=[("X-Name", TOKENS[token])])


async def main(
    port: int = 4433,
    task_status: trio.TaskStatus[list[trio_wt.DatagramSocket]] = trio.TASK_STATUS_IGNORED,
) -> None:
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_on_signal, stop)
        await trio_wt.serve_webtransport(
            session,
            port,
            tls=trio_wt.ServerTLS(trio_wt.Certificate.load("cert.pem", "key.pem")),
            on_request=front_desk,
            subprotocols=["chat.v1"],
            origins=["https://app.example.com", "https://example.com"],
            max_sessions=4,
            max_streams=16,
            session_window=2**18,
            max_session_window=2**20,
            idle_timeout=60,
            shutdown=stop,
            shutdown_timeout=10,
            task_status=task_status,
        )
        nursery.cancel_scope.cancel()


async def stop_on_signal(stop: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            stop.set()


if __name__ == "__main__":
    trio.run(main)
