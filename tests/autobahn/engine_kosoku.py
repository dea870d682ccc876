"""Autobahn's cases as kosoku, a native runner of Autobahn's own case files, runs them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from kosoku import FailureError, run_fuzzingclient, run_fuzzingserver
from kosoku.cases import CASES

from .peer_process import Complain, client_peer, server_peer
from .plan import Batch
from .verdicts import Side, Verdict

if TYPE_CHECKING:
    from kosoku._kosoku import CaseResult

__all__ = ["KNOWN_CASES", "run"]

KNOWN_CASES: Final = tuple(CASES)
# Some cases do nothing but wait for seconds.
_CONCURRENCY: Final = 4
_UPDATE_REPORTS: Final = (
    b"GET /updateReports HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def run(module: str, batch: Batch, complain: Complain) -> list[Verdict]:
    """Run a batch against the peer in `module`; the answer lacks cases that came to no verdict."""
    try:
        if batch.side == "server":
            results = await _fuzz_server(module, batch, complain)
        else:
            results = await _fuzz_client(module, batch, complain)
    except FailureError as failure:
        results = failure.results
    return list(_verdicts(batch.side, results))


async def _fuzz_server(module: str, batch: Batch, complain: Complain) -> list[CaseResult]:
    async with server_peer(module, batch, complain) as url:
        return await run_fuzzingclient(url, batch.cases, concurrency=_CONCURRENCY)


async def _fuzz_client(module: str, batch: Batch, complain: Complain) -> list[CaseResult]:
    async with run_fuzzingserver(batch.cases, host="127.0.0.1", port=0) as server:
        await client_peer(module, batch, complain, f"ws://127.0.0.1:{server.port}")
        await _end_run(server.port)
        results = await server.get_result()
    return list(results)


async def _end_run(port: int) -> None:
    """Say what a client says at its end, in the place of one that broke down before."""
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_UPDATE_REPORTS)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def _verdicts(side: Side, results: Iterable[CaseResult]) -> Iterable[Verdict]:
    for result in results:
        yield Verdict(
            side=side,
            case=result.case_id,
            behavior=result.behavior.value,
            behavior_close=result.behavior_close.value,
            remote_close_code=result.remote_close_code,
            duration=result.duration,
            result=result.result,
            result_close=result.result_close,
            expectation=result.expectation,
            http_request=result.http_request,
            http_response=result.http_response,
            wire_log=[str(entry) for entry in result.wirelog],
        )
