"""Serving: handlers and how they end, shutting down, certificates of both sides, resumption, and strangers."""

from __future__ import annotations

import errno
import random
import socket as stdlib_socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.certificates import Made, make, make_ca
from tests.quic_pairs import (
    HOST,
    PORT,
    Handler,
    ask,
    certificate,
    client_tls,
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
    ConnectionClosedError,
    ConnectionClosedOK,
    ConnectionLost,
    HandshakeFailed,
    ServerTLS,
    StreamReset,
    TransportClosed,
    open_quic,
    serve_quic,
)
from trio_wt.testing import Network

real = pytest.mark.real_clock
CANCELLED, FAILED = 71, 72
CODES = {"cancelled_code": CANCELLED, "failed_code": FAILED}


async def never(_: Connection) -> None:
    pytest.fail("no handler was to run")


async def stay(connection: Connection) -> None:
    await connection.wait_closed()


# ---- handlers


async def test_how_a_handler_ends_decides_the_code(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(connection: Connection) -> None:
        async with await connection.incoming_streams.receive() as stream:
            how = await stream.receive_all()
            await stream.send_all(b"ok")
        if how == b"raise":
            raise ZeroDivisionError
        if how == b"cancel":
            connection.cancel_scope.cancel()
            await trio.sleep_forever()
        if how == b"close":
            await connection.aclose(5, "mine")

    network = Network()
    async with serving(handler, network, **CODES):
        for how, code in (
            (b"return", 0),
            (b"raise", FAILED),
            (b"cancel", CANCELLED),
            (b"close", 5),
        ):
            async with visit(network) as connection, visit(network) as other:
                # The end of a handler that fails may overtake what it has sent.
                async with connection.open_stream() as stream:
                    await stream.send_all(how, eof=True)
                    end = await connection.wait_closed()
                assert (end.code, end.remote) == (code, True)
                assert other.closed is None
                assert await ask(other, b"return") == b"ok"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "a QUIC handler failed; its connection was closed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_a_handler_that_returns_sees_out_what_it_has_sent() -> None:
    async def handler(connection: Connection) -> None:
        async with connection.open_send_stream() as stream:
            await stream.send_all(bytes(100_000))

    network = Network(seed=1, loss=0.1)
    async with serving(handler, network, close_timeout=60), visit(network) as connection:
        async with await connection.incoming_receive_streams.receive() as stream:
            assert await stream.receive_all() == bytes(100_000)


async def test_running_into_the_end_is_not_worth_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.datagrams.receive)
            async for stream in connection.incoming_streams:
                await stream.receive_some()

    network = Network()
    async with serving(handler, network, idle_timeout=5):
        for how in ("clean", "code", "gone"):
            async with visit(network) as connection, connection.open_stream() as stream:
                await stream.send_all(b"x")
                await settle()
                if how == "code":
                    connection.close_now(5)
                elif how == "gone":
                    network.blackhole(20)
                    await trio.sleep(10)
        await trio.sleep(20)
    assert not caplog.records


async def test_handler_errors_may_go_on_to_the_nursery() -> None:
    async def handler(connection: Connection) -> None:
        await connection.incoming_streams.receive()
        raise ZeroDivisionError

    network = Network()
    ends: list[ConnectionClosed] = []

    async def visitor(*, fails: bool) -> None:
        async with visit(network) as connection, connection.open_stream() as stream:
            if fails:
                await trio.sleep(1)
                await stream.send_all(b"x")
            ends.append(await connection.wait_closed())

    async with trio.open_nursery() as nursery:
        with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
            async with serving(handler, network, handler_errors="raise", **CODES):
                nursery.start_soon(partial(visitor, fails=True))
                nursery.start_soon(partial(visitor, fails=False))
                await trio.sleep_forever()
    assert sorted(end.code for end in ends) == [CANCELLED, FAILED]


async def test_handlers_run_in_the_nursery_that_was_given() -> None:
    parents: list[trio.Nursery | None] = []

    async def handler(connection: Connection) -> None:
        parents.append(trio.lowlevel.current_task().parent_nursery)
        await echo(connection)

    network = Network()
    async with trio.open_nursery() as handlers:
        async with serving(handler, network, handler_nursery=handlers):
            async with visit(network) as connection:
                assert await ask(connection, b"x") == b"x"
            await settle()
        assert parents == [handlers]


async def test_a_nursery_that_was_given_is_left_in_peace(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(connection: Connection) -> None:
        await connection.incoming_streams.receive()
        raise ZeroDivisionError

    network = Network()
    async with trio.open_nursery() as handlers:
        async with serving(handler, network, handler_nursery=handlers):
            async with visit(network) as connection, connection.open_stream() as stream:
                await stream.send_all(b"x")
                await connection.wait_closed()
            # A connection that is there when serving ends is lost.
            async with visit(network) as connection:
                await connection.ping()
                lost = connection
                handlers_before = len(handlers.child_tasks)
        await settle()
        assert handlers_before == 1
        assert not handlers.child_tasks
        assert lost.closed is not None
    assert "ZeroDivisionError" in caplog.text


async def test_a_handler_is_a_task_with_a_name() -> None:
    names: list[str] = []

    async def handler(connection: Connection) -> None:
        names.append(trio.lowlevel.current_task().name)

    network = Network()
    async with serving(handler, network), visit(network) as connection:
        await connection.wait_closed()
    assert names == ["trio_wt QUIC connection"]


async def test_a_client_that_leaves_at_once_leaves_nothing() -> None:
    handled = 0

    async def handler(connection: Connection) -> None:
        nonlocal handled
        handled += 1
        await stay(connection)

    network = Network()
    async with shutting_down(handler, network) as (shutdown, returned):
        for _ in range(20):
            async with visit(network):
                pass
        await settle()
        assert handled <= 20
        # Nobody is there to wait for.
        shutdown.set()
        await trio.testing.wait_all_tasks_blocked()
        assert returned.is_set()


async def test_what_was_sent_before_leaving_is_handled() -> None:
    """Connect, say one thing, leave: two hundred times."""
    got: list[bytes] = []

    async def handler(connection: Connection) -> None:
        async for stream in connection.incoming_receive_streams:
            async with stream:
                got.append(await stream.receive_all())

    network = Network()
    async with serving(handler, network):
        for number in range(50):
            async with visit(network) as connection:
                async with connection.open_send_stream() as stream:
                    await stream.send_all(b"%d" % number)
        await settle()
    assert got == [b"%d" % number for number in range(50)]


# ---- shutting down


@asynccontextmanager
async def shutting_down(
    handler: Handler, network: Network, **options: object
) -> AsyncIterator[tuple[trio.Event, trio.Event]]:
    """A server with an event that shuts it down, and one that is set when it has returned."""
    shutdown, returned = trio.Event(), trio.Event()

    async def serve(task_status: trio.TaskStatus[object]) -> None:
        await serve_quic(
            handler,
            alpn=["test"],
            tls=ServerTLS(certificate()),
            sockets=[network.socket((HOST, PORT))],
            shutdown=shutdown,
            task_status=task_status,
            **options,  # type: ignore[arg-type]
        )
        returned.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        yield shutdown, returned
        nursery.cancel_scope.cancel()


async def test_a_shutdown_waits_for_handlers_and_accepts_nobody() -> None:
    network = Network()
    async with shutting_down(echo, network, shutdown_timeout=100) as (shutdown, returned):
        async with visit(network) as connection:
            assert await ask(connection, b"x") == b"x"
            shutdown.set()
            await trio.sleep(20)
            assert not returned.is_set()
            assert await ask(connection, b"y") == b"y"
            with pytest.raises(HandshakeFailed):
                async with visit(network, handshake_timeout=3):
                    pytest.fail("it is shutting down")
        await settle()
        assert returned.is_set()
        network.socket((HOST, PORT)).close()  # it is free again


async def test_a_shutdown_is_bounded_and_says_why() -> None:
    cancelled = 0

    async def handler(_: Connection) -> None:
        nonlocal cancelled
        try:
            await trio.sleep_forever()
        finally:
            cancelled += 1

    network = Network()
    async with shutting_down(handler, network, shutdown_timeout=7) as (shutdown, returned):
        async with visit(network) as one, visit(network) as two:
            await one.ping()
            await two.ping()
            started = trio.current_time()
            shutdown.set()
            for connection in (one, two):
                end = await connection.wait_closed()
                assert type(end) is ConnectionClosedOK
                assert (end.code, end.reason) == (0, "the server is shutting down")
                assert trio.current_time() - started == pytest.approx(7, abs=0.1)
            await settle()
        assert returned.is_set()
        assert cancelled == 2


async def test_a_shutdown_without_connections_is_immediate() -> None:
    network = Network()
    async with shutting_down(echo, network) as (shutdown, returned):
        async with visit(network) as connection:
            assert await ask(connection, b"x") == b"x"
        await settle()
        shutdown.set()
        await trio.testing.wait_all_tasks_blocked()
        assert returned.is_set()


async def test_a_shutdown_does_not_wait_for_handshakes_that_hang() -> None:
    network = Network()
    async with shutting_down(never, network, handshake_timeout=4) as (shutdown, returned):
        network.drop = lambda data, source, to: to == (HOST, PORT) and data[0] & 0x30 == 0
        with pytest.raises(HandshakeFailed):
            async with visit(network, handshake_timeout=1):
                pytest.fail("it cannot be complete")
        shutdown.set()
        await trio.sleep(9)
        assert returned.is_set()


async def test_a_cancelled_server_says_so() -> None:
    network = Network()
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        server = await start_serving(nursery, echo, network, **CODES)
        connections = [await stack.enter_async_context(visit(network)) for _ in range(3)]
        for connection in connections:
            assert await ask(connection, b"x") == b"x"
        server.cancel()
        started = trio.current_time()
        for connection in connections:
            end = await connection.wait_closed()
            assert (end.code, end.remote) == (CANCELLED, True)
        assert trio.current_time() - started < 0.1
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks


async def test_a_cancelled_server_still_hears_its_clients() -> None:
    """Handlers that clean up under a shield can still talk, as those of a TCP server can."""
    answers: list[bytes] = []
    network = Network()

    async def handler(connection: Connection) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(3, shield=True):
                answers.append(await ask(connection, b"last question"))

    async with trio.open_nursery() as nursery:
        server = await start_serving(nursery, handler, network)
        async with visit(network) as connection:
            await settle()
            server.cancel()
            started = trio.current_time()
            with pytest.raises(ConnectionClosedError, match="code 1"):
                await echo(connection)
            assert answers == [b"last question"]
            assert trio.current_time() - started < 1


async def test_a_cancelled_server_does_not_wait_for_goodbyes_that_are_done() -> None:
    async def handler(connection: Connection) -> None:
        async with connection.open_send_stream() as stream:
            await stream.send_all(b"and out", eof=True)
            await settle()

    network = Network()
    async with serving(handler, network):
        async with visit(network) as connection:
            async with await connection.incoming_receive_streams.receive() as stream:
                assert await stream.receive_all() == b"and out"
            started = trio.current_time()
    assert trio.current_time() - started < 1


# ---- where it listens


@real
async def test_port_0_takes_a_free_one() -> None:
    async with trio.open_nursery() as nursery:
        serve = partial(
            serve_quic, echo, 0, host="127.0.0.1", alpn=["test"], tls=ServerTLS(certificate())
        )
        sockets = [await nursery.start(serve) for _ in range(2)]
        ports = {bound[0].local_address[1] for bound in sockets}
        assert len(ports) == 2
        assert 0 not in ports
        for port in ports:
            async with open_quic("127.0.0.1", port, alpn=["test"], tls=client_tls()) as connection:
                assert await ask(connection, b"x") == b"x"
        nursery.cancel_scope.cancel()


@real
async def test_by_default_it_listens_on_all_addresses() -> None:
    async with trio.open_nursery() as nursery:
        serve = partial(serve_quic, echo, 0, alpn=["test"], tls=ServerTLS(certificate()))
        (socket,) = await nursery.start(serve)
        hosts = ["127.0.0.1"] + ["::1"] * stdlib_socket.has_dualstack_ipv6()
        for host in hosts:
            port = socket.local_address[1]
            async with open_quic(host, port, alpn=["test"], tls=client_tls()) as connection:
                assert await ask(connection, b"x") == b"x"
        nursery.cancel_scope.cancel()


@real
async def test_a_port_that_is_taken() -> None:
    with stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(OSError) as caught:
            await serve_quic(
                echo, port, host="127.0.0.1", alpn=["test"], tls=ServerTLS(certificate())
            )
        assert caught.value.errno == errno.EADDRINUSE


async def test_several_sockets_are_closed_in_the_end() -> None:
    network = Network()
    sockets = [network.socket((HOST, port)) for port in (1, 2)]
    async with trio.open_nursery() as nursery:
        serve = partial(
            serve_quic, echo, sockets=sockets, alpn=["test"], tls=ServerTLS(certificate())
        )
        assert await nursery.start(serve) == sockets
        for port in (1, 2):
            async with open_quic(
                HOST, port, alpn=["test"], tls=client_tls(), socket=network.socket()
            ) as connection:
                assert await ask(connection, b"x") == b"x"
                assert connection.peer_address == (HOST, port)
        nursery.cancel_scope.cancel()
    for socket in sockets:
        with pytest.raises(trio.ClosedResourceError):
            socket.receive()


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": None},
        {"port": 0, "sockets": []},
        {"alpn": []},
        {"alpn": "test"},
        {"alpn": [""]},
        {"handler_errors": "ignore"},
        {"retry": "sometimes"},
        {"max_half_open": 0},
        {"handshake_timeout": 0},
        {"max_streams": -1},
        {"idle_timeout": 0},
    ],
    ids=str,
)
async def test_mistakes_are_value_errors(wrong: dict[str, object]) -> None:
    options = {"port": 0, "alpn": ["test"], "tls": ServerTLS(certificate()), **wrong}
    with trio.move_on_after(1), pytest.raises((ValueError, TypeError)):
        await serve_quic(echo, **options)  # type: ignore[arg-type]


async def test_a_mistake_closes_the_sockets_it_was_given() -> None:
    """Or leaves them alone; but it does not lose them in between."""
    socket = Network().socket()
    with pytest.raises(ValueError, match="alpn"):
        await serve_quic(echo, sockets=[socket], alpn=[], tls=ServerTLS(certificate()))
    socket.close()


# ---- certificates


def loaded(made: Made) -> Certificate:
    return Certificate.from_pem(made.pem, made.key_pem)


async def test_a_renewed_certificate_is_taken_up() -> None:
    first, second = make((HOST,)), make((HOST,))
    current = ServerTLS(loaded(first))
    asked = 0

    def source() -> ServerTLS:
        nonlocal asked
        asked += 1
        return current

    network = Network()
    async with serving(echo, network, tls=source):
        shown = []
        for _ in range(2):
            async with visit(network, tls=ClientTLS(ca=first.pem)) as connection:
                assert await ask(connection, b"x") == b"x"
                shown.append(connection.peer_certificate)
        current = ServerTLS(loaded(second))
        async with visit(network, tls=ClientTLS(ca=second.pem)) as connection:
            assert await ask(connection, b"x") == b"x"
            shown.append(connection.peer_certificate)
    assert shown == [made.certificate.public_bytes(Encoding.DER) for made in (first, first, second)]
    assert asked == 4  # once at the start


async def test_a_source_that_fails_costs_its_connection_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = False

    def source() -> ServerTLS:
        if broken:
            raise OSError("the disk is gone")
        return tls

    tls = ServerTLS(certificate())
    network = Network()
    async with serving(echo, network, tls=source), visit(network) as connection:
        broken = True
        with pytest.raises(HandshakeFailed):
            async with visit(network, handshake_timeout=2):
                pytest.fail("there is no certificate")
        assert "the disk is gone" in caplog.text
        broken = False
        # The others go on, and new ones are accepted again.
        assert await ask(connection, b"x") == b"x"
        async with visit(network) as other:
            assert await ask(other, b"x") == b"x"


async def test_a_source_that_fails_at_the_start() -> None:
    def source() -> ServerTLS:
        raise OSError("there is no such file")

    with pytest.raises(OSError, match="no such file"):
        await serve_quic(echo, sockets=[Network().socket()], alpn=["test"], tls=source)


CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)


async def test_a_client_s_certificate_is_required() -> None:
    authority = make_ca()
    good = make(("client",), issuer=authority, purposes=CLIENT)
    seen: list[bytes | None] = []

    async def handler(connection: Connection) -> None:
        seen.append(connection.peer_certificate)
        await echo(connection)

    network = Network()
    tls = ServerTLS(certificate(), client_ca=authority.pem)
    hashes = [certificate().sha256]
    async with serving(handler, network, tls=tls):
        mine = ClientTLS(server_certificate_hashes=hashes, certificate=loaded(good))
        async with visit(network, tls=mine) as connection:
            assert await ask(connection, b"x") == b"x"
        assert seen == [good.certificate.public_bytes(Encoding.DER)]
        bad = [
            (None, 116),  # certificate_required
            (make(("client",), purposes=CLIENT), 48),  # unknown_ca
            (make(("client",), issuer=authority), 43),  # unsupported_certificate: a server's
        ]
        for made, alert in bad:
            shown = None if made is None else loaded(made)
            tls_then = ClientTLS(server_certificate_hashes=hashes, certificate=shown)
            # The client's handshake is complete before the server has looked at its certificate.
            with pytest.raises((TransportClosed, HandshakeFailed)) as caught:
                async with visit(network, tls=tls_then) as connection:
                    await ask(connection, b"x")
            assert f"TLS alert {alert}" in str(caught.value)
        assert len(seen) == 1


async def test_a_client_s_certificate_is_asked_for() -> None:
    authority = make_ca()
    good = make(("client",), issuer=authority, purposes=CLIENT)
    bad = make(("client",), purposes=CLIENT)
    seen: list[bytes | None] = []

    async def handler(connection: Connection) -> None:
        seen.append(connection.peer_certificate)
        await echo(connection)

    network = Network()
    tls = ServerTLS(certificate(), client_ca=authority.pem, client_certificates="request")
    hashes = [certificate().sha256]
    async with serving(handler, network, tls=tls):
        for shown in (None, loaded(good)):
            mine = ClientTLS(server_certificate_hashes=hashes, certificate=shown)
            async with visit(network, tls=mine) as connection:
                assert await ask(connection, b"x") == b"x"
        assert seen == [None, good.certificate.public_bytes(Encoding.DER)]
        mine = ClientTLS(server_certificate_hashes=hashes, certificate=loaded(bad))
        with pytest.raises((TransportClosed, HandshakeFailed), match="TLS alert 48"):
            async with visit(network, tls=mine) as connection:
                await ask(connection, b"x")
        assert len(seen) == 2


# ---- strangers


async def test_junk_hurts_nobody() -> None:
    network = Network()
    noise = network.socket()
    random_bytes = random.Random(1).randbytes
    async with serving(echo, network), visit(network) as connection:
        for size in (0, 1, 5, 20, 21, 100, 1200, 1500, 9000, 60_000):
            for first in (None, 0x40, 0xC0, 0xC3, 0xD0, 0xFF):
                data = random_bytes(size)
                if first is not None and data:
                    data = bytes([first]) + data[1:]
                noise.send([(data, (HOST, PORT))])
        await settle()
        assert await ask(connection, b"x") == b"x"
        async with visit(network) as other:
            assert await ask(other, b"x") == b"x"


@pytest.mark.parametrize("retry", ["always", "never", "under-load"])
async def test_retry(retry: str) -> None:
    network = Network(delay=0.1)
    async with serving(echo, network, retry=retry):
        started = trio.current_time()
        async with visit(network) as connection:
            took = trio.current_time() - started
            assert await ask(connection, b"x") == b"x"
    assert took == pytest.approx(0.4 if retry == "always" else 0.2, abs=0.05)


async def test_retry_over_a_bad_way() -> None:
    network = Network(seed=7, loss=0.1, duplicate=0.2, reorder=0.2)
    async with serving(echo, network, retry="always"):
        for number in range(10):
            async with visit(network, idle_timeout=100) as connection:
                assert await ask(connection, b"%d" % number) == b"%d" % number


async def test_under_load_clients_prove_their_address() -> None:
    network = Network(delay=0.1)
    silent = {network.socket() for _ in range(5)}
    async with serving(echo, network, max_half_open=4, handshake_timeout=20):
        # These never answer the server's first flight.
        addresses = {socket.local_address for socket in silent}
        network.drop = lambda data, source, to: (
            not (source in addresses and data[0] & 0x30) and to not in addresses
        )
        async with trio.open_nursery() as nursery:

            async def half_open(socket: object) -> None:
                with pytest.raises(HandshakeFailed):
                    async with visit(network, socket=socket, handshake_timeout=15):
                        pytest.fail("nothing comes back")

            for socket in silent:
                nursery.start_soon(half_open, socket)
            await trio.sleep(1)
            for _ in range(3):
                started = trio.current_time()
                async with visit(network) as connection:
                    took = trio.current_time() - started
                    assert await ask(connection, b"x") == b"x"
                assert took == pytest.approx(0.4, abs=0.05)
        # Once they are given up, there is no need for it any more.
        await trio.sleep(25)
        started = trio.current_time()
        async with visit(network):
            assert trio.current_time() - started == pytest.approx(0.2, abs=0.05)


async def test_handshakes_that_hang_are_given_up() -> None:
    network = Network()
    async with shutting_down(never, network, handshake_timeout=3) as (shutdown, returned):
        network.drop = lambda data, source, to: to == (HOST, PORT) and data[0] & 0x30 == 0
        with pytest.raises(HandshakeFailed):
            async with visit(network, handshake_timeout=1):
                pytest.fail("it cannot be complete")
        await trio.sleep(4)
        shutdown.set()
        await trio.testing.wait_all_tasks_blocked()
        assert returned.is_set()


@pytest.mark.parametrize("same_key", [True, False])
async def test_a_restarted_server_with_its_key_tells_that_connections_are_gone(
    same_key: bool,
) -> None:
    network = Network()
    key = bytes(range(32))
    async with trio.open_nursery() as nursery:
        server = await start_serving(nursery, echo, network, reset_key=key)
        async with visit(network, idle_timeout=20) as connection:
            assert await ask(connection, b"x") == b"x"
            network.loss = 1  # it ends without a word
            server.cancel()
            await trio.sleep(8)
            network.loss = 0
            server = await start_serving(
                nursery, echo, network, reset_key=key if same_key else None
            )
            started = trio.current_time()
            with pytest.raises(ConnectionLost) as caught:
                await connection.ping()
            if same_key:
                assert trio.current_time() - started < 0.1
                assert "stateless reset" in str(caught.value)
            else:
                assert trio.current_time() - started > 10
                assert "idle" in str(caught.value)
        server.cancel()


# ---- the end of a connection as the server's handlers see it


async def test_a_handler_sees_how_its_client_has_left() -> None:
    ends: list[BaseException] = []

    async def handler(connection: Connection) -> None:
        try:
            await connection.datagrams.receive()
        except (ConnectionClosed, trio.ClosedResourceError) as exc:
            ends.append(exc)
            raise

    network = Network()
    async with serving(handler, network):
        for code in (0, 9):
            async with visit(network) as connection:
                await connection.ping()
                await connection.aclose(code, "bye")
            await settle()
    assert [type(end) for end in ends] == [ConnectionClosedOK, ConnectionClosedError]
    assert [end.code for end in ends] == [0, 9]  # type: ignore[attr-defined]


async def test_a_stream_s_reset_is_an_error_of_the_handler_s(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(connection: Connection) -> None:
        async for stream in connection.incoming_streams:
            async with stream:
                await stream.receive_all()

    network = Network()
    async with serving(handler, network), visit(network) as connection:
        async with connection.open_stream() as stream:
            await stream.send_all(b"x")
            await settle()
            stream.reset(6)
            end = await connection.wait_closed()
    assert end.code == 2
    assert str(StreamReset(6, remote=True)) in caplog.text
    # Any peer could fill the log with tracebacks.
    assert "Traceback" not in caplog.text


async def test_a_keylog_that_cannot_be_written_is_found_out_at_the_start(tmp_path: Path) -> None:
    tls = ServerTLS(certificate(), keylog=tmp_path / "none" / "keys.log")
    with pytest.raises(OSError, match="none"):
        await serve_quic(echo, sockets=[Network().socket()], alpn=["test"], tls=tls)
