"""Figures, ratios and verdicts, as tables for people and as JSON for programs."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from .measure import Case

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .measure import Results, Settings

OURS = "trio_wt"
RIVALS = ("trio-websocket", "websockets-asyncio", "websockets-trio")
DISTRIBUTIONS = ("trio", "trio-websocket", "websockets", "picows", "uvloop")


@dataclass(frozen=True)
class Target:
    """A bound on the ratio of our figure to others', which must hold against each of them."""

    title: str
    case: Case
    against: Sequence[str]
    limit: float
    at_most: bool = False


TARGETS = (
    Target("round trips at 32 B, of raw Trio TCP", Case("roundtrip", 32), ("tcp",), 0.9),
    Target("round trips at 32 B, of the best rival", Case("roundtrip", 32), RIVALS, 1.5),
    Target("pipelined at 32 B, of the best rival", Case("pipelined", 32), RIVALS, 3),
    Target(
        "pipelined at 64 KiB, of websockets asyncio",
        Case("pipelined", 64 * 1024),
        ("websockets-asyncio",),
        1,
    ),
    Target(
        "pipelined at 1 MiB, of websockets asyncio",
        Case("pipelined", 2**20),
        ("websockets-asyncio",),
        1,
    ),
    Target(
        "memory per idle connection, of websockets asyncio",
        Case("memory", 0),
        ("websockets-asyncio",),
        1,
        at_most=True,
    ),
)


@dataclass(frozen=True)
class Verdict:
    """How a target came out. All but `verdict` and `target` is None if it was not measured."""

    target: str
    limit: str
    verdict: str
    ratio: float | None = None
    lowest: float | None = None
    highest: float | None = None
    against: str | None = None
    by_cpu: float | None = None
    """The same ratio from the servers' CPU time a message; it does not decide."""


def judge(results: Results) -> Iterator[Verdict]:
    """The verdict on each target; not measured if any server it is about is missing or failed."""
    for target in TARGETS:
        limit = f"{'at most' if target.at_most else 'at least'} {target.limit:g}"
        found = [
            (statistics.median(ratios), ratios, rival)
            for rival in target.against
            if (ratios := results.ratios(target.case, OURS, rival))
        ]
        if len(found) < len(target.against) or {OURS, *target.against} & results.failed.keys():
            yield Verdict(target.title, limit, "not measured")
            continue
        ratio, ratios, rival = max(found) if target.at_most else min(found)
        held = ratio <= target.limit if target.at_most else ratio >= target.limit
        yield Verdict(
            target.title,
            limit,
            "pass" if held else "short",
            ratio,
            min(ratios),
            max(ratios),
            rival,
            _by_cpu(results, target.case, rival),
        )


def _by_cpu(results: Results, case: Case, rival: str) -> float | None:
    """How many messages of ours a rival's message is worth in CPU time, as a median."""
    rows = results.rates.get(case, {})
    pairs = zip(rows.get(OURS, ()), rows.get(rival, ()), strict=False)
    ratios = [theirs.server_cpu / ours.server_cpu for ours, theirs in pairs]
    return statistics.median(ratios) if ratios else None


def environment(foreign_load: float) -> dict[str, Any]:
    """Where it ran, what with, and what share of a CPU others took meanwhile."""
    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
        "foreign_load": foreign_load,
        "versions": versions,
    }


def cases(results: Results) -> Iterator[Case]:
    """The cases that have figures, in the order in which they are shown."""
    yield from results.rates
    if results.memory:
        yield Case("memory", 0)


def as_json(results: Results, settings: Settings, where: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, down to each round."""
    return {
        "environment": where,
        "settings": {
            "rounds": settings.rounds,
            "seconds": settings.seconds,
            "connections": settings.connections,
            "memory_runs": settings.memory_runs,
            "pin": settings.pin,
        },
        "rates": [
            {
                **asdict(case),
                "server": name,
                "samples": [asdict(sample) for sample in samples],
                "of_tcp": results.ratio(case, name, "tcp"),
                "ours_of_it": results.ratio(case, OURS, name),
            }
            for case, rows in results.rates.items()
            for name, samples in rows.items()
        ],
        "memory": results.memory,
        "targets": [asdict(verdict) for verdict in judge(results)],
        "absent": results.absent,
        "failed": results.failed,
    }


def as_text(results: Results, settings: Settings, where: dict[str, Any]) -> Iterator[str]:
    """The same as lines of text."""
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    yield f"Python {where['python']}, {versions}"
    yield (
        f"{where['cpus']} CPUs, pinned: {settings.pin or 'no'}; "
        f"other processes took {where['foreign_load']:.0%} of a CPU meanwhile"
    )
    for case in cases(results):
        yield ""
        yield from _table(results, case, settings)
    yield ""
    yield (
        "CPU us: the server's a message. server, client: CPU time as a share of the time passed; "
        "a client that pipelines 64 KiB or more polls, and takes all the CPU it can get."
    )
    yield ""
    yield "Targets: the median of the rounds' ratios (the lowest and highest), ours to the other"
    for verdict in judge(results):
        yield _verdict_line(verdict)
    for word, servers in (("absent", results.absent), ("failed", results.failed)):
        for name, why in servers.items():
            yield f"{name} {word}: {why}"


def _table(results: Results, case: Case, settings: Settings) -> Iterator[str]:
    rated = case.measure != "memory"
    columns = f"{'CPU us':>9}{'server':>8}{'client':>8}" if rated else ""
    head = f"{_title(case, settings):<45}{'median':>12}  {'low - high':<25}{columns}"
    yield f"{head}{'of tcp':>9}{'ours/it':>9}"
    figures = results.figures(case)
    for name in settings.servers:
        if name not in figures:
            continue
        row = figures[name]
        low, middle, high = (
            f"{figure:,.0f}" if rated else f"{figure / 1024:.1f}"
            for figure in (min(row), statistics.median(row), max(row))
        )
        line = f"  {name:<43}{middle:>12}  {low + ' - ' + high:<25}"
        if rated:
            samples = results.rates[case][name]
            cpu = statistics.median(sample.server_cpu for sample in samples)
            load = statistics.median(sample.server_cpu * sample.rate / 1e6 for sample in samples)
            client = statistics.median(sample.client_load for sample in samples)
            line += f"{cpu:>9.2f}{load:>8.0%}{client:>8.0%}"
        of_tcp, ours = results.ratio(case, name, "tcp"), results.ratio(case, OURS, name)
        yield f"{line}{_ratio(of_tcp):>9}{_ratio(ours):>9}"


def _title(case: Case, settings: Settings) -> str:
    if case.measure == "memory":
        return f"Resident KiB per idle connection, {settings.connections} open"
    kind = "Round trips" if case.measure == "roundtrip" else "Pipelined messages"
    for unit, name in ((2**20, "MiB"), (1024, "KiB")):
        if case.size >= unit:
            return f"{kind} a second, {case.size // unit} {name}"
    return f"{kind} a second, {case.size} B"


def _ratio(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.1g}"


def _verdict_line(verdict: Verdict) -> str:
    head = f"  {verdict.verdict:<13}{verdict.target:<50}{verdict.limit:<14}"
    if verdict.ratio is None:
        return head.rstrip()
    by_cpu = "" if verdict.by_cpu is None else f"; by CPU time {verdict.by_cpu:.2f}"
    return (
        f"{head}{verdict.ratio:.2f} ({verdict.lowest:.2f} - {verdict.highest:.2f}), "
        f"against {verdict.against}{by_cpu}"
    )
