"""Stopping a server without cutting anybody off."""

from __future__ import annotations

import signal

import trio

import trio_wt


async def session(ws: trio_wt.WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


async def main(
    port: int = 8765,
    task_status: trio.TaskStatus[list[trio.abc.Listener[trio.abc.Stream]]] = (
        trio.TASK_STATUS_IGNORED
    ),
) -> None:
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_on_signal, stop)
        await trio_wt.serve_websocket(
            session, port, shutdown=stop, shutdown_timeout=10, task_status=task_status
        )
        nursery.cancel_scope.cancel()


async def stop_on_signal(stop: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            stop.set()


if __name__ == "__main__":
    trio.run(main)
