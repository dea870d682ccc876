"""The WebTransport cases of the QUIC interop runner, whoever is at either end.

Both ends of a session have files, and each may ask for those of the other (webtransport.md of quic-interop-runner):

* on a unidirectional stream of ``GET name``, which is answered on another of ``PUSH name``, a newline and the file;
* on a bidirectional stream of ``GET name``, which is answered with the file;
* in a datagram of ``GET name``, which is answered in another of ``PUSH name``, a newline and the file.
"""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from tests.interop.webtransport_peers import (
    Aio,
    AnySession,
    AnyStream,
    Files,
    Implementation,
    Py,
    TrioWT,
)

pytestmark = pytest.mark.real_clock

KIB, MIB = 2**10, 2**20
SIZES = [100 * KIB, 500 * KIB, 250 * KIB, 1 * MIB, 2 * MIB]
DATAGRAM_SIZES = [600 + 2 * number for number in range(200)]
# After how long a file is asked for again, of which nothing has come.
RETRY = 0.3

needs_newer = pytest.mark.skipif(sys.version_info < (3, 12), reason="the peer needs Python 3.12")


@dataclass(frozen=True)
class Match:
    client: Implementation
    server: Implementation

    def __str__(self) -> str:
        return f"{self.client}-{self.server}"

    @property
    def several_sessions(self) -> bool:
        both = (self.client, self.server)
        return self.server.several_paths and all(one.several_sessions for one in both)


OURS = TrioWT()
MATCHES = [
    pytest.param(match, id=str(match), marks=[] if match == Match(OURS, OURS) else needs_newer)
    for match in (
        Match(OURS, OURS),
        Match(OURS, Py()),
        Match(Py(), OURS),
        Match(OURS, Aio()),
        Match(Aio(), OURS),
    )
]
every_match = pytest.mark.parametrize("match", MATCHES)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


# ---- what the runner asks of an implementation


def make_files(sizes: Iterable[int]) -> dict[str, bytes]:
    return {f"file-{number}": random.randbytes(size) for number, size in enumerate(sizes)}


@dataclass
class Endpoint:
    """One end of a session.

    Attributes:
        session: the session.
        files: what the other end may ask for, by name.
        got: what has come, by name.
    """

    session: AnySession
    files: dict[str, bytes] = field(default_factory=dict)
    got: dict[str, bytes] = field(default_factory=dict)

    async def serve(self) -> None:
        """Answer what is asked, and take what is pushed, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_streams, nursery)
            nursery.start_soon(self._take_receive_streams, nursery)
            nursery.start_soon(self._take_datagrams)

    async def _take_streams(self, nursery: trio.Nursery) -> None:
        while True:
            nursery.start_soon(self._answer, await self.session.next_stream())

    async def _answer(self, stream: AnyStream) -> None:
        name = self._asked_for(await stream.read_all())
        assert name is not None
        await stream.send(self.files[name], end=True)

    async def _take_receive_streams(self, nursery: trio.Nursery) -> None:
        while True:
            nursery.start_soon(self._take_push, await self.session.next_receive_stream())

    async def _take_push(self, stream: AnyStream) -> None:
        data = await stream.read_all()
        name = self._asked_for(data)
        if name is None:
            self._store(data)
            return
        answer = await self.session.open_send_stream()
        await answer.send(b"PUSH %s\n" % name.encode())
        await answer.send(self.files[name], end=True)

    async def _take_datagrams(self) -> None:
        while True:
            data = await self.session.next_datagram()
            name = self._asked_for(data)
            if name is None:
                self._store(data)
            else:
                push = b"PUSH %s\n%s" % (name.encode(), self.files[name])
                await self.session.send_datagram(push)

    def _asked_for(self, data: bytes) -> str | None:
        return data[4:].decode() if data.startswith(b"GET ") else None

    def _store(self, data: bytes) -> None:
        head, _, content = data.partition(b"\n")
        what, _, name = head.partition(b" ")
        assert what == b"PUSH"
        self.got[name.decode()] = content

    async def get_unidirectional(self, names: Iterable[str]) -> None:
        """Ask for files, and wait for them."""

        async def ask(name: str) -> None:
            stream = await self.session.open_send_stream()
            await stream.send(b"GET %s" % name.encode(), end=True)

        await self._at_once(ask, names)
        await self._wait_for(names)

    async def get_bidirectional(self, names: Iterable[str]) -> None:
        async def ask(name: str) -> None:
            stream = await self.session.open_stream()
            await stream.send(b"GET %s" % name.encode(), end=True)
            self.got[name] = await stream.read_all()

        await self._at_once(ask, names)

    async def get_datagram(self, names: Iterable[str]) -> None:
        while missing := [name for name in names if name not in self.got]:
            for name in missing:
                await self.session.send_datagram(b"GET %s" % name.encode())
            with trio.move_on_after(RETRY):
                await self._wait_for(missing)

    async def _at_once(self, ask: Callable[[str], Awaitable[None]], names: Iterable[str]) -> None:
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(ask, name)

    async def _wait_for(self, names: Iterable[str]) -> None:
        while not self.got.keys() >= set(names):
            await trio.sleep(0.01)


@asynccontextmanager
async def connected(
    match: Match, files: Files, **options: Any
) -> AsyncIterator[tuple[AnySession, AnySession]]:
    """The client's end of a session, and the server's."""
    protocols = {"subprotocols": ["interop"], **options}
    async with (
        match.server.server(files, paths=["/endpoint"], **protocols) as server,
        match.client.client(files) as client,
    ):
        session = await client.connect(server.port, "/endpoint", **protocols)
        yield session, await server.next_session()


# ---- the cases


@every_match
async def test_handshake(match: Match, files: Files) -> None:
    both = [f"both-{random.random()}" for _ in range(2)]
    client, server = ([f"{who}-{number}" for number in range(5)] for who in ("client", "server"))
    first, second = sorted(random.sample(range(5), 2))
    client[first], client[second] = both
    server[first], server[second] = reversed(both)
    async with (
        match.server.server(files, paths=["/endpoint"], subprotocols=server) as served,
        match.client.client(files) as visitor,
    ):
        theirs = await visitor.connect(served.port, "/endpoint", subprotocols=client)
        ours = await served.next_session()
        assert theirs.subprotocol == ours.subprotocol == both[0]
        await theirs.close()
        assert await ours.closed() == (0, "")


@every_match
@pytest.mark.parametrize("direction", ["receive", "send"])
@pytest.mark.parametrize("kind", ["unidirectional", "bidirectional", "datagram"])
async def test_transfer(match: Match, kind: str, direction: str, files: Files) -> None:
    wanted = make_files(DATAGRAM_SIZES if kind == "datagram" else SIZES)
    async with connected(match, files) as (client, server), trio.open_nursery() as nursery:
        ends = [Endpoint(client), Endpoint(server)]
        for end in ends:
            nursery.start_soon(end.serve)
        # "Send" is what the client does.
        asking, answering = ends if direction == "receive" else reversed(ends)
        answering.files = wanted
        await getattr(asking, f"get_{kind}")(wanted)
        assert asking.got == wanted
        nursery.cancel_scope.cancel()


@every_match
async def test_everything_at_once(match: Match, files: Files) -> None:
    async with connected(match, files) as (client, server), trio.open_nursery() as nursery:
        ends = [Endpoint(client, make_files(SIZES)), Endpoint(server, make_files(SIZES))]
        for end in ends:
            nursery.start_soon(end.serve)
        small = make_files([600] * 20)
        for end in ends:
            end.files.update({f"small-{name}": data for name, data in small.items()})
        async with trio.open_nursery() as asking:
            for end, other in (ends, reversed(ends)):
                names = list(other.files)
                asking.start_soon(end.get_unidirectional, names[:3])
                asking.start_soon(end.get_bidirectional, names[3:6])
                asking.start_soon(end.get_datagram, names[6:])
        assert ends[0].got == ends[1].files
        assert ends[1].got == ends[0].files
        nursery.cancel_scope.cancel()


@every_match
async def test_several_sessions_of_one_connection(match: Match, files: Files) -> None:
    if not match.several_sessions:
        pytest.skip("one of them has one session per connection")
    paths = ["/one", "/two", "/three"]
    async with (
        match.server.server(files, paths=paths) as server,
        match.client.client(files) as client,
        trio.open_nursery() as nursery,
    ):
        visitors, hosts = [], []
        for path in paths:
            visitors.append(Endpoint(await client.connect(server.port, path)))
            hosts.append(Endpoint(await server.next_session(), make_files([100 * KIB] * 3)))
        for end in (*visitors, *hosts):
            nursery.start_soon(end.serve)
        async with trio.open_nursery() as asking:
            for visitor, host in zip(visitors, hosts, strict=True):
                names = list(host.files)
                asking.start_soon(visitor.get_unidirectional, names[:2])
                asking.start_soon(visitor.get_bidirectional, names[2:])
        assert [end.got for end in visitors] == [end.files for end in hosts]
        nursery.cancel_scope.cancel()
