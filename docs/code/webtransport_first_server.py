"""The first WebTransport server."""

from __future__ import annotations

from contextlib import suppress

import trio

import trio_wt


async def echo(session: trio_wt.WebTransportSession) -> None:
    async with trio.open_nursery() as nursery:
        async for stream in session.incoming_streams:
            nursery.start_soon(answer, stream)


async def answer(stream: trio_wt.Stream) -> None:
    with suppress(trio_wt.StreamReset):  # the client has given this one up
        async with stream:
            async for data in stream:
                await stream.send_all(data)


async def main() -> None:
    certificate = trio_wt.Certificate.load("cert.pem", "key.pem")
    tls = trio_wt.ServerTLS(certificate)
    await trio_wt.serve_webtransport(echo, 4433, tls=tls)


if __name__ == "__main__":
    trio.run(main)
