"""What is measured; how the contestants take turns is as in the QUIC benchmark."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from ..quic import measure as quic
from ..quic.measure import Case, Memory, Results, median
from ..quic.wire import Files
from .process import Contestant, Pair

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..quic.process import Pair as QuicPair

__all__ = [
    "CONTESTANTS",
    "DEFAULT",
    "MEASURES",
    "RATES",
    "TRANSFERS",
    "Bench",
    "Case",
    "Memory",
    "Results",
    "Sample",
    "Settings",
    "cases",
    "median",
]

CONTESTANTS = {
    "trio_wt": Contestant("trio_wt"),
    "trio_wt-1200": Contestant("trio_wt", "1200"),
    "pywebtransport": Contestant("pywebtransport"),
    "pywebtransport-bursts": Contestant("pywebtransport", "bursts"),
    "aiopquic": Contestant("aiopquic"),
    "trio_wt-for-pywebtransport": Contestant("trio_wt", client="pywebtransport"),
    "trio_wt-for-aiopquic": Contestant("trio_wt", client="aiopquic"),
}
"""By the names used on the command line and in the tables."""

DEFAULT = [name for name, contestant in CONTESTANTS.items() if not contestant.client]
"""Those that take part unless others are named: each library with itself."""

EXCHANGES = ("round_trips", "requests", "datagrams")
TRANSFERS = ("upload", "download")
RATES = (*EXCHANGES, "flood", *TRANSFERS, "sessions")
MEASURES = (*RATES, "memory")

ONLY = {"trio_wt-1200": TRANSFERS, "pywebtransport-bursts": ("flood",)}
"""The measures of a variant, where they are not all of them."""


@dataclass(frozen=True)
class Sample(quic.Sample):
    """One measurement of one contestant."""

    lost: float = 0
    """The share of datagrams sent that did not arrive."""


@dataclass(frozen=True)
class Settings(quic.Settings):
    """What the command line asks for."""

    megabytes: float
    """Of a transfer."""


class Bench(quic.Bench):
    """Runs everything that `settings` asks for; `results` is filled on the way."""

    settings: Settings

    def run(self) -> None:
        """All measures, one after the other."""
        with tempfile.TemporaryDirectory() as self._folder:
            Files.inside(self._folder).write()
            rates = [case for case in RATES if case in self.settings.measures]
            for number in range(self.settings.rounds if rates else 0):
                self._rate_round(number, rates)
            if "memory" in self.settings.measures:
                for number in range(self.settings.runs):
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

    def _record(self, case: Case, name: str, answer: Mapping[str, float]) -> None:
        self.results.samples.setdefault(case, {}).setdefault(name, []).append(Sample(**answer))

    def _pair(self, name: str, *, many_streams: bool = False) -> Pair:
        return Pair(name, CONTESTANTS[name], self._folder)

    def _rate(self, case: str, pair: QuicPair) -> dict[str, float]:
        pair.place(self.settings.pin, self._cpus, together=case not in TRANSFERS)
        ask, seconds = pair.client.ask, self.settings.seconds
        if case in TRANSFERS:
            return ask(job="transfer", case=case, size=round(self.settings.megabytes * 1e6))
        if case == "flood":
            return ask(job="flood", seconds=seconds)
        if case == "sessions":
            return ask(job="handshakes", seconds=seconds)
        return ask(job="rate", case=case, seconds=seconds)


def cases(results: Results) -> Iterator[Case]:
    """The cases that have figures, in the order in which they are shown."""
    for measure in RATES:
        if Case(measure) in results.samples:
            yield Case(measure)
