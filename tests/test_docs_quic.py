"""The pages on QUIC say what is so: every line of their code runs in here."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
)
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme

import trio_wt
from tests.shown_code import ROOT, free_port, loaded
from trio_wt._cli.certificate import make_certificate
from trio_wt.testing import Network, quic_pair

CODE = ROOT / "docs" / "code"


def shown(name: str, **replace: str) -> AbstractContextManager[Any]:
    return loaded(CODE / f"{name}.py", replace=replace)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificates that the code on the pages has names for."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "company-ca.pem"))
    for name, hosts in {"server": ["localhost"], "client": ["client"]}.items():
        issued = authority.issue_cert(*hosts)
        issued.private_key_pem.write_to_path(str(folder / f"{name}-key.pem"))
        for pem in issued.cert_chain_pems:
            pem.write_to_path(str(folder / f"{name}.pem"), append=True)
    ours = make_certificate()
    (folder / "cert.pem").write_bytes(ours.certificate)
    (folder / "key.pem").write_bytes(ours.key)
    (folder / "reset.key").write_bytes(bytes(range(32)))
    return folder


@pytest.fixture
def here(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The test runs in that folder."""
    monkeypatch.chdir(files)
    yield files


@asynccontextmanager
async def serving(handler: Any, tls: Any, *, alpn: str = "echo", **kwargs: Any) -> Any:
    """Serve on loopback for as long as the block lasts; yields the port."""
    async with trio.open_nursery() as nursery:
        serve = partial(
            trio_wt.serve_quic, handler, 0, host="localhost", alpn=[alpn], tls=tls, **kwargs
        )
        sockets = await nursery.start(serve)
        yield sockets[0].local_address[1]
        nursery.cancel_scope.cancel()


def server_tls() -> trio_wt.ServerTLS:
    return trio_wt.ServerTLS(trio_wt.Certificate.load("cert.pem", "key.pem"))


def client_tls() -> trio_wt.ClientTLS:
    return trio_wt.ClientTLS(ca="cert.pem")


async def stay(connection: trio_wt.Connection) -> None:
    await connection.wait_closed()


def test_all_of_it_is_tested_here() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_quic_")}
    programs = {"quic_first_server", "quic_first_client"}  # both in test_first_programs
    assert {path.stem for path in CODE.glob("quic_*.py")} == tested | programs


@pytest.mark.real_clock
async def test_first_programs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = {"4433": str(free_port())}
    with shown("quic_first_server", **there) as server, shown("quic_first_client", **there) as code:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.main)
            await trio.testing.wait_all_tasks_blocked()
            await code.main()
            nursery.cancel_scope.cancel()
    assert capsys.readouterr().out == "b'hello'\n"


async def test_a_reset_stream_harms_no_other(here: Path) -> None:
    with loaded(CODE / "quic_first_server.py", complete=False) as code:
        async with quic_pair() as (client, server), trio.open_nursery() as nursery:
            nursery.start_soon(code.echo, server)
            async with client.open_stream() as kept:
                await kept.send_all(b"x")
                async with client.open_stream() as given_up:
                    await given_up.send_all(b"x")
                    await given_up.receive_some()
                    given_up.cancel_scope.cancel()
                    await trio.sleep(1)
                await trio.sleep(1)
                await kept.send_all(b"y")
                assert await kept.receive_exactly(2) == b"xy"
            nursery.cancel_scope.cancel()


# ---- streams


async def test_quic_streams(capsys: pytest.CaptureFixture[str]) -> None:
    async def respond(question: bytes) -> AsyncIterator[bytes]:
        for word in question.split():
            yield word.upper()

    async def lines() -> AsyncIterator[str]:
        yield "all is well"
        yield "still"

    with shown("quic_streams") as code:
        async with quic_pair() as (a, b), trio.open_nursery() as nursery:
            nursery.start_soon(code.serve, b, respond)
            assert await code.ask(a, b"to be") == b"TOBE"
            questions = [b"or not", b"to be"]
            assert await code.ask_all(a, questions) == {b"or not": b"ORNOT", b"to be": b"TOBE"}
            nursery.start_soon(code.read_reports, b)
            await code.report(a, lines())
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert capsys.readouterr().out == "all is well\n"
        async with quic_pair() as (a, b), trio.open_nursery() as nursery:
            done = []

            async def receive() -> None:
                async with await b.incoming_receive_streams.receive() as stream:
                    done.append(len(await stream.receive_all()))

            nursery.start_soon(receive)
            nursery.start_soon(receive)
            await code.both_kinds(a, bytes(300_000), b"urgent")
        assert done == [6, 300_000]
        async with quic_pair() as (a, b), a.open_stream() as stream:
            records = [b"one", b"", b"three" * 100_000]

            async def send() -> None:
                await code.send_records(stream, records)
                await stream.send_eof()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                async with await b.incoming_streams.receive() as other:
                    assert await code.receive_records(other) == records
        async with quic_pair() as (a, b), a.open_stream() as stream:
            await stream.send_all(b"\0\0", eof=True)
            async with await b.incoming_streams.receive() as other:
                with pytest.raises(trio_wt.IncompleteRead):
                    await code.receive_records(other)


# ---- endings


async def test_quic_endings(here: Path) -> None:
    with shown("quic_endings") as code:

        async def serve(connection: trio_wt.Connection) -> None:
            async with trio.open_nursery() as nursery:
                async for stream in connection.incoming_streams:
                    nursery.start_soon(code.answer, stream)

        async with quic_pair() as (a, b), trio.open_nursery() as nursery:
            nursery.start_soon(serve, b)
            assert await code.ask(a, b"what is it?") == "42"
            assert await code.ask(a, b"") == "no answer, code 16"
            nursery.cancel_scope.cancel()
        async with quic_pair() as (a, b):
            assert await code.ask_in_time(a, b"what is it?") is None
            await trio.sleep(1)
            async with await b.incoming_streams.receive() as stream:
                assert await stream.receive_all() == b"what is it?"
                with pytest.raises(trio_wt.StreamReset, match="code 1"):
                    await stream.send_all(b"42")
            async with a.open_send_stream() as sending:
                await sending.send_all(bytes(2000))
                assert 0 < len(await code.first_kilobyte(b)) <= 1024
                await trio.sleep(1)
                with pytest.raises(trio_wt.StreamReset, match="code 0"):
                    await sending.send_all(b"x")
            await code.turn_away(b)
            assert await code.how_it_ends(a) == "their code 17: come back tomorrow"
            assert await code.how_it_ends(b) == "our code 17: come back tomorrow"
        async with quic_pair() as (a, b):
            await a.aclose()
            assert await code.how_it_ends(b) == "finished"
        network = Network()
        async with quic_pair(network=network) as (a, b):
            network.loss = 1
            assert (await code.how_it_ends(a)).startswith("lost: ")


@pytest.mark.real_clock
async def test_quic_gone(here: Path) -> None:
    async def enough(connection: trio_wt.Connection) -> None:
        async with await connection.incoming_receive_streams.receive() as stream:
            await stream.receive_some()
            await connection.aclose(9)

    with shown("quic_gone") as code:
        async with serving(enough, server_tls(), alpn="probe") as port:
            tls = client_tls()
            assert await code.measure_until_gone("localhost", port, tls) == 9


# ---- datagrams


async def test_quic_datagrams(capsys: pytest.CaptureFixture[str]) -> None:
    async def positions() -> AsyncIterator[tuple[float, float]]:
        yield 1, 2
        yield 1.5, 2

    with shown("quic_datagrams") as code:
        async with quic_pair() as (a, b):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(code.follow, b)
                await code.send_positions(a, positions())
                await trio.sleep(1)
                nursery.cancel_scope.cancel()
            assert capsys.readouterr().out == "1, 2\n1.5, 2\n"
            assert await code.send_picture(a, b"small") == "by datagram"
            assert await code.send_picture(a, bytes(20_000)) == "by stream"
            await a.datagrams.send(b"newest")
            await trio.sleep(1)
            assert code.latest(b) == b"newest"
            assert code.latest(b) is None
        async with quic_pair(datagrams=False) as (a, b):
            assert await code.send_picture(a, b"small") == "the peer takes no datagrams"


# ---- certificates


@pytest.mark.real_clock
async def test_quic_certificates(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with shown("quic_certificates") as code:
        source = code.renewable("server.pem", "server-key.pem")
        assert source() is source()
        async with serving(stay, source) as port:
            assert await code.connect("localhost", port, code.of_the_company()) == "connected"
            tls = code.at_an_address("localhost")
            assert await code.connect("127.0.0.1", port, tls) == "connected"
            others = (trio_wt.ClientTLS(), code.at_an_address("other"), code.by_hash("00" * 32))
            for other in others:
                said = await code.connect("localhost", port, other)
                assert said.startswith("the server cannot be believed: ")
            said = await code.connect(
                "localhost", port, code.by_hash(source().certificate.sha256.hex())
            )
            assert said.endswith("hashes are taken for 14 days at most")
        async with serving(stay, server_tls()) as port:
            tls = code.by_hash(trio_wt.Certificate.load("cert.pem", "key.pem").sha256.hex())
            assert await code.connect("127.0.0.1", port, tls) == "connected"
        async with serving(code.greet, code.ask_clients()) as port:
            assert await code.connect("localhost", port, code.with_a_certificate()) == "connected"
            said = await code.connect("localhost", port, code.of_the_company())
            assert said.startswith("the server does not believe us: ")
    assert capsys.readouterr().out.count("a client, with ") == 1


# ---- resumption


@pytest.mark.real_clock
async def test_quic_resumption(here: Path, tmp_path: Path) -> None:
    tls = client_tls()
    saved = str(tmp_path / "sessions.json")
    with shown("quic_resumption") as code:
        async with trio.open_nursery() as nursery:
            server = partial(code.early_server(server_tls()), host="localhost", port=0)
            sockets = await nursery.start(server)
            port = sockets[0].local_address[1]
            assert await code.ask_again("localhost", port, tls) == [False, True]
            ask = partial(code.remember, "localhost", port, tls, saved)
            assert await ask("read a") == "done: read a, not early"
            assert await ask("read a") == "done: read a, early"
            assert await ask("order a") == "done: order a, early"
            nursery.cancel_scope.cancel()
        # A server that knows nothing of the ticket, and wants no early data either.
        async with serving(code.serve, server_tls(), alpn="files", max_streams=4) as other:
            content = Path(saved).read_text().replace(str(port), str(other))
            Path(saved).write_text(content)
            ask = partial(code.remember, "localhost", other, tls, saved)
            assert await ask("read a") == "done: read a, not early"


# ---- paths


@pytest.mark.real_clock
async def test_quic_paths(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tls = client_tls()
    with shown("quic_paths") as code:

        async def handler(connection: trio_wt.Connection) -> None:
            await code.watch_peer(connection, 0.01)

        async with serving(handler, server_tls(), alpn="chat") as port:
            async with trio_wt.open_quic("localhost", port, alpn=["chat"], tls=tls) as connection:
                family_any = "::" if ":" in str(connection.peer_address) else "0.0.0.0"
                assert await code.move(connection, family_any)
                assert await code.is_there(connection, 10)
                await trio.sleep(0.1)
                assert not await code.move(connection, "192.0.2.1")
            times = await code.ask_both([("localhost", port)] * 2, tls)
            assert len(times) == 2
        out = capsys.readouterr().out
        assert out.startswith("the peer is at (")
        assert "staying at (" in out

        async def short(connection: trio_wt.Connection) -> None:
            await connection.ping()

        async with serving(short, server_tls(), alpn="chat") as port:
            assert (await code.stay("localhost", port, tls)).code == 0
        network = Network()
        async with quic_pair(network=network) as (a, b):
            network.loss = 1
            assert not await code.is_there(a, 0.01)
            network.loss = 0
            b.close_now()
            await a.wait_closed()
            assert not await code.is_there(a, 10)


# ---- servers


@pytest.mark.real_clock
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to send")
async def test_quic_servers(here: Path) -> None:
    tls = client_tls()
    with shown("quic_servers") as code:
        async with trio.open_nursery() as nursery:
            sockets = await nursery.start(code.main, 0)
            port = sockets[0].local_address[1]
            async with trio_wt.open_quic("localhost", port, alpn=["echo"], tls=tls) as connection:
                async with connection.open_stream() as stream:
                    await stream.send_all(b"x")
                    await stream.send_eof()
                    assert await stream.receive_all() == b"x"
                signal.raise_signal(signal.SIGTERM)
                await trio.sleep(0.1)
                assert connection.closed is None


async def serve_far_away(
    nursery: trio.Nursery, network: Network, **kwargs: Any
) -> trio.CancelScope:
    """Start a server on a network; what ends it."""
    scope = trio.CancelScope()

    async def serve(task_status: Any) -> None:
        with scope:
            await trio_wt.serve_quic(
                stay,
                sockets=[network.socket(("server.test", 1))],
                alpn=["echo"],
                tls=server_tls(),
                task_status=task_status,
                **kwargs,
            )

    await nursery.start(serve)
    return scope


def visit(network: Network) -> AbstractAsyncContextManager[trio_wt.Connection]:
    tls = trio_wt.ClientTLS(ca="cert.pem", server_name="localhost")
    return trio_wt.open_quic("server.test", 1, alpn=["echo"], tls=tls, socket=network.socket())


async def test_a_retry_costs_one_round_trip(here: Path) -> None:
    times = {}
    for retry in ("never", "always"):
        network = Network(delay=0.5)
        async with trio.open_nursery() as nursery:
            await serve_far_away(nursery, network, retry=retry)
            started = trio.current_time()
            async with visit(network):
                times[retry] = trio.current_time() - started
            nursery.cancel_scope.cancel()
    assert times == pytest.approx({"never": 1, "always": 2}, abs=0.1)


async def test_a_server_tells_after_a_restart_that_its_connections_are_gone(here: Path) -> None:
    network = Network(delay=0.5)
    async with trio.open_nursery() as nursery:
        serve = partial(serve_far_away, nursery, network, reset_key=bytes(32), close_timeout=1)
        server = await serve()
        async with visit(network) as connection:
            network.loss = 1  # it ends without a word
            server.cancel()
            await trio.sleep(5)
            network.loss = 0
            await serve()
            started = trio.current_time()
            with pytest.raises(trio_wt.ConnectionLost):
                await connection.ping()
            assert trio.current_time() - started == pytest.approx(1, abs=0.1)
        nursery.cancel_scope.cancel()


async def test_a_shutdown_says_so(here: Path) -> None:
    network, shutdown = Network(), trio.Event()
    async with trio.open_nursery() as nursery:
        await serve_far_away(nursery, network, shutdown=shutdown)
        async with visit(network) as connection:
            await connection.ping()
            started = trio.current_time()
            shutdown.set()
            end = await connection.wait_closed()
            assert (end.code, end.reason) == (0, "the server is shutting down")
            assert trio.current_time() - started == pytest.approx(10, abs=0.1)


# ---- watching


@pytest.mark.real_clock
async def test_quic_watching(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "client.log"))
    tls = client_tls()
    with shown("quic_watching") as code:
        private = code.readable_server(trio_wt.Certificate.load("cert.pem", "key.pem"))
        async with serving(stay, private) as port:
            await code.trace("localhost", port, tls, trio.Path(tmp_path / "qlog"))
            (written,) = (tmp_path / "qlog").iterdir()
            assert '"traces"' in written.read_text()
            assert "CLIENT_TRAFFIC_SECRET_0 " in (tmp_path / "client.log").read_text()
            assert "SERVER_TRAFFIC_SECRET_0 " in (here / "secrets.log").read_text()
            async with trio_wt.open_quic("localhost", port, alpn=["echo"], tls=tls) as connection:
                await connection.ping()
                assert code.figures(connection).endswith("0 bytes to read, 0 to send")


# ---- testing


def test_quic_testing(here: Path) -> None:
    with shown("quic_testing") as code:
        tests = [name for name in vars(code) if name.startswith("test_")]
        assert len(tests) == 4
        for name in tests:
            vars(code)[name]()
