"""What is measured, and the rounds in which the contestants take turns."""

from __future__ import annotations

import os
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from ..client import BenchError
from ..process import Absent
from .process import Contestant, Pair
from .wire import Files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

CONTESTANTS = {
    "trio_wt": Contestant("trio_wt"),
    "trio_wt-1200": Contestant("trio_wt", "1200"),
    "aiopquic": Contestant("aiopquic"),
    "aiopquic-callback": Contestant("aiopquic", "callback"),
    "aioquic": Contestant("aioquic"),
    "aioquic-large": Contestant("aioquic", "large"),
}
"""By the names used on the command line and in the tables."""

RATES = ("round_trips", "requests", "datagrams", "upload", "download", "handshakes")
MEASURES = (*RATES, "idle_streams", "memory")

EXCHANGES = RATES[:3]
TRANSFERS = RATES[3:5]
ONLY = {
    "trio_wt-1200": TRANSFERS,
    "aiopquic-callback": EXCHANGES,
    "aioquic-large": TRANSFERS,
}
"""The measures of a variant, where they are not all of them."""

LEVELS = (0, 100, 1000, 5000)
"""Streams open while the cost of a packet is measured."""

FIRST_CONNECTIONS = 10
"""Connections that are open before memory is read for the first time."""

SETTLE = 0.3
"""Seconds between the last thing that happened and a reading of memory."""


@dataclass(frozen=True, order=True)
class Case:
    """One measure; of idle streams, with so many of them."""

    measure: str
    level: int = 0


@dataclass(frozen=True)
class Sample:
    """One measurement of one contestant."""

    rate: float
    """Operations a second; megabytes a second of a transfer."""
    client_cpu: float
    """Seconds of CPU that an operation, or a megabyte, took in the client."""
    server_cpu: float
    packets: float
    """UDP datagrams for an operation, as far as the kernel counts them one by one."""

    @property
    def cpu(self) -> float:
        """Seconds of CPU in both processes."""
        return self.client_cpu + self.server_cpu

    @property
    def packet_cpu(self) -> float:
        """Seconds of CPU in both processes for a packet."""
        return self.cpu / self.packets


@dataclass(frozen=True)
class Memory:
    """Resident bytes for an idle connection, in each of the processes."""

    server: float
    client: float


@dataclass(frozen=True)
class Settings:
    """What the command line asks for."""

    contestants: Sequence[str]
    measures: Sequence[str]
    rounds: int
    seconds: float
    """For which each measurement of a rate runs, about."""
    levels: Sequence[int]
    connections: int
    runs: int
    """Of idle streams and of memory."""
    pin: str | None
    """"apart", "together" (all but transfers on one CPU) or None."""
    progress: Callable[[str], None]


@dataclass
class Results:
    """What came out. The lists have an item a round; a contestant that failed has fewer."""

    samples: dict[Case, dict[str, list[Sample]]] = field(default_factory=dict)
    memory: dict[str, list[Memory]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def ratios(
        self, case: Case, above: str, below: str, figure: Callable[[Sample], float]
    ) -> list[float]:
        """One contestant's figure over another's, in each round that has both."""
        rows = self.samples.get(case, {})
        pairs = zip(rows.get(above, ()), rows.get(below, ()), strict=False)
        return [figure(a) / figure(b) for a, b in pairs]

    def growth(self, name: str, level: int) -> list[float]:
        """The CPU time of a packet with so many idle streams, over that with none."""
        base, more = (
            self.samples.get(Case("idle_streams", number), {}).get(name, ())
            for number in (0, level)
        )
        return [a.packet_cpu / b.packet_cpu for a, b in zip(more, base, strict=False)]


def median(figures: Sequence[float]) -> float | None:
    """None if there are none."""
    return statistics.median(figures) if figures else None


class Bench:
    """Runs everything that `settings` asks for; `results` is filled on the way."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.results = Results()
        self._cpus = sorted(os.sched_getaffinity(0))

    def run(self) -> None:
        """All measures, one after the other."""
        with tempfile.TemporaryDirectory() as self._folder:
            Files.inside(self._folder).write()
            rates = [case for case in RATES if case in self.settings.measures]
            for number in range(self.settings.rounds if rates else 0):
                self._rate_round(number, rates)
            for number in range(self.settings.runs):
                if "idle_streams" in self.settings.measures:
                    self._turns(number, "idle_streams", self._idle_streams)
                if "memory" in self.settings.measures:
                    self._turns(number, "memory", self._memory)

    def _usable(self, number: int, measure: str | None = None) -> list[str]:
        """Those still in the race, in an order of this round's own."""
        out = self.results.absent.keys() | self.results.failed.keys()
        names = [
            name
            for name in self.settings.contestants
            if name not in out and measure in (None, *ONLY.get(name, MEASURES))
        ]
        Random(number).shuffle(names)
        return names

    def _strike(self, name: str, error: Exception) -> None:
        """Whoever fails once is out: half a row of figures would only mislead."""
        if isinstance(error, Absent):
            self.results.absent[name] = str(error)
            self.settings.progress(f"{name} is absent: {error}")
        else:
            notes = " ".join(getattr(error, "__notes__", ()))
            self.results.failed[name] = f"{error!r} {notes}".strip()
            self.settings.progress(f"{name} failed: {error!r}")

    def _record(self, case: Case, name: str, answer: Mapping[str, float]) -> None:
        self.results.samples.setdefault(case, {}).setdefault(name, []).append(Sample(**answer))

    def _pair(self, name: str, *, many_streams: bool = False) -> Pair:
        return Pair(name, CONTESTANTS[name], self._folder, many_streams=many_streams)

    def _rate_round(self, number: int, cases: Sequence[str]) -> None:
        """Every rate of every contestant, in processes started afresh, which take turns."""
        with ExitStack() as stack:
            pairs: dict[str, Pair] = {}
            for name in self._usable(number):
                if not set(cases) & set(ONLY.get(name, cases)):
                    continue
                try:
                    pairs[name] = stack.enter_context(self._pair(name))
                except (Absent, BenchError, OSError) as error:
                    self._strike(name, error)
            for case in cases:
                self.settings.progress(f"round {number + 1} of {self.settings.rounds}: {case}")
                for name in self._usable(number, case):
                    try:
                        answer = self._rate(case, pairs[name])
                    except (BenchError, OSError) as error:
                        error.add_note(f"During {case}. Server: {pairs[name].server.complaints()}")
                        self._strike(name, error)
                    else:
                        self._record(Case(case), name, answer)

    def _rate(self, case: str, pair: Pair) -> dict[str, float]:
        pair.place(self.settings.pin, self._cpus, together=case not in TRANSFERS)
        if case == "handshakes":
            return pair.client.ask(job=case, seconds=self.settings.seconds)
        return pair.client.ask(job="rate", case=case, seconds=self.settings.seconds)

    def _turns(self, number: int, measure: str, run: Callable[[str], None]) -> None:
        """One run of what needs processes of its own for each contestant."""
        for name in self._usable(number, measure):
            self.settings.progress(f"run {number + 1} of {self.settings.runs}: {measure} of {name}")
            try:
                run(name)
            except (Absent, BenchError, OSError) as error:
                error.add_note(f"During {measure}.")
                self._strike(name, error)

    def _idle_streams(self, name: str) -> None:
        """The cost of a packet with more and more streams open on one connection."""
        with self._pair(name, many_streams=True) as pair:
            pair.place(self.settings.pin, self._cpus, together=True)
            answer = pair.client.ask(
                job="idle_streams", levels=list(self.settings.levels), seconds=self.settings.seconds
            )
        for level, figures in answer.items():
            self._record(Case("idle_streams", int(level)), name, figures)

    def _memory(self, name: str) -> None:
        """How both processes grow with connections that are idle after a request."""
        count = self.settings.connections
        with self._pair(name) as pair:
            pair.client.ask(job="connections", counts=[FIRST_CONNECTIONS, count])
            before = pair.settle(SETTLE)
            pair.client.ask()
            after = pair.settle(SETTLE)
        server, client = ((b - a) / count for a, b in zip(before, after, strict=True))
        self.results.memory.setdefault(name, []).append(Memory(server, client))


def cases(results: Results) -> Iterator[Case]:
    """The cases that have figures, in the order in which they are shown."""
    for measure in RATES:
        if Case(measure) in results.samples:
            yield Case(measure)
    yield from sorted(case for case in results.samples if case.measure == "idle_streams")
