"""Early data that is replayed, or abused (RFC 9001 section 9.2): it is delivered once, and bounded."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from aioquic.quic.connection import QuicConnection
from aioquic.tls import Epoch, SessionTicket

import trio_wt
from tests.robustness.quic_peer import SERVER, HostileClient, ack, crypto, frame, stream
from tests.robustness.quic_target import Target, attacked_server

Wire = list[tuple[bytes, Any]]


class Till:
    """A handler that may not hear anything twice.

    Attributes:
        paid: what it was told, and whether that came before the handshake was complete.
    """

    def __init__(self) -> None:
        self.paid: list[tuple[bytes, bool]] = []

    async def __call__(self, connection: trio_wt.Connection) -> None:
        async for taken in connection.incoming_streams:
            async with taken:
                early = not connection.handshake_complete
                self.paid.append((await taken.receive_all(100), early))
                await taken.send_all(b"thanks")


async def pay(target: Target, store: trio_wt.SessionStore, what: bytes) -> tuple[Wire, bool]:
    """An honest client pays; its datagrams as they were sent, and whether its early data was taken."""
    target.log = []
    socket = target.network.socket()
    home = socket.local_address
    async with target.honest(socket=socket, session_store=store, early_data=True) as connection:
        async with connection.open_stream() as out:
            await out.send_all(what, eof=True)
            assert await out.receive_all() == b"thanks"
        await connection.wait_handshake()
        taken = connection.early_data_accepted
    wire = [(data, home) for data, source, to in target.log if (source, to) == (home, SERVER)]
    target.log = None
    return wire, taken


async def play(target: Target, wire: Wire, *, at_home: bool) -> None:
    """Send it all again, from its first address or another."""
    socket = target.network.socket(wire[0][1] if at_home else None)
    for data, _ in wire:
        socket.send([(data, SERVER)])
        await trio.sleep(0.002)
    await trio.sleep(0.1)
    socket.close()


@pytest.mark.parametrize("at_home", [True, False], ids=["same address", "another address"])
@pytest.mark.parametrize("pause", [0, 0.2, 40])
async def test_replay(at_home: bool, pause: float) -> None:
    """At once, while the end is still remembered, and when it is forgotten."""
    till = Till()
    async with attacked_server(till, memory=8, early_data=True, patience=15) as target:
        store = trio_wt.SessionStore()
        await pay(target, store, b"1")
        wire, taken = await pay(target, store, b"2")
        assert taken
        assert till.paid == [(b"1", False), (b"2", True)]
        await trio.sleep(pause)
        for _ in range(3):
            await play(target, wire, at_home=at_home)
        assert len(till.paid) == 2
        # The client is not kept out by what was done in its name.
        _, taken = await pay(target, store, b"3")
        assert taken
        assert till.paid[2:] == [(b"3", True)]


async def test_replay_while_the_connection_lives() -> None:
    till = Till()
    async with attacked_server(till, memory=8, early_data=True, patience=15) as target:
        store = trio_wt.SessionStore()
        await pay(target, store, b"1")
        target.log = []
        async with target.honest(session_store=store, early_data=True) as connection:
            async with connection.open_stream() as out:
                await out.send_all(b"2", eof=True)
                assert await out.receive_all() == b"thanks"
            wire = [(data, source) for data, source, to in target.log if to == SERVER]
            target.log = None
            for _ in range(3):
                await play(target, wire, at_home=False)
            assert len(till.paid) == 2
            await connection.ping()
        del connection, out


async def test_replay_at_another_server() -> None:
    """It knows none of the first one's tickets: the question is asked again, once the handshake shows who asks."""
    till = Till()
    store = trio_wt.SessionStore()
    async with attacked_server(till, memory=8, early_data=True) as target:
        await pay(target, store, b"1")
        wire, taken = await pay(target, store, b"2")
        assert taken
    async with attacked_server(till, memory=8, early_data=True, patience=15) as target:
        await play(target, wire, at_home=False)
        assert len(till.paid) == 2
        _, taken = await pay(target, store, b"3")
        assert not taken
        assert till.paid[2:] == [(b"3", False)]


async def test_early_packets_without_their_beginning() -> None:
    till = Till()
    async with attacked_server(till, memory=8, early_data=True) as target:
        store = trio_wt.SessionStore()
        await pay(target, store, b"1")
        wire, _ = await pay(target, store, b"2")
        early = [(data, source) for data, source in wire if data[0] & 0xF0 == 0xD0]
        await trio.sleep(40)
        await play(target, early, at_home=False)
        assert len(till.paid) == 2


# ---- hostile clients


async def tickets(target: Target) -> list[SessionTicket]:
    found: list[SessionTicket] = []
    first = await target.hostile(session_ticket_handler=found.append)
    await first.shake_hands()
    await first.until(lambda: found)
    first.leave()
    await trio.sleep(0.3)
    return found


async def only_early(target: Target) -> HostileClient:
    """A hostile client that may send early data, and sends nothing else after its first flight."""
    found = await tickets(target)
    peer = await target.hostile(session_ticket=found[0], kind=OnlyEarly)
    peer.start()
    peer.silent = True
    return peer


async def test_ticket_used_twice() -> None:
    """The second time early data is refused, and comes after the handshake, which shows that it is no replay."""
    till = Till()
    async with attacked_server(till, memory=8, early_data=True) as target:
        found = await tickets(target)
        for number in range(3):
            peer = await target.hostile(session_ticket=found[0])
            peer.connection.connect(SERVER, trio.current_time())
            peer.connection.send_stream_data(0, b"%d" % number, end_stream=True)
            peer.go_on()
            await peer.until(lambda peer=peer: 0 in peer.ended)
            assert peer.handshake is not None
            assert peer.handshake.early_data_accepted == (number == 0)
            peer.leave()
        assert till.paid == [(b"0", True), (b"1", False), (b"2", False)]


async def test_early_data_that_was_not_invited() -> None:
    """A server without early_data gives nothing to its handler before the handshake."""
    till = Till()
    async with attacked_server(till, memory=8) as target:
        store = trio_wt.SessionStore()
        await pay(target, store, b"1")
        _, taken = await pay(target, store, b"2")
        assert not taken
        assert till.paid == [(b"1", False), (b"2", False)]


class OnlyEarly(QuicConnection):
    """Sends early data, and never ends its handshake."""

    def _write_handshake(self, builder: Any, epoch: Epoch, now: float) -> None:
        if epoch is Epoch.INITIAL:
            super()._write_handshake(builder, epoch, now)

    def _update_traffic_key(self, *args: Any, **kwargs: Any) -> None:
        epoch = kwargs.get("epoch", args[1] if len(args) > 1 else None)
        if epoch is not Epoch.ONE_RTT:
            super()._update_traffic_key(*args, **kwargs)


async def test_early_data_without_a_handshake() -> None:
    """Its handler begins, but has no more time than the handshake has."""
    heard: list[str] = []

    async def handler(connection: trio_wt.Connection) -> None:
        heard.append("began")
        try:
            await connection.wait_handshake()
            heard.append("complete")
        except trio_wt.HandshakeFailed:
            heard.append("failed")
            raise

    async with attacked_server(handler, memory=8, early_data=True, patience=12) as target:
        peer = await only_early(target)
        heard.clear()
        for number in range(40):
            peer.say(stream(0, number, b"x"), epoch=Epoch.ZERO_RTT)
            await trio.sleep(0.2)
        assert heard == ["began"]
        await trio.sleep(3)
        assert heard == ["began", "failed"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0x03, stream(0, 2**18, b"x")),
        (0x03, stream(0, 2**61, b"x")),
        (0x04, stream(4 * 128, 0, b"x")),
        (0x05, stream(1, 0, b"x")),
        (0x07, frame(0x21)),
        (0x0A, ack(0)),
        (0x0A, crypto(0, b"x")),
        (0x0A, frame(0x1E)),
        (0x0A, frame(0x07, 3, b"abc")),
    ],
)
async def test_early_data_that_breaks_a_rule(code: int, said: bytes) -> None:
    async with attacked_server(memory=8, early_data=True, patience=12) as target:
        peer = await only_early(target)
        peer.say(said, epoch=Epoch.ZERO_RTT)
        assert await peer.closed() == code, peer.end


async def test_more_early_data_than_there_is_room_for() -> None:
    """The first flight may fill the windows, which nobody reads from."""

    async def handler(connection: trio_wt.Connection) -> None:
        await connection.wait_closed()

    async with attacked_server(handler, memory=4, early_data=True, patience=12) as target:
        peer = await only_early(target)
        for at in range(0, 2**18, 1000):
            data = stream(0, at, bytes(min(1000, 2**18 - at)))
            peer.say(data, epoch=Epoch.ZERO_RTT)
            if at % 20_000 == 0:
                await trio.sleep(0.001)
        await trio.sleep(0.1)
        assert target.served[-1].statistics().unread_bytes == 2**18
        assert peer.end is None
