"""What is measured, and the rounds in which the servers take turns."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from ..client import BenchError
from ..process import ROOT, Absent, ServerProcess
from ..servers import raise_file_limit
from .audience import Audience

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WINDOW = 8
"""Messages under way when the rate is measured."""

PAUSE = 0.05
"""Seconds between messages when latencies are."""

WARM_UP_CONNECTIONS = 20
SETTLE = 0.2
"""Seconds between the last thing that happened on a server and a reading of its memory."""

HIGHER_IS_BETTER = {"rate": True, "cpu": False, "median": False, "worst": False, "memory": False}


@dataclass(frozen=True)
class Sample:
    """One turn of one server."""

    rate: float
    """Messages a second, each to all subscribers."""
    cpu: float
    """Microseconds of CPU that the server spent on each delivery, at that rate."""
    client_load: float
    """The client's share of a CPU meanwhile."""
    median: float
    """Milliseconds until the last subscriber had a message, when there is a pause between them: the median."""
    worst: float
    """The same of the slowest message."""
    memory: float
    """KiB of the server's resident memory for each idle subscriber."""


@dataclass(frozen=True)
class Settings:
    """What the command line asks for."""

    servers: Sequence[str]
    rounds: int
    turns: int
    """In each round."""
    seconds: float
    """For each of the two measures in a turn."""
    subscribers: int
    size: int
    pin: bool
    progress: Callable[[str], None]


@dataclass
class Results:
    """What came out. The lists have an item a turn; a server that failed has fewer."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def ratios(self, measure: str, ours: str, theirs: str) -> list[float]:
        """How much better ours is, in each turn that has both; above 1 is ahead."""
        pairs = zip(self.samples.get(ours, ()), self.samples.get(theirs, ()), strict=False)
        values = [(getattr(a, measure), getattr(b, measure)) for a, b in pairs]
        if not HIGHER_IS_BETTER[measure]:
            values = [(b, a) for a, b in values]
        return [a / b for a, b in values if b > 0]

    def ratio(self, measure: str, ours: str, theirs: str) -> float | None:
        """The median of `ratios`; None if there are none."""
        ratios = self.ratios(measure, ours, theirs)
        return statistics.median(ratios) if ratios else None


class Visited(NamedTuple):
    """A server with its subscribers, in the middle of a round."""

    audience: Audience
    memory: float
    """KiB for each of them."""


class FanoutServer(ServerProcess):
    """One run of ``servers.py`` of this package."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        command = [sys.executable, "-m", f"{__package__}.servers", name]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )


class Bench:
    """Runs everything that `settings` asks for; `results` is filled on the way."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.results = Results()
        self._cpus = sorted(os.sched_getaffinity(0))

    def run(self) -> None:
        """All rounds, the servers in an order of each round's own."""
        needed = len(self.settings.servers) * self.settings.subscribers + 100
        if raise_file_limit() < needed:
            raise BenchError(f"the limit on open files is too low: {needed} are needed")
        for number in range(self.settings.rounds):
            with ExitStack() as stack:
                self._round(number, stack)
        os.sched_setaffinity(0, self._cpus)

    def _round(self, number: int, stack: ExitStack) -> None:
        """All servers at once, so that what else runs on the machine meets them alike."""
        settings, random = self.settings, Random(number)
        out = self.results.absent.keys() | self.results.failed.keys()
        names = [name for name in settings.servers if name not in out]
        random.shuffle(names)
        visited: dict[str, Visited] = {}
        for name in names:
            settings.progress(f"round {number + 1} of {settings.rounds}: {name} starts")
            self._try(name, lambda name=name: visited.update({name: self._visit(name, stack)}))
        for turn in range(settings.turns):
            settings.progress(f"round {number + 1}: turn {turn + 1} of {settings.turns}")
            for name in names:
                if name in visited and name not in self.results.failed:
                    self._try(name, lambda name=name: self._measure(name, visited[name]))
            random.shuffle(names)

    def _try(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Absent as error:
            self.results.absent[name] = str(error)
        except (BenchError, OSError) as error:
            # Half a row of figures would only mislead.
            self.results.failed[name] = repr(error)
            self.settings.progress(f"{name} failed: {error!r}")

    def _visit(self, name: str, stack: ExitStack) -> Visited:
        """Start a server, and fill it with subscribers."""
        settings = self.settings
        server = stack.enter_context(FanoutServer(name))
        if settings.pin:
            server.pin(self._cpus[0])
            os.sched_setaffinity(0, {self._cpus[1]})
        clock = server.cpu_seconds
        with Audience(server.port, WARM_UP_CONNECTIONS, settings.size, clock) as audience:
            audience.check()
            audience.leave()
        time.sleep(SETTLE)
        before = server.resident_bytes()
        audience = Audience(server.port, settings.subscribers, settings.size, clock)
        stack.enter_context(audience)
        audience.check()
        time.sleep(SETTLE)
        memory = (server.resident_bytes() - before) / settings.subscribers / 1024
        audience.listen(settings.seconds / 2, window=WINDOW)
        return Visited(audience, memory)

    def _measure(self, name: str, visited: Visited) -> None:
        audience, seconds = visited.audience, self.settings.seconds
        flood = audience.listen(seconds, window=WINDOW)
        paced = audience.listen(seconds, window=1, pause=PAUSE)
        sample = Sample(
            rate=len(flood.latencies) / flood.seconds,
            cpu=flood.server_cpu,
            client_load=flood.client_load,
            median=statistics.median(paced.latencies) * 1e3,
            worst=max(paced.latencies) * 1e3,
            memory=visited.memory,
        )
        self.results.samples.setdefault(name, []).append(sample)
