"""Looking at requests, and deciding about them."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

import trio

import trio_wt


async def room(ws: trio_wt.WebSocket) -> None:
    request = ws.request
    name = request.path.removeprefix("/rooms/")
    limit = parse_qs(request.query).get("limit", ["none"])[0]
    await ws.send(f"room {name}, limit {limit}, for {request.headers['user-agent']}")


def front_desk(request: trio_wt.Request) -> None:
    if request.path == "/health":
        request.respond(200, body="ok\n")
    elif not request.path.startswith("/rooms/"):
        request.reject(404, body="there is nothing here\n")


async def check_token(request: trio_wt.Request) -> None:
    if await user_of(request.headers.get("authorization")) is None:
        request.reject(401, [("WWW-Authenticate", "Bearer")])


async def user_of(authorization: str | None) -> str | None:
    await trio.sleep(0.01)  # ask a database
    return {"Bearer s3cret": "ann"}.get(authorization or "")


def set_cookie(request: trio_wt.Request) -> None:
    if request.is_websocket:
        request.accept(headers=[("Set-Cookie", "seen=1; HttpOnly; SameSite=Strict")])


async def serve_our_pages(port: int) -> None:
    await trio_wt.serve_websocket(
        room,
        port,
        origins=["https://example.com", re.compile(r"https://[a-z0-9-]+\.example\.com")],
    )


def insist_on_chat(request: trio_wt.Request) -> None:
    if request.is_websocket and "chat.v2" not in request.subprotocols:
        request.reject(400, body="this server speaks chat.v2\n")


async def visit(url: str) -> str:
    try:
        async with trio_wt.open_websocket(url, handshake_timeout=3) as ws:
            return str(await ws.receive())
    except trio_wt.Rejected as exc:
        return f"rejected with {exc.status}: {exc.body.decode()}"
    except trio_wt.HandshakeFailed as exc:
        return f"failed: {exc}"
