"""Run batches of cases with one of the two engines, and see to it that every case has a verdict."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Literal

from . import engine_kosoku, engine_wstest
from .peer_process import Complain
from .plan import Batch
from .verdicts import Verdict, missing

__all__ = ["ENGINES", "Engine", "run_batches"]

Engine = Literal["kosoku", "wstest"]

ENGINES: Final[dict[Engine, Callable[[str, Batch, Complain], Awaitable[list[Verdict]]]]] = {
    "kosoku": engine_kosoku.run,
    "wstest": engine_wstest.run,
}


async def run_batches(
    batches: Iterable[Batch],
    *,
    engine: Engine = "kosoku",
    module: str = "tests.autobahn.peers",
    progress: Callable[[str], None] = print,
) -> tuple[list[Verdict], list[str]]:
    """Run the batches one after the other, each against a fresh peer.

    The answer is the verdict on each case, and complaints about peers that did not end well.

    Args:
        batches: what to run.
        engine: who runs it.
        module: what to run as `python -m MODULE server` and `python -m MODULE client URL`.
        progress: is called with a line after each batch.
    """
    verdicts: list[Verdict] = []
    complaints: list[str] = []
    for batch in batches:
        started = time.monotonic()
        answers = await ENGINES[engine](module, batch, complaints.append)
        found = {verdict.case: verdict for verdict in answers}
        done = [found.get(case) or missing(batch.side, case) for case in batch.cases]
        verdicts += done
        passed = sum(verdict.passed for verdict in done)
        progress(
            f"{batch.side} group {done[0].group}: {passed} of {len(done)} passed "
            f"in {time.monotonic() - started:.1f} s"
        )
    return verdicts, complaints
