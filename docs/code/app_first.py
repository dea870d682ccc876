"""An application for both kinds of session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

import trio_wt
from trio_wt.app import App, Context, HTTPError, Response, StateKey, html_response

GREETINGS = StateKey[dict[str, str]]("greetings")


@asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[None]:
    app.state[GREETINGS] = {"en": "hello", "fr": "bonjour"}
    try:
        yield
    finally:
        app.state[GREETINGS].clear()


app = App(lifespan=lifespan)


@app.websocket("/greet/{language}")
async def greet(ws: trio_wt.WebSocket, language: str, context: Context) -> None:
    greeting = context.app.state[GREETINGS].get(language, "?")
    async for name in ws:
        await ws.send(f"{greeting}, {name}")


@app.session("/count/{start:int}")
async def count(session: trio_wt.WebSocket | trio_wt.WebTransportSession, start: int) -> None:
    if isinstance(session, trio_wt.WebSocket):
        await session.send(str(start + 1))
    else:
        await session.datagrams.send(str(start + 1).encode())
        await session.wait_closed()


@app.http("/")
def page(request: trio_wt.Request) -> Response:
    return html_response("<!DOCTYPE html><title>greetings</title><h1>Greetings</h1>")


@app.http("/greetings/{language}")
async def one(request: trio_wt.Request, language: str, context: Context) -> str:
    try:
        return context.app.state[GREETINGS][language]
    except KeyError:
        raise HTTPError(404, "nobody speaks that here\n") from None


admin = App()


@admin.http("/health")
def health(request: trio_wt.Request) -> str:
    return "ok\n"


app.mount("/admin", admin)


async def main() -> None:
    certificate = trio_wt.Certificate.load("cert.pem", "key.pem")
    await app.serve("localhost", 4433, tls=trio_wt.ServerTLS(certificate))


if __name__ == "__main__":
    trio.run(main)
