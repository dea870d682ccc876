"""The command line: ``python -m tests.bench``."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from pathlib import Path

from .measure import SIZES, Bench, Settings
from .process import ForeignLoad
from .report import as_json, as_text, environment
from .servers import SERVERS


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; exits with a message when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Echo servers on loopback, measured in turns by a neutral client.",
    )
    parser.add_argument(
        "--servers",
        nargs="+",
        choices=SERVERS,
        default=list(SERVERS),
        metavar="NAME",
        help=f"from {', '.join(SERVERS)}; all by default",
    )
    parser.add_argument(
        "--measures",
        nargs="+",
        choices=SIZES,
        default=list(SIZES),
        metavar="MEASURE",
        help=f"from {', '.join(SIZES)}; all by default",
    )
    parser.add_argument(
        "--sizes", nargs="+", type=int, metavar="BYTES", help="only messages of these sizes"
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds of rates (7)")
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="time for each rate in a round (0.5)"
    )
    parser.add_argument(
        "--connections", type=int, default=1000, help="idle connections for memory (1000)"
    )
    parser.add_argument("--memory-runs", type=int, default=3, help="runs of memory (3)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one short round and 50 connections: shows that it works, measures nothing",
    )
    parser.add_argument(
        "--pin",
        nargs="?",
        const="apart",
        choices=("apart", "together"),
        help="servers on the first CPU and the client on the second; with 'together', "
        "round trips on the first alone",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - is stdout")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.connections, options.memory_runs) < 1 or options.seconds <= 0:
        parser.error("rounds, seconds, connections and runs must be positive")
    if options.quick:
        options.rounds = options.memory_runs = 1
        options.seconds, options.connections = 0.1, 50
    return options


def progress(line: str) -> None:
    """Say how far we are, where it spoils neither the tables nor the JSON."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Run, print, and return the exit status: 1 if a server failed, or none could be measured."""
    options = parse(arguments)
    if options.pin and len(os.sched_getaffinity(0)) < 2:
        progress("only one CPU is available: nothing is pinned")
        options.pin = None
    foreign = ForeignLoad()
    settings = Settings(
        servers=options.servers,
        measures=options.measures,
        sizes=options.sizes,
        rounds=options.rounds,
        seconds=options.seconds,
        connections=options.connections,
        memory_runs=options.memory_runs,
        pin=options.pin,
        progress=progress,
    )
    bench = Bench(settings)
    gc.freeze()
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
    measured = any(bench.results.rates.values()) or bool(bench.results.memory)
    return 1 if bench.results.failed or not measured else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
