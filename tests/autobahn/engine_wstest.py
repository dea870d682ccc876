"""Autobahn's cases as the original test suite runs them, under Python 2.7.

It is slower than kosoku by far and stricter: it judges each of our frames, and waits for the server
to drop the TCP connection.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from .peer_process import Complain, client_peer, server_peer, stop
from .plan import Batch
from .verdicts import Side, Verdict

__all__ = ["run"]

_AGENT: Final = "trio_wt"
_START_TIMEOUT: Final = 30  # seconds
_RUN: Final = "from autobahntestsuite.wstest import run; run()"


def _command() -> list[str]:
    python = os.environ.get("AUTOBAHN_PYTHON")
    if python:
        return [python, "-c", _RUN]
    wstest = shutil.which("wstest")
    if wstest:
        return [wstest]
    raise FileNotFoundError("no wstest on PATH, and AUTOBAHN_PYTHON is not set")


async def run(module: str, batch: Batch, complain: Complain) -> list[Verdict]:
    """Run a batch against the peer in `module`; the answer lacks cases that came to no verdict.

    Raises:
        FileNotFoundError: the test suite is not installed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if batch.side == "server":
            await _fuzz_server(module, batch, complain, folder)
        else:
            await _fuzz_client(module, batch, complain, folder)
        return list(_verdicts(batch.side, folder))


@asynccontextmanager
async def _wstest(mode: str, batch: Batch, folder: Path, **spec: object) -> AsyncIterator[Process]:
    spec |= {"outdir": str(folder), "cases": batch.cases, "exclude-cases": []}
    spec |= {"exclude-agent-cases": {}}
    path = folder / "spec.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    # The cwd matters: it leaves its log there.
    process = await asyncio.create_subprocess_exec(
        *_command(), "-m", mode, "-s", str(path), "-u", "0", cwd=folder, stdout=DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await stop(process)


async def _fuzz_server(module: str, batch: Batch, complain: Complain, folder: Path) -> None:
    async with server_peer(module, batch, complain) as url:
        servers = [{"agent": _AGENT, "url": url, "options": {"version": 18}}]
        async with _wstest("fuzzingclient", batch, folder, servers=servers) as process:
            await process.wait()


async def _fuzz_client(module: str, batch: Batch, complain: Complain, folder: Path) -> None:
    # It cannot tell a port that the system chose, so one is chosen for it.
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"ws://127.0.0.1:{port}"
    async with _wstest("fuzzingserver", batch, folder, url=url) as process:
        await _listening(port, process)
        await client_peer(module, batch, complain, url)


async def _listening(port: int, process: Process) -> None:
    async with asyncio.timeout(_START_TIMEOUT):
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
    raise RuntimeError("wstest ended before it listened")


def _verdicts(side: Side, folder: Path) -> Iterable[Verdict]:
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return  # it ended without a report
    for cases in index.values():
        for case, entry in cases.items():
            report = (folder / entry["reportfile"]).read_text(encoding="utf-8")
            details: dict[str, Any] = json.loads(report)
            close = (details["resultClose"], details["wasNotCleanReason"])
            yield Verdict(
                side=side,
                case=case,
                behavior=entry["behavior"],
                behavior_close=entry["behaviorClose"],
                remote_close_code=entry["remoteCloseCode"],
                duration=entry["duration"],
                result=details["result"],
                result_close=" ".join(filter(None, close)),
                expectation=details["expectation"],
                http_request=details["httpRequest"],
                http_response=details["httpResponse"],
                wire_log=[str(line) for line in details["wirelog"]],
            )
