"""One side of a contestant, in a process: ``python -m tests.bench.webtransport.peers --help``.

It is told what to do as a process of the QUIC benchmark is, and answers likewise.
"""

from __future__ import annotations

import argparse
import threading
from importlib import import_module
from typing import TYPE_CHECKING, cast

from ..client import BenchError
from ..quic.peers import JOBS, WARM_UP, Meter, answer, run_client
from ..quic.wire import CHUNK, Files, Peer
from ..servers import announce, obey, raise_file_limit
from .wire import Module, Tally

if TYPE_CHECKING:
    from .wire import Client, Session

WARM_UP_SIZE = 4 * 2**20
"""Bytes of the transfer that runs before the one that counts."""

QUIET = 0.05
"""Seconds in which nothing more may arrive for a flood to be over."""


async def transfer(client: Client, meter: Meter, *, case: str, size: int) -> None:
    """A transfer of about that many bytes."""
    size = max(1, size // CHUNK) * CHUNK
    async with client.connect() as session:
        run = getattr(session, case)
        await run(min(size, WARM_UP_SIZE))
        meter.start()
        await run(size)
        answer(meter.stop(size / 1e6))


async def flood(client: Client, meter: Meter, *, seconds: float) -> None:
    """Datagrams one way: the rate at which they arrive, and the share that does not."""
    async with client.connect() as session:
        await session.flood(0, seconds * WARM_UP)
        await outcome(client, session)
        meter.start()
        sent = await session.flood(1, seconds)
        tally = await outcome(client, session)
        if not tally.count:
            raise BenchError("no datagram of a flood arrived")
        figures = meter.stop(tally.count)
        rate = tally.count / max(tally.last - tally.first, 1e-9)
        answer({**figures, "rate": rate, "lost": 1 - tally.count / sent})


async def outcome(client: Client, session: Session) -> Tally:
    """What the server has counted when nothing more arrives."""
    before, tally = None, Tally.read(await session.tally())
    while tally != before:
        await client.sleep(QUIET)
        before, tally = tally, Tally.read(await session.tally())
    return tally


def main() -> None:
    """Be the server or the client that the command line names."""
    parser = argparse.ArgumentParser(description="A server or a client of the benchmark.")
    parser.add_argument("module", help="the name after with_")
    parser.add_argument("port", type=int)
    parser.add_argument("folder", help="where the certificates are")
    parser.add_argument("--variant", default="")
    parser.add_argument("--client-of", type=int, metavar="PID", help="be a client of this server")
    options = parser.parse_args()
    raise_file_limit()
    JOBS.update(transfer=transfer, flood=flood)
    files = Files.inside(options.folder)
    peer = Peer(options.port, files, options.variant, many_streams=False)
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
