"""Sessions that are resumed, and data before the handshake is complete."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from tests.certificates import make, make_ca
from tests.quic_pairs import (
    HOST,
    PORT,
    ask,
    certificate,
    echo,
    serving,
    settle,
    start_serving,
    visit,
)
from trio_wt import (
    Certificate,
    ClientTLS,
    Connection,
    ConnectionClosed,
    ConnectionLost,
    HandshakeFailed,
    ServerTLS,
    SessionStore,
)
from trio_wt.testing import Network

DELAY = 0.1


class Server:
    """Echoes, and keeps what it was asked, when, and whether the handshake was complete then."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.times: list[float] = []
        self.early: list[bool] = []
        self.connections: list[Connection] = []

    async def __call__(self, connection: Connection) -> None:
        self.connections.append(connection)
        async for stream in connection.incoming_streams:
            async with stream:
                question = await stream.receive_all()
                self.asked.append(question)
                self.times.append(trio.current_time())
                self.early.append(not connection.handshake_complete)
                await stream.send_all(question.upper())


async def get_ticket(network: Network, store: SessionStore, **options: object) -> None:
    """A first visit, for its ticket."""
    before = len(store)
    async with visit(network, session_store=store, **options) as connection:
        assert not connection.session_resumed
        await connection.ping()
    assert len(store) > before


# ---- resuming


async def test_a_session_is_resumed() -> None:
    network, store = Network(), SessionStore()
    async with serving(echo, network):
        await get_ticket(network, store)
        for _ in range(5):
            async with visit(network, session_store=store) as connection:
                assert connection.session_resumed
                assert not connection.early_data_accepted
                assert connection.peer_certificate is None
                assert connection.alpn == "test"
                assert await ask(connection, b"x") == b"x"


async def test_without_a_store_nothing_is_resumed() -> None:
    network = Network()
    async with serving(echo, network):
        for _ in range(2):
            async with visit(network) as connection:
                await connection.ping()
                assert not connection.session_resumed


@pytest.mark.parametrize(
    "change",
    [
        {"alpn": ["test", "other"]},
        {"tls": ClientTLS(verify=False)},
        {"versions": (2,)},
        {"tls": "named"},
    ],
    ids=["alpn", "trust", "version", "name"],
)
async def test_a_ticket_serves_only_what_it_came_by(change: dict[str, object]) -> None:
    network, store = Network(), SessionStore()
    if change["tls"] == "named" if "tls" in change else False:
        hashes = [certificate().sha256]
        change = {"tls": ClientTLS(server_certificate_hashes=hashes, server_name="localhost")}
    async with serving(echo, network):
        await get_ticket(network, store)
        async with visit(network, session_store=store, **change) as connection:
            assert not connection.session_resumed
            assert await ask(connection, b"x") == b"x"


@pytest.mark.parametrize("version", [1, 2])
async def test_sessions_of_each_version(version: int) -> None:
    network, store = Network(), SessionStore()
    async with serving(echo, network, early_data=True):
        await get_ticket(network, store, versions=(version,))
        async with visit(
            network, session_store=store, early_data=True, versions=(version,)
        ) as connection:
            assert await ask(connection, b"x") == b"x"
            assert connection.version == version
            assert connection.session_resumed
            assert connection.early_data_accepted


async def test_a_ticket_that_the_server_has_forgotten() -> None:
    network, store = Network(), SessionStore()
    async with serving(echo, network):
        await get_ticket(network, store)
    async with serving(echo, network):
        async with visit(network, session_store=store) as connection:
            assert not connection.session_resumed
            assert connection.peer_certificate is not None
            assert await ask(connection, b"x") == b"x"


async def test_a_ticket_is_good_for_one_connection(tmp_path: Path) -> None:
    network, store = Network(), SessionStore()
    async with serving(echo, network):
        await get_ticket(network, store)
        copies = SessionStore()
        store.save(tmp_path / "copied")
        copies.load(tmp_path / "copied")
        resumed = []
        for one in (store, copies):
            async with visit(network, session_store=one) as connection:
                resumed.append(connection.session_resumed)
        assert resumed == [True, False]


async def test_with_client_certificates_nothing_is_resumed() -> None:
    authority = make_ca()
    network, store = Network(), SessionStore()
    tls = ServerTLS(certificate(), client_ca=authority.pem, client_certificates="request")
    async with serving(echo, network, tls=tls, early_data=True):
        for _ in range(2):
            async with visit(network, session_store=store, early_data=True) as connection:
                await connection.ping()
                assert not connection.session_resumed
    assert len(store) == 0


async def test_a_ticket_of_a_server_that_is_not_believed_is_not_kept() -> None:
    made = make((HOST,))
    tls = ServerTLS(Certificate.from_pem(made.pem, made.key_pem))
    network, store = Network(), SessionStore()
    async with serving(echo, network, tls=tls):
        with pytest.raises(HandshakeFailed):
            async with visit(network, session_store=store):
                pytest.fail("that is not its certificate")
        await settle()
    assert len(store) == 0


async def test_sessions_can_be_saved(tmp_path: Path) -> None:
    network, store, loaded = Network(), SessionStore(), SessionStore()
    async with serving(echo, network, early_data=True):
        await get_ticket(network, store)
        store.save(tmp_path / "sessions.json")
        loaded.load(tmp_path / "sessions.json")
        async with visit(network, session_store=loaded, early_data=True) as connection:
            assert await ask(connection, b"x") == b"x"
            assert connection.early_data_accepted


# ---- early data


async def test_early_data_saves_a_round_trip() -> None:
    network, store, server = Network(delay=DELAY), SessionStore(), Server()
    async with serving(server, network, early_data=True):
        await get_ticket(network, store)
        started = trio.current_time()
        async with visit(network, session_store=store, early_data=True) as connection:
            assert trio.current_time() == started
            assert not connection.handshake_complete
            assert not connection.session_resumed
            assert connection.alpn is None
            assert await ask(connection, b"x") == b"X"
            assert trio.current_time() - started == pytest.approx(2 * DELAY, abs=0.01)
            await connection.wait_handshake()
            assert connection.handshake_complete
            assert connection.session_resumed
            assert connection.early_data_accepted
            assert connection.alpn == "test"
        assert server.times[0] - started == pytest.approx(DELAY, abs=0.01)
        assert server.early == [True]
        theirs = server.connections[-1]
        assert theirs.handshake_complete
        assert theirs.session_resumed
        assert theirs.early_data_accepted


async def test_short_early_connections_go_on_and_on() -> None:
    """Each leaves as soon as it has its answer, and still gets a ticket for the next."""
    network, store, server = Network(delay=DELAY), SessionStore(), Server()
    async with serving(server, network, early_data=True):
        await get_ticket(network, store)
        for number in range(6):
            async with visit(network, session_store=store, early_data=True) as connection:
                assert await ask(connection, b"%d" % number) == b"%d" % number
            assert connection.early_data_accepted
        assert server.early == [True] * 6


async def test_a_server_may_wait_for_the_handshake() -> None:
    complete: list[tuple[bool, bool]] = []

    async def handler(connection: Connection) -> None:
        before = connection.handshake_complete
        await connection.wait_handshake()
        complete.append((before, connection.handshake_complete))
        await echo(connection)

    network, store = Network(delay=DELAY), SessionStore()
    async with serving(handler, network, early_data=True):
        await get_ticket(network, store)
        started = trio.current_time()
        async with visit(network, session_store=store, early_data=True) as connection:
            assert await ask(connection, b"x") == b"x"
            assert trio.current_time() - started == pytest.approx(4 * DELAY, abs=0.02)
    assert complete == [(True, True), (False, True)]


async def test_early_data_of_every_kind() -> None:
    network, store = Network(delay=DELAY), SessionStore()
    seen: dict[str, float] = {}

    async def handler(connection: Connection) -> None:
        async def datagrams() -> None:
            assert await connection.datagrams.receive() == b"datagram"
            seen["datagram"] = trio.current_time()

        async def one_way() -> None:
            stream = await connection.incoming_receive_streams.receive()
            assert await stream.receive_all() == b"one way"
            seen["one way"] = trio.current_time()

        async def both_ways() -> None:
            stream = await connection.incoming_streams.receive()
            assert await stream.receive_exactly(3000) == bytes(3000)
            seen["both ways"] = trio.current_time()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(datagrams)
            nursery.start_soon(one_way)
            nursery.start_soon(both_ways)

    async with serving(handler, network, early_data=True):
        await get_ticket(network, store)
        started = trio.current_time()
        async with visit(network, session_store=store, early_data=True) as connection:
            await connection.datagrams.send(b"datagram")
            async with connection.open_send_stream() as one_way:
                await one_way.send_all(b"one way")
            async with connection.open_stream() as both_ways:
                await both_ways.send_all(bytes(3000))
                await connection.wait_closed()
    assert set(seen) == {"datagram", "one way", "both ways"}
    for when in seen.values():
        assert when - started == pytest.approx(DELAY, abs=0.02)


async def test_early_data_of_more_than_a_flight() -> None:
    """What the server remembers of its limits bounds it, and the congestion window; the rest follows."""
    network, store, server = Network(delay=DELAY), SessionStore(), Server()
    async with serving(server, network, early_data=True, max_streams=3, stream_window=5000):
        await get_ticket(network, store)
        async with visit(network, session_store=store, early_data=True) as connection:
            answers: list[bytes] = []

            async def ask_one(number: int) -> None:
                answers.append(await ask(connection, b"%d" % number * 10_000))

            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(ask_one, number)
            assert sorted(answers) == [b"%d" % number * 10_000 for number in range(8)]


async def test_early_data_over_a_bad_way() -> None:
    for seed in range(5):
        network, store, server = Network(seed=seed, delay=0.01), SessionStore(), Server()
        async with serving(server, network, early_data=True):
            await get_ticket(network, store)
            network.loss = network.reorder = network.duplicate = 0.2
            async with visit(network, session_store=store, early_data=True) as connection:
                assert await ask(connection, b"x" * 20_000) == b"X" * 20_000
            assert server.asked == [b"x" * 20_000]


@pytest.mark.parametrize("why", ["forgotten", "not wanted", "retry"])
async def test_early_data_that_is_refused_arrives_after_the_handshake(why: str) -> None:
    network, store, server = Network(delay=DELAY), SessionStore(), Server()
    async with trio.open_nursery() as nursery:
        first = await start_serving(nursery, server, network, early_data=True)
        await get_ticket(network, store)
        first.cancel()
        await settle()
        options = {
            "early_data": why != "not wanted",
            "retry": "always" if why == "retry" else "never",
        }
        await start_serving(nursery, server, network, **options)
        async with visit(network, session_store=store, early_data=True) as connection:
            await connection.datagrams.send(b"may be lost")
            assert await ask(connection, b"x" * 5000) == b"X" * 5000
            assert not connection.early_data_accepted
            assert not connection.session_resumed
            assert connection.peer_certificate is not None
            # All works as on any other connection.
            assert await ask(connection, b"y") == b"Y"
        assert server.asked == [b"x" * 5000, b"y"]
        assert server.early == [False, False]
        nursery.cancel_scope.cancel()


async def test_early_data_survives_a_retry() -> None:
    network, store, server = Network(delay=DELAY), SessionStore(), Server()
    async with serving(server, network, early_data=True, retry="always"):
        await get_ticket(network, store)
        started = trio.current_time()
        async with visit(network, session_store=store, early_data=True) as connection:
            assert await ask(connection, b"x" * 5000) == b"X" * 5000
            assert connection.session_resumed
            assert trio.current_time() - started <= 6 * DELAY + 0.05
        assert server.asked == [b"x" * 5000]


async def test_a_ticket_for_early_data_used_without_it() -> None:
    network, store, server = Network(delay=DELAY), SessionStore(), Server()
    async with serving(server, network, early_data=True):
        await get_ticket(network, store)
        started = trio.current_time()
        async with visit(network, session_store=store) as connection:
            assert trio.current_time() - started == pytest.approx(2 * DELAY, abs=0.01)
            assert connection.session_resumed
            assert not connection.early_data_accepted
            assert await ask(connection, b"x") == b"X"
        assert server.early == [False]


async def test_early_data_is_asked_for_but_there_is_no_ticket() -> None:
    network, server = Network(delay=DELAY), Server()
    async with serving(server, network, early_data=True):
        started = trio.current_time()
        async with visit(network, session_store=SessionStore(), early_data=True) as connection:
            assert trio.current_time() - started == pytest.approx(2 * DELAY, abs=0.01)
            assert connection.handshake_complete
            assert await ask(connection, b"x") == b"X"


# ---- replays


class Recorder:
    """Keeps what clients send, as an attacker on the way may."""

    def __init__(self, network: Network) -> None:
        self.sent: list[bytes] = []
        self.network = network
        network.drop = self._keep

    def _keep(self, data: bytes, source: object, to: object) -> bool:
        if to == (HOST, PORT):
            self.sent.append(data)
        return True

    def replay(self) -> None:
        """Send it all once more, from elsewhere."""
        self.network.drop = None
        socket = self.network.socket()
        socket.send([(data, (HOST, PORT)) for data in self.sent])


async def test_a_replay_of_early_data_is_never_taken() -> None:
    network, store, server = Network(delay=DELAY), SessionStore(), Server()
    async with serving(server, network, early_data=True, handshake_timeout=5):
        await get_ticket(network, store)
        recorder = Recorder(network)
        async with visit(network, session_store=store, early_data=True) as connection:
            assert await ask(connection, b"pay 100") == b"PAY 100"
        assert server.early == [True]
        handlers = len(server.connections)
        for _ in range(3):
            recorder.replay()
            await trio.sleep(10)
        assert server.asked == [b"pay 100"]
        assert len(server.connections) == handlers


async def test_copies_that_come_first_are_the_only_ones_that_are_taken() -> None:
    """An attacker holds the client's packets back, and sends several copies of them before they arrive."""
    network, store, server = Network(delay=DELAY), SessionStore(), Server()
    async with serving(server, network, early_data=True):
        await get_ticket(network, store)
        attackers = [network.socket() for _ in range(3)]
        addresses = {attacker.local_address for attacker in attackers}
        held: list[bytes] = []

        def hold(data: bytes, source: object, to: object) -> bool:
            if to != (HOST, PORT) or source in addresses or len(held) == 2:
                return True
            held.append(data)
            return False

        network.drop = hold
        async with visit(network, session_store=store, early_data=True) as connection:
            async with connection.open_stream() as stream:
                await stream.send_all(b"pay 100", eof=True)
                await trio.sleep(0.05)
                for attacker in attackers:
                    attacker.send([(data, (HOST, PORT)) for data in held])
                with trio.move_on_after(20):
                    await stream.receive_all()
        assert server.asked == [b"pay 100"]


# ---- early data that goes nowhere


async def test_early_data_to_a_server_that_is_gone() -> None:
    network, store = Network(), SessionStore()
    async with serving(echo, network, early_data=True):
        await get_ticket(network, store)
    started = trio.current_time()
    async with visit(
        network, session_store=store, early_data=True, handshake_timeout=6
    ) as connection:
        async with connection.open_stream() as stream:
            await stream.send_all(b"x", eof=True)
            with pytest.raises(ConnectionLost, match="handshake"):
                await stream.receive_all()
        assert trio.current_time() - started == pytest.approx(6, abs=0.1)
        with pytest.raises(HandshakeFailed, match="handshake"):
            await connection.wait_handshake()
        with pytest.raises(ConnectionLost):
            await connection.ping()


async def test_early_data_to_another_server_is_not_believed() -> None:
    """The ticket is no good there, and its certificate is looked at as on any connection."""
    made = make((HOST,))
    other = ServerTLS(Certificate.from_pem(made.pem, made.key_pem))
    network, store, server = Network(), SessionStore(), Server()
    async with serving(echo, network, early_data=True):
        await get_ticket(network, store)
    async with serving(server, network, early_data=True, tls=other):
        async with visit(network, session_store=store, early_data=True) as connection:
            with pytest.raises(ConnectionClosed):
                await ask(connection, b"secret")
            with pytest.raises(HandshakeFailed):
                await connection.wait_handshake()
    assert server.asked == []


async def test_a_client_that_never_completes_its_handshake_does_not_keep_its_handler() -> None:
    network, store = Network(), SessionStore()
    ended: list[float] = []

    async def handler(connection: Connection) -> None:
        try:
            await echo(connection)
        finally:
            ended.append(trio.current_time())

    async with serving(handler, network, early_data=True, handshake_timeout=7, idle_timeout=100):
        await get_ticket(network, store)
        await settle()
        ended.clear()
        # It never hears of the server, so all that it sends is early data.
        network.drop = lambda data, source, to: to == (HOST, PORT)
        started = trio.current_time()
        with trio.move_on_after(20):
            async with visit(
                network, session_store=store, early_data=True, handshake_timeout=30
            ) as connection:
                for _ in range(20):
                    async with connection.open_send_stream() as stream:
                        await stream.send_all(b"x")
                    await trio.sleep(1)
        assert [when - started for when in ended] == pytest.approx([7], abs=0.2)


async def test_a_store_keeps_a_few_tickets_of_each_server() -> None:
    network, store = Network(), SessionStore(max_tickets=3)
    async with serving(echo, network):
        async with trio.open_nursery() as nursery:

            async def visit_once() -> None:
                async with visit(network, session_store=store) as connection:
                    await connection.ping()

            for _ in range(10):
                nursery.start_soon(visit_once)
    assert len(store) == 3
