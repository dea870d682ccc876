"""What surrounds a session: who may come in, how often, how long, and what is written down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

import trio_wt
from trio_wt.app import (
    App,
    Context,
    HTTPError,
    StateKey,
    access_log,
    allow_origins,
    basic_auth,
    bearer_auth,
    by_peer,
    deadline,
    limit_concurrency,
    rate_limit,
)


class User(NamedTuple):
    name: str
    seconds: float = 3600


USER = StateKey[User]("user")
TOKENS = {"s3cret": User("ann"), "0ther": User("bob", seconds=2)}


async def find_user(token: str) -> User | None:
    await trio.sleep(0.01)  # a database, say
    return TOKENS.get(token)


@asynccontextmanager
async def count_rooms(context: Context) -> AsyncIterator[None]:
    room = context.params["room"]
    if room in open_rooms:
        raise HTTPError(409, "there is somebody in this room\n")
    context.headers += [("X-Rooms", str(len(open_rooms)))]
    open_rooms.add(room)
    try:
        yield
    finally:
        open_rooms.remove(room)


open_rooms: set[str] = set()


def seconds_left(context: Context) -> float:
    return context.state[USER].seconds


def who(context: Context) -> dict[str, object]:
    user = context.state.get(USER)
    return {"user": user and user.name}


often = rate_limit(10, burst=100)
many = limit_concurrency(1000, wait=1)

app = App(
    middleware=[
        access_log(fields=who),
        often,
        many,
        bearer_auth(find_user, key=USER, query="token"),
        deadline(seconds_left, reason="your token has expired"),
    ],
    origins=["https://example.com", "https://app.example.com"],
)


@app.websocket("/rooms/{room}", middleware=[count_rooms])
async def room(ws: trio_wt.WebSocket, room: str, context: Context) -> None:
    async for message in ws:
        await ws.send(f"{context.state[USER].name} in {room}: {message}")


ADMIN = StateKey[str]("admin")

admin = App(
    middleware=[
        allow_origins(["https://admin.example.com"], plain=True),
        basic_auth(key=ADMIN, passwords={"root": "correct horse"}, realm="admin"),
        limit_concurrency(2, key=by_peer),
    ]
)


@admin.http("/figures")
def figures(request: trio_wt.Request) -> str:
    return f"refused: {often.statistics().refused}, inside: {many.statistics().active}\n"
