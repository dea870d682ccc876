"""Certificates that are renewed, and a server beside other tasks."""

from __future__ import annotations

import trio

from trio_wt.app import App, ReloadingTLS


async def serve_for_a_year(app: App) -> None:
    await app.serve("localhost", 4433, tls=ReloadingTLS("cert.pem", "key.pem"))


async def serve_and_more(app: App) -> None:
    async with trio.open_nursery() as nursery:
        serving = await nursery.start(app.serve, "localhost", 0)
        print(f"listening on {serving.url('ws')}")
        await trio.sleep(1)
        print(app.statistics().requests, "requests so far")
        serving.shut_down()
