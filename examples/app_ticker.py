"""A small game: the server sends its state to all players as datagrams, 30 times a second.

    python examples/app_ticker.py serve
    python examples/app_ticker.py connect 127.0.0.1 4433 --hash HEX

The server prints what to write for HEX, unless it is given a certificate. Without a command three
players are in one game, each behind a network of its own: a good one, one that loses every fifth
datagram, and one that loses half of them and lets others overtake.

Datagrams get lost, come late, and come twice. That is no harm if each one says all there is to say:
a state has a number, and a player drops what is older than what it has. An input has a number too,
and is sent again at each tick, so the next one makes up for one that is lost. What must arrive goes
over a stream: here it is the number of the player's seat.
"""

from __future__ import annotations

import random
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count

import trio
from quic_common import client_tls, https_url, parsers, run, server_tls

import trio_wt
from trio_wt.app import App, Request, Response, Topic, json_response, limit_concurrency
from trio_wt.testing import Network, webtransport_pair

RATE = 30  # ticks a second
WIDTH = HEIGHT = 1000
SPEED = 10  # a tick
MAX_PLAYERS = 64  # so many fit a datagram on every path
PATH = "/game"

HEAD = struct.Struct("!IB")  # the tick's number, and how many players follow
PLAYER = struct.Struct("!BHH")  # seat, x, y
INPUT = struct.Struct("!Ibb")  # its number, and where to go: -1, 0 or 1 for x and y


@dataclass
class Player:
    """Where somebody is, and wants to go."""

    x: int = WIDTH // 2
    y: int = HEIGHT // 2
    direction: tuple[int, int] = (0, 0)
    last_input: int = 0

    def steer(self, data: bytes) -> None:
        """Take an input, unless it is invalid, or older than what is there."""
        if len(data) == INPUT.size:
            number, *direction = INPUT.unpack(data)
            if number > self.last_input and all(-1 <= d <= 1 for d in direction):
                self.last_input, self.direction = number, (direction[0], direction[1])

    def step(self) -> None:
        """Move, within the bounds."""
        self.x = min(max(self.x + SPEED * self.direction[0], 0), WIDTH)
        self.y = min(max(self.y + SPEED * self.direction[1], 0), HEIGHT)


# ---- the server


class Game:
    """Who plays, and where they are."""

    def __init__(self) -> None:
        self.players: dict[int, Player] = {}
        self.states = Topic[bytes]()

    async def run(self) -> None:
        """Tick until cancelled."""
        started = trio.current_time()
        number = 0
        while True:
            number += 1
            await trio.sleep_until(started + number / RATE)  # and not sleep(), which would drift
            for player in self.players.values():
                player.step()
            await self.states.publish(self.state(number))

    def state(self, number: int) -> bytes:
        """All there is to say at a tick."""
        parts = [HEAD.pack(number, len(self.players))]
        parts += [PLAYER.pack(seat, player.x, player.y) for seat, player in self.players.items()]
        return b"".join(parts)

    @contextmanager
    def seat(self) -> Iterator[tuple[int, Player]]:
        """A place in the game; there are enough for all who are let in."""
        number = next(n for n in range(MAX_PLAYERS) if n not in self.players)
        self.players[number] = Player()
        try:
            yield number, self.players[number]
        finally:
            del self.players[number]

    async def play(self, session: trio_wt.WebTransportSession) -> None:
        """Serve a player."""
        with self.seat() as (number, player):
            async with session.open_send_stream() as stream:
                await stream.send_all(bytes([number]), eof=True)
            # Publishing never waits for a player: in its session, the oldest datagrams are dropped.
            async with self.states.subscribe(session, via="datagrams"):
                async for data in session.datagrams:
                    player.steer(data)


def make_app(game: Game) -> App:
    """An application for a game."""

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(game.run)
            yield
            nursery.cancel_scope.cancel()

    app = App(lifespan=lifespan)
    app.webtransport(PATH, middleware=[limit_concurrency(MAX_PLAYERS)])(game.play)

    @app.http("/figures")
    def figures(request: Request) -> Response:
        """For whoever watches the server."""
        states = game.states.statistics()
        return json_response({"players": len(game.players), "ticks": states.published})

    return app


# ---- the player


class View:
    """What a player knows of the game, and what has become of the datagrams."""

    def __init__(self, seat: int) -> None:
        self.seat = seat
        self.players: dict[int, tuple[int, int]] = {}
        self.first = self.newest = 0  # numbers of ticks
        self.used = self.late = 0

    def take(self, data: bytes) -> None:
        """Take a state, unless it is invalid, or older than what is there."""
        if len(data) < HEAD.size:
            return
        number, players = HEAD.unpack_from(data)
        if len(data) != HEAD.size + players * PLAYER.size:
            return
        if number <= self.newest:
            self.late += 1
            return
        self.newest = number
        self.first = self.first or number
        self.used += 1
        self.players = {seat: (x, y) for seat, x, y in PLAYER.iter_unpack(data[HEAD.size :])}

    @property
    def missed(self) -> int:
        """How many states did not come, or too late."""
        return self.newest - self.first + 1 - self.used


async def steer(session: trio_wt.WebTransportSession) -> None:
    """Go somewhere else each second; say so at each tick."""
    started = trio.current_time()
    direction = (0, 0)
    for number in count(1):
        if number % RATE == 1:
            direction = random.choice([(1, 0), (-1, 0), (0, 1), (0, -1)])
        await session.datagrams.send(INPUT.pack(number, *direction))
        await trio.sleep_until(started + number / RATE)


async def join(name: str, session: trio_wt.WebTransportSession, ticks: int) -> View:
    """Play for so many ticks, and say what it was like."""
    async with await session.incoming_receive_streams.receive() as stream:
        view = View((await stream.receive_exactly(1))[0])
    behind = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(steer, session)
        while view.newest - view.first < ticks:
            before = view.newest
            view.take(await session.datagrams.receive())
            if before:
                behind = max(behind, view.newest - before - 1)
        nursery.cancel_scope.cancel()
    print(
        f"{name}: seat {view.seat}; of {view.used + view.missed} states {view.used} were used and "
        f"{view.missed} missed, {view.late} came too late; at most {behind} in a row were missed"
    )
    return view


# ---- what to run


async def serve(tls: trio_wt.ServerTLS, host: str, port: int) -> None:
    """Serve until a signal comes, or until cancelled."""
    # Players send all the time: who is silent has gone.
    settings = trio_wt.WebTransportSettings(idle_timeout=5)
    app = make_app(Game())
    async with trio.open_nursery() as nursery:
        serving = await nursery.start(
            partial(app.serve, host, port, tls=tls, webtransport_settings=settings)
        )
        print(f"listening on {serving.url('webtransport')}; stop with Ctrl-C", flush=True)


async def demo(ticks: int = 150) -> None:
    """Three players in one game."""
    networks: dict[str, tuple[float, float | tuple[float, float]]] = {
        "a good network": (0.0, 0.02),
        "every fifth is lost": (0.2, 0.04),
        "half are lost, others overtake": (0.5, (0.02, 0.12)),
    }
    game = Game()

    async def play(name: str, loss: float, delay: float | tuple[float, float]) -> None:
        network = Network(delay=delay)
        async with webtransport_pair(network=network) as (session, other_end):
            network.loss = loss  # only now, as many a handshake would not succeed
            async with trio.open_nursery() as nursery:
                nursery.start_soon(game.play, other_end)
                await join(name, session, ticks)
                nursery.cancel_scope.cancel()
            network.loss = 0  # for a good end

    async with trio.open_nursery() as server:
        server.start_soon(game.run)
        async with trio.open_nursery() as players:
            for name, (loss, delay) in networks.items():
                players.start_soon(play, name, loss, delay)
        server.cancel_scope.cancel()


async def program(arguments: Sequence[str] | None) -> None:
    """What the command line says."""
    parser, _, client = parsers(__doc__)
    client.add_argument("--ticks", type=int, default=10 * RATE, help="how long to play")
    options = parser.parse_args(arguments)
    if options.command == "serve":
        await serve(server_tls(options), options.host, options.port)
    elif options.command == "connect":
        url = https_url(options.host, options.port, PATH)
        async with trio_wt.open_webtransport(url, tls=client_tls(options)) as session:
            await join(url, session, options.ticks)
    else:
        await demo()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    run(program, arguments)


if __name__ == "__main__":
    main()
