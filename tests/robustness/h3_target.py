"""A WebTransport server to attack on a network in memory, and a client, with a count of what is left of them."""

from __future__ import annotations

import gc
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeAlias

import trio

import trio_wt
from tests.robustness.h3_peer import H3Client, H3Server
from tests.robustness.quic_peer import HOST, PORT, SERVER
from tests.robustness.quic_target import ask, certificate, identity
from tests.robustness.target import bounded_memory, tasks
from trio_wt._http.h3 import Http3
from trio_wt._quic.driver import Driver
from trio_wt._quic.stream_base import StreamBase
from trio_wt._webtransport.carrier import SessionCarrier
from trio_wt._webtransport.router import Sessions
from trio_wt.testing import Network

__all__ = [
    "ORIGIN",
    "URL",
    "H3Target",
    "answer",
    "ask",
    "attacked_h3_client",
    "attacked_h3_server",
    "echo",
    "echo_messages",
    "engine_streams",
    "held",
    "held_by_clients",
    "no_answer",
    "refuse_all",
    "take_all",
]

URL = f"https://{HOST}:{PORT}"
ORIGIN = URL

Handler: TypeAlias = Callable[[trio_wt.WebTransportSession], Awaitable[object]]
OnRequest: TypeAlias = Callable[[trio_wt.Request], Awaitable[None] | None]


# ---- handlers


async def echo(session: trio_wt.WebTransportSession) -> None:
    """Give back what comes on streams and in datagrams."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_echo_datagrams, session)
        nursery.start_soon(_drop_streams, session)
        async for stream in session.incoming_streams:
            nursery.start_soon(_echo_stream, stream)


async def _echo_stream(stream: trio_wt.Stream) -> None:
    with suppress(trio_wt.StreamReset, trio_wt.ConnectionClosed):
        async with stream:
            async for data in stream:
                await stream.send_all(data)


async def _echo_datagrams(session: trio_wt.WebTransportSession) -> None:
    with suppress(trio_wt.ConnectionClosed):
        async for data in session.datagrams:
            with suppress(trio_wt.DatagramTooLarge):
                await session.datagrams.send(data)


async def _drop_streams(session: trio_wt.WebTransportSession) -> None:
    with suppress(trio_wt.ConnectionClosed):
        async for stream in session.incoming_receive_streams:
            await stream.aclose()


async def no_answer(session: trio_wt.WebTransportSession) -> None:
    """Take nothing, and stay."""
    await session.wait_closed()


async def take_all(session: trio_wt.WebTransportSession) -> None:
    """Take every stream, and drop it."""

    async def take(channel: Any) -> None:
        with suppress(trio_wt.ConnectionClosed):
            async for taken in channel:
                await taken.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, session.incoming_streams)
        nursery.start_soon(take, session.incoming_receive_streams)


async def refuse_all(session: trio_wt.WebTransportSession) -> None:
    """Take no streams at all."""
    await session.incoming_streams.aclose()
    await session.incoming_receive_streams.aclose()
    await session.wait_closed()


async def echo_messages(ws: trio_wt.WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


def answer(request: trio_wt.Request) -> None:
    """Something plain to ask for."""
    if request.path == "/ok" and not request.asks_for_session:
        request.respond(200, body="ok")


# ---- what is watched


class Watched:
    """A session or a connection of ours, watched without being kept alive.

    Args:
        shown: what it looks like.
        inner: what must be gone in the end.
    """

    def __init__(self, shown: Any, inner: Any) -> None:
        inner.__dict__["shown_to_tests"] = shown
        self._weak = weakref.ref(inner)

    @property
    def is_gone(self) -> bool:
        """Whether nothing holds it any more."""
        return self._weak() is None

    def __getattr__(self, name: str) -> Any:
        inner = self._weak()
        assert inner is not None, "it is gone"
        return getattr(inner.__dict__["shown_to_tests"], name)


class H3Target:
    """A running server.

    Attributes:
        network: what it is on.
        served: our ends of the sessions, in their order.
        ends: how those of them have ended whose handlers are over.
        asked: the requests that the application was asked about last.
        shutdown: ends it gracefully.
        nursery: for the peers.
        peers: these.
        finished: whether it has returned.
    """

    def __init__(self, network: Network, nursery: trio.Nursery) -> None:
        self.network = network
        self.served: list[Watched] = []
        self.ends: list[trio_wt.ConnectionClosed | None] = []
        self.asked: deque[trio_wt.Request] = deque(maxlen=100)
        self.finished = False
        self.shutdown = trio.Event()
        self.nursery = nursery
        self.peers: list[H3Client] = []

    async def hostile(self, **options: Any) -> H3Client:
        """A hostile client that has said nothing yet."""
        peer = H3Client(self.network.socket(), **options)
        self.peers.append(peer)
        await self.nursery.start(peer.run)
        return peer

    async def shaken(self, **options: Any) -> H3Client:
        """One after QUIC's handshake."""
        peer = await self.hostile(**options)
        await peer.shake_hands()
        return peer

    async def introduced(self, **options: Any) -> H3Client:
        """One that has said who it is."""
        peer = await self.shaken(**options)
        await peer.introduce()
        return peer

    async def in_session(self, **options: Any) -> tuple[H3Client, int]:
        """One with a session, and the session's id."""
        peer = await self.introduced(**options)
        return peer, await peer.open_session()

    def driver(self, peer: H3Client) -> Driver:
        """Our end of a connection."""
        address = peer.socket.local_address
        (found,) = (d for d in _all(Driver) if not d.is_client and d.peer_address == address)
        assert isinstance(found, Driver)
        return found

    def streams(self, peer: H3Client) -> int:
        """How many streams we have with a client, besides its control stream."""
        return len(self.driver(peer)._streams) - 1

    def sessions(self, peer: H3Client) -> int:
        """How many sessions."""
        http3 = self.driver(peer).upper
        assert isinstance(http3, Http3)
        assert isinstance(http3.router, Sessions)
        return len(http3.router.open)

    @asynccontextmanager
    async def honest(
        self, path: str = "/honest", **settings: Any
    ) -> AsyncIterator[trio_wt.WebTransportSession]:
        """An honest client."""
        async with trio_wt.open_webtransport(
            URL + path,
            **{
                "tls": trio_wt.ClientTLS(server_certificate_hashes=[certificate().sha256]),
                "socket": self.network.socket(),
                **settings,
            },
        ) as session:
            yield session

    async def still_serves(self) -> None:
        """A new session opens within a second, and echoes within two."""
        with trio.fail_after(1) as opening:
            async with self.honest() as session:
                opening.deadline = trio.current_time() + 2
                await ask(session, b"still there?")
                opening.deadline = trio.current_time() + 1


@asynccontextmanager
async def attacked_h3_server(
    handler: Handler | None = echo,
    *,
    memory: float | None = 4,
    patience: float = 3,
    bystander: bool = True,
    network: Network | None = None,
    on_request: OnRequest = answer,
    **options: Any,
) -> AsyncIterator[H3Target]:
    """A server that is attacked while the block runs.

    A bystander echoes all the time. Afterwards the attacked connections must be gone, a new session must open, and the
    server must shut down and return; nothing may be left of it all.

    Args:
        handler: of the sessions that are attacked; those of honest clients, told apart by their path, get ``echo``.
        memory: how much more may be allocated at any time in the block, in MiB; None for no such check.
        patience: seconds until the attacked connections are gone, after their peers are.
        bystander: whether there is one.
        network: the network, instead of a good one.
        on_request: sees the requests of those that are not honest.
        options: of the server.
    """
    network = network or Network()
    with _set_aside():
        before = tasks()
        async with trio.open_nursery() as nursery:
            target = H3Target(network, nursery)

            async def look_at(request: trio_wt.Request) -> None:
                if request.path != "/honest":
                    target.asked.append(request)
                    result = on_request(request)
                    if result is not None:
                        await result

            async def serve(session: trio_wt.WebTransportSession) -> None:
                if session.request.path == "/honest" or handler is None:
                    await echo(session)
                    return
                target.served.append(Watched(session, session._carrier))
                try:
                    await handler(session)
                finally:
                    target.ends.append(session.closed)

            async def run(*, task_status: trio.TaskStatus[Any]) -> None:
                await trio_wt.serve_webtransport(
                    serve,
                    **{
                        "sockets": [network.socket(SERVER)],
                        "tls": trio_wt.ServerTLS(certificate()),
                        "on_request": look_at,
                        "websocket_handler": echo_messages,
                        "shutdown": target.shutdown,
                        "task_status": task_status,
                        **options,
                    },
                )
                target.finished = True

            await nursery.start(run)
            if bystander:
                scope = await nursery.start(_stand_by, target)
            quiet = tasks(), held()
            if memory is None:
                yield target
            else:
                with bounded_memory(memory):
                    yield target
            for peer in target.peers:
                peer.leave()
            if not target.finished:
                await _settled(tasks, quiet[0], patience)
                await _settled(held, quiet[1], 1)
                await target.still_serves()
            if bystander:
                scope.cancel()
            target.shutdown.set()
        assert tasks() == before
        await trio.sleep(0)
        assert held() == 0
        network.socket(SERVER).close()  # the address is free again


@asynccontextmanager
async def attacked_h3_client(
    *, memory: float | None = 4, hostile: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[H3Server, Watched]]:
    """A connection of our client to a hostile server that has said nothing of HTTP/3 yet; nothing may be left of it.

    Args:
        memory: how much more may be allocated at any time in the block, in MiB; None for no such check.
        hostile: options of the server.
        settings: of the client.
    """
    network = Network()
    with _set_aside():
        before = tasks()
        async with trio.open_nursery() as nursery:
            peer = H3Server(network.socket(SERVER), **{**identity(), **(hostile or {})})
            await nursery.start(peer.run)
            async with trio_wt.open_webtransport_connection(
                URL,
                **{
                    "tls": trio_wt.ClientTLS(server_certificate_hashes=[certificate().sha256]),
                    "socket": network.socket(),
                    "close_timeout": 1,
                    **settings,
                },
            ) as connection:
                watched = Watched(connection, connection._driver)
                del connection
                await peer.shaken()
                if memory is None:
                    yield peer, watched
                else:
                    with bounded_memory(memory):
                        yield peer, watched
            peer.close()
        assert tasks() == before
        await trio.sleep(0)
        assert held_by_clients() == 0


async def _stand_by(
    target: H3Target, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    """Echo all the time; an answer may take two seconds, of the test's clock and of the processor's."""
    with trio.CancelScope() as scope:
        async with target.honest() as session:
            await ask(session, b"are you there?")
            task_status.started(scope)
            while True:
                start = time.process_time()
                with trio.fail_after(2):
                    await ask(session, b"are you there?")
                assert time.process_time() - start < 2
                await trio.sleep(0.5)


@contextmanager
def _set_aside() -> Iterator[None]:
    """What was there before the block is neither looked at nor counted in it: looking takes longer than most tests."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _settled(figure: Callable[[], int], wanted: int, seconds: float) -> None:
    """Wait until a figure is down to what it was."""
    with trio.move_on_after(seconds):
        while figure() > wanted:
            await trio.sleep(0.2)
    assert figure() <= wanted, f"{figure.__name__}: {figure()} instead of {wanted}"


def _all(*kinds: type) -> list[Any]:
    gc.collect()
    return [thing for thing in gc.get_objects() if isinstance(thing, kinds)]


def held() -> int:
    """How many connections, sessions and streams of servers are in memory."""
    return _held(client=False)


def held_by_clients() -> int:
    """The same of clients."""
    return _held(client=True)


def _held(*, client: bool) -> int:
    count = 0
    for thing in _all(Driver, Http3, SessionCarrier, StreamBase):
        if isinstance(thing, StreamBase):
            carrier = thing._carrier
            driver = carrier.driver if isinstance(carrier, SessionCarrier) else carrier
        else:
            driver = thing if isinstance(thing, Driver) else thing.driver
        count += driver.is_client == client
    return count


def engine_streams(driver: Driver) -> int:
    """How many streams the protocol itself holds."""
    return len(list(driver.engine._streams.every()))
