"""The command line: ``python -m tests.bench.fanout``."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from pathlib import Path

from ..__main__ import progress
from ..process import ForeignLoad
from .measure import Bench, Settings
from .report import as_json, as_text, environment
from .servers import SERVERS


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; exits with a message when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.fanout",
        description="One message to many WebSockets on loopback, servers in turns, a neutral client.",
    )
    parser.add_argument(
        "--servers",
        nargs="+",
        choices=SERVERS,
        default=list(SERVERS),
        metavar="NAME",
        help=f"from {', '.join(SERVERS)}; all by default",
    )
    parser.add_argument("--rounds", type=int, default=2, help="rounds of fresh processes (2)")
    parser.add_argument("--turns", type=int, default=8, help="turns in each round (8)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.25,
        help="time for each of the two measures in a turn (0.25)",
    )
    parser.add_argument("--subscribers", type=int, default=1000, help="how many listen (1000)")
    parser.add_argument("--size", type=int, default=64, help="bytes of a message (64)")
    parser.add_argument(
        "--pin", action="store_true", help="servers on the first CPU and the client on the second"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one short round and 20 subscribers: shows that it works, measures nothing",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - is stdout")
    options = parser.parse_args(arguments)
    if (
        min(options.rounds, options.turns, options.subscribers, options.size) < 1
        or options.seconds <= 0
    ):
        parser.error("rounds, turns, subscribers, size and seconds must be positive")
    if options.quick:
        options.rounds = options.turns = 1
        options.seconds, options.subscribers = 0.1, 20
    return options


def main(arguments: list[str]) -> int:
    """Run, print, and return the exit status: 1 if a server failed, or none could be measured."""
    options = parse(arguments)
    if options.pin and len(os.sched_getaffinity(0)) < 2:
        progress("only one CPU is available: nothing is pinned")
        options.pin = False
    foreign = ForeignLoad()
    settings = Settings(
        servers=options.servers,
        rounds=options.rounds,
        turns=options.turns,
        seconds=options.seconds,
        subscribers=options.subscribers,
        size=options.size,
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
    return 1 if bench.results.failed or not bench.results.samples else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
