"""Figures, ratios and verdicts, as tables for people and as JSON for programs."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ..quic import report as quic
from ..quic.report import OURS, Verdict, _cost, _ratio, _rows, _verdict_line, per_cpu, wall
from .measure import MEASURES, TRANSFERS, Case, Sample, cases, median

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .measure import Results, Settings

DISTRIBUTIONS = ("pywebtransport", "uvloop")
"""Those that the QUIC benchmark does not use."""

PYWEBTRANSPORT = "pywebtransport"
AIOPQUIC = "aiopquic"

TITLES = {
    "round_trips": "Round trips of 64 B on one stream, a second",
    "requests": "Requests of 64 B, each on a new stream, a second",
    "datagrams": "Datagrams of 64 B there and back, a second",
    "flood": "Datagrams of 64 B one way, received a second",
    "upload": "One stream up, MB/s",
    "download": "One stream down, MB/s",
    "sessions": "Sessions, each on a new connection, a second",
}

NAMES = {
    "round_trips": "round trips",
    "requests": "new streams",
    "datagrams": "datagrams there and back",
    "flood": "datagrams one way",
    "upload": "transfer up",
    "download": "transfer down",
    "sessions": "sessions opened",
    "memory": "memory of both sides, inverse",
}
"""What the rows of targets call the measures."""


@dataclass(frozen=True)
class Target:
    """A bound on the ratio of our figure to a rival's; of memory it is theirs to ours."""

    measure: str
    rival: str
    limit: float | None
    """None: the ratio is only stated."""

    @property
    def against(self) -> tuple[str, ...]:
        """The contestants with which the rival is driven; it must hold against each."""
        if (self.measure, self.rival) == ("flood", PYWEBTRANSPORT):
            return (PYWEBTRANSPORT, f"{PYWEBTRANSPORT}-bursts")
        return (self.rival,)


TARGETS = (
    *(Target(measure, PYWEBTRANSPORT, 1) for measure in MEASURES),
    *(Target(measure, AIOPQUIC, 1) for measure in MEASURES[:4]),
    *(Target(measure, AIOPQUIC, None) for measure in MEASURES[4:]),
)


def judge(results: Results) -> Iterator[Verdict]:
    """The verdict on each target; not measured if anyone it is about is missing or failed."""
    for target in TARGETS:
        title = f"{NAMES[target.measure]}, of {target.rival}"
        limit = "stated" if target.limit is None else f"above {target.limit:g}"
        found = [
            (statistics.median(ratios), ratios, name)
            for name in target.against
            if (ratios := _ratios(results, target.measure, name))
        ]
        if len(found) < len(target.against) or {OURS, *target.against} & results.failed.keys():
            yield Verdict(title, limit, "not measured")
            continue
        ratio, ratios, name = min(found)
        if target.limit is None:
            verdict = "-"
        else:
            verdict = "pass" if ratio > target.limit else "short"
        by_cpu = median(results.ratios(Case(target.measure), OURS, name, per_cpu))
        yield Verdict(title, limit, verdict, ratio, min(ratios), max(ratios), name, by_cpu)


def _ratios(results: Results, measure: str, rival: str) -> list[float]:
    """More than 1 is better, in each round or run that has both."""
    if measure == "memory":
        return memory_ratios(results, rival)
    return results.ratios(Case(measure), OURS, rival, wall)


def memory_ratios(results: Results, rival: str) -> list[float]:
    """What a session takes with them, in both processes, over what it takes with us."""
    runs = zip(results.memory.get(rival, ()), results.memory.get(OURS, ()), strict=False)
    return [(theirs.server + theirs.client) / (ours.server + ours.client) for theirs, ours in runs]


def environment(foreign_load: float) -> dict[str, Any]:
    """Where it ran, what with, and what share of a CPU others took meanwhile."""
    where = quic.environment(foreign_load)
    for name in DISTRIBUTIONS:
        try:
            where["versions"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            where["versions"][name] = "absent"
    return where


def as_json(results: Results, settings: Settings, where: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, down to each round."""
    return {
        "environment": where,
        "settings": {
            "rounds": settings.rounds,
            "seconds": settings.seconds,
            "megabytes": settings.megabytes,
            "runs": settings.runs,
            "sessions": settings.connections,
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
        yield ""
        yield from _table(results, case, settings)
    if results.memory:
        yield ""
        yield from _memory_table(results, settings)
    yield ""
    yield (
        "CPU: microseconds, of a transfer per KB, in client and server. ours/it: our rate over "
        "theirs; by CPU: the same of operations for a second of CPU time, of both processes; of "
        "memory: theirs over ours, so that more than 1 is better throughout."
    )
    yield ""
    yield "Targets: the median of the rounds' ratios (the lowest and highest), ours to the other"
    for verdict in judge(results):
        yield _verdict_line(verdict)
    for word, names in (("absent", results.absent), ("failed", results.failed)):
        for name, why in names.items():
            yield f"{name} {word}: {why}"


def _table(results: Results, case: Case, settings: Settings) -> Iterator[str]:
    lost = case.measure == "flood"
    yield (
        f"{TITLES[case.measure]:<51}{'median':>9}  {'low - high':<19}"
        f"{'CPU client':>11}{'server':>8}{'both':>8}{'ours/it':>9}{'by CPU':>8}"
        f"{'lost' if lost else '':>7}"
    ).rstrip()
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
        shares = [sample.lost for sample in row if isinstance(sample, Sample)]
        share = f"{statistics.median(shares):>7.1%}" if lost else ""
        yield (
            f"  {name:<49}{middle:>9}  {low + ' - ' + high:<19}"
            f"{client:>11}{server:>8}{both:>8}{ours:>9}{by_cpu:>8}{share}"
        )


def _memory_table(results: Results, settings: Settings) -> Iterator[str]:
    title = f"Resident KiB per idle session, {settings.connections:,} open"
    yield f"{title:<51}{'both':>9}  {'low - high':<19}{'client':>11}{'server':>8}{'ours/it':>17}"
    for name in settings.contestants:
        if name not in results.memory:
            continue
        runs = results.memory[name]
        both = [(run.server + run.client) / 1024 for run in runs]
        client = statistics.median(run.client / 1024 for run in runs)
        server = statistics.median(run.server / 1024 for run in runs)
        ours = _ratio(median(memory_ratios(results, name)))
        yield (
            f"  {name:<49}{statistics.median(both):>9.1f}  "
            f"{f'{min(both):.1f} - {max(both):.1f}':<19}{client:>11.1f}{server:>8.1f}{ours:>17}"
        )
