"""How QUIC streams and connections end."""

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


async def ask(connection: trio_wt.Connection, question: bytes) -> str:
    try:
        async with connection.open_stream() as stream:
            await stream.send_all(question, eof=True)
            return (await stream.receive_all()).decode()
    except trio_wt.StreamReset as exc:
        return f"no answer, code {exc.code}"


async def ask_in_time(connection: trio_wt.Connection, question: bytes) -> str | None:
    with trio.move_on_after(5):
        return await ask(connection, question)
    return None


async def first_kilobyte(connection: trio_wt.Connection) -> bytes:
    stream = await connection.incoming_receive_streams.receive()
    async with stream:
        beginning = await stream.receive_some(1024)
        print(f"{len(beginning)} bytes are enough")
    return beginning


async def turn_away(connection: trio_wt.Connection) -> None:
    await connection.aclose(NOT_NOW, "come back tomorrow")


async def how_it_ends(connection: trio_wt.Connection) -> str:
    end = await connection.wait_closed()
    if isinstance(end, trio_wt.ConnectionClosedOK):
        return "finished"
    if isinstance(end, trio_wt.ConnectionLost):
        return f"lost: {end.reason}"
    return f"{'their' if end.remote else 'our'} code {end.code}: {end.reason}"
