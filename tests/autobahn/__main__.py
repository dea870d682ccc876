"""Autobahn's cases against our server and client; status 1 unless every case passed."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from .engine_kosoku import KNOWN_CASES
from .plan import parse_groups, plan
from .runner import ENGINES, run_batches
from .verdicts import Side, Verdict, failures, table

_ALL_GROUPS: Final = "1-7,9,10,12,13"

_SIDES: Final[dict[str, Sequence[Side]]] = {
    "server": ("server",),
    "client": ("client",),
    "both": ("server", "client"),
}


def _write(path: Path, verdicts: Sequence[Verdict]) -> None:
    # The wire log is large, and matters only where something went wrong.
    rows = [
        dataclasses.asdict(dataclasses.replace(verdict, wire_log=()) if verdict.passed else verdict)
        | {"group": verdict.group, "passed": verdict.passed}
        for verdict in verdicts
    ]
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def main() -> int:
    """Parse the command line, run, print, and say whether all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.autobahn", description=__doc__)
    parser.add_argument("--side", choices=_SIDES, default="both", help="what is under test")
    parser.add_argument(
        "--groups", default=_ALL_GROUPS, help=f"groups of cases (default: {_ALL_GROUPS})"
    )
    parser.add_argument(
        "--cases", nargs="+", default=[], metavar="GLOB", help="only these, such as '9.3.*'"
    )
    parser.add_argument("--engine", choices=ENGINES, default="kosoku", help="who runs the cases")
    parser.add_argument(
        "--peers", default="tests.autobahn.peers", metavar="MODULE", help="the programs under test"
    )
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write every verdict here")
    arguments = parser.parse_args()
    try:
        groups = parse_groups(arguments.groups)
    except ValueError:
        parser.error(f"--groups must be like {_ALL_GROUPS}, not {arguments.groups}")
    batches = [
        batch
        for side in _SIDES[arguments.side]
        for batch in plan(side, KNOWN_CASES, groups, arguments.cases)
    ]
    if not batches:
        parser.error("there are no such cases")
    started = time.monotonic()
    verdicts, complaints = asyncio.run(
        run_batches(
            batches,
            engine=arguments.engine,
            module=arguments.peers,
            progress=partial(print, flush=True),
        )
    )
    if arguments.report:
        _write(arguments.report, verdicts)
    print()
    print(table(verdicts))
    print(f"{time.monotonic() - started:.1f} s")
    if not complaints and all(verdict.passed for verdict in verdicts):
        return 0
    print()
    print(*complaints, failures(verdicts), sep="\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
