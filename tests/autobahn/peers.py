"""The two programs under test, an echo server and an echo client, each in a process of its own.

`python -m tests.autobahn.peers server` prints its port and serves until standard input ends.
`python -m tests.autobahn.peers client URL` goes through all cases that a fuzzing server at URL has.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from functools import partial

import trio

import trio_wt

AGENT = "trio_wt"
# Cases 9.1.6 and 9.2.6 send messages of 16 MiB.
MAX_MESSAGE_SIZE = 64 * 2**20


def deflate(*, client_no_context_takeover: bool = False) -> trio_wt.Deflate:
    """Compress whatever the size: some cases are about messages of 16 bytes."""
    return trio_wt.Deflate(client_no_context_takeover=client_no_context_takeover, threshold=0)


async def echo(ws: trio_wt.WebSocket) -> None:
    """Send back what comes. Many cases end in a violation, which is no error here."""
    with contextlib.suppress(trio_wt.ConnectionClosed):
        async for message in ws:
            await ws.send(message)


async def serve() -> None:
    """Serve on loopback until standard input ends, that is until the runner is done, or dead."""
    # No keepalive: a case compares all that it receives, and would count a ping.
    serve_echo = partial(
        trio_wt.serve_websocket,
        echo,
        0,
        host="127.0.0.1",
        max_message_size=MAX_MESSAGE_SIZE,
        compression=deflate(),
        ping_interval=None,
    )
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(serve_echo)
        print(listeners[0].socket.getsockname()[1], flush=True)
        await trio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


async def run_cases(url: str, *, offer_no_context: bool) -> None:
    """Ask the fuzzing server how many cases it has, run each, and let it write its report."""
    connect = partial(
        trio_wt.open_websocket,
        max_message_size=MAX_MESSAGE_SIZE,
        compression=deflate(client_no_context_takeover=offer_no_context),
        ping_interval=None,
        proxy=None,
    )
    async with connect(f"{url}/getCaseCount") as ws:
        count = int(await ws.receive())
    for number in range(1, count + 1):
        try:
            async with connect(f"{url}/runCase?case={number}&agent={AGENT}") as ws:
                await echo(ws)
        except trio_wt.HandshakeFailed as exc:
            print(f"case number {number}: {exc!r}", file=sys.stderr, flush=True)
    async with connect(f"{url}/updateReports?agent={AGENT}") as ws:
        await echo(ws)


def main() -> None:
    """Run the peer that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    sides = parser.add_subparsers(dest="side", required=True)
    sides.add_parser("server")
    client = sides.add_parser("client")
    client.add_argument("url")
    client.add_argument("--offer-no-context", action="store_true")
    arguments = parser.parse_args()
    if arguments.side == "server":
        trio.run(serve)
    else:
        trio.run(partial(run_cases, arguments.url, offer_no_context=arguments.offer_no_context))


if __name__ == "__main__":
    main()
