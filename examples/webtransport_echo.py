"""Sends back what comes in a WebTransport session: streams, and datagrams.

Run it: it starts a server and a client of it. `serve` and `connect` run them one by one. The
server takes browsers, too: the constructor of `WebTransport` wants its URL, and the hash that it
prints as `serverCertificateHashes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import trio
from quic_common import client_tls, https_url, own_tls, parsers, run, serve_forever, server_tls

import trio_wt


async def session(session: trio_wt.WebTransportSession) -> None:
    """Serve one session: a task for each stream, and one for the datagrams."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_datagrams, session)
        nursery.start_soon(answer_one_way, session)
        async for stream in session.incoming_streams:
            nursery.start_soon(answer, stream)


async def answer(stream: trio_wt.Stream) -> None:
    """Serve one stream."""
    with suppress(trio_wt.StreamReset):  # the client has given it up: no harm to the others
        async with stream:
            async for data in stream:
                await stream.send_all(data)


async def answer_one_way(session: trio_wt.WebTransportSession) -> None:
    """Answer each stream of one direction by one of the other, one after the other."""
    async for stream in session.incoming_receive_streams:
        with suppress(trio_wt.StreamReset, trio_wt.ReadLimitExceeded):
            async with stream, session.open_send_stream() as back:
                await back.send_all(await stream.receive_all(2**16))


async def answer_datagrams(session: trio_wt.WebTransportSession) -> None:
    """Send datagrams back for as long as the session lasts."""
    async for data in session.datagrams:
        with suppress(trio_wt.DatagramTooLarge):  # what fits one way need not fit the other
            await session.datagrams.send(data)


async def serve(
    tls: trio_wt.ServerTLS,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. Pages from anywhere may use it, since there is nothing to steal."""
    await trio_wt.serve_webtransport(
        session, port, host=host, tls=tls, origins="any", task_status=task_status
    )


async def talk(url: str, tls: trio_wt.ClientTLS, texts: Sequence[str]) -> None:
    """Send each text on a stream of its own, all at once, and print what comes back."""

    async def ask(text: str) -> None:
        async with session.open_stream() as stream:
            await stream.send_all(text.encode(), eof=True)
            print((await stream.receive_all()).decode())

    async with trio_wt.open_webtransport(url, tls=tls) as session:
        async with trio.open_nursery() as nursery:
            for text in texts:
                nursery.start_soon(ask, text)
        async with session.open_send_stream() as one_way:
            await one_way.send_all(b"one way")
        async with await session.incoming_receive_streams.receive() as back:
            print((await back.receive_all()).decode(), "and back")
        await session.datagrams.send(b"a datagram")
        with trio.move_on_after(1):  # it may get lost
            print((await session.datagrams.receive()).decode())
        print(f"there and back in {await session.connection.ping() * 1000:.2f} ms")


async def demo() -> None:
    """Both ends on loopback."""
    server, client = own_tls()
    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(serve, server)
        url = https_url("127.0.0.1", sockets[0].local_address[1])
        await talk(url, client, ["hello", "goodbye"])
        nursery.cancel_scope.cancel()


async def program(arguments: Sequence[str] | None) -> None:
    """What the command line says."""
    parser, _, connect = parsers(__doc__)
    connect.add_argument("--text", action="append", help="what to send; repeatable")
    options = parser.parse_args(arguments)
    if options.command == "serve":
        await serve_forever(serve, server_tls(options), options.host, options.port)
    elif options.command == "connect":
        url = https_url(options.host, options.port)
        await talk(url, client_tls(options), options.text or ["hello"])
    else:
        await demo()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    run(program, arguments)


if __name__ == "__main__":
    main()
