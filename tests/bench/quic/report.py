"""Figures, ratios and verdicts, as tables for people and as JSON for programs."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from .measure import LEVELS, TRANSFERS, Case, cases, median

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .measure import Results, Sample, Settings

OURS = "trio_wt"
AIOPQUIC = ("aiopquic", "aiopquic-callback")
DISTRIBUTIONS = ("trio", "aioquic", "aiopquic", "cryptography")

TITLES = {
    "round_trips": "Round trips of 64 B on one stream, a second",
    "requests": "Requests of 64 B, each on a new stream, a second",
    "datagrams": "Datagrams of 64 B there and back, a second",
    "upload": "One stream up, MB/s",
    "download": "One stream down, MB/s",
    "handshakes": "Handshakes one after another, a second",
}


@dataclass(frozen=True)
class Target:
    """A bound on the ratio of our rate to others', which must hold against each of them."""

    title: str
    case: Case
    against: Sequence[str]
    limit: float | None
    """None: the ratio is only stated."""


TARGETS = (
    Target("round trips, of aiopquic", Case("round_trips"), AIOPQUIC, 1),
    Target("new streams, of aiopquic", Case("requests"), AIOPQUIC, 1),
    Target("datagrams, of aiopquic", Case("datagrams"), AIOPQUIC, 1),
    Target("transfer up, of aioquic", Case("upload"), ("aioquic",), 2),
    Target("transfer down, of aioquic", Case("download"), ("aioquic",), 2),
    Target("transfer up, of aiopquic", Case("upload"), ("aiopquic",), None),
    Target("transfer down, of aiopquic", Case("download"), ("aiopquic",), None),
)

GROWTH = 1.3
"""What a packet may cost with the most idle streams, over what it costs with none."""


@dataclass(frozen=True)
class Verdict:
    """How a target came out. All but `verdict`, `limit` and `target` is None if not measured."""

    target: str
    limit: str
    verdict: str
    ratio: float | None = None
    lowest: float | None = None
    highest: float | None = None
    against: str | None = None
    by_cpu: float | None = None
    """The same ratio from both processes' CPU time; it does not decide."""


def wall(sample: Sample) -> float:
    return sample.rate


def per_cpu(sample: Sample) -> float:
    """Operations for a second of CPU time of both processes."""
    return 1 / sample.cpu


def judge(results: Results) -> Iterator[Verdict]:
    """The verdict on each target; not measured if anyone it is about is missing or failed."""
    for target in TARGETS:
        limit = "stated" if target.limit is None else f"at least {target.limit:g}"
        found = [
            (statistics.median(ratios), ratios, rival)
            for rival in target.against
            if (ratios := results.ratios(target.case, OURS, rival, wall))
        ]
        if len(found) < len(target.against) or {OURS, *target.against} & results.failed.keys():
            yield Verdict(target.title, limit, "not measured")
            continue
        ratio, ratios, rival = min(found)
        if target.limit is None:
            verdict = "-"
        else:
            verdict = "pass" if ratio >= target.limit else "short"
        yield Verdict(
            target.title,
            limit,
            verdict,
            ratio,
            min(ratios),
            max(ratios),
            rival,
            median(results.ratios(target.case, OURS, rival, per_cpu)),
        )
    yield _judge_growth(results)


def _judge_growth(results: Results) -> Verdict:
    title = f"a packet among {LEVELS[-1]:,} idle streams, of one alone"
    limit = f"at most {GROWTH:g}"
    ratios = results.growth(OURS, LEVELS[-1])
    if not ratios or OURS in results.failed:
        return Verdict(title, limit, "not measured")
    ratio = statistics.median(ratios)
    verdict = "pass" if ratio <= GROWTH else "short"
    return Verdict(title, limit, verdict, ratio, min(ratios), max(ratios), "itself")


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


def as_json(results: Results, settings: Settings, where: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, down to each round."""
    return {
        "environment": where,
        "settings": {
            "rounds": settings.rounds,
            "seconds": settings.seconds,
            "runs": settings.runs,
            "connections": settings.connections,
            "pin": settings.pin,
        },
        "samples": [
            {
                **asdict(case),
                "contestant": name,
                "samples": [asdict(sample) for sample in samples],
                "ours_of_it": median(results.ratios(case, OURS, name, wall)),
                "ours_of_it_by_cpu": median(results.ratios(case, OURS, name, per_cpu)),
            }
            for case, rows in results.samples.items()
            for name, samples in rows.items()
        ],
        "memory": {name: [asdict(run) for run in runs] for name, runs in results.memory.items()},
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
        if case.measure != "idle_streams":
            yield ""
            yield from _table(results, case, settings)
    if any(case.measure == "idle_streams" for case in cases(results)):
        yield ""
        yield from _idle_table(results, settings)
    if results.memory:
        yield ""
        yield from _memory_table(results, settings)
    yield ""
    yield (
        "CPU: microseconds, of a transfer per KB, in client and server. ours/it: our rate over "
        "theirs; by CPU: the same of operations for a second of CPU time, of both processes."
    )
    yield ""
    yield "Targets: the median of the rounds' ratios (the lowest and highest), ours to the other"
    for verdict in judge(results):
        yield _verdict_line(verdict)
    for word, names in (("absent", results.absent), ("failed", results.failed)):
        for name, why in names.items():
            yield f"{name} {word}: {why}"


def _table(results: Results, case: Case, settings: Settings) -> Iterator[str]:
    yield (
        f"{TITLES[case.measure]:<51}{'median':>9}  {'low - high':<19}"
        f"{'CPU client':>11}{'server':>8}{'both':>8}{'ours/it':>9}{'by CPU':>8}"
    )
    scale = 1e3 if case.measure in TRANSFERS else 1e6
    for name, row in _rows(results, case, settings):
        rates = [sample.rate for sample in row]
        low, middle, high = (
            f"{rate:,.0f}" for rate in (min(rates), statistics.median(rates), max(rates))
        )
        costs = (
            statistics.median(sample.client_cpu for sample in row),
            statistics.median(sample.server_cpu for sample in row),
            statistics.median(sample.cpu for sample in row),
        )
        client, server, both = (_cost(cost * scale) for cost in costs)
        ours = _ratio(median(results.ratios(case, OURS, name, wall)))
        by_cpu = _ratio(median(results.ratios(case, OURS, name, per_cpu)))
        yield (
            f"  {name:<49}{middle:>9}  {low + ' - ' + high:<19}"
            f"{client:>11}{server:>8}{both:>8}{ours:>9}{by_cpu:>8}"
        )


def _rows(results: Results, case: Case, settings: Settings) -> Iterator[tuple[str, list[Sample]]]:
    rows = results.samples.get(case, {})
    for name in settings.contestants:
        if name in rows:
            yield name, rows[name]


def _idle_table(results: Results, settings: Settings) -> Iterator[str]:
    head = "".join(f"{f'{level:,} open':>20}" for level in settings.levels)
    yield f"{'CPU us a packet, both ends, idle streams open':<47}{head}"
    for name, _ in _rows(results, Case("idle_streams"), settings):
        line = f"  {name:<45}"
        for level in settings.levels:
            row = results.samples[Case("idle_streams", level)][name]
            cost = statistics.median(sample.packet_cpu for sample in row) * 1e6
            growth = f"({statistics.median(results.growth(name, level)):.2f})"
            line += f"{cost:>11.1f} {growth:>8}"
        yield line


def _memory_table(results: Results, settings: Settings) -> Iterator[str]:
    title = f"Resident KiB per idle connection, {settings.connections} open"
    yield f"{title:<51}{'server':>9}  {'low - high':<19}{'client':>11}"
    for name in settings.contestants:
        if name not in results.memory:
            continue
        servers = [run.server / 1024 for run in results.memory[name]]
        client = statistics.median(run.client / 1024 for run in results.memory[name])
        middle, low, high = statistics.median(servers), min(servers), max(servers)
        yield f"  {name:<49}{middle:>9.1f}  {f'{low:.1f} - {high:.1f}':<19}{client:>11.1f}"


def _cost(microseconds: float) -> str:
    return f"{microseconds:,.0f}" if microseconds >= 100 else f"{microseconds:.1f}"


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
