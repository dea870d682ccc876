"""What a fuzzer said about each case, and how that is judged and shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["Side", "Verdict", "failures", "missing", "table"]

Side = Literal["server", "client"]

# Not NON-STRICT: Autobahn's own index shows it as less than a pass.
_ACCEPTED: Final = frozenset({"OK", "INFORMATIONAL"})
_COLUMNS: Final = ("OK", "INFORMATIONAL")
_WIRE_LOG_SHOWN: Final = 6


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One case's outcome: `behavior` in its messages, `behavior_close` in its closing handshake."""

    side: Side
    case: str
    behavior: str
    behavior_close: str
    remote_close_code: int | None = None
    duration: int = 0  # milliseconds
    result: str = ""
    result_close: str = ""
    expectation: str = ""
    http_request: str = ""
    http_response: str = ""
    wire_log: Sequence[str] = ()

    @property
    def group(self) -> int:
        """The case's first number."""
        return int(self.case.partition(".")[0])

    @property
    def passed(self) -> bool:
        """Both halves are OK or INFORMATIONAL."""
        return self.behavior in _ACCEPTED and self.behavior_close in _ACCEPTED

    @property
    def label(self) -> str:
        """The worse half, in one word or two."""
        if self.behavior not in _ACCEPTED:
            return self.behavior
        if self.behavior_close not in _ACCEPTED:
            return f"close {self.behavior_close}"
        return self.behavior


def missing(side: Side, case: str) -> Verdict:
    """The verdict on a case that was asked for and of which the fuzzer reported nothing."""
    return Verdict(
        side=side,
        case=case,
        behavior="MISSING",
        behavior_close="MISSING",
        result="The fuzzer reported nothing: no connection came to its end in time.",
    )


def table(verdicts: Iterable[Verdict]) -> str:
    """A line for each side and group, a column for each label, and the sum."""
    rows: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    for verdict in verdicts:
        rows.setdefault(f"{verdict.side} {verdict.group}", Counter())[verdict.label] += 1
        total[verdict.label] += 1
    rows["all"] = total
    labels = [*_COLUMNS, *sorted(total.keys() - set(_COLUMNS))]
    lines = [["group", "cases", *labels]]
    for name, counts in rows.items():
        cells = [str(counts[label] or "") for label in labels]
        lines.append([name, str(counts.total()), *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def failures(verdicts: Iterable[Verdict]) -> str:
    """A paragraph for each case that did not pass, with the end of what went over the wire."""
    paragraphs: list[str] = []
    for verdict in verdicts:
        if verdict.passed:
            continue
        lines = [
            f"{verdict.side} {verdict.case}: {verdict.behavior} / close {verdict.behavior_close} "
            + f"(peer's close code {verdict.remote_close_code}, {verdict.duration} ms)",
            f"    {verdict.result} {verdict.result_close}".rstrip(),
        ]
        if verdict.expectation:
            lines.append(f"    expected: {' '.join(verdict.expectation.split())}")
        lines += [f"    {entry}" for entry in verdict.wire_log[-_WIRE_LOG_SHOWN:]]
        paragraphs.append("\n".join(lines))
    return "\n".join(paragraphs)
