"""A small key-value service whose clients need not wait for the handshake, where that is safe.

Run it: both ends are on a network in memory with a round trip of 100 ms, so that there is something
to see. `serve` and `connect` run them on a real one; `connect --sessions FILE` remembers the server
for the next time.

WHAT MAY BE SENT EARLY. An attacker can record what is sent before the handshake is complete, and
send it again. So only requests that may be carried out twice are sent then, and carried out then:
here "get". The other one, "add", waits on the client's side, because that is the protocol; and on
the server's, because not every client keeps to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import trio
from quic_common import Failed, client_tls, own_tls, parsers, run, serve_forever, server_tls

import trio_wt
from trio_wt.testing import Network

ALPN = "trio-wt-counters"
MAY_BE_DONE_TWICE = {"get"}
MUST_BE_DONE_ONCE = {"add"}

BAD_REQUEST = 0x10


class Service:
    """Counters with names."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()

    async def session(self, connection: trio_wt.Connection) -> None:
        """Serve one connection, which may not have completed its handshake yet."""

        async def answer(stream: trio_wt.Stream) -> None:
            with suppress(trio_wt.StreamReset, trio_wt.HandshakeFailed):
                async with stream:
                    try:
                        request = await stream.receive_all(1024)
                    except trio_wt.ReadLimitExceeded:
                        raise trio_wt.StreamAbort(BAD_REQUEST) from None
                    await stream.send_all(await self._respond(connection, request), eof=True)

        async with trio.open_nursery() as nursery:
            async for stream in connection.incoming_streams:
                nursery.start_soon(answer, stream)

    async def _respond(self, connection: trio_wt.Connection, request: bytes) -> bytes:
        verb, _, name = request.decode(errors="replace").partition(" ")
        if verb in MUST_BE_DONE_ONCE:
            # A replay gets no further than this: its sender cannot complete the handshake.
            await connection.wait_handshake()
            self.counters[name] += 1
        elif verb not in MAY_BE_DONE_TWICE:
            raise trio_wt.StreamAbort(BAD_REQUEST)
        return str(self.counters[name]).encode()


async def serve(
    tls: trio_wt.ServerTLS,
    host: str = "127.0.0.1",
    port: int | None = 0,
    *,
    sockets: Sequence[trio_wt.DatagramSocket] | None = None,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled."""
    await trio_wt.serve_quic(
        Service().session,
        port,
        host=host,
        sockets=sockets,
        alpn=[ALPN],
        tls=tls,
        early_data=True,
        task_status=task_status,
    )


async def ask(connection: trio_wt.Connection, request: str) -> str:
    """One request, sent early if it may be.

    Raises:
        Failed: the server does not understand it.
    """
    if request.partition(" ")[0] not in MAY_BE_DONE_TWICE:
        await connection.wait_handshake()
    try:
        async with connection.open_stream() as stream:
            await stream.send_all(request.encode(), eof=True)
            return (await stream.receive_all(1024)).decode()
    except trio_wt.StreamReset as exc:
        raise Failed(f"the server does not understand {request!r}") from exc


async def connect(
    host: str,
    port: int,
    tls: trio_wt.ClientTLS,
    store: trio_wt.SessionStore,
    requests: Sequence[str],
    socket: trio_wt.DatagramSocket | None = None,
) -> None:
    """Connect, ask, and say how long it took from the beginning."""
    started = trio.current_time()
    async with trio_wt.open_quic(
        host,
        port,
        alpn=[ALPN],
        tls=tls,
        socket=socket,
        session_store=store,
        early_data=True,
    ) as connection:
        for request in requests:
            early = not connection.handshake_complete
            reply = await ask(connection, request)
            seconds = trio.current_time() - started
            print(f"{request}: {reply}, after {seconds * 1000:.0f} ms", end="")
            print(", asked during the handshake" if early else "")
        await connection.wait_handshake()
        if connection.early_data_accepted:
            print("   the server took early data")
        elif connection.session_resumed:
            print("   the session was resumed, but early data was not taken")
        else:
            print("   there was a whole handshake")


async def demo(round_trip: float = 0.1) -> None:
    """Both ends on a network that takes its time."""
    server, client = own_tls()
    network = Network(delay=round_trip / 2)
    store = trio_wt.SessionStore()
    async with trio.open_nursery() as nursery:
        there = network.socket(("counters.test", 1))
        await nursery.start(partial(serve, server, port=None, sockets=[there]))
        for number in ("first", "second", "third"):
            print(f"-- the {number} connection")
            requests = ["get visits", "add visits"]
            await connect("counters.test", 1, client, store, requests, network.socket())
        nursery.cancel_scope.cancel()


async def connect_and_remember(options: Any) -> None:
    """Connect with what is known from last time."""
    store = trio_wt.SessionStore()
    if options.sessions is not None:
        with suppress(FileNotFoundError):  # the first time
            try:
                store.load(options.sessions)
            except ValueError as exc:
                raise Failed(str(exc)) from exc
    requests = options.request or ["get visits", "add visits"]
    await connect(options.host, options.port, client_tls(options), store, requests)
    if options.sessions is not None:
        store.save(options.sessions)


async def program(arguments: Sequence[str] | None) -> None:
    """What the command line says."""
    parser, _, client = parsers(__doc__)
    client.add_argument("--sessions", metavar="FILE", help="where to keep session tickets")
    client.add_argument("--request", action="append", help="'get NAME' or 'add NAME'; repeatable")
    options = parser.parse_args(arguments)
    if options.command == "serve":
        await serve_forever(serve, server_tls(options), options.host, options.port)
    elif options.command == "connect":
        await connect_and_remember(options)
    else:
        await demo()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    run(program, arguments)


if __name__ == "__main__":
    main()
