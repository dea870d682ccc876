"""Connecting again, with every kind of session: what is retried, Retry-After, what is resumed, circuit breakers."""

from __future__ import annotations

import datetime as dt
import errno
import math
import random
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import format_datetime
from functools import partial

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.quic_pairs import HOST, PORT, certificate, client_tls
from tests.test_app_reconnect import LOST, Opener, failures
from tests.webtransport_pairs import Visitors, connect, serving, stay, visit
from trio_wt import (
    CertificateRejected,
    ClientTLS,
    Connection,
    ConnectionClosedError,
    ConnectionClosedOK,
    ConnectionLost,
    HandshakeFailed,
    Headers,
    Rejected,
    Request,
    ServerTLS,
    StreamReset,
    TransportClosed,
    WebSocket,
    WebTransportConnection,
    WebTransportSession,
    is_transient,
    open_quic,
    open_websocket,
    open_webtransport,
    reconnect,
    serve_quic,
)
from trio_wt.app._breaker import CircuitBreaker, CircuitOpen, CircuitState
from trio_wt.app._pool_members import NoEndpoint
from trio_wt.app._reconnect import Previous
from trio_wt.app._transient import retry_after
from trio_wt.testing import Network, quic_pair, websocket_pair, webtransport_pair


def rejected(status: int, **headers: str) -> Rejected:
    return Rejected(status, Headers({name.replace("_", "-"): v for name, v in headers.items()}))


def closed(code: int) -> ConnectionClosedError:
    return ConnectionClosedError(code, remote=True)


def caused(exc: Exception, cause: BaseException) -> Exception:
    exc.__cause__ = cause
    return exc


def test_importing_the_package_does_not_import_the_floor_of_applications() -> None:
    code = """
import sys, trio_wt
assert not [name for name in sys.modules if name.startswith("trio_wt.app")]
assert trio_wt.reconnect is trio_wt.app._reconnect.reconnect
from trio_wt import Attempt, Reconnect, is_transient
assert set(trio_wt.__all__) <= {*dir(trio_wt)}
try:
    trio_wt.nothing
except AttributeError as exc:
    assert str(exc) == "module 'trio_wt' has no attribute 'nothing'"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- what is transient, by kind


@asynccontextmanager
async def http3_pair() -> AsyncIterator[tuple[WebTransportConnection, object]]:
    async with webtransport_pair() as (client, _):
        yield client.connection, None


@pytest.mark.parametrize(
    ("pair", "code", "transient"),
    [
        # A WebSocket's codes are those of RFC 6455; those of a session are the application's.
        (websocket_pair, 1011, True),
        (websocket_pair, 1008, False),
        (websocket_pair, 4000, False),
        *[(pair, 1011, False) for pair in (quic_pair, webtransport_pair)],
        *[(pair, 7, False) for pair in (quic_pair, webtransport_pair)],
        *[(pair, 0, True) for pair in (quic_pair, webtransport_pair)],
        # HTTP/3's own codes are no application's.
        (http3_pair, 0x100, True),
        (http3_pair, 0x102, True),
    ],
)
async def test_a_code_means_what_it_means_to_the_session(
    pair: Callable[[], object], code: int, transient: bool
) -> None:
    async with pair() as (session, _):  # type: ignore[attr-defined]
        assert is_transient(closed(code), session) is transient


def test_without_a_session_codes_are_a_websocket_s() -> None:
    assert is_transient(closed(1011))
    assert not is_transient(closed(0))
    assert not is_transient(closed(7))
    assert not is_transient(closed(2**32))
    assert is_transient(ConnectionClosedOK(0, remote=True))


@pytest.mark.parametrize("session", [None, object()])
@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionLost(0, "silence", remote=True), True),
        (TransportClosed(1, "", remote=True), True),
        (TransportClosed(10, "", remote=False), True),
        (TransportClosed(0x12A, "bad certificate", remote=True), False),
        (TransportClosed(0x100, "", remote=False), False),
        (TransportClosed(0x1FF, "", remote=True), False),
        (TransportClosed(0x200, "", remote=True), True),
        (StreamReset(0, remote=True), False),
        (CertificateRejected(42, "expired"), False),
        (caused(HandshakeFailed("a"), CertificateRejected(42, "expired")), False),
        (caused(HandshakeFailed("a"), TransportClosed(0x178, "no alpn", remote=True)), False),
        (caused(HandshakeFailed("a"), TransportClosed(2, "refused", remote=True)), True),
        (
            caused(ConnectionLost(0, "", remote=True), CertificateRejected(42, "expired")),
            False,
        ),
        (NoEndpoint((("a", "gone"),)), True),
        (caused(NoEndpoint(()), ExceptionGroup("", [CertificateRejected(42, "x")])), False),
        (
            caused(NoEndpoint(()), ExceptionGroup("", [CertificateRejected(42, "x"), OSError()])),
            True,
        ),
        (CircuitOpen("the circuit is open", 3), True),
    ],
    ids=repr,
)
def test_ends_that_are_the_same_for_all(error: Exception, session: object, transient: bool) -> None:
    assert is_transient(error, session) is transient


def test_a_chain_of_causes_that_goes_round_comes_to_an_end() -> None:
    one, two = HandshakeFailed("1"), HandshakeFailed("2")
    one.__cause__, two.__cause__ = two, one
    assert is_transient(one)


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), True),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), True),
        (OSError(errno.EHOSTUNREACH, "No route to host"), True),
        (OSError("all attempts to connect failed"), True),
        (TimeoutError(), True),
        (FileNotFoundError(errno.ENOENT, "No such file", "ca.pem"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (ssl.SSLError(1, "[SSL] no start line"), False),
        (ssl.SSLCertVerificationError(1, "self-signed"), False),
        (ValueError("no URL"), False),
    ],
    ids=repr,
)
async def test_what_the_system_says_while_opening(error: Exception, transient: bool) -> None:
    assert is_transient(error, opening=True) is transient
    assert not is_transient(error)
    opener = Opener(error)
    if transient:
        async for attempt in reconnect(opener):
            async with attempt:
                break
        assert len(opener.called_at) == 2
    else:
        with pytest.raises(type(error)):
            async for attempt in reconnect(opener):
                async with attempt:
                    pytest.fail("nothing was opened")
    # In the block it is the block's own.
    with pytest.raises(type(error)):
        async for attempt in reconnect(Opener()):
            async with attempt:
                raise error


async def test_a_policy_may_leave_the_decision() -> None:
    def retry(exc: Exception) -> bool | None:
        return True if isinstance(exc, Rejected) and exc.status == 404 else None

    opener = Opener(rejected(404), rejected(503), HandshakeFailed("x"), rejected(403))
    with pytest.raises(Rejected) as caught:
        async for attempt in reconnect(opener, retry=retry):
            async with attempt:
                pytest.fail("nothing was opened")
    assert caught.value.status == 403
    assert len(opener.called_at) == 4


async def test_the_default_policy_may_be_given_and_is_told_the_session() -> None:
    @asynccontextmanager
    async def opener() -> AsyncIterator[WebTransportSession]:
        async with webtransport_pair() as (client, _):
            yield client

    with pytest.raises(ConnectionClosedError):
        async for attempt in reconnect(opener, retry=is_transient):
            async with attempt:
                raise closed(1011)


# ---- sessions over QUIC, on networks in memory


def ends(*codes: int) -> Callable[[WebTransportSession], object]:
    """A handler whose sessions end with these codes, one after the other."""
    left = list(codes)

    async def handler(session: WebTransportSession) -> None:
        await session.aclose(left.pop(0))

    return handler


@pytest.mark.parametrize(("codes", "last"), [([0, 0, 7], 7), ([0, 1011], 1011)])
async def test_webtransport_goes_on_over_clean_ends_only(codes: list[int], last: int) -> None:
    network, sessions = Network(), 0
    async with serving(ends(*codes), network):  # type: ignore[arg-type]
        with pytest.raises(ConnectionClosedError) as caught:
            async for attempt in reconnect(visit, network):
                async with attempt as session:
                    sessions += 1
                    async for _ in session.incoming_streams:
                        pytest.fail("there are none")
    assert caught.value.code == last
    assert sessions == len(codes)


async def test_a_server_that_says_it_shuts_down_may_use_any_code() -> None:
    network, sessions = Network(), 0

    async def handler(session: WebTransportSession) -> None:
        session.drain()
        await session.aclose(1)

    async with serving(handler, network):
        async for attempt in reconnect(visit, network):
            async with attempt as session:
                sessions += 1
                if sessions == 3:
                    break
                await session.incoming_streams.receive()
    assert sessions == 3


async def test_a_caller_may_know_what_codes_mean() -> None:
    network = Network()
    async with serving(ends(7, 7, 8), network):  # type: ignore[arg-type]
        with pytest.raises(ConnectionClosedError) as caught:
            async for attempt in reconnect(
                visit, network, retry=lambda exc: getattr(exc, "code", None) == 7
            ):
                async with attempt as session:
                    await session.incoming_streams.receive()
    assert caught.value.code == 8


async def test_webtransport_is_found_again_after_its_server_was_gone() -> None:
    network, visitors, told = Network(), Visitors(), []
    async with serving(visitors, network):
        async with trio.open_nursery() as nursery:
            opened = trio.Event()
            sessions: list[WebTransportSession] = []

            @nursery.start_soon
            async def client() -> None:
                async for attempt in reconnect(
                    visit,
                    network,
                    idle_timeout=5,
                    handshake_timeout=2,
                    on_retry=lambda exc, delay: told.append(type(exc)),
                    max_delay=3,
                ):
                    async with attempt as session:
                        sessions.append(session)
                        opened.set()
                        if len(sessions) == 2:
                            break
                        await session.incoming_streams.receive()

            await opened.wait()
            network.blackhole(20)
            await trio.sleep(20)
    assert len(sessions) == 2
    assert told[0] is ConnectionLost
    assert len(told) > 1
    assert set(told[1:]) == {HandshakeFailed}


async def test_quic_too() -> None:
    network, codes = Network(), [0, 0, 9]

    async def handler(connection: Connection) -> None:
        await connection.aclose(codes.pop(0))

    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                serve_quic,
                handler,
                alpn=["test"],
                tls=ServerTLS(certificate()),
                sockets=[network.socket((HOST, PORT))],
            )
        )

        def opener(alpn: list[str]) -> object:
            return open_quic(HOST, PORT, alpn=alpn, tls=client_tls(), socket=network.socket())

        seen = []
        with pytest.raises(ConnectionClosedError) as caught:
            async for attempt in reconnect(partial(opener, alpn=["test"])):  # type: ignore[arg-type]
                async with attempt as connection:
                    seen.append(connection)
                    await connection.incoming_streams.receive()
        assert caught.value.code == 9
        assert len(seen) == 3
        nursery.cancel_scope.cancel()


async def test_a_certificate_that_is_not_accepted_is_not_tried_again() -> None:
    network = Network()
    async with serving(stay, network):
        with pytest.raises(CertificateRejected):
            async for attempt in reconnect(visit, network, tls=ClientTLS()):
                async with attempt:
                    pytest.fail("nobody has verified it")
    assert trio.current_time() < 1


async def test_a_rejection_is_retried_by_its_status() -> None:
    network, statuses = Network(), [503, 429, 403]

    def decide(request: Request) -> None:
        request.reject(statuses.pop(0))

    async with serving(stay, network, on_request=decide):
        with pytest.raises(Rejected) as caught:
            async for attempt in reconnect(visit, network):
                async with attempt:
                    pytest.fail("it takes nobody")
    assert caught.value.status == 403


async def test_sessions_of_one_connection() -> None:
    network, sessions = Network(), 0
    async with serving(ends(0, 0, 0), network), connect(network) as connection:  # type: ignore[arg-type]
        async for attempt in reconnect(connection.open_session, "/room"):
            async with attempt as session:
                assert session.request.target == "/room"
                assert session.connection is connection
                sessions += 1
                if sessions == 3:
                    break
                await session.wait_closed()


@pytest.mark.parametrize("bound", [False, True])
async def test_a_connection_that_has_ended_opens_no_more_sessions(bound: bool) -> None:
    """Nothing is won by trying again on it: who wants that connects again."""
    network, connections, sessions = Network(), 0, 0
    async with serving(stay, network):
        async for outer in reconnect(connect, network, idle_timeout=5):
            async with outer as connection:
                connections += 1
                opener = connection.open_session
                if bound:
                    opener = partial(opener, "/")  # type: ignore[assignment]
                async for inner in reconnect(opener):
                    async with inner as session:
                        sessions += 1
                        if connections == 3:
                            break
                        network.blackhole(6)
                        await session.incoming_streams.receive()
                        pytest.fail("it was lost")
            if connections == 3:
                break
    assert sessions == connections == 3


async def test_a_server_that_takes_no_more_requests_is_not_asked_again() -> None:
    network, visitors, shutdown = Network(), Visitors(), trio.Event()
    async with serving(visitors, network, shutdown=shutdown), connect(network) as connection:
        with pytest.raises(HandshakeFailed):
            async for attempt in reconnect(connection.open_session):
                async with attempt as session:
                    shutdown.set()
                    await session.wait_draining()
        assert trio.current_time() < 5


# ---- Retry-After


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0), ("7", 7), ("120", 120), ("", 0), ("-1", 0), ("1.5", 0), ("soon", 0)],
)
def test_retry_after_in_seconds(value: str, seconds: float) -> None:
    assert retry_after(rejected(503, retry_after=value)) == seconds


def test_retry_after_as_a_date() -> None:
    now = dt.datetime.now(dt.UTC)
    soon, past = now + dt.timedelta(seconds=90), now - dt.timedelta(days=1)
    for text in (format_datetime(soon, usegmt=True), soon.strftime("%a %b %d %H:%M:%S %Y")):
        assert 85 < retry_after(rejected(503, retry_after=text)) <= 90
    assert retry_after(rejected(503, retry_after=format_datetime(past, usegmt=True))) == 0


def test_only_servers_say_it() -> None:
    assert retry_after(HandshakeFailed("x")) == 0
    assert retry_after(rejected(503)) == 0
    group = ExceptionGroup(
        "", [rejected(503, retry_after="3"), LOST, rejected(429, retry_after="9")]
    )
    assert retry_after(group) == 9


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"], max_codepoint=255), max_size=40))
def test_any_text_is_a_time_or_none(value: str) -> None:
    seconds = retry_after(rejected(503, retry_after=value.strip()))
    assert 0 <= seconds < math.inf


@given(
    st.from_regex(
        r"(\w{3}, )?[0-9]{1,9} (Jan|Feb|\w{3}) [0-9]{1,9} [0-9]{1,9}:[0-9]{1,3}:[0-9]{1,3} (GMT|[+-][0-9]{4,9}|\w+)",
        fullmatch=True,
    ).filter(str.isascii)
)
def test_any_date_is_a_time(value: str) -> None:
    assert 0 <= retry_after(rejected(503, retry_after=value)) < math.inf


async def test_a_server_is_left_alone_for_as_long_as_it_wants() -> None:
    opener = Opener(rejected(503, retry_after="20"), rejected(429, retry_after="3600"))
    delays: list[float] = []
    async for attempt in reconnect(
        opener, max_delay=60, on_retry=lambda exc, delay: delays.append(delay)
    ):
        async with attempt:
            break
    assert opener.pauses == pytest.approx(delays)
    assert 20 <= delays[0] <= 20.5
    assert delays[1] == 60


async def test_clients_that_were_told_the_same_do_not_come_back_in_step() -> None:
    pauses = set()
    for _ in range(20):
        opener = Opener(rejected(503, retry_after="5"))
        async for attempt in reconnect(opener, initial_delay=2):
            async with attempt:
                break
        pauses.add(opener.pauses[0])
    assert len(pauses) == 20
    assert all(5 <= pause <= 7 for pause in pauses)


async def test_pauses_can_be_seeded() -> None:
    runs = []
    for seed in (1, 1, 2):
        opener = Opener(*failures(6))
        async for attempt in reconnect(opener, rng=random.Random(seed)):
            async with attempt:
                break
        runs.append([round(pause, 9) for pause in opener.pauses])
    assert runs[0] == runs[1] != runs[2]


# ---- resuming


async def test_each_session_is_resumed_before_its_block_runs() -> None:
    opener, log = Opener(*failures(2), None, None, *failures(1)), []

    async def resume(session: int, previous: Previous) -> None:
        await trio.sleep(1)
        log.append((session, previous))

    rounds = 0
    async for attempt in reconnect(opener, resume=resume):
        async with attempt as session:
            assert log[-1][0] == session
            rounds += 1
            if rounds == 1:
                raise LOST
            if rounds == 3:
                break
    assert [previous for _, previous in log] == [
        Previous(sessions=0, end=None, attempts=3),
        Previous(sessions=1, end=LOST, attempts=1),
        Previous(sessions=2, end=None, attempts=2),
    ]


async def test_what_resuming_raises_is_a_failed_attempt() -> None:
    opener, outcomes, told = Opener(), [LOST, HandshakeFailed("no"), None], []

    async def resume(session: int, previous: Previous) -> None:
        assert opener.now_open == 1
        outcome = outcomes[previous.attempts - 1]
        if outcome is not None:
            raise outcome

    async for attempt in reconnect(
        opener, resume=resume, on_retry=lambda exc, delay: told.append((exc, delay > 0))
    ):
        async with attempt as session:
            assert session == 3
            break
    assert told == [(LOST, True), (outcomes[1], True)]
    assert opener.now_open == 0


@pytest.mark.parametrize("error", [ValueError("bad token"), closed(4001), OSError("a file")])
async def test_what_resuming_raises_is_judged(error: Exception) -> None:
    opener = Opener()

    async def resume(session: int, previous: Previous) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        async for attempt in reconnect(opener, resume=resume):
            async with attempt:
                pytest.fail("it was not resumed")
    assert caught.value is error
    assert opener.now_open == 0
    assert len(opener.called_at) == 1


async def test_failures_to_resume_count() -> None:
    opener = Opener()

    async def resume(session: int, previous: Previous) -> None:
        raise LOST

    with pytest.raises(ConnectionClosedError):
        async for attempt in reconnect(opener, resume=resume, max_failures=3):
            async with attempt:
                pytest.fail("it was not resumed")
    assert len(opener.called_at) == 3


async def test_a_code_from_resuming_is_the_session_s() -> None:
    network = Network()
    async with serving(ends(1011), network):  # type: ignore[arg-type]

        async def resume(session: WebTransportSession, previous: Previous) -> None:
            await session.incoming_streams.receive()

        with pytest.raises(ConnectionClosedError) as caught:
            async for attempt in reconnect(visit, network, resume=resume):
                async with attempt:
                    pytest.fail("it was not resumed")
    assert caught.value.code == 1011


async def test_resuming_may_be_cancelled() -> None:
    opener = Opener()

    async def resume(session: int, previous: Previous) -> None:
        await trio.sleep_forever()

    with trio.move_on_after(1) as scope:
        async for attempt in reconnect(opener, resume=resume):
            async with attempt:
                pytest.fail("it was not resumed")
    assert scope.cancelled_caught
    assert opener.now_open == 0
    assert len(opener.called_at) == 1


async def test_a_session_that_ends_while_it_is_resumed() -> None:
    """Its scope is cancelled then, if it is told to; that is no cancellation of the loop."""
    rounds: list[WebSocket] = []

    @asynccontextmanager
    async def opener() -> AsyncIterator[WebSocket]:
        async with websocket_pair(cancel_on_close=True) as (client, server):
            rounds.append(client)
            if len(rounds) == 1:
                await server.send_close(1011)
            yield client

    async def resume(ws: WebSocket, previous: Previous) -> None:
        if len(rounds) == 1:
            await trio.sleep_forever()

    told: list[Exception] = []
    async for attempt in reconnect(
        opener, resume=resume, on_retry=lambda exc, delay: told.append(exc)
    ):
        async with attempt as ws:
            assert ws is rounds[1]
            break
    assert [str(exc) for exc in told] == ["the session ended while it was resumed"]


async def test_a_client_goes_on_where_it_was() -> None:
    """Nothing is lost and nothing comes twice, wherever the connection breaks."""
    feed = [f"{number}" for number in range(60)]
    rng, received = random.Random(5), []

    @asynccontextmanager
    async def opener() -> AsyncIterator[WebSocket]:
        async with websocket_pair() as (client, server), trio.open_nursery() as nursery:

            async def serve() -> None:
                position = int(await server.receive())
                for message in feed[position : position + rng.randrange(12)]:
                    await server.send(message)
                await server.close(1011)

            nursery.start_soon(serve)
            yield client

    async def resume(ws: WebSocket, previous: Previous) -> None:
        await ws.send(str(len(received)))

    async for attempt in reconnect(opener, resume=resume):
        async with attempt as ws:
            async for message in ws:
                received.append(message)
                if len(received) == len(feed):
                    break
        if len(received) == len(feed):
            break
    assert received == feed


# ---- circuit breakers


async def test_a_breaker_makes_attempts_wait() -> None:
    breaker = CircuitBreaker(failures=3, pause=100)
    opener = Opener(*failures(4))
    async for attempt in reconnect(opener, breaker=breaker, max_delay=1):
        async with attempt:
            break
    assert [pause >= 99 for pause in opener.pauses] == [False, False, True, True]
    assert breaker.state is CircuitState.CLOSED
    assert breaker.statistics().times_opened == 2


async def test_a_breaker_is_shared() -> None:
    """What one loop has found out, another need not."""
    breaker = CircuitBreaker(failures=3, pause=50)
    down, start = trio.Event(), trio.current_time()
    opened: list[float] = []
    calls = 0

    @asynccontextmanager
    async def opener() -> AsyncIterator[None]:
        nonlocal calls
        calls += 1
        await trio.sleep(0.1)
        if not down.is_set():
            raise HandshakeFailed("down")
        yield

    async def loop() -> None:
        async for attempt in reconnect(opener, breaker=breaker, max_delay=1):
            async with attempt:
                opened.append(trio.current_time() - start)
                break

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(loop)
        await trio.sleep(49)
        assert calls == 10  # they were all under way when the first had failed
        await trio.sleep(10)
        assert calls == 11
        down.set()
    assert len(opened) == 10
    assert 100 < min(opened)
    assert max(opened) < 105
    assert calls == 21


@pytest.mark.parametrize("patience", [0, 5])
async def test_attempts_may_fail_fast(patience: float) -> None:
    breaker = CircuitBreaker(failures=2, pause=30, name="x")
    opener = Opener(*failures(10))
    with pytest.raises(CircuitOpen, match="circuit of x is open") as caught:
        async for attempt in reconnect(opener, breaker=breaker, breaker_wait=patience, max_delay=1):
            async with attempt:
                pytest.fail("nothing was opened")
    assert len(opener.called_at) == 2
    assert str(caught.value.__cause__) == "failure 2"
    assert trio.current_time() - opener.called_at[-1] == pytest.approx(patience, abs=1.01)
    # Long enough is long enough.
    async for attempt in reconnect(Opener(), breaker=breaker, breaker_wait=60):
        async with attempt:
            break


async def test_what_says_nothing_about_the_endpoint_does_not_count() -> None:
    breaker = CircuitBreaker(failures=1)
    for error in (rejected(403), ValueError("no URL")):
        with pytest.raises(type(error)):
            async for attempt in reconnect(Opener(error), breaker=breaker):
                async with attempt:
                    pytest.fail("nothing was opened")
    with pytest.raises(ZeroDivisionError):
        async for attempt in reconnect(Opener(), breaker=breaker):
            async with attempt:
                raise ZeroDivisionError
    group = ExceptionGroup("", [ValueError(), KeyError()])
    with pytest.raises(ExceptionGroup):
        async for attempt in reconnect(Opener(group), breaker=breaker):
            async with attempt:
                pytest.fail("nothing was opened")
    assert breaker.state is CircuitState.CLOSED


async def test_sessions_that_are_lost_at_once_count() -> None:
    breaker, opener = CircuitBreaker(failures=3, pause=500), Opener()
    rounds = 0
    async for attempt in reconnect(opener, breaker=breaker, max_delay=1, reset_after=10):
        async with attempt:
            rounds += 1
            if rounds == 3:
                await trio.sleep(10)  # this one has lasted
            if rounds == 7:
                break
            raise LOST
    assert [pause > 400 for pause in opener.pauses] == [False] * 5 + [True]


@pytest.mark.parametrize("where", ["waiting", "opening", "resuming", "block"])
async def test_a_breaker_is_not_held_by_who_is_cancelled(where: str) -> None:
    breaker = CircuitBreaker(failures=1, pause=10)
    held = breaker.try_admit()
    assert held is not None
    held.failed(LOST)
    if where != "waiting":
        await trio.sleep(10)

    @asynccontextmanager
    async def opener() -> AsyncIterator[None]:
        if where == "opening":
            await trio.sleep_forever()
        yield

    async def resume(session: None, previous: Previous) -> None:
        if where == "resuming":
            await trio.sleep_forever()

    with trio.move_on_after(1) as scope:
        async for attempt in reconnect(opener, breaker=breaker, resume=resume):
            async with attempt:
                await trio.sleep_forever()
    assert scope.cancelled_caught
    assert breaker.statistics().waiting == 0
    with trio.fail_after(20):
        await breaker.admit()


async def test_waiting_for_a_breaker_is_no_delay_that_may_be_negative() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        reconnect(Opener(), breaker=CircuitBreaker(), breaker_wait=-1)


# ---- names


@pytest.mark.parametrize(
    "opener", [open_websocket, open_webtransport, open_quic], ids=lambda o: o.__name__
)
async def test_a_host_that_is_not_found_is_worth_another_attempt(
    opener: Callable[..., object],
) -> None:
    asked = 0

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            nonlocal asked
            asked += 1
            await trio.lowlevel.checkpoint()
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        async def getnameinfo(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            raise AssertionError

    trio.socket.set_custom_hostname_resolver(Resolver())
    arguments: dict[str, object] = {"proxy": None} if opener is open_websocket else {}
    address: tuple[object, ...] = ("wss://nowhere.test/",)
    if opener is open_webtransport:
        address = ("https://nowhere.test/",)
    elif opener is open_quic:
        address, arguments = ("nowhere.test", 4433), {"alpn": ["x"]}
    with pytest.raises((HandshakeFailed, OSError), match="not known"):
        async for attempt in reconnect(
            opener,
            *address,
            initial_delay=0,
            max_failures=3,
            **arguments,  # type: ignore[arg-type]
        ):
            async with attempt:
                pytest.fail("it is nowhere")
    assert asked == 3
