"""Streams of WebTransport sessions."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from contextlib import suppress

import trio

import trio_wt


async def ask(session: trio_wt.WebTransportSession, question: bytes) -> bytes:
    async with session.open_stream() as stream:
        await stream.send_all(question, eof=True)
        return await stream.receive_all(max_bytes=2**16)


async def ask_all(
    session: trio_wt.WebTransportSession, questions: Sequence[bytes]
) -> dict[bytes, bytes]:
    answers = {}

    async def ask_one(question: bytes) -> None:
        answers[question] = await ask(session, question)

    async with trio.open_nursery() as nursery:
        for question in questions:
            nursery.start_soon(ask_one, question)
    return answers


async def serve(session: trio_wt.WebTransportSession) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_reports, session)
        async for stream in session.incoming_streams:
            nursery.start_soon(answer, stream)


async def answer(stream: trio_wt.Stream) -> None:
    with suppress(trio_wt.StreamReset):
        async with stream:
            question = await stream.receive_all(max_bytes=2**16)
            await stream.send_all(question.upper())


async def read_reports(session: trio_wt.WebTransportSession) -> None:
    async for stream in session.incoming_receive_streams:
        async with stream:
            while line := await receive_line(stream):
                print(line)


async def receive_line(stream: trio_wt.ReceiveStream) -> str:
    try:
        return (await stream.receive_until(b"\n")).decode().rstrip()
    except trio_wt.IncompleteRead:
        return ""


async def report(session: trio_wt.WebTransportSession, lines: AsyncIterable[str]) -> None:
    async with session.open_send_stream() as stream:
        async for line in lines:
            await stream.send_all(f"{line}\n".encode())


async def both_kinds(session: trio_wt.WebTransportSession, film: bytes, subtitles: bytes) -> None:
    async with trio.open_nursery() as nursery:

        async def send(data: bytes, priority: int) -> None:
            async with session.open_send_stream(priority=priority) as stream:
                await stream.send_all(data)

        nursery.start_soon(send, film, 0)
        nursery.start_soon(send, subtitles, 1)
