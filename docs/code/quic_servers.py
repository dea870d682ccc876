"""A QUIC server that faces the world."""

from __future__ import annotations

import signal

import trio

import trio_wt


async def session(connection: trio_wt.Connection) -> None:
    async for stream in connection.incoming_streams:
        async with stream:
            await stream.send_all(await stream.receive_all())


async def main(
    port: int = 4433,
    task_status: trio.TaskStatus[list[trio_wt.DatagramSocket]] = trio.TASK_STATUS_IGNORED,
) -> None:
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_on_signal, stop)
        await trio_wt.serve_quic(
            session,
            port,
            alpn=["echo"],
            tls=trio_wt.ServerTLS(trio_wt.Certificate.load("cert.pem", "key.pem")),
            reset_key=await trio.Path("reset.key").read_bytes(),
            retry="under-load",
            max_half_open=200,
            idle_timeout=60,
            max_streams=16,
            shutdown=stop,
            shutdown_timeout=10,
            task_status=task_status,
        )
        nursery.cancel_scope.cancel()


async def stop_on_signal(stop: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            stop.set()


if __name__ == "__main__":
    trio.run(main)
