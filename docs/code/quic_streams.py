"""QUIC streams."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from contextlib import suppress

import trio

import trio_wt


async def ask(connection: trio_wt.Connection, question: bytes) -> bytes:
    async with connection.open_stream() as stream:
        await stream.send_all(question, eof=True)
        return await stream.receive_all(max_bytes=65536)


async def ask_all(connection: trio_wt.Connection, questions: list[bytes]) -> dict[bytes, bytes]:
    answers: dict[bytes, bytes] = {}

    async def ask_one(question: bytes) -> None:
        answers[question] = await ask(connection, question)

    async with trio.open_nursery() as nursery:
        for question in questions:
            nursery.start_soon(ask_one, question)
    return answers


async def serve(
    connection: trio_wt.Connection, respond: Callable[[bytes], AsyncIterable[bytes]]
) -> None:
    async def answer(stream: trio_wt.Stream) -> None:
        with suppress(trio_wt.StreamReset):
            async with stream:
                question = await stream.receive_all()
                async for part in respond(question):
                    await stream.send_all(part)

    async with trio.open_nursery() as nursery:
        async for stream in connection.incoming_streams:
            nursery.start_soon(answer, stream)


async def send_records(stream: trio_wt.Stream, records: list[bytes]) -> None:
    for record in records:
        await stream.send_all(len(record).to_bytes(4) + record)


async def receive_records(stream: trio_wt.Stream) -> list[bytes]:
    records: list[bytes] = []
    while True:
        try:
            length = await stream.receive_exactly(4)
        except trio_wt.IncompleteRead as exc:
            if exc.received:
                raise
            return records
        records.append(await stream.receive_exactly(int.from_bytes(length)))


async def receive_line(stream: trio_wt.ReceiveStream) -> str:
    line = await stream.receive_until(b"\r\n", max_bytes=1024)
    return line.decode().rstrip()


async def report(connection: trio_wt.Connection, lines: AsyncIterable[str]) -> None:
    async with connection.open_send_stream() as stream:
        async for line in lines:
            await stream.send_all(f"{line}\r\n".encode())


async def read_reports(connection: trio_wt.Connection) -> None:
    async for stream in connection.incoming_receive_streams:
        async with stream:
            print(await receive_line(stream))


async def both_kinds(connection: trio_wt.Connection, picture: bytes, text: bytes) -> None:
    async with (
        connection.open_send_stream() as slow,
        connection.open_send_stream(priority=1) as urgent,
    ):
        await slow.send_all(picture)
        await urgent.send_all(text)
