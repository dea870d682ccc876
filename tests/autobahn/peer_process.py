"""The peer under test as a child process that never outlives its batch."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from .plan import Batch

__all__ = ["Complain", "client_peer", "server_peer", "stop"]

# Takes a line about a peer that was killed, or ended in an error: verdicts do not show that.
Complain = Callable[[str], None]

_STOP_TIMEOUT = 10  # seconds


async def stop(process: Process) -> None:
    """Wait for a process that was told to end, and kill it if it does not."""
    try:
        async with asyncio.timeout(_STOP_TIMEOUT):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


@asynccontextmanager
async def _spawn(
    module: str, batch: Batch, complain: Complain, *arguments: str
) -> AsyncIterator[Process]:
    # A pipe as standard input tells the peer when we are gone. Killing it at the limit makes every
    # connection fail, so that the fuzzer comes to an end by itself and still hands out what it has.
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, batch.side, *arguments, stdin=PIPE, stdout=PIPE
    )
    killer = asyncio.get_running_loop().call_later(batch.limit, process.kill)
    try:
        yield process
    finally:
        killer.cancel()
        if process.stdin is not None:
            process.stdin.close()
        await stop(process)
        if process.returncode:
            complain(f"{module} {batch.side} ended with status {process.returncode}")


@asynccontextmanager
async def server_peer(module: str, batch: Batch, complain: Complain) -> AsyncIterator[str]:
    """Run the server under test; the value is its URL.

    Raises:
        RuntimeError: the server ended before it told its port.
    """
    async with _spawn(module, batch, complain) as process:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError(f"{module} server did not start")
        yield f"ws://127.0.0.1:{int(line)}"


async def client_peer(module: str, batch: Batch, complain: Complain, url: str) -> None:
    """Let the client under test go through the fuzzing server's cases, until it ends or dies."""
    options = ["--offer-no-context"] if batch.offer_no_context else []
    async with _spawn(module, batch, complain, url, *options) as process:
        await process.communicate()
