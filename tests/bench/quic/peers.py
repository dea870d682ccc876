"""One side of a contestant, in a process: ``python -m tests.bench.quic.peers --help``.

The process prints ``port N`` once it serves, or is ready to connect, there, or ``absent WHY`` when
its library cannot be imported. A server then obeys its standard input as the WebSocket servers do.
A client reads a line of JSON for each job and answers with one line, of JSON too. Both end when
their standard input does, so that none outlives the benchmark.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import threading
import time
import traceback
from contextlib import AsyncExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..servers import announce, obey, raise_file_limit
from .wire import CHUNK, Client, Files, Module, Peer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Answer = dict[str, float]
    Job = Callable[..., Awaitable[None]]

WARM_UP = 0.2
"""The share of a measurement's time that runs before it counts."""

PROBE = {"transfer": 2**20, "handshakes": 3, "other": 20}
"""Operations, or bytes, from which the first guess at the rate is made."""

MOST_HANDSHAKES = 100
"""Connections that are opened in one measurement, at most; they all stay open."""

BATCH = 50
"""Idle streams that are opened at a time."""


class Meter:
    """Time, CPU time of both processes, and packets, since `start`."""

    def __init__(self, server: int) -> None:
        # "The CPU clock of that process", of all its threads; see ServerProcess.cpu_seconds.
        self._server_clock = ~server << 3 | 2

    def start(self) -> None:
        self._begin = self._now()

    def stop(self, count: float) -> Answer:
        """What one of `count` operations took, in seconds; or what a megabyte took."""
        wall, client, server, packets = (
            (now - then) / count for now, then in zip(self._now(), self._begin, strict=True)
        )
        return {"rate": 1 / wall, "client_cpu": client, "server_cpu": server, "packets": packets}

    def _now(self) -> tuple[float, float, float, int]:
        packets = _packets()
        server, client = time.clock_gettime(self._server_clock), time.process_time()
        return time.perf_counter(), client, server, packets


def _packets() -> int:
    """UDP datagrams that this machine has sent. Trains that the kernel segments count once."""
    total = 0
    for line in Path("/proc/net/snmp").read_text().splitlines():
        if line.startswith("Udp: ") and not line.startswith("Udp: I"):
            total += int(line.split()[4])
    for line in Path("/proc/net/snmp6").read_text().splitlines():
        if line.startswith("Udp6OutDatagrams"):
            total += int(line.split()[1])
    return total


async def measure(
    run: Callable[[int], Awaitable[None]], meter: Meter, seconds: float, *, transfer: bool = False
) -> Answer:
    """Run it for about that time, warmed up: guess a count, mend the guess, and measure."""
    unit, count = (CHUNK, PROBE["transfer"]) if transfer else (1, PROBE["other"])
    for share in (WARM_UP / 4, WARM_UP, 1):
        start = time.perf_counter()
        await run(count)
        rate = count / (time.perf_counter() - start)
        count = max(1, round(rate * seconds * share / unit)) * unit
    meter.start()
    await run(count)
    return meter.stop(count / 1e6 if transfer else count)


async def rate(client: Client, meter: Meter, *, case: str, seconds: float) -> None:
    """One of the measures of a single connection."""
    async with client.connect() as session:
        run = getattr(session, case)
        answer(await measure(run, meter, seconds, transfer=case in ("upload", "download")))


async def handshakes(client: Client, meter: Meter, *, seconds: float) -> None:
    """Connections opened one after another, and kept: closing them is not in the figure."""
    async with AsyncExitStack() as connections:

        async def run(count: int) -> None:
            for _ in range(min(count, MOST_HANDSHAKES)):
                await connections.enter_async_context(client.connect())

        start = time.perf_counter()
        await run(PROBE["handshakes"])
        count = round(PROBE["handshakes"] / (time.perf_counter() - start) * seconds)
        count = max(1, min(count, MOST_HANDSHAKES))
        meter.start()
        await run(count)
        answer(meter.stop(count))
        wait_for_the_end()


async def connections(client: Client, meter: Meter, *, counts: list[int]) -> None:
    """Connections that are idle after one request each, for memory to be read after each count."""
    async with AsyncExitStack() as stack:
        for count in counts:
            for _ in range(count):
                session = await stack.enter_async_context(client.connect())
                await session.requests(1)
            gc.collect()
            answer({"opened": count})
            sys.stdin.readline()
        wait_for_the_end()


async def idle_streams(client: Client, meter: Meter, *, levels: list[int], seconds: float) -> None:
    """Round trips on one stream while so many others are open on the same connection."""
    answers, opened = {}, 0
    async with client.connect() as session:
        await measure(session.round_trips, meter, seconds)
        for level in levels:
            while opened < level:
                more = min(BATCH, level - opened)
                await session.open_idle(more)
                opened += more
            answers[str(level)] = await measure(session.round_trips, meter, seconds)
        answer(answers)
        wait_for_the_end()


JOBS: dict[str, Job] = {
    "rate": rate,
    "handshakes": handshakes,
    "connections": connections,
    "idle_streams": idle_streams,
}
"""Those but `rate` never return: what closing so much takes nobody needs to wait for."""


def answer(figures: object) -> None:
    print(json.dumps(figures), flush=True)


def wait_for_the_end() -> None:
    """Block the whole process until it is killed, or its standard input ends."""
    sys.stdin.read()
    os._exit(0)


def run_client(client: Client, server: int) -> None:
    """Do what the lines of standard input ask for."""
    meter = Meter(server)
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        job = JOBS[order.pop("job")]
        try:
            client.run(partial(job, client, meter, **order))
        except Exception:
            traceback.print_exc()
            answer({"failed": traceback.format_exc(limit=-1).splitlines()[-1]})


def main() -> None:
    """Be the server or the client that the command line names."""
    parser = argparse.ArgumentParser(description="A server or a client of the QUIC benchmark.")
    parser.add_argument("module", help="the name after with_")
    parser.add_argument("port", type=int)
    parser.add_argument("folder", help="where the certificates are")
    parser.add_argument("--variant", default="")
    parser.add_argument("--many-streams", action="store_true")
    parser.add_argument("--client-of", type=int, metavar="PID", help="be a client of this server")
    options = parser.parse_args()
    raise_file_limit()
    files = Files.inside(options.folder)
    peer = Peer(options.port, files, options.variant, options.many_streams)
    try:
        module = cast("Module", import_module(f".with_{options.module}", __package__))
    except ImportError as error:
        print("absent", error, flush=True)
        return
    if options.client_of is not None:
        announce(peer.port)
        run_client(module.Client(peer), options.client_of)
    else:
        threading.Thread(target=obey, daemon=True).start()
        module.run_server(peer, lambda: announce(peer.port))


if __name__ == "__main__":
    main()
