"""Handlers and servers that end in every way: clients get the right code, and the server nothing of it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio

import trio_wt
from tests.robustness.conftest import Log
from tests.robustness.h3_peer import (
    CLOSE,
    CONNECT_SETTINGS,
    DRAIN,
    Code,
    capsule,
    close_capsule,
    content,
    datagram,
    head,
    session_fields,
    stream_head,
    to_wire,
)
from tests.robustness.h3_target import URL, attacked_h3_server, echo, no_answer
from tests.robustness.quic_peer import SERVER, stream
from tests.robustness.quic_target import certificate
from tests.robustness.target import tasks
from tests.robustness.test_handlers import cancel_at
from trio_wt.testing import Network

Handler = Callable[[trio_wt.WebTransportSession], Awaitable[object]]
OK, CANCELLED, FAILED = 0, 1, 2


def errors_in(log: Log) -> int:
    """How many failures of the application's were logged; from now on the records keep nothing of them in memory."""
    count = 0
    for record in log.records:
        if record.exc_info is not None:
            count += 1
            record.exc_info = (ValueError, None, None)  # type: ignore[assignment]
    return count


# ---- handlers


async def returns(session: trio_wt.WebTransportSession) -> None:
    pass


async def returns_later(session: trio_wt.WebTransportSession) -> None:
    with trio.move_on_after(1):
        await session.datagrams.receive()


async def raises(session: trio_wt.WebTransportSession) -> None:
    raise ValueError("a bug in the application")


async def raises_a_group(session: trio_wt.WebTransportSession) -> None:
    async def fail() -> None:
        raise ValueError("a bug in the application")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        nursery.start_soon(trio.sleep_forever)


async def raises_while_sending(session: trio_wt.WebTransportSession) -> None:
    async with session.open_send_stream() as sending:
        await sending.send_all(b"half a")
        raise ValueError("a bug in the application")


async def raises_while_cleaning_up(session: trio_wt.WebTransportSession) -> None:
    try:
        session.cancel_scope.cancel()
        await trio.sleep_forever()
    finally:
        raise ValueError("a bug in the application")


async def cancels_itself(session: trio_wt.WebTransportSession) -> None:
    session.cancel_scope.cancel()
    await trio.sleep_forever()


async def closes_itself(session: trio_wt.WebTransportSession) -> None:
    await session.aclose(9, "enough")


async def sends_after_closing(session: trio_wt.WebTransportSession) -> None:
    await session.aclose(9, "enough")
    await session.datagrams.send(b"too late")


async def aborts(session: trio_wt.WebTransportSession) -> None:
    """Of a session there is none; of a stream there is."""
    raise trio_wt.StreamAbort(33)


async def takes_half(session: trio_wt.WebTransportSession) -> None:
    """Leaves streams behind that it never took, and one that it did."""
    await trio.sleep(1)
    stream = await session.incoming_streams.receive()
    await stream.receive_some()


#: With its code, and how many errors are logged.
ENDS: list[tuple[Handler, int, int]] = [
    (returns, OK, 0),
    (returns_later, OK, 0),
    (takes_half, OK, 0),
    (raises, FAILED, 1),
    (raises_a_group, FAILED, 1),
    (raises_while_sending, FAILED, 1),
    (raises_while_cleaning_up, FAILED, 1),
    (aborts, 33, 1),
    (cancels_itself, CANCELLED, 0),
    (closes_itself, 9, 0),
    (sends_after_closing, 9, 1),
]


@pytest.mark.parametrize(("handler", "code", "errors"), ENDS)
async def test_handler_ends(handler: Handler, code: int, errors: int, log: Log) -> None:
    """Each end has its code; the application's errors are logged, and go nowhere else."""
    log.allow_tracebacks = True
    async with attacked_h3_server(handler) as target:
        peer, session_id = await target.in_session()
        opened = [peer.open_session_stream(session_id, b"x", uni=n % 2 == 0) for n in range(10)]
        assert await peer.over(session_id, 12) is None
        kind, payload = peer.capsules(session_id)[-1]
        assert kind == CLOSE
        assert int.from_bytes(payload[:4]) == code
        await trio.sleep(0.1)
        assert {peer.stops[number] for number in opened} <= {Code.SESSION_GONE, to_wire(0)}
        peer.tell(session_id, fin=True)
        await peer.still_served()
        await trio.sleep(0.1)
        assert errors_in(log) == errors
    assert len(log.lines(logging.WARNING)) == errors


async def test_on_request_that_fails(log: Log) -> None:
    """It is a bug of the application's: 500, and the next one please."""
    log.allow_tracebacks = True

    async def on_request(request: trio_wt.Request) -> None:
        await trio.sleep(0.1)
        raise ValueError("a bug in the application")

    async with attacked_h3_server(on_request=on_request) as target:
        peer = await target.introduced()
        for _ in range(5):
            assert await peer.answered(peer.request(session_fields(), fin=False)) == 500
        assert errors_in(log) == 5


async def busy(session: trio_wt.WebTransportSession) -> None:
    """A handler that uses everything once."""
    await session.datagrams.send(b"datagram")
    assert await session.datagrams.receive() == b"one"
    async with session.open_send_stream() as sending:
        await sending.send_all(b"a")
    async with session.open_stream() as both:
        await both.send_all(b"b", eof=True)
        assert await both.receive_all() == b"b"
    stream = await session.incoming_streams.receive()
    async with stream:
        assert await stream.receive_some() == b"two"
        await stream.send_all(b"back")
    async with await session.incoming_receive_streams.receive() as receiving:
        assert await receiving.receive_all() == b"three"
    await session.connection.ping()
    session.drain()
    await trio.sleep(1)
    await session.aclose(9, "done")


async def client_of_busy(session: trio_wt.WebTransportSession) -> trio_wt.ConnectionClosed:
    """Answers what it has to; how its session has ended."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo_streams, session)
            await trio.sleep(0.1)
            await session.datagrams.send(b"one")
            await trio.sleep(0.1)
            async with session.open_stream() as both:
                await both.send_all(b"two", eof=True)
                await trio.sleep(0.1)
                async with session.open_send_stream() as sending:
                    await sending.send_all(b"three")
                with suppress(trio_wt.StreamReset):
                    await both.receive_all()
                await session.wait_closed()
    except* (trio_wt.ConnectionClosed, trio_wt.StreamReset, trio.ClosedResourceError):
        pass
    return await session.wait_closed()


async def echo_streams(session: trio_wt.WebTransportSession) -> None:
    with suppress(trio_wt.ConnectionClosed):
        async for taken in session.incoming_streams:
            with suppress(trio_wt.StreamReset, trio_wt.ConnectionClosed):
                async with taken:
                    await taken.send_all(await taken.receive_all(), eof=True)


@pytest.mark.parametrize("what", ["scope", "server", "shutdown", "raise"])
async def test_handler_is_ended_at_every_checkpoint(what: str, log: Log) -> None:
    """Cancelled by its own scope, with the server, at shutdown, or raising there."""
    log.allow_tracebacks = what == "raise"
    codes: list[int] = []
    number = 0
    more = True
    before = tasks()

    class Bug(Exception):
        pass

    while more:
        number += 1
        assert number < 200
        network, shutdown = Network(), trio.Event()
        more = False

        async with trio.open_nursery() as nursery:
            serving = trio.CancelScope()

            async def handler(
                session: trio_wt.WebTransportSession, serving: trio.CancelScope = serving
            ) -> None:
                def end() -> None:
                    nonlocal more
                    more = True
                    if what == "scope":
                        session.cancel_scope.cancel()
                    elif what == "server":
                        serving.cancel()
                    elif what == "shutdown":
                        shutdown.set()
                    else:
                        inner.cancel()

                with trio.CancelScope() as inner:
                    await cancel_at(busy(session), number, end)
                if inner.cancelled_caught:
                    raise Bug

            async def serve(
                *,
                serving: trio.CancelScope = serving,
                task_status: trio.TaskStatus[Any],
            ) -> None:
                with serving:
                    await trio_wt.serve_webtransport(
                        handler,
                        sockets=[network.socket(SERVER)],
                        tls=trio_wt.ServerTLS(certificate()),
                        shutdown=shutdown,
                        shutdown_timeout=0.3,
                        task_status=task_status,
                    )

            await nursery.start(serve)
            with trio.fail_after(60):
                async with trio_wt.open_webtransport(
                    URL,
                    tls=trio_wt.ClientTLS(server_certificate_hashes=[certificate().sha256]),
                    socket=network.socket(),
                ) as session:
                    end = await client_of_busy(session)
                codes.append(end.code)
                assert type(end) is not trio_wt.ConnectionLost, (number, end)
            if not more:
                assert codes.pop() == 9
            nursery.cancel_scope.cancel()
    assert tasks() == before
    assert len(codes) > 15
    # Once the handler has closed its session itself, nothing else can be said.
    expected = {"scope": CANCELLED, "server": CANCELLED, "shutdown": CANCELLED, "raise": FAILED}
    while codes and codes[-1] == 9:
        codes.pop()
    assert set(codes) <= {expected[what], 9} if what == "shutdown" else {expected[what]}
    assert codes.count(expected[what]) > 10
    assert len([record for record in log.records if record.exc_info]) <= (
        number if what == "raise" else 0
    )


# ---- servers that end


async def test_shutdown_with_busy_sessions() -> None:
    """All are told to drain, and the connection takes no more; whoever does not leave is closed when the time is up."""
    async with attacked_h3_server(no_answer, bystander=False, shutdown_timeout=4) as target:
        peers = [await target.in_session() for _ in range(5)]
        for peer, session_id in peers:
            peer.open_session_stream(session_id, b"x")
        await trio.sleep(0.1)
        started = trio.current_time()
        target.shutdown.set()
        for peer, session_id in peers:
            await peer.until(lambda p=peer, s=session_id: (DRAIN, b"") in p.capsules(s), 1)  # type: ignore[misc]
        peer, session_id = peers[0]
        peer.tell(session_id, content(close_capsule()), fin=True)
        assert await peer.over(session_id, 1) is None
        for peer, session_id in peers[1:]:
            assert await peer.over(session_id, 6) is None
            assert trio.current_time() - started == pytest.approx(4, abs=0.5)
            assert peer.capsules(session_id)[-1] == (
                CLOSE,
                (CANCELLED).to_bytes(4) + b"the server is shutting down",
            )
        for peer, _ in peers:
            assert await peer.closed(10) == Code.NO_ERROR
        await trio.sleep(1)
        assert target.finished


async def test_shutdown_with_clients_that_hear_nothing() -> None:
    """They cannot hold it up for longer than its time-outs."""
    async with attacked_h3_server(
        no_answer, bystander=False, shutdown_timeout=2, close_timeout=2, idle_timeout=60
    ) as target:
        for _ in range(5):
            peer, session_id = await target.in_session()
            peer.open_session_stream(session_id, b"x")
            await trio.sleep(0.05)
            peer.silent = peer.deaf = True
        started = trio.current_time()
        target.shutdown.set()
        with trio.fail_after(12):
            while not target.finished:
                await trio.sleep(0.1)
        assert trio.current_time() - started < 10


async def test_shutdown_in_the_middle_of_everything() -> None:
    """Requests without end, sessions that open and close, and nobody who waits."""
    async with attacked_h3_server(echo, bystander=False, shutdown_timeout=1) as target:
        peers = [await target.introduced() for _ in range(4)]
        async with trio.open_nursery() as nursery:

            async def churn(peer: Any) -> None:
                with suppress(AssertionError, trio.TooSlowError):
                    while peer.end is None:
                        session_id = await peer.open_session()
                        number = peer.open_session_stream(session_id, b"x")
                        peer.say(datagram(session_id, b"x"))
                        peer.request(session_fields(), fin=False)
                        await trio.sleep(0.003)
                        peer.tell(number, b"y", fin=True)
                        peer.tell(session_id, content(close_capsule(3)), fin=True)

            for peer in peers:
                nursery.start_soon(churn, peer)
            await trio.sleep(0.1)
            target.shutdown.set()
            with trio.fail_after(15):
                while not target.finished:
                    await trio.sleep(0.1)
            nursery.cancel_scope.cancel()


async def test_cancelled_server() -> None:
    """Each session gets the cancelled code."""
    network = Network()
    ends: list[trio_wt.ConnectionClosed] = []
    async with trio.open_nursery() as clients, trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[Any]) -> None:
            await trio_wt.serve_webtransport(
                no_answer,
                sockets=[network.socket(SERVER)],
                tls=trio_wt.ServerTLS(certificate()),
                task_status=task_status,
            )

        async def visit(*, task_status: trio.TaskStatus[None]) -> None:
            async with trio_wt.open_webtransport(
                URL,
                tls=trio_wt.ClientTLS(server_certificate_hashes=[certificate().sha256]),
                socket=network.socket(),
            ) as session:
                task_status.started()
                ends.append(await session.wait_closed())

        await nursery.start(run)
        for _ in range(5):
            await clients.start(visit)
        nursery.cancel_scope.cancel()
    assert [end.code for end in ends] == [CANCELLED] * 5
    assert {type(end) for end in ends} == {trio_wt.ConnectionClosedError}


# ---- clients that come and go


@pytest.mark.parametrize("leaving", ["close", "vanish", "goodbye", "reset", "violate"])
async def test_clients_that_come_and_go(leaving: str) -> None:
    """In every state of a session: with nothing, in the middle of a request, of a stream, of a capsule."""
    async with attacked_h3_server(
        echo, memory=12, patience=40, idle_timeout=3, close_timeout=1
    ) as target:
        for state in range(6):
            for _ in range(3):
                peer = await target.shaken()
                session_id = 0
                if state > 0:
                    peer.open_control(CONNECT_SETTINGS)
                if state == 2:
                    peer.open(head(session_fields())[:9])
                if state > 2:
                    session_id = await peer.open_session()
                if state > 3:
                    peer.open_session_stream(session_id, b"x")
                    peer.open(stream_head(session_id, uni=True)[:2], uni=True)
                if state > 4:
                    peer.tell(session_id, content(close_capsule(7, b"half")[:6]))
                if leaving == "close" and state > 2 and state < 5:
                    peer.tell(session_id, content(close_capsule()), fin=True)
                elif leaving == "reset" and state > 1:
                    peer.reset(session_id)
                elif leaving == "violate":
                    peer.open(b"\x40\x21\x01\x00" + capsule(4), fin=True)
                if leaving == "goodbye":
                    peer.leave()
                elif leaving == "vanish":
                    peer.close()
                await trio.sleep(0.01)
        if leaving == "vanish":
            await trio.sleep(6)


async def test_session_whose_handler_waits_for_everything() -> None:
    """The end of the session ends all of it."""
    woken: list[str] = []

    async def handler(session: trio_wt.WebTransportSession) -> None:
        async def wait(name: str, what: Callable[[], Awaitable[object]]) -> None:
            try:
                await what()
            except trio_wt.ConnectionClosedError as exc:
                assert (exc.code, exc.reason) == (7, "bye")
            woken.append(name)

        async def opens() -> None:
            while True:
                with trio.CancelScope() as scope:
                    async with session.open_send_stream() as sending:
                        await sending.send_all(b"x")
                        await session.wait_closed()
                assert not scope.cancelled_caught

        async def sends() -> None:
            async with session.open_send_stream() as sending:
                await sending.send_all(bytes(2**21))

        async def receives() -> None:
            async with session.open_stream() as both:
                await both.receive_some()

        async with trio.open_nursery() as nursery:
            for name, what in {
                "datagrams": session.datagrams.receive,
                "streams": session.incoming_streams.receive,
                "receive streams": session.incoming_receive_streams.receive,
                "draining": session.wait_draining,
                "closed": session.wait_closed,
                "sends": sends,
                "receives": receives,
            }.items():
                nursery.start_soon(wait, name, what)
            for number in range(140):
                nursery.start_soon(wait, f"opens {number}", opens)

    async with attacked_h3_server(handler, memory=12) as target:
        peer, session_id = await target.in_session()
        await trio.sleep(1)
        assert not woken
        peer.tell(session_id, content(close_capsule(7, b"bye")), fin=True)
        await trio.sleep(0.5)
        assert len(woken) == 147


async def test_end_of_a_session_in_the_middle_of_a_stream_s_head() -> None:
    """The rest of it comes when there is no session any more."""
    async with attacked_h3_server(no_answer) as target:
        peer, session_id = await target.in_session()
        peer.claim(20)
        text = stream_head(session_id, uni=False) + b"data"
        for number in range(1, 10):
            peer.say(stream(4 * number, 0, text[: number % 4]))
        peer.tell(session_id, content(close_capsule()), fin=True)
        await peer.over(session_id)
        for number in range(1, 10):
            at = number % 4
            peer.say(stream(4 * number, at, text[at:], fin=True))
        await trio.sleep(0.5)
        assert target.streams(peer) == 0
        assert peer.end is None
