"""Several sessions, and other requests, on one connection."""

from __future__ import annotations

import trio

import trio_wt


async def two_rooms(url: str, tls: trio_wt.ClientTLS) -> None:
    async with (
        trio_wt.open_webtransport_connection(url, tls=tls) as connection,
        connection.open_session("/rooms/tea") as tea,
        connection.open_session("/rooms/milk") as milk,
    ):
        await tea.datagrams.send(b"hello, tea")
        await milk.datagrams.send(b"hello, milk")
        print(await tea.datagrams.receive())
        print(await milk.datagrams.receive())


async def is_healthy(connection: trio_wt.WebTransportConnection) -> bool:
    response = await connection.request("GET", "/health")
    return response.status == 200


async def join(connection: trio_wt.WebTransportConnection, room: str, token: str) -> str:
    try:
        async with connection.open_session(
            f"/rooms/{room}",
            subprotocols=["chat.v2", "chat.v1"],
            headers=[("Authorization", f"Bearer {token}")],
            priority=trio_wt.Priority(urgency=1),
        ) as session:
            return f"joined {room}, {session.subprotocol}"
    except trio_wt.Rejected as exc:
        return f"rejected with {exc.status}: {exc.body.decode().strip()}"


async def shared_secret(session: trio_wt.WebTransportSession) -> bytes:
    return session.export_keying_material(b"my-app token", b"", 32)


async def figures(session: trio_wt.WebTransportSession) -> str:
    ours, all_of_it = session.statistics(), session.connection.statistics()
    return (
        f"{ours.open_streams} streams, {ours.unread_bytes} bytes to read; "
        f"{all_of_it.packets_received} packets came, {all_of_it.packets_lost} got lost"
    )


async def stay_close(session: trio_wt.WebTransportSession) -> float:
    with trio.fail_after(10):
        return await session.connection.ping()
