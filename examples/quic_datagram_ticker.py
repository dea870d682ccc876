"""A clock that ticks in datagrams, and a client that counts those which do not arrive, or too late.

Run it: both ends are on a network in memory that loses some datagrams and lets others overtake each
other. `serve` and `connect` run them on a real one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import partial
from typing import Any

import trio
from quic_common import client_tls, own_tls, parsers, positive, run, serve_forever, server_tls

import trio_wt
from trio_wt.testing import Network

ALPN = "trio-wt-ticks"
TICK = struct.Struct("!Id")  # its number, and when it was sent, in seconds after the first


async def tick(interval: float, connection: trio_wt.Connection) -> None:
    """Serve one connection: send ticks until the client has gone."""
    started = trio.current_time()
    number = 0
    while True:
        now = trio.current_time()
        # Never waits for the client: past some hundred, the oldest ticks are dropped.
        await connection.datagrams.send(TICK.pack(number, now - started))
        number += 1
        await trio.sleep_until(started + number * interval)


async def serve(
    tls: trio_wt.ServerTLS,
    interval: float,
    host: str = "127.0.0.1",
    port: int | None = 0,
    *,
    sockets: Sequence[trio_wt.DatagramSocket] | None = None,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled."""
    await trio_wt.serve_quic(
        partial(tick, interval),
        port,
        host=host,
        sockets=sockets,
        alpn=[ALPN],
        tls=tls,
        cancel_on_close=True,  # nobody is there to tick for
        task_status=task_status,
    )


async def listen(connection: trio_wt.Connection, count: int) -> None:
    """Take the first ticks, and say what became of them."""
    seen: set[int] = set()
    newest = -1
    overtaken = 0
    slowest = 0.0
    quickest = float("inf")
    async for data in connection.datagrams:
        number, sent = TICK.unpack(data)
        if number >= count:
            break
        # The clocks of the two ends differ by a constant, so only differences mean anything.
        taken = trio.current_time() - sent
        quickest, slowest = min(quickest, taken), max(slowest, taken)
        note = ""
        if number < newest:
            overtaken += 1
            note = ", overtaken on its way"
        elif number > newest + 1:
            note = f", after a gap of {number - newest - 1}"
        seen.add(number)
        newest = max(newest, number)
        print(f"tick {number}, {(taken - quickest) * 1000:.0f} ms later than the quickest{note}")
    lost = count - len(seen)
    print(f"{len(seen)} of {count} ticks came, {lost} got lost, {overtaken} were overtaken")
    if seen:
        print(f"they took up to {(slowest - quickest) * 1000:.0f} ms longer than the quickest")


async def connect(
    host: str,
    port: int,
    tls: trio_wt.ClientTLS,
    count: int,
    socket: trio_wt.DatagramSocket | None = None,
) -> None:
    """Connect, and listen to so many ticks."""
    async with trio_wt.open_quic(host, port, alpn=[ALPN], tls=tls, socket=socket) as connection:
        await listen(connection, count)


async def demo(count: int = 50, interval: float = 0.02, loss: float = 0.1) -> None:
    """Both ends on a bad network."""
    server, client = own_tls()
    network = Network(loss=loss, delay=(0.02, 0.06))
    async with trio.open_nursery() as nursery:
        there = network.socket(("clock.test", 1))
        await nursery.start(partial(serve, server, interval, port=None, sockets=[there]))
        await connect("clock.test", 1, client, count, network.socket())
        nursery.cancel_scope.cancel()


async def program(arguments: Sequence[str] | None) -> None:
    """What the command line says."""
    parser, server, client = parsers(__doc__)
    server.add_argument(
        "--interval", type=positive, default=0.1, metavar="SECONDS", help="between two ticks"
    )
    client.add_argument("--count", type=int, default=50, help="how many ticks to listen to")
    options = parser.parse_args(arguments)
    if options.command == "serve":
        tls = server_tls(options)
        await serve_forever(serve, tls, options.interval, options.host, options.port)
    elif options.command == "connect":
        await connect(options.host, options.port, client_tls(options), options.count)
    else:
        await demo()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    run(program, arguments)


if __name__ == "__main__":
    main()
