"""The page on clients says what is so: every line of its code runs in here."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio

import trio_wt
from tests.quic_pairs import certificate, client_tls
from tests.shown_code import ROOT, free_port, loaded
from tests.webtransport_pairs import echo, ws_echo
from trio_wt.app._breaker import CircuitBreaker


async def start(nursery: trio.Nursery, handler: Any, **kwargs: Any) -> str:
    serve = partial(trio_wt.serve_websocket, handler, 0, host="127.0.0.1", **kwargs)
    listeners = await nursery.start(serve)
    return f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"


async def start_sessions(nursery: trio.Nursery, handler: Any) -> str:
    tls = trio_wt.ServerTLS(certificate())
    serve = partial(trio_wt.serve_webtransport, handler, 0, host="127.0.0.1", tls=tls)
    sockets = await nursery.start(serve)
    return f"https://127.0.0.1:{sockets[0].local_address[1]}/"


async def feed(ws: trio_wt.WebSocket) -> None:
    """Seven messages in all, three of them at a time."""
    after = int(str(await ws.receive()).removeprefix("after "))
    for number in range(after, min(after + 3, 7)):
        await ws.send(f"message {number}")
    if after < 4:
        await ws.close(1012, "restarting")


async def rooms(session: trio_wt.WebTransportSession) -> None:
    for data in (b"hello", b"good night"):
        await session.datagrams.send(data)
        await trio.sleep(0.05)
    await session.wait_closed()


async def ready(ws: trio_wt.WebSocket) -> None:
    async for message in ws:
        await ws.send("yes" if message == "ready?" else "what?")


@pytest.mark.real_clock
async def test_app_clients(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pauses are random below a bound: without them the test takes no time.
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    with loaded(ROOT / "docs" / "code" / "app_clients.py") as code:
        async with trio.open_nursery() as nursery:
            journal: list[str] = []
            await code.follow(await start(nursery, feed), journal)
            assert journal == [f"message {number}" for number in range(7)]
            told = capsys.readouterr().out.splitlines()
            again = "again, after 1 attempts; the last end: the peer closed the connection"
            assert [line for line in told if line not in journal] == [
                f"{again} with code 1012: restarting"
            ] * 2

            sessions = await start_sessions(nursery, rooms)
            await code.visit_rooms(sessions, client_tls(), ["/a", "/b"])
            said = capsys.readouterr().out.splitlines()
            assert {"/a: b'good night'", "/b: b'good night'"} <= set(said)

            breaker = CircuitBreaker(failures=1, pause=90)
            one, two = [await start(nursery, ws_echo) for _ in range(2)]
            assert await code.report(one, breaker, [1.5])
            assert not await code.report(f"ws://127.0.0.1:{free_port()}/", breaker, [2.5])
            assert capsys.readouterr().out == "keep them for 90 s\n"
            assert code.is_restart(trio_wt.ConnectionClosedError(4001, remote=True))
            assert code.is_restart(ValueError()) is None

            questions = [f"question {number}" for number in range(20)]
            answers = await code.ask_many([one, two], questions)
            assert answers == {question: question for question in questions}

            urls = [await start_sessions(nursery, echo) for _ in range(2)]
            await code.upload(urls, client_tls(), [b"x" * 1000, b"y"])

            old, new = [await start(nursery, ready) for _ in range(2)]
            async with code.careful_pool([old]) as pool:
                assert await code.patient(pool, "ready?") == "yes"
                assert await code.impatient(pool, "ready?") == "yes"
                async with pool.session() as ws:
                    await code.is_ready(ws)
                    await ws.send("something else")
                    assert await ws.receive() == "what?"
                assert code.look_at(pool) == f"0 users, 0 waiting; {old} up"
                await code.replace_server(pool, old, new)
                assert code.look_at(pool) == f"0 users, 0 waiting; {new} up"
                assert await code.patient(pool, "ready?") == "yes"
                await pool.drain(new)
                assert await code.impatient(pool, "ready?") is None
                assert "it is draining" in capsys.readouterr().out

            async def never_ready(ws: trio_wt.WebSocket) -> None:
                await ws_echo(ws)

            async with trio_wt.open_websocket(await start(nursery, never_ready)) as ws:
                with pytest.raises(RuntimeError, match="not ready"):
                    await code.is_ready(ws)
            nursery.cancel_scope.cancel()
