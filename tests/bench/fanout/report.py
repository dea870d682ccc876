"""Figures, ratios and verdicts, as tables for people and as JSON for programs."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..report import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .measure import Results, Settings

__all__ = ["as_json", "as_text", "environment"]

OURS = "topic"
RIVAL = "websockets"

TITLES = {
    "rate": "Messages a second to all subscribers",
    "cpu": "CPU of the server a delivery, us",
    "median": "Until the last one has a message, ms: median",
    "worst": "Until the last one has a message, ms: worst",
    "memory": "Resident KiB for each idle subscriber",
}
TARGETS = {"rate": "messages a second", "worst": "worst latency"}
"""Those that must be ahead of the rival's; the others show why, or what it costs."""


def verdicts(results: Results) -> Iterator[dict[str, Any]]:
    """How each target came out."""
    for measure, title in TARGETS.items():
        ratios = results.ratios(measure, OURS, RIVAL)
        if not ratios:
            yield {"target": title, "verdict": "not measured"}
            continue
        ratio = statistics.median(ratios)
        yield {
            "target": title,
            "verdict": "pass" if ratio > 1 else "short",
            "ratio": ratio,
            "lowest": min(ratios),
            "highest": max(ratios),
            "by_cpu": results.ratio("cpu", OURS, RIVAL),
        }


def as_json(results: Results, settings: Settings, where: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, down to each round."""
    return {
        "environment": where,
        "settings": {
            "rounds": settings.rounds,
            "turns": settings.turns,
            "seconds": settings.seconds,
            "subscribers": settings.subscribers,
            "size": settings.size,
            "pin": settings.pin,
        },
        "samples": {name: [asdict(s) for s in row] for name, row in results.samples.items()},
        "targets": list(verdicts(results)),
        "absent": results.absent,
        "failed": results.failed,
    }


def as_text(results: Results, settings: Settings, where: dict[str, Any]) -> Iterator[str]:
    """The same as lines of text."""
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    yield f"Python {where['python']}, {versions}"
    yield (
        f"{settings.subscribers} subscribers, messages of {settings.size} B, {settings.rounds} rounds of {settings.turns} turns; "
        f"{where['cpus']} CPUs, pinned: {'yes' if settings.pin else 'no'}; "
        f"other processes took {where['foreign_load']:.0%} of a CPU meanwhile"
    )
    for measure, title in TITLES.items():
        yield ""
        yield f"{title:<46}{'median':>10}  {'low - high':<24}{'topic is ahead by':>18}"
        for name in settings.servers:
            row = [getattr(sample, measure) for sample in results.samples.get(name, ())]
            if not row:
                continue
            spread = f"{min(row):,.1f} - {max(row):,.1f}"
            ratio = results.ratio(measure, OURS, name)
            shown = "-" if ratio is None or name == OURS else f"{ratio:.2f}"
            line = f"  {name:<44}{statistics.median(row):>10,.1f}  {spread:<24}{shown:>18}"
            if measure == "rate":
                load = statistics.median(s.client_load for s in results.samples[name])
                line += f"   client {load:.0%}"
            yield line
    yield ""
    yield f"Targets: the median of the turns' ratios (the lowest and highest), {OURS} to {RIVAL}; ahead is above 1"
    for verdict in verdicts(results):
        line = f"  {verdict['verdict']:<13}{verdict['target']:<22}"
        if "ratio" in verdict:
            line += (
                f"{verdict['ratio']:.2f} ({verdict['lowest']:.2f} - {verdict['highest']:.2f}); "
                f"by CPU time {verdict['by_cpu']:.2f}"
            )
        yield line.rstrip()
    for word, servers in (("absent", results.absent), ("failed", results.failed)):
        for name, why in servers.items():
            yield f"{name} {word}: {why}"
