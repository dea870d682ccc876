"""How WebTransport sessions and their streams end."""

from __future__ import annotations

import trio

import trio_wt

WRONG_QUESTION = 0x10
NOT_NOW = 0x11


async def answer(stream: trio_wt.Stream) -> None:
    async with stream:
        question = await stream.receive_all()
        if not question:
            raise trio_wt.StreamAbort(WRONG_QUESTION)
        await stream.send_all(b"42")


async def ask(session: trio_wt.WebTransportSession, question: bytes) -> str:
    try:
        async with session.open_stream() as stream:
            await stream.send_all(question, eof=True)
            return (await stream.receive_all()).decode()
    except trio_wt.StreamReset as exc:
        return f"no answer, code {exc.code}"


async def ask_in_time(session: trio_wt.WebTransportSession, question: bytes) -> str | None:
    with trio.move_on_after(5):
        return await ask(session, question)
    return None


async def turn_away(session: trio_wt.WebTransportSession) -> None:
    await session.aclose(NOT_NOW, "come back tomorrow")


async def how_it_ends(session: trio_wt.WebTransportSession) -> str:
    end = await session.wait_closed()
    if isinstance(end, trio_wt.ConnectionClosedOK):
        return f"finished: {end.reason}"
    if isinstance(end, trio_wt.ConnectionLost):
        return f"lost: {end.reason}"
    return f"{'their' if end.remote else 'our'} code {end.code}: {end.reason}"


async def work(session: trio_wt.WebTransportSession) -> None:
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as taking:
            nursery.start_soon(until_draining, session, taking)
            async for stream in session.incoming_streams:
                nursery.start_soon(answer, stream)
        # No new ones; those that were taken are answered to the end.


async def until_draining(session: trio_wt.WebTransportSession, taking: trio.CancelScope) -> None:
    try:
        await session.wait_draining()
    except (trio_wt.ConnectionClosed, trio.ClosedResourceError):
        return
    taking.cancel()


async def watch(url: str, tls: trio_wt.ClientTLS) -> str:
    async with (
        trio_wt.open_webtransport(url, tls=tls, cancel_on_close=True) as session,
        session.open_send_stream() as stream,
    ):
        while True:
            await stream.send_all(b"21.5 C\n")
            await trio.sleep(60)
    assert session.closed is not None
    return f"over, code {session.closed.code}"
