"""Clients that stay up."""

from __future__ import annotations

from functools import partial

import trio

import trio_wt
from trio_wt.app import CircuitBreaker, CircuitOpen, NoEndpoint, Previous, SessionPool


async def follow(url: str, journal: list[str]) -> None:
    async def resume(ws: trio_wt.WebSocket, previous: Previous) -> None:
        if previous.end is not None:
            print(f"again, after {previous.attempts} attempts; the last end: {previous.end}")
        await ws.send(f"after {len(journal)}")

    async for attempt in trio_wt.reconnect(trio_wt.open_websocket, url, resume=resume):
        async with attempt as ws:
            async for message in ws:
                print(message)
                journal.append(str(message))
            if ws.close_code == 1000:
                return


async def visit_rooms(url: str, tls: trio_wt.ClientTLS, rooms: list[str]) -> None:
    async def stay(room: str) -> None:
        async for attempt in trio_wt.reconnect(connection.open_session, room):
            async with attempt as session:
                async for data in session.datagrams:
                    print(f"{room}: {data!r}")
                    if data == b"good night":
                        return

    open_connection = partial(trio_wt.open_webtransport_connection, tls=tls)
    async for attempt in trio_wt.reconnect(open_connection, url):
        async with attempt as connection:
            async with trio.open_nursery() as nursery:
                for room in rooms:
                    nursery.start_soon(stay, room)
            return


def is_restart(failure: Exception) -> bool | None:
    if isinstance(failure, trio_wt.ConnectionClosed) and failure.code == 4001:
        return True  # this server's code for "I restart"
    return None  # whatever else: as `is_transient` says


async def report(url: str, breaker: CircuitBreaker, values: list[float]) -> bool:
    try:
        async for attempt in trio_wt.reconnect(
            trio_wt.open_websocket, url, retry=is_restart, breaker=breaker, breaker_wait=0
        ):
            async with attempt as ws:
                for value in values:
                    await ws.send(str(value))
                return True
    except CircuitOpen as exc:
        print(f"keep them for {exc.retry_in:.0f} s")
    return False


async def ask_many(urls: list[str], questions: list[str]) -> dict[str, str | bytes]:
    answers = {}

    async def ask(question: str) -> None:
        async with pool.session() as ws:
            await ws.send(question)
            answers[question] = await ws.receive()

    pool = SessionPool(urls, opener=trio_wt.open_websocket, size=4)
    async with pool, trio.open_nursery() as nursery:
        for question in questions:
            nursery.start_soon(ask, question)
    return answers


async def upload(urls: list[str], tls: trio_wt.ClientTLS, files: list[bytes]) -> None:
    opener = partial(trio_wt.open_webtransport, tls=tls)
    async with SessionPool(urls, opener=opener) as pool:
        for content in files:
            async with pool.session() as session, session.open_stream() as stream:
                await stream.send_all(content)
                await stream.send_eof()
                await stream.receive_all()


async def is_ready(ws: trio_wt.WebSocket) -> None:
    await ws.send("ready?")
    if await ws.receive() != "yes":
        raise RuntimeError("it is not ready")


def careful_pool(urls: list[str]) -> SessionPool[str, trio_wt.WebSocket]:
    return SessionPool(
        urls,
        opener=trio_wt.open_websocket,
        health=is_ready,
        health_interval=10,
        breaker=lambda url: CircuitBreaker(failures=2, pause=60, name=url),
    )


async def replace_server(pool: SessionPool[str, trio_wt.WebSocket], old: str, new: str) -> None:
    pool.add(new)
    await pool.drain(old)
    pool.remove(old)


async def patient(pool: SessionPool[str, trio_wt.WebSocket], question: str) -> str | bytes | None:
    async for attempt in trio_wt.reconnect(pool.session, max_delay=5):
        async with attempt as ws:
            await ws.send(question)
            return await ws.receive()
    return None  # not reached


async def impatient(pool: SessionPool[str, trio_wt.WebSocket], question: str) -> str | bytes | None:
    try:
        with trio.fail_after(2):
            async with pool.session() as ws:
                await ws.send(question)
                return await ws.receive()
    except (NoEndpoint, trio.TooSlowError) as exc:
        print(f"no answer: {exc}")
        return None


def look_at(pool: SessionPool[str, trio_wt.WebSocket]) -> str:
    figures = pool.statistics()
    states = ", ".join(f"{one.name} {one.state}" for one in figures.endpoints)
    return f"{figures.users} users, {figures.waiting} waiting; {states}"
