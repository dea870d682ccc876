"""One program for a page and for the sessions of the page."""

from __future__ import annotations

import base64
from functools import partial
from pathlib import Path
from typing import NoReturn

import trio

import trio_wt


async def echo(session: trio_wt.WebTransportSession) -> None:
    async for stream in session.incoming_streams:
        async with stream:
            await stream.send_all(await stream.receive_all())


async def no_websockets(ws: trio_wt.WebSocket) -> NoReturn:
    raise AssertionError("the page opens none")  # not reached


def answer(page: str, request: trio_wt.Request) -> None:
    if request.is_websocket:
        request.reject(404)
    elif request.path == "/" and not request.is_webtransport:
        request.respond(200, [("Content-Type", "text/html; charset=utf-8")], page)


async def main(port: int = 8080) -> None:
    certificate = trio_wt.Certificate.load("cert.pem", "key.pem")
    digest = base64.b64encode(certificate.sha256).decode()
    page = Path(__file__).with_name("webtransport_page.html").read_text()
    on_request = partial(answer, page.replace("@HASH@", digest))
    async with trio.open_nursery() as nursery:
        tls = trio_wt.ServerTLS(certificate)
        by_udp = partial(
            trio_wt.serve_webtransport, echo, port, host="127.0.0.1", tls=tls, on_request=on_request
        )
        nursery.start_soon(by_udp)
        by_tcp = partial(
            trio_wt.serve_websocket, no_websockets, port, host="127.0.0.1", on_request=on_request
        )
        nursery.start_soon(by_tcp)


if __name__ == "__main__":
    trio.run(main)
