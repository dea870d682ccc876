"""Opening connections: errors for people, the race of a host's addresses, shared sockets, and moving to another."""

from __future__ import annotations

import errno
import gc
import json
import os
import socket as stdlib_socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.certificates import make
from tests.quic_pairs import (
    HOST,
    PORT,
    ask,
    certificate,
    client_tls,
    echo,
    serving,
    settle,
    stream_pair,
    visit,
)
from trio_wt import (
    Certificate,
    CertificateRejected,
    ClientTLS,
    Connection,
    ConnectionClosedError,
    ConnectionLost,
    HandshakeFailed,
    ServerTLS,
    open_quic,
    open_quic_endpoint,
    serve_quic,
)
from trio_wt.testing import Network, quic_pair

real = pytest.mark.real_clock


async def stay(connection: Connection) -> None:
    await connection.wait_closed()


async def never(_: Connection) -> None:
    pytest.fail("no handler was to run")


# ---- errors for people


async def test_nobody_answers() -> None:
    network = Network()
    started = trio.current_time()
    with pytest.raises(HandshakeFailed) as caught:
        async with visit(network, handshake_timeout=3):
            pytest.fail("nobody is there")
    assert trio.current_time() - started == pytest.approx(3, abs=0.1)
    assert str(caught.value) == f"no QUIC connection to {HOST} port {PORT}: no answer within 3 s"


@real
async def test_nobody_answers_on_a_real_socket() -> None:
    with stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with trio.fail_after(2):
        with pytest.raises(HandshakeFailed, match=f"127.0.0.1 port {port}: no answer within 0.1 s"):
            async with open_quic("127.0.0.1", port, alpn=["test"], handshake_timeout=0.1):
                pytest.fail("nobody is there")


async def test_a_server_that_goes_silent_in_the_handshake() -> None:
    network = Network()
    async with serving(never, network):
        # The client's first packet arrives, and none after it.
        network.drop = lambda data, source, to: to == (HOST, PORT) and data[0] & 0x30 == 0
        with pytest.raises(HandshakeFailed, match="no answer within 2 s"):
            async with visit(network, handshake_timeout=2):
                pytest.fail("the handshake cannot be complete")


async def test_a_certificate_for_another_name() -> None:
    made = make(("other.test",))
    tls = ServerTLS(Certificate.from_pem(made.pem, made.key_pem))
    network = Network()
    async with serving(never, network, tls=tls):
        with pytest.raises(CertificateRejected, match=r"server\.test"):
            async with visit(network, tls=ClientTLS(ca=made.pem)):
                pytest.fail("the name is wrong")
        named = ClientTLS(ca=made.pem, server_name="other.test")
        with pytest.raises(CertificateRejected):
            async with visit(network):
                pytest.fail("the hash is wrong")
        assert trio.current_time() < 1
    async with serving(echo, network, tls=tls), visit(network, tls=named) as connection:
        assert await ask(connection, b"x") == b"x"


async def test_a_certificate_that_nobody_has_signed() -> None:
    network = Network()
    async with serving(never, network):
        with pytest.raises(CertificateRejected) as caught:
            async with visit(network, tls=ClientTLS()):
                pytest.fail("nobody knows it")
        assert isinstance(caught.value, HandshakeFailed)
        assert caught.value.alert == 48
    async with serving(echo, network), visit(network, tls=ClientTLS(verify=False)) as connection:
        assert await ask(connection, b"x") == b"x"


async def test_no_common_protocol() -> None:
    network = Network()
    async with serving(never, network, alpn=["a", "b"]):
        with pytest.raises(HandshakeFailed, match="ALPN") as caught:
            async with visit(network, alpn=["c"]):
                pytest.fail("there is none in common")
        assert trio.current_time() < 1
        assert "120" in str(caught.value)  # no_application_protocol, RFC 7301 section 3.2


async def test_the_server_s_order_of_protocols_counts() -> None:
    network = Network()
    async with serving(echo, network, alpn=["b", "a"]):
        async with visit(network, alpn=["c", "a"]) as connection:
            assert connection.alpn == "a"
        async with visit(network, alpn=["a", "b"]) as connection:
            assert connection.alpn == "b"


class Resolver(trio.abc.HostnameResolver):
    """Knows one host, "two.test", by the addresses that it is given."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = hosts

    async def getaddrinfo(  # type: ignore[override]
        self, host: bytes, port: int, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
        await trio.lowlevel.checkpoint()
        if host != b"two.test":
            raise stdlib_socket.gaierror(stdlib_socket.EAI_NONAME, "Name or service not known")
        found: list[tuple[int, int, int, str, tuple[object, ...]]] = []
        for name in self.hosts:
            six = ":" in name
            kind = stdlib_socket.AF_INET6 if six else stdlib_socket.AF_INET
            if family in (0, kind):
                sockaddr = (name, port, 0, 0) if six else (name, port)
                found.append((kind, stdlib_socket.SOCK_DGRAM, 17, "", sockaddr))
        return found

    async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:  # type: ignore[override]
        raise NotImplementedError


async def test_an_unknown_host() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver())
    for way in ("own", "endpoint"):
        async with AsyncExitStack() as stack:
            endpoint = None
            if way == "endpoint":
                endpoint = await stack.enter_async_context(open_quic_endpoint("127.0.0.1"))
            with pytest.raises(OSError, match="not known"):
                async with open_quic("unknown.test", 1, alpn=["test"], endpoint=endpoint):
                    pytest.fail("there is no such host")


@real
async def test_a_local_address_that_is_not_ours() -> None:
    with pytest.raises(OSError) as caught:
        async with open_quic("127.0.0.1", 1, alpn=["test"], local_address=("192.0.2.1", 0)):
            pytest.fail("it cannot be bound")
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpn": []},
        {"alpn": "test"},
        {"alpn": [""]},
        {"alpn": ["x" * 256]},
        {"handshake_timeout": 0},
        {"max_streams": -1},
        {"versions": ()},
        {"local_address": ("127.0.0.1", 0)},
    ],
    ids=lambda wrong: f"{next(iter(wrong))}={next(iter(wrong.values()))!r:.20}",
)
async def test_mistakes_are_value_errors(wrong: dict[str, object]) -> None:
    network = Network()
    async with serving(never, network):
        with pytest.raises((ValueError, TypeError)):
            async with visit(network, **wrong):
                pytest.fail("that is a mistake")
        assert network.statistics.sent == 0


async def test_unknown_settings_are_type_errors() -> None:
    with pytest.raises(TypeError, match="max_stream"):
        async with visit(Network(), max_stream=5):
            pytest.fail("that is a mistake")


async def test_a_failed_connection_leaves_nothing_behind() -> None:
    network = Network()
    task = trio.lowlevel.current_task()
    async with serving(never, network, alpn=["other"]):
        for timeout in (1.0, 0.0005):
            socket = network.socket(("client.test", 1))
            with pytest.raises(HandshakeFailed):
                async with visit(network, socket=socket, handshake_timeout=timeout):
                    pytest.fail("there is no protocol in common")
            with pytest.raises(trio.ClosedResourceError):
                socket.receive()
        assert len(task.child_nurseries) == 1  # of the server
    gc.collect()


async def test_a_cancelled_opening_leaves_nothing_behind() -> None:
    network = Network(delay=1)
    async with serving(stay, network):
        socket = network.socket(("client.test", 1))
        with trio.move_on_after(1.5) as scope:
            async with visit(network, socket=socket):
                pytest.fail("it takes 2 seconds")
        assert scope.cancelled_caught
        assert trio.current_time() == pytest.approx(1.5, abs=0.01)
        with pytest.raises(trio.ClosedResourceError):
            socket.receive()


# ---- the race of a host's addresses


@asynccontextmanager
async def real_server(*hosts: str, port: int = 0) -> AsyncIterator[tuple[int, list[Connection]]]:
    """A server at some addresses of the loopback interface: its port, and whom it has met."""
    met: list[Connection] = []

    async def handler(connection: Connection) -> None:
        met.append(connection)
        await echo(connection)

    async with trio.open_nursery() as nursery:
        for host in hosts:
            serve = partial(
                serve_quic, handler, port, host=host, alpn=["test"], tls=ServerTLS(certificate())
            )
            sockets = await nursery.start(serve)
            port = sockets[0].local_address[1]
        yield port, met
        nursery.cancel_scope.cancel()


def open_real(host: str, port: int, **options: object):  # type: ignore[no-untyped-def]  # noqa: ANN201
    return open_quic(host, port, alpn=["test"], tls=client_tls(), **options)  # type: ignore[arg-type]


@pytest.fixture
def no_ipv6() -> None:
    """Skips the test on a machine without IPv6."""
    if not stdlib_socket.has_dualstack_ipv6():
        pytest.skip("there is no IPv6 here")


@real
@pytest.mark.usefixtures("no_ipv6")
@pytest.mark.parametrize("hosts", [["127.0.0.1"], ["::1"], ["127.0.0.1", "::1"]], ids=str)
@pytest.mark.parametrize("order", [["127.0.0.1", "::1"], ["::1", "127.0.0.1"]], ids=str)
async def test_one_of_a_host_s_addresses_is_enough(hosts: list[str], order: list[str]) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(*order))
    async with real_server(*hosts) as (port, met):
        started = trio.current_time()
        async with open_real("two.test", port) as connection:
            took = trio.current_time() - started
            assert await ask(connection, b"x") == b"x"
            assert connection.peer_address is not None
            # The first that answers, and the first of the list has a start of a quarter of a second.
            best = order[0] if order[0] in hosts else hosts[0]
            assert connection.peer_address[0] == best
            assert (took < 0.24) == (best == order[0])
            assert took < 2
            await trio.sleep(0.05)
            assert len(met) == 1


@real
async def test_localhost_works_whatever_it_is() -> None:
    async with trio.open_nursery() as nursery:
        serve = partial(
            serve_quic, echo, 0, host="localhost", alpn=["test"], tls=ServerTLS(certificate())
        )
        sockets = await nursery.start(serve)
        async with open_real("localhost", sockets[0].local_address[1]) as connection:
            assert await ask(connection, b"x") == b"x"
        nursery.cancel_scope.cancel()


@real
@pytest.mark.usefixtures("no_ipv6")
async def test_a_loser_of_the_race_leaves_no_connection_behind() -> None:
    """Both addresses answer in the end, the first one late."""
    trio.socket.set_custom_hostname_resolver(Resolver("::1", "127.0.0.1"))
    async with real_server("127.0.0.1") as (port, _):
        late: list[Connection] = []

        async def handler(connection: Connection) -> None:
            late.append(connection)
            await connection.wait_closed()

        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def serve_late() -> None:
                await trio.sleep(0.3)
                await serve_quic(
                    handler, port, host="::1", alpn=["test"], tls=ServerTLS(certificate())
                )

            async with open_real("two.test", port) as connection:
                assert connection.peer_address is not None
                assert connection.peer_address[0] == "127.0.0.1"
                await trio.sleep(0.3)
                assert await ask(connection, b"x") == b"x"
                assert not late
            nursery.cancel_scope.cancel()


@real
@pytest.mark.usefixtures("no_ipv6")
async def test_all_addresses_fail() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver("::1", "127.0.0.1"))
    async with trio.open_nursery() as nursery:
        # One has nobody, the other speaks another protocol.
        serve = partial(
            serve_quic, never, 0, host="::1", alpn=["other"], tls=ServerTLS(certificate())
        )
        sockets = await nursery.start(serve)
        port = sockets[0].local_address[1]
        started = trio.current_time()
        with pytest.raises(HandshakeFailed) as caught:
            async with open_real("two.test", port, handshake_timeout=0.35):
                pytest.fail("none of them can")
        assert 0.3 < trio.current_time() - started < 2
        for part in ("two.test", "::1", "no answer within 0.35 s"):
            assert part in str(caught.value)
        nursery.cancel_scope.cancel()


@real
async def test_a_local_address_may_be_given() -> None:
    async with real_server("127.0.0.1") as (port, met):
        async with open_real("127.0.0.1", port, local_address=("127.0.0.1", 0)) as connection:
            assert connection.local_address is not None
            assert connection.local_address[0] == "127.0.0.1"
            assert await ask(connection, b"x") == b"x"
            assert met[0].peer_address == connection.local_address


# ---- shared sockets


async def test_connections_share_a_socket() -> None:
    network = Network()
    socket = network.socket()
    async with serving(echo, network), open_quic_endpoint(socket=socket) as endpoint:
        assert endpoint.local_address == socket.local_address
        async with AsyncExitStack() as stack:
            connections = [
                await stack.enter_async_context(visit(network, endpoint=endpoint)) for _ in range(5)
            ]
            for number, connection in enumerate(connections):
                assert connection.local_address == socket.local_address
                assert await ask(connection, b"%d" % number) == b"%d" % number
            await connections[2].aclose()
            with pytest.raises(RuntimeError, match="endpoint of its own"):
                await connections[0].migrate(socket=network.socket())
            for connection in connections[:2]:
                assert await ask(connection, b"still") == b"still"
        # It can be used again after they are gone.
        async with visit(network, endpoint=endpoint) as connection:
            assert await ask(connection, b"again") == b"again"
    with pytest.raises(trio.ClosedResourceError):
        socket.receive()


async def test_a_close_that_is_lost_is_said_again_to_whoever_asks() -> None:
    """RFC 9000 section 10.2.1; a socket of the client's own is closed, but a shared one is still there."""
    network, ends = Network(delay=0.01), []

    async def handler(connection: Connection) -> None:
        ends.append(await connection.wait_closed())

    async with (
        serving(handler, network, keep_alive=0.02, idle_timeout=60),
        open_quic_endpoint(socket=network.socket()) as endpoint,
    ):
        async with visit(network, endpoint=endpoint) as connection:
            await connection.ping()
            network.blackhole(0.015)
            await connection.aclose(3, "bye")
        await trio.sleep(0.5)
    assert [(end.code, end.reason) for end in ends] == [(3, "bye")]


@real
async def test_a_move_right_after_the_handshake() -> None:
    """The server knows the connection ids that it gives out before the client can use them."""
    async with trio.open_nursery() as nursery:
        serve = partial(serve_quic, alpn=["test"], tls=ServerTLS(certificate()), host="127.0.0.1")
        [socket] = await nursery.start(serve, echo, 0)
        for _ in range(20):
            async with open_quic(
                "127.0.0.1", socket.local_address[1], alpn=["test"], tls=client_tls()
            ) as connection:
                await connection.migrate()
        nursery.cancel_scope.cancel()


async def test_connections_on_a_shared_socket_fail_alone() -> None:
    network = Network()
    async with (
        serving(echo, network),
        open_quic_endpoint(socket=network.socket()) as endpoint,
        visit(network, endpoint=endpoint) as connection,
    ):
        with pytest.raises(HandshakeFailed):
            async with visit(network, endpoint=endpoint, alpn=["other"]):
                pytest.fail("there is no protocol in common")
        with pytest.raises(ZeroDivisionError):
            async with visit(network, endpoint=endpoint):
                raise ZeroDivisionError
        assert await ask(connection, b"x") == b"x"


async def test_connections_that_outlive_a_shared_socket_are_lost() -> None:
    network = Network()
    async with serving(echo, network):
        async with trio.open_nursery() as nursery:
            opened, closed = trio.Event(), trio.Event()

            @nursery.start_soon
            async def outlive() -> None:
                await opened.wait()
                async with visit(network, endpoint=endpoint) as connection:
                    closed.set()
                    end = await connection.wait_closed()
                    assert isinstance(end, ConnectionLost)
                    with pytest.raises(ConnectionLost):
                        await connection.ping()
                assert trio.current_time() < 1

            async with open_quic_endpoint(socket=network.socket()) as endpoint:
                opened.set()
                await closed.wait()


async def test_an_endpoint_that_is_closed_takes_no_connection() -> None:
    network = Network()
    async with serving(echo, network):
        async with open_quic_endpoint(socket=network.socket()) as endpoint:
            pass
        with pytest.raises((trio.ClosedResourceError, HandshakeFailed)):
            async with visit(network, endpoint=endpoint):
                pytest.fail("its socket is closed")
        assert trio.current_time() < 1


async def test_an_endpoint_s_block_lets_exceptions_out_as_they_were() -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with open_quic_endpoint(socket=Network().socket()):
            raise error
    assert caught.value is error


@real
async def test_a_shared_real_socket_reaches_both_families() -> None:
    async with real_server("127.0.0.1") as (port, _), open_quic_endpoint() as endpoint:
        async with open_real("127.0.0.1", port, endpoint=endpoint) as connection:
            assert await ask(connection, b"x") == b"x"
    if stdlib_socket.has_dualstack_ipv6():
        async with real_server("::1") as (port, _), open_quic_endpoint() as endpoint:
            async with open_real("::1", port, endpoint=endpoint) as connection:
                assert await ask(connection, b"x") == b"x"


@real
async def test_an_endpoint_may_be_bound() -> None:
    async with open_quic_endpoint("127.0.0.1") as endpoint:
        assert endpoint.local_address[0] == "127.0.0.1"
        with pytest.raises(OSError) as caught:
            async with open_quic_endpoint(*endpoint.local_address):
                pytest.fail("the port is taken")
        assert caught.value.errno == errno.EADDRINUSE


# ---- moving


async def test_a_connection_moves_to_another_socket() -> None:
    network = Network()
    async with (
        quic_pair(network=network) as (client, server),
        stream_pair(client, server) as (a, b),
    ):
        old = client.local_address
        for _ in range(3):
            socket = network.socket()
            await client.migrate(socket=socket)
            assert client.local_address == socket.local_address != old
            await a.send_all(b"x")
            assert await b.receive_some() == b"x"
            await settle()
            assert server.peer_address == socket.local_address
            await b.send_all(b"y")
            assert await a.receive_some() == b"y"
        # After a while the first socket is closed, and its address free again.
        assert isinstance(old, tuple)
        await trio.sleep(1)
        network.socket(old).close()


async def test_a_connection_moves_in_the_middle_of_a_transfer() -> None:
    network = Network(delay=0.01, rate=10**6)
    async with quic_pair(network=network) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(echo, server)
        content = bytes(i % 251 for i in range(500_000))
        answers = []

        @nursery.start_soon
        async def transfer() -> None:
            answers.append(await ask(client, content))

        for _ in range(2):
            await trio.sleep(0.2)
            await client.migrate(socket=network.socket())
        await trio.sleep(10)
        assert answers == [content]
        nursery.cancel_scope.cancel()


async def test_where_nobody_answers_the_connection_stays() -> None:
    network = Network()
    async with (
        quic_pair(network=network) as (client, server),
        stream_pair(client, server) as (a, b),
    ):
        old = client.local_address
        for _ in range(2):
            socket = network.socket()
            new = socket.local_address
            network.drop = lambda data, source, to, new=new: to != new  # type: ignore[misc]
            started = trio.current_time()
            with pytest.raises(OSError, match="not answered .* within 2 s"):
                await client.migrate(socket=socket, timeout=2)
            assert trio.current_time() - started == pytest.approx(2, abs=0.1)
            assert client.local_address == old
            with pytest.raises(trio.ClosedResourceError):
                socket.receive()
            await a.send_all(b"x")
            assert await b.receive_some() == b"x"
        network.drop = None
        await client.migrate(socket=network.socket())
        await a.send_all(b"y")
        assert await b.receive_some() == b"y"


async def test_a_way_that_loses_much_can_be_moved_to() -> None:
    network = Network(seed=6)
    async with (
        quic_pair(network=network) as (client, server),
        stream_pair(client, server) as (a, b),
    ):
        network.loss = 0.5
        await client.migrate(socket=network.socket(), timeout=20)
        network.loss = 0
        await a.send_all(b"x")
        assert await b.receive_some() == b"x"


async def test_a_server_does_not_move() -> None:
    network = Network()
    async with quic_pair(network=network) as (_, server):
        socket = network.socket(("other.test", 1))
        with pytest.raises(RuntimeError, match="client"):
            await server.migrate(socket=socket)


async def test_moving_ends_with_the_connection() -> None:
    network = Network()
    async with quic_pair(network=network) as (client, server), trio.open_nursery() as nursery:
        socket = network.socket()
        network.drop = lambda data, source, to: to != socket.local_address

        @nursery.start_soon
        async def move() -> None:
            with pytest.raises(ConnectionClosedError):
                await client.migrate(socket=socket)

        await settle()
        server.close_now(3)
        await settle()
        assert not nursery.child_tasks
        with pytest.raises(trio.ClosedResourceError):
            socket.receive()


async def test_a_new_address_given_by_a_nat_is_followed() -> None:
    network = Network()
    socket = network.socket()
    async with serving(echo, network), visit(network, socket=socket) as connection:
        assert await ask(connection, b"x") == b"x"
        for _ in range(3):
            socket.rebind()
            assert await ask(connection, b"y") == b"y"


@real
async def test_moving_on_real_sockets() -> None:
    async with real_server("127.0.0.1") as (port, met):
        async with open_real("127.0.0.1", port) as connection:
            assert await ask(connection, b"x") == b"x"
            for address in (None, ("127.0.0.1", 0)):
                old = connection.local_address
                await connection.migrate(local_address=address)
                assert connection.local_address != old
                assert await ask(connection, b"y") == b"y"
            assert connection.local_address is not None
            assert met[0].peer_address is not None
            assert met[0].peer_address[1] == connection.local_address[1]
            with pytest.raises(OSError) as caught:
                await connection.migrate(local_address=("192.0.2.1", 0))
            assert caught.value.errno == errno.EADDRNOTAVAIL
            assert await ask(connection, b"z") == b"z"


# ---- what can be watched


@pytest.mark.parametrize("by", ["environment", "argument"])
async def test_a_key_log(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, server_path = tmp_path / "client.log", tmp_path / "server.log"
    monkeypatch.delenv("SSLKEYLOGFILE", raising=False)
    tls = client_tls()
    if by == "environment":
        monkeypatch.setenv("SSLKEYLOGFILE", str(path))
    else:
        tls = ClientTLS(server_certificate_hashes=[certificate().sha256], keylog=path)
    network = Network()
    async with serving(echo, network, tls=ServerTLS(certificate(), keylog=server_path)):
        async with visit(network, tls=tls) as connection:
            assert await ask(connection, b"x") == b"x"
    theirs, ours = server_path.read_text(), path.read_text()
    for label in ("CLIENT_HANDSHAKE_TRAFFIC_SECRET", "SERVER_TRAFFIC_SECRET_0"):
        assert f"{label} " in ours
        assert f"{label} " in theirs
    # Both know the same secrets, and the server's environment is no business of the server.
    assert set(ours.split()) == set(theirs.split())
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600


async def test_a_key_log_that_cannot_be_written() -> None:
    tls = ClientTLS(verify=False, keylog="/no such folder/keys.log")
    with pytest.raises(OSError, match="no such folder"):
        async with visit(Network(), tls=tls):
            pytest.fail("the secrets would not be logged")


async def test_a_qlog_of_each_connection(tmp_path: Path) -> None:
    network = Network()
    async with serving(echo, network, qlog_dir=tmp_path):
        for _ in range(2):
            async with visit(network, qlog_dir=tmp_path) as connection:
                assert await ask(connection, b"x") == b"x"
        await settle()
    logs = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    assert len(logs) == 4
    sides = sorted(log["traces"][0]["vantage_point"]["type"] for log in logs)
    assert sides == ["client", "client", "server", "server"]
    for log in logs:
        assert len(log["traces"][0]["events"]) > 10


async def test_open_quic_is_a_checkpoint() -> None:
    network = Network()
    async with serving(echo, network):
        with trio.testing.assert_checkpoints():
            async with visit(network):
                pass
        for wrong in ({"alpn": []}, {"max_streams": -1}):
            with pytest.raises(ValueError, match="."):
                async with visit(network, **wrong):
                    pytest.fail("that is a mistake")
