"""The command line: ``python -m tests.bench.webtransport``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from ..__main__ import progress
from ..process import ForeignLoad
from .measure import CONTESTANTS, DEFAULT, MEASURES, Bench, Settings
from .report import as_json, as_text, environment


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; exits with a message when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.webtransport",
        description="WebTransport libraries on loopback, each as client and as server, in turns.",
    )
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=CONTESTANTS,
        default=DEFAULT,
        metavar="NAME",
        help=f"from {', '.join(CONTESTANTS)}; by default those with one library on both sides",
    )
    parser.add_argument(
        "--measures",
        nargs="+",
        choices=MEASURES,
        default=list(MEASURES),
        metavar="MEASURE",
        help=f"from {', '.join(MEASURES)}; all by default",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of rates (5)")
    parser.add_argument(
        "--seconds", type=float, default=0.6, help="time for each rate in a round (0.6)"
    )
    parser.add_argument("--megabytes", type=float, default=200, help="size of a transfer (200)")
    parser.add_argument("--runs", type=int, default=3, help="runs of memory (3)")
    parser.add_argument(
        "--sessions", type=int, default=1000, help="idle sessions for memory (1000)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one short round of everything: shows that it works, measures nothing",
    )
    parser.add_argument(
        "--pin",
        nargs="?",
        const="apart",
        choices=("apart", "together"),
        help="servers on the first CPU and clients on the second; with 'together', "
        "all but transfers on the first alone",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - is stdout")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.sessions, options.runs) < 1:
        parser.error("rounds, sessions and runs must be positive")
    if min(options.seconds, options.megabytes) <= 0:
        parser.error("seconds and megabytes must be positive")
    if options.quick:
        options.rounds = options.runs = 1
        options.seconds, options.sessions, options.megabytes = 0.02, 5, 0.2
    return options


def main(arguments: list[str]) -> int:
    """Run, print, and return the exit status: 1 if someone failed, or none could be measured."""
    options = parse(arguments)
    if options.pin and len(os.sched_getaffinity(0)) < 2:
        progress("only one CPU is available: nothing is pinned")
        options.pin = None
    foreign = ForeignLoad()
    settings = Settings(
        contestants=options.contestants,
        measures=options.measures,
        rounds=options.rounds,
        seconds=options.seconds,
        levels=(),
        connections=options.sessions,
        runs=options.runs,
        pin=options.pin,
        progress=progress,
        megabytes=options.megabytes,
    )
    bench = Bench(settings)
    bench.run()
    where = environment(foreign.share())
    lines = as_text(bench.results, settings, where)
    print(*lines, sep="\n", file=sys.stderr if options.json == "-" else sys.stdout)
    if options.json:
        text = json.dumps(as_json(bench.results, settings, where), indent=1) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            Path(options.json).write_text(text)
    measured = any(bench.results.samples.values()) or bool(bench.results.memory)
    return 1 if bench.results.failed or not measured else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
