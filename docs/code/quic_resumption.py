"""Resuming QUIC sessions, and data before the handshake is over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio

import trio_wt

IDEMPOTENT = {"read", "list"}

Serve = Callable[..., Awaitable[None]]


async def ask_again(host: str, port: int, tls: trio_wt.ClientTLS) -> list[bool]:
    store = trio_wt.SessionStore()
    resumed = []
    for _ in range(2):
        async with trio_wt.open_quic(
            host, port, alpn=["files"], tls=tls, session_store=store
        ) as connection:
            await ask(connection, "read a")
            resumed.append(connection.session_resumed)
    return resumed


async def ask(connection: trio_wt.Connection, request: str) -> str:
    if request.split()[0] not in IDEMPOTENT:
        await connection.wait_handshake()
    async with connection.open_stream() as stream:
        await stream.send_all(request.encode(), eof=True)
        return (await stream.receive_all()).decode()


async def ask_early(
    host: str, port: int, tls: trio_wt.ClientTLS, store: trio_wt.SessionStore, request: str
) -> str:
    async with trio_wt.open_quic(
        host, port, alpn=["files"], tls=tls, session_store=store, early_data=True
    ) as connection:
        answer = await ask(connection, request)
        await connection.wait_handshake()
        how = "early" if connection.early_data_accepted else "not early"
        return f"{answer}, {how}"


async def serve(connection: trio_wt.Connection) -> None:
    async def answer(stream: trio_wt.Stream) -> None:
        with suppress(trio_wt.StreamReset, trio_wt.HandshakeFailed):
            async with stream:
                request = (await stream.receive_all(4096)).decode()
                if request.split()[0] not in IDEMPOTENT:
                    await connection.wait_handshake()
                await stream.send_all(f"done: {request}".encode())

    async with trio.open_nursery() as nursery:
        async for stream in connection.incoming_streams:
            nursery.start_soon(answer, stream)


def early_server(tls: trio_wt.ServerTLS) -> Serve:
    return partial(trio_wt.serve_quic, serve, alpn=["files"], tls=tls, early_data=True)


async def remember(host: str, port: int, tls: trio_wt.ClientTLS, path: str, request: str) -> str:
    store = trio_wt.SessionStore()
    with suppress(FileNotFoundError):  # the first time
        store.load(path)
    answer = await ask_early(host, port, tls, store, request)
    store.save(path)
    return answer
