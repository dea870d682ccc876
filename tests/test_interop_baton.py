"""The devious baton: both sides with each other, and each with a peer that does not keep to the rules."""

from __future__ import annotations

import math
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.certificates import make
from trio_wt import (
    Certificate,
    ClientTLS,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ConnectionLost,
    Headers,
    Rejected,
    Request,
    ServerTLS,
    StreamReset,
    WebTransportSession,
    open_webtransport,
    serve_webtransport,
)
from trio_wt.interop import (
    BATON_PATH,
    BatonFailed,
    BatonResult,
    BatonSessionError,
    BatonSettings,
    BatonStreamError,
    baton_url,
    check_baton_request,
    run_baton,
    serve_baton,
)
from trio_wt.interop._baton_rules import Query, encode_message, parse_datagram
from trio_wt.testing import Network, webtransport_pair

DA_YAMN, BRUH, SUS, BORED = BatonSessionError
IDC, WHATEVER, I_LIED = BatonStreamError
PATIENCE = BatonSettings().patience

BAD_QUERIES = [
    "version=1",
    "version=-0",
    "version=",
    "version=x",
    "count=0",
    "count=17",
    "count=999999",
    "count=1e1",
    "count=+1",
    "count=%D9%A1",  # a digit, but none of ASCII's
    "count=1&count=1",
    "baton=0",
    "baton=256",
    "baton=-1",
    "baton=1.0",
    "baton=" + "0" * 100 + "1",
    "baton=5&baton=6",
    "&".join(f"{number}=1" for number in range(17)),
]
GOOD_QUERIES = {
    "": Query(1, None),
    "version=0": Query(1, None),
    "version=00&count=016&baton=007": Query(16, 7),
    "count=3&unknown=x&more": Query(3, None),
    "baton=255": Query(1, 255),
}


# ---- the rules


@pytest.mark.parametrize(("query", "expected"), GOOD_QUERIES.items())
def test_queries(query: str, expected: Query) -> None:
    assert Query.parse(query, 16) == expected


@pytest.mark.parametrize("query", BAD_QUERIES)
def test_bad_queries(query: str) -> None:
    with pytest.raises(ValueError):
        Query.parse(query, 16)


def request(target: str, *, is_webtransport: bool = True) -> Request:
    return Request(
        method="CONNECT",
        target=target,
        headers=Headers(),
        http_version="3",
        scheme="https",
        host="a.example",
        is_webtransport=is_webtransport,
    )


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/", 404),
        (f"{BATON_PATH}/", 404),
        (f"{BATON_PATH}?count=17", 400),
        (f"{BATON_PATH}?version=1", 400),
        (f"{BATON_PATH}?count=16", None),
        (BATON_PATH, None),
    ],
)
def test_requests_are_checked(target: str, status: int | None) -> None:
    asked = request(target)
    check_baton_request(asked)
    assert asked.decided == (status is not None)
    if status is not None:
        decision = asked.decide(lambda _: pytest.fail("undecided"))
        assert decision.status == status  # type: ignore[union-attr]


def test_other_requests_are_left_alone() -> None:
    asked = request("/", is_webtransport=False)
    check_baton_request(asked)
    assert not asked.decided


def test_how_many_there_may_be_can_be_set() -> None:
    asked = request(f"{BATON_PATH}?count=17")
    check_baton_request(asked, BatonSettings(max_count=17))
    assert not asked.decided


def test_urls() -> None:
    assert baton_url("https://a:1") == f"https://a:1{BATON_PATH}?version=0&count=1"
    url = baton_url("https://a:1/", count=3, baton=9)
    assert url == f"https://a:1{BATON_PATH}?version=0&count=3&baton=9"


@pytest.mark.parametrize(
    "wrong",
    [
        {"patience": 0},
        {"patience": math.nan},
        {"credit_patience": -1},
        {"padding": -1},
        {"padding": 2**30},
        {"max_padding": -1},
        {"max_count": 0},
    ],
)
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BatonSettings(**wrong)  # type: ignore[arg-type]


@given(value=st.integers(0, 255), padding=st.integers(0, 70_000))
def test_messages_come_back(value: int, padding: int) -> None:
    assert parse_datagram(encode_message(value, padding)) == value


@given(st.binary(max_size=100))
def test_any_datagram_is_a_message_or_not(data: bytes) -> None:
    value = parse_datagram(data)
    assert value is None or data[-1] == value


def test_failures_say_what_happened() -> None:
    failure = BatonFailed(SUS, "7 is not what was due", remote=True)
    assert str(failure) == "the peer closed the session with SUS (3): 7 is not what was due"
    assert str(BatonFailed(77, remote=False)) == "this side closed the session with 77"
    again = pickle.loads(pickle.dumps(failure))
    assert (again.code, again.reason, again.remote) == (SUS, failure.reason, True)


# ---- both sides


@asynccontextmanager
async def pair(
    query: str = "baton=10", **options: object
) -> AsyncIterator[tuple[WebTransportSession, WebTransportSession]]:
    async with webtransport_pair(path=f"{BATON_PATH}?{query}", **options) as both:  # type: ignore[arg-type]
        yield both


async def play(
    query: str, settings: BatonSettings = BatonSettings(), **options: object
) -> tuple[BatonResult, BatonResult]:
    """What has become of the batons, to the client and to the server."""
    served: list[BatonResult] = []
    async with pair(query, **options) as (client, server), trio.open_nursery() as nursery:

        async def serve() -> None:
            served.append(await serve_baton(server, settings))

        nursery.start_soon(serve)
        result = await run_baton(client, settings)
    for closed in (client.closed, server.closed):
        assert type(closed) is ConnectionClosedOK
    return result, served[0]


@pytest.mark.parametrize("baton", [1, 2, 6, 7, 8, 100, 200, *range(248, 256)])
async def test_a_baton_comes_to_its_end(baton: int) -> None:
    values = [*range(baton, 256), 0]
    to_client, to_server = values[::2], values[1::2]
    by_client, by_server = await play(f"baton={baton}")
    assert by_client == BatonResult(
        received=len(to_client),
        sent=len(to_server),
        # One that goes with the last baton may be too late.
        datagrams_received=by_client.datagrams_received,
        datagrams_sent=sum(value % 7 == 1 for value in to_client),
        finished=1,
    )
    assert by_server == BatonResult(
        received=len(to_server),
        sent=len(to_client),
        datagrams_received=by_client.datagrams_sent,
        datagrams_sent=sum(value % 7 == 0 for value in to_server),
        finished=1,
    )
    assert by_server.datagrams_sent - by_client.datagrams_received in (0, 1)


@pytest.mark.parametrize("query", ["", "count=2", "count=16&baton=1", "count=7&baton=250"])
async def test_batons_are_passed_at_the_same_time(query: str) -> None:
    count = Query.parse(query, 16).count
    by_client, by_server = await play(query)
    assert by_client.finished == count
    assert by_client.reset == by_server.reset == 0
    assert by_server.finished == count
    assert by_server.received <= by_client.sent
    # The last zeros may be overtaken by the close.
    assert by_client.received <= by_server.sent < by_client.received + count


@pytest.mark.parametrize("padding", [0, 1, 63, 64, 16383, 16384, 2**20])
async def test_padding_of_any_length(padding: int) -> None:
    settings = BatonSettings(padding=padding)
    by_client, by_server = await play("count=3&baton=251", settings)
    assert by_client.finished == by_server.finished == 3


async def test_a_network_that_loses_and_reorders() -> None:
    network = Network(seed=1, delay=0.01, loss=0.05, reorder=0.1, duplicate=0.05)
    by_client, by_server = await play("count=5&baton=200", network=network)
    assert by_client.finished == by_server.finished == 5


async def test_a_game_may_take_longer_than_anybody_waits_for_a_message() -> None:
    before = trio.current_time()
    by_client, _ = await play("baton=1", network=Network(delay=0.1))
    assert by_client.finished == 1
    assert trio.current_time() - before > 2 * PATIENCE


async def test_what_the_caller_does_to_the_session_is_not_hidden() -> None:
    async with pair() as (client, server):
        await client.datagrams.aclose()
        with pytest.RaisesGroup(trio.ClosedResourceError):
            await run_baton(client)
        assert client.closed is None


# ---- servers


@asynccontextmanager
async def serving(network: Network, **options: object) -> AsyncIterator[ClientTLS]:
    made = make(("server.test",))
    certificate = Certificate.from_pem(made.pem, made.key_pem)
    serve = partial(
        serve_webtransport,
        serve_baton,
        sockets=[network.socket(("server.test", 4433))],
        tls=ServerTLS(certificate),
        on_request=check_baton_request,
        handler_errors="raise",
        **options,  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        yield ClientTLS(server_certificate_hashes=[certificate.sha256])
        nursery.cancel_scope.cancel()


async def test_a_server_of_batons() -> None:
    network = Network()
    url = baton_url("https://server.test:4433", count=2, baton=250)
    async with serving(network) as tls:
        for _ in range(3):
            async with open_webtransport(url, tls=tls, socket=network.socket()) as session:
                result = await run_baton(session)
            assert (result.finished, result.reset) == (2, 0)


@pytest.mark.parametrize("query", BAD_QUERIES)
async def test_a_server_refuses_bad_queries(query: str) -> None:
    network = Network()
    url = f"https://server.test:4433{BATON_PATH}?{query}"
    async with serving(network) as tls:
        with pytest.raises(Rejected) as caught:
            async with open_webtransport(url, tls=tls, socket=network.socket()):
                pass
    assert caught.value.status == 400


async def test_a_server_refuses_other_paths() -> None:
    network = Network()
    async with serving(network) as tls:
        with pytest.raises(Rejected) as caught:
            async with open_webtransport(
                "https://server.test:4433/elsewhere", tls=tls, socket=network.socket()
            ):
                pass
    assert caught.value.status == 404


@pytest.mark.real_clock
async def test_over_loopback() -> None:
    made = make(("127.0.0.1",))
    certificate = Certificate.from_pem(made.pem, made.key_pem)
    serve = partial(
        serve_webtransport,
        serve_baton,
        0,
        host="127.0.0.1",
        tls=ServerTLS(certificate),
        on_request=check_baton_request,
    )
    tls = ClientTLS(server_certificate_hashes=[certificate.sha256])
    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(serve)
        base = f"https://127.0.0.1:{sockets[0].local_address[1]}"
        for count, baton in ((1, 1), (16, 200), (3, None)):
            async with open_webtransport(
                baton_url(base, count=count, baton=baton), tls=tls
            ) as session:
                result = await run_baton(session)
            assert (result.finished, result.reset) == (count, 0)
        nursery.cancel_scope.cancel()


# ---- the server, and clients that do not keep to the rules

Client = Callable[[WebTransportSession], Awaitable[None]]


async def how_the_server_ends(
    act: Client,
    query: str = "baton=10",
    settings: BatonSettings = BatonSettings(),
    **options: object,
) -> tuple[ConnectionClosed, BatonResult]:
    """How a client sees its session end at a server, and what the server makes of it."""
    served: list[BatonResult] = []
    async with pair(query, **options) as (client, server), trio.open_nursery() as nursery:

        async def serve() -> None:
            served.append(await serve_baton(server, settings))

        async def run() -> None:
            try:
                await act(client)
            except (ConnectionClosed, StreamReset):
                pass

        nursery.start_soon(serve)
        nursery.start_soon(run)
        closed = await client.wait_closed()
    return closed, served[0]


async def first_baton(session: WebTransportSession) -> int:
    async with await session.incoming_receive_streams.receive() as stream:
        return (await stream.receive_all())[-1]


async def send_uni(session: WebTransportSession, data: bytes) -> None:
    async with session.open_send_stream() as stream:
        await stream.send_all(data, eof=True)


async def ask_bidi(session: WebTransportSession, data: bytes) -> bytes:
    async with session.open_stream() as stream:
        await stream.send_all(data, eof=True)
        return await stream.receive_all()


MALFORMED = {
    "nothing": b"",
    "half a length": b"\x40",
    "no padding": b"\x05",
    "half the padding": b"\x05\0\0",
    "no baton": b"\x05" + bytes(5),
    "more than a baton": encode_message(11, 5) + b".",
    "two messages": encode_message(11, 5) * 2,
    "too much padding": encode_message(11, 2**20 + 1),
    "endless padding": b"\xff" * 8,
}
malformed = pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())


@malformed
@pytest.mark.parametrize("kind", ["uni", "bidi"])
async def test_malformed_messages(data: bytes, kind: str) -> None:
    async def act(session: WebTransportSession) -> None:
        assert await first_baton(session) == 10
        if kind == "uni":
            await send_uni(session, data)
        else:
            await ask_bidi(session, data)

    closed, _ = await how_the_server_ends(act)
    assert (type(closed), closed.code, closed.remote) == (ConnectionClosedError, BRUH, True)
    assert closed.reason


@pytest.mark.parametrize("data", [b"", b"\x40", b"\x01\0", b"\x01\0\x08\x08", b"\x3f\0"])
async def test_malformed_datagrams(data: bytes) -> None:
    async def act(session: WebTransportSession) -> None:
        await session.datagrams.send(data)

    closed, _ = await how_the_server_ends(act)
    assert closed.code == BRUH


@pytest.mark.parametrize("value", [0, 10, 12, 255])
async def test_values_that_are_not_due(value: int) -> None:
    async def act(session: WebTransportSession) -> None:
        await first_baton(session)
        await ask_bidi(session, encode_message(value, 0))

    closed, _ = await how_the_server_ends(act)
    assert (closed.code, closed.reason) == (SUS, f"{value} is not what was due")


async def test_a_value_that_is_not_due_on_a_unidirectional_stream() -> None:
    async def act(session: WebTransportSession) -> None:
        await first_baton(session)
        assert (await ask_bidi(session, encode_message(11, 0)))[-1] == 12
        await send_uni(session, encode_message(14, 0))

    closed, _ = await how_the_server_ends(act)
    assert (closed.code, closed.reason) == (SUS, "14 is not what was due")


async def test_a_value_that_is_not_due_on_the_server_s_stream() -> None:
    async def act(session: WebTransportSession) -> None:
        await first_baton(session)
        await ask_bidi(session, encode_message(11, 0))
        await send_uni(session, encode_message(13, 0))
        async with await session.incoming_streams.receive() as stream:
            assert (await stream.receive_all())[-1] == 14
            await stream.send_all(encode_message(16, 0), eof=True)
            await session.wait_closed()

    closed, _ = await how_the_server_ends(act)
    assert (closed.code, closed.reason) == (SUS, "16 is not what was due")


@pytest.mark.parametrize("value", [0, 8, 10, 11])
async def test_datagrams_that_are_not_due(value: int) -> None:
    async def act(session: WebTransportSession) -> None:
        await first_baton(session)
        await session.datagrams.send(encode_message(value, 0))

    closed, _ = await how_the_server_ends(act)
    assert closed.code == SUS


async def test_a_datagram_that_comes_twice() -> None:
    async def act(session: WebTransportSession) -> None:
        assert await first_baton(session) == 8
        for _ in range(2):
            await session.datagrams.send(encode_message(8, 0))

    closed, result = await how_the_server_ends(act, "baton=8")
    assert (closed.code, result.datagrams_received) == (SUS, 1)


async def test_more_streams_than_are_due() -> None:
    async def act(session: WebTransportSession) -> None:
        await first_baton(session)
        async with session.open_stream() as one, session.open_stream() as other:
            await one.send_all(b"\0")
            await other.send_all(b"\0")
            await session.wait_closed()

    closed, _ = await how_the_server_ends(act)
    assert (closed.code, closed.reason) == (SUS, "no baton is due on a bidirectional stream")


async def test_a_client_may_start_batons_of_its_own() -> None:
    async def act(session: WebTransportSession) -> None:
        await first_baton(session)
        await send_uni(session, encode_message(7, 0))
        async with await session.incoming_streams.receive() as stream:
            assert (await stream.receive_all())[-1] == 8
            await stream.send_all(encode_message(9, 0), eof=True)
        assert await first_baton(session) == 10
        assert parse_datagram(await session.datagrams.receive()) == 7
        # It has two on their way now, and both are awaited on bidirectional streams.
        for _ in range(2):
            assert (await ask_bidi(session, encode_message(11, 0)))[-1] == 12
        await session.aclose()

    closed, result = await how_the_server_ends(act)
    assert (type(closed), closed.remote) == (ConnectionClosedOK, False)
    assert result.received == 4


async def test_batons_of_the_client_s_own_count() -> None:
    async def act(session: WebTransportSession) -> None:
        assert await first_baton(session) == 254
        await send_uni(session, encode_message(7, 0))
        assert (await ask_bidi(session, encode_message(255, 0)))[-1] == 0
        await session.wait_closed()

    closed, result = await how_the_server_ends(act, "baton=254")
    assert (closed.code, result.finished) == (BORED, 1)


@pytest.mark.parametrize("at_once", [True, False])
async def test_but_not_more_than_there_may_be(at_once: bool) -> None:
    async def start(session: WebTransportSession) -> None:
        async with session.open_send_stream() as stream:
            await stream.send_all(b"\0")
            if at_once:
                await session.wait_closed()
            else:
                await stream.send_all(b"\7", eof=True)

    async def act(session: WebTransportSession) -> None:
        await first_baton(session)
        async with trio.open_nursery() as nursery:
            for number in range(4):
                assert session.closed is None
                nursery.start_soon(start, session)
                if number < 3:
                    await trio.sleep(0.1)

    settings = BatonSettings(max_count=4)
    closed, result = await how_the_server_ends(act, settings=settings)
    assert (closed.code, closed.reason) == (SUS, "no baton is due on a unidirectional stream")
    assert result.received == (0 if at_once else 3)


async def test_nor_one_that_is_at_its_end() -> None:
    async def act(session: WebTransportSession) -> None:
        await first_baton(session)
        await send_uni(session, encode_message(0, 0))

    closed, _ = await how_the_server_ends(act)
    assert closed.code == SUS


@pytest.mark.parametrize("how", ["silent", "slow", "endless", "unread"])
async def test_clients_that_bore(how: str) -> None:
    settings = BatonSettings(padding=2**20 if how == "unread" else 0)

    async def act(session: WebTransportSession) -> None:
        if how in ("slow", "endless"):
            await first_baton(session)
            async with session.open_stream() as stream:
                message = encode_message(11, 30)
                if how == "endless":
                    # All of it, but for the end.
                    await stream.send_all(message)
                for byte in message * (how == "slow"):
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(1)
                await session.wait_closed()

    before = trio.current_time()
    closed, result = await how_the_server_ends(act, settings=settings)
    assert (closed.code, result.received) == (BORED, 0)
    assert PATIENCE <= trio.current_time() - before < PATIENCE + 2


async def test_a_client_that_gives_no_credit_for_the_first_batons() -> None:
    async def act(session: WebTransportSession) -> None:
        pass

    before = trio.current_time()
    closed, result = await how_the_server_ends(
        act, "count=3", client_settings={"max_receive_streams": 2}
    )
    assert (closed.code, result.sent) == (DA_YAMN, 2)
    assert trio.current_time() - before < 2


async def test_a_client_that_gives_no_credit_for_an_answer() -> None:
    async def act(session: WebTransportSession) -> None:
        await first_baton(session)
        await ask_bidi(session, encode_message(11, 0))
        await send_uni(session, encode_message(13, 0))

    closed, _ = await how_the_server_ends(act, client_settings={"max_streams": 0})
    assert closed.code == DA_YAMN


async def test_a_client_that_gives_credit_in_time() -> None:
    # Half of the batons wait for streams that the others have.
    network = Network(delay=0.1)
    by_client, by_server = await play(
        "count=16&baton=240", network=network, max_receive_streams=8, max_streams=8
    )
    assert by_client.finished == by_server.finished == 16


async def test_a_reset_ends_a_baton() -> None:
    async def act(session: WebTransportSession) -> None:
        await first_baton(session)
        async with session.open_stream() as stream:
            await stream.send_all(b"\0")
            stream.reset(I_LIED)
            with pytest.raises(StreamReset) as caught:
                await stream.receive_all()
            assert caught.value.code == WHATEVER

    closed, result = await how_the_server_ends(act)
    # None is left, and that is no error.
    assert (type(closed), closed.remote) == (ConnectionClosedOK, True)
    assert (result.finished, result.reset) == (0, 1)


async def test_a_reset_leaves_the_other_batons_alone() -> None:
    async def act(session: WebTransportSession) -> None:
        assert [await first_baton(session) for _ in range(2)] == [254, 254]
        async with session.open_stream() as stream:
            await stream.send_all(b"\0")
            stream.reset(I_LIED)
        assert (await ask_bidi(session, encode_message(255, 0)))[-1] == 0
        await session.aclose()

    closed, result = await how_the_server_ends(act, "baton=254&count=2")
    assert (type(closed), closed.remote) == (ConnectionClosedOK, False)
    assert (result.finished, result.reset) == (1, 1)


@pytest.mark.parametrize("due", [True, False])
async def test_a_reset_of_a_unidirectional_stream(due: bool) -> None:
    async def act(session: WebTransportSession) -> None:
        await first_baton(session)
        if due:
            await ask_bidi(session, encode_message(11, 0))
        async with session.open_send_stream() as stream:
            await stream.send_all(b"\x05")
            stream.reset(I_LIED)
        await trio.sleep(1)
        # It was no baton that anybody waits for.
        assert (await ask_bidi(session, encode_message(11, 0)))[-1] == 12
        await session.aclose()

    closed, result = await how_the_server_ends(act)
    assert (closed.code, closed.remote, result.reset) == (0, due, int(due))


async def test_a_baton_that_was_reset_is_not_due_any_more() -> None:
    async def act(session: WebTransportSession) -> None:
        for _ in range(2):
            assert await first_baton(session) == 10
            assert (await ask_bidi(session, encode_message(11, 0)))[-1] == 12
        async with session.open_send_stream() as stream:
            await stream.send_all(b"\x05")
            stream.reset(I_LIED)
        await trio.sleep(0.1)
        for _ in range(2):
            await send_uni(session, encode_message(13, 0))
            await trio.sleep(0.1)

    settings = BatonSettings(max_count=2)
    closed, result = await how_the_server_ends(act, "baton=10&count=2", settings)
    assert (closed.code, result.reset, result.received) == (SUS, 1, 3)


async def test_a_baton_that_was_stopped_is_not_due_any_more() -> None:
    async def act(session: WebTransportSession) -> None:
        async with await session.incoming_receive_streams.receive() as stream:
            stream.stop(IDC)
        async with await session.incoming_receive_streams.receive() as stream:
            await stream.receive_all(2**21)
        async with session.open_stream() as stream, session.open_stream() as other:
            await stream.send_all(encode_message(11, 0), eof=True)
            await other.send_all(encode_message(11, 0), eof=True)
            await session.wait_closed()

    settings = BatonSettings(padding=2**21 - 100)
    closed, result = await how_the_server_ends(act, "baton=10&count=2", settings)
    assert (closed.code, result.reset) == (SUS, 1)


async def test_the_server_s_stream_is_reset() -> None:
    async def act(session: WebTransportSession) -> None:
        await first_baton(session)
        await ask_bidi(session, encode_message(11, 0))
        await send_uni(session, encode_message(13, 0))
        async with await session.incoming_streams.receive() as stream:
            await stream.receive_all()
            stream.reset(I_LIED)
            await session.wait_closed()

    closed, result = await how_the_server_ends(act)
    assert (closed.code, closed.remote, result.reset) == (0, True, 1)


@pytest.mark.parametrize("kind", ["uni", "bidi", "the server's bidi"])
async def test_a_client_that_does_not_care(kind: str) -> None:
    async def act(session: WebTransportSession) -> None:
        if kind == "uni":
            async with await session.incoming_receive_streams.receive() as stream:
                stream.stop(IDC)
                await session.wait_closed()
            return
        async with await session.incoming_receive_streams.receive() as first:
            await first.receive_all(2**21)
        async with session.open_stream() as mine:
            await mine.send_all(encode_message(11, 0), eof=True)
            if kind == "bidi":
                await mine.receive_some()
                mine.stop(IDC)
                await session.wait_closed()
                return
            await mine.receive_all(2**21)
        await send_uni(session, encode_message(13, 0))
        async with await session.incoming_streams.receive() as theirs:
            theirs.stop(IDC)
            await session.wait_closed()

    # What is still being sent is lost with the stream.
    settings = BatonSettings(padding=2**21 - 100)
    closed, result = await how_the_server_ends(act, settings=settings)
    assert (type(closed), closed.remote) == (ConnectionClosedOK, True)
    assert (result.finished, result.reset) == (0, 1)


async def test_a_client_that_leaves() -> None:
    async def act(session: WebTransportSession) -> None:
        await first_baton(session)
        await session.aclose()

    closed, result = await how_the_server_ends(act)
    assert not closed.remote
    assert result == BatonResult(sent=1)


async def test_a_client_that_does_not_close() -> None:
    async def act(session: WebTransportSession) -> None:
        assert await first_baton(session) == 254
        assert (await ask_bidi(session, encode_message(255, 0)))[-1] == 0
        await session.wait_closed()

    before = trio.current_time()
    closed, result = await how_the_server_ends(act, "baton=254")
    assert (type(closed), closed.remote, result.finished) == (ConnectionClosedOK, True, 1)
    assert trio.current_time() - before >= PATIENCE


@pytest.mark.parametrize("query", ["count=0", "count=17", "version=2"])
async def test_a_handler_whose_requests_nobody_has_checked(query: str) -> None:
    async def act(session: WebTransportSession) -> None:
        pass

    closed, result = await how_the_server_ends(act, query)
    assert (closed.code, result) == (BRUH, BatonResult())


# ---- the client, and servers that do not keep to the rules


async def how_the_client_ends(
    act: Client,
    query: str = "baton=10",
    settings: BatonSettings = BatonSettings(),
    **options: object,
) -> tuple[BatonResult | BatonFailed, ConnectionClosed]:
    """What a client makes of a server, and how the server sees the session end."""
    async with pair(query, **options) as (client, server), trio.open_nursery() as nursery:

        async def run() -> None:
            try:
                await act(server)
            except (ConnectionClosed, StreamReset):
                pass

        nursery.start_soon(run)
        try:
            outcome: BatonResult | BatonFailed = await run_baton(client, settings)
        except BatonFailed as exc:
            outcome = exc
        closed = await server.wait_closed()
    return outcome, closed


def failed(outcome: BatonResult | BatonFailed) -> tuple[int, bool]:
    assert isinstance(outcome, BatonFailed)
    return outcome.code, outcome.remote


@malformed
async def test_malformed_messages_of_a_server(data: bytes) -> None:
    outcome, closed = await how_the_client_ends(partial(send_uni, data=data))
    assert failed(outcome) == (BRUH, False)
    assert (closed.code, closed.remote) == (BRUH, True)


async def test_a_malformed_answer_of_a_server() -> None:
    async def act(session: WebTransportSession) -> None:
        await send_uni(session, encode_message(10, 0))
        async with await session.incoming_streams.receive() as stream:
            await stream.send_all(b"\x05", eof=True)
            await session.wait_closed()

    outcome, _ = await how_the_client_ends(act)
    assert failed(outcome) == (BRUH, False)


@pytest.mark.parametrize(
    ("query", "value", "good"),
    [
        ("baton=10", 10, True),
        ("baton=10", 11, False),
        ("baton=10", 0, False),
        ("", 1, True),
        ("", 255, True),
        ("", 0, False),
    ],
)
async def test_the_first_value_of_a_server(query: str, value: int, good: bool) -> None:
    async def act(session: WebTransportSession) -> None:
        await send_uni(session, encode_message(value, 0))
        async with await session.incoming_streams.receive() as stream:
            assert (await stream.receive_all())[-1] == (value + 1) % 256
            await session.aclose(77)

    outcome, _ = await how_the_client_ends(act, query)
    assert failed(outcome) == ((77, True) if good else (SUS, False))


async def test_a_wrong_answer_of_a_server() -> None:
    async def act(session: WebTransportSession) -> None:
        await send_uni(session, encode_message(10, 0))
        async with await session.incoming_streams.receive() as stream:
            await stream.send_all(encode_message(13, 0), eof=True)
            await session.wait_closed()

    outcome, closed = await how_the_client_ends(act)
    assert failed(outcome) == (SUS, False)
    assert closed.reason == "13 is not what was due"


async def test_a_server_with_more_batons_than_were_asked_for() -> None:
    async def act(session: WebTransportSession) -> None:
        for _ in range(2):
            await send_uni(session, encode_message(10, 0))

    outcome, closed = await how_the_client_ends(act)
    assert failed(outcome) == (SUS, False)
    assert closed.code == SUS


async def test_a_server_that_opens_streams_of_its_own() -> None:
    async def act(session: WebTransportSession) -> None:
        async with session.open_stream() as stream:
            await stream.send_all(encode_message(10, 0), eof=True)

    outcome, _ = await how_the_client_ends(act)
    assert failed(outcome) == (SUS, False)


@pytest.mark.parametrize(
    ("data", "code"), [(b"\x01", BRUH), (encode_message(7, 0), SUS), (b"", BRUH)]
)
async def test_bad_datagrams_of_a_server(data: bytes, code: int) -> None:
    async def act(session: WebTransportSession) -> None:
        await session.datagrams.send(data)

    outcome, _ = await how_the_client_ends(act)
    assert failed(outcome) == (code, False)


async def test_a_server_that_bores() -> None:
    async def act(session: WebTransportSession) -> None:
        pass

    outcome, closed = await how_the_client_ends(act, settings=BatonSettings(patience=3))
    assert failed(outcome) == (BORED, False)
    assert closed.code == BORED


async def test_a_server_that_gives_no_credit() -> None:
    async def act(session: WebTransportSession) -> None:
        await send_uni(session, encode_message(10, 0))

    outcome, closed = await how_the_client_ends(act, server_settings={"max_streams": 0})
    assert failed(outcome) == (DA_YAMN, False)


async def test_a_server_that_resets() -> None:
    async def act(session: WebTransportSession) -> None:
        async with session.open_send_stream() as stream:
            await stream.send_all(b"\x05")
            stream.reset(I_LIED)
        await session.wait_closed()

    outcome, closed = await how_the_client_ends(act)
    assert outcome == BatonResult(reset=1)
    assert (closed.code, closed.remote) == (0, True)


async def test_a_server_that_resets_its_answer() -> None:
    async def act(session: WebTransportSession) -> None:
        await send_uni(session, encode_message(10, 0))
        async with await session.incoming_streams.receive() as stream:
            await stream.receive_all()
            stream.reset(I_LIED)
            await session.wait_closed()

    outcome, _ = await how_the_client_ends(act)
    assert outcome == BatonResult(received=1, sent=1, reset=1)


async def test_a_server_that_does_not_care() -> None:
    async def act(session: WebTransportSession) -> None:
        await send_uni(session, encode_message(10, 0))
        async with await session.incoming_streams.receive() as stream:
            await stream.receive_some()
            stream.stop(IDC)
            await session.wait_closed()

    outcome, _ = await how_the_client_ends(act, settings=BatonSettings(padding=2**21))
    assert outcome == BatonResult(received=1, reset=1)


@pytest.mark.parametrize(("code", "reason"), [(0, ""), (SUS, "no"), (77, "why not")])
async def test_a_server_that_closes_too_early(code: int, reason: str) -> None:
    async def act(session: WebTransportSession) -> None:
        await send_uni(session, encode_message(10, 0))
        await session.incoming_streams.receive()
        await session.aclose(code, reason)

    outcome, _ = await how_the_client_ends(act)
    assert failed(outcome) == (code, True)
    assert isinstance(outcome, BatonFailed)
    assert outcome.reason == (reason or "1 batons were on their way")


async def test_a_server_whose_close_is_faster_than_its_zero() -> None:
    async def act(session: WebTransportSession) -> None:
        await send_uni(session, encode_message(254, 0))
        async with await session.incoming_streams.receive() as stream:
            assert (await stream.receive_all())[-1] == 255
            session.close_now()

    outcome, _ = await how_the_client_ends(act, "baton=254")
    assert outcome == BatonResult(received=1, sent=1, finished=1)


async def test_a_server_that_closes_between_its_batons() -> None:
    async def act(session: WebTransportSession) -> None:
        await send_uni(session, encode_message(254, 0))
        async with await session.incoming_streams.receive() as stream:
            assert (await stream.receive_all())[-1] == 255
            await stream.send_all(encode_message(0, 0), eof=True)
        await trio.sleep(0.1)
        await session.aclose()

    outcome, _ = await how_the_client_ends(act, "baton=254&count=2")
    assert failed(outcome) == (0, True)


async def test_a_connection_that_is_lost() -> None:
    network = Network()
    async with pair("baton=10", network=network, idle_timeout=5) as (client, server):
        await send_uni(server, encode_message(10, 0))
        network.loss = 1.0
        with pytest.raises(ConnectionLost):
            await run_baton(client)


async def test_a_client_that_is_cancelled_while_it_sends() -> None:
    async with pair("baton=10") as (client, server), trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await run_baton(client, BatonSettings(padding=2**22))

        nursery.start_soon(run)
        await send_uni(server, encode_message(10, 0))
        async with await server.incoming_streams.receive() as stream:
            await trio.sleep(1)
            scope.cancel()
            with pytest.raises(StreamReset) as caught:
                await stream.receive_all(2**23)
            assert caught.value.code == I_LIED
        # The session is the caller's.
        assert client.closed is None


async def test_a_client_that_is_cancelled_while_it_reads() -> None:
    async with (
        pair("baton=10", cancelled_code=9) as (client, server),
        trio.open_nursery() as nursery,
    ):
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await run_baton(client)

        nursery.start_soon(run)
        async with server.open_send_stream() as stream:
            await stream.send_all(b"\x05")
            await trio.sleep(1)
            scope.cancel()
            await trio.sleep(1)
            with pytest.raises(StreamReset) as caught:
                await stream.send_all(b"\0")
            assert caught.value.code == IDC


async def test_a_session_that_was_opened_for_something_else() -> None:
    async with pair("count=x") as (client, _):
        with pytest.raises(ValueError, match="count"):
            await run_baton(client)
