"""What is measured, and the rounds in which the servers take turns."""

from __future__ import annotations

import os
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from .client import (
    BenchError,
    Exchange,
    Sample,
    connect,
    disconnect,
    echo_once,
    pipelined,
    round_trips,
)
from .process import Absent, ServerProcess
from .servers import MANY_PATH, raise_file_limit

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

SIZES = {
    "roundtrip": (32, 1024, 16 * 1024),
    "pipelined": (32, 1024, 64 * 1024, 2**20),
    "memory": (0,),
}
"""Bytes of a message, by measure; nothing is sent over an idle connection."""

WINDOW = 256 * 1024
"""Bytes of messages under way when pipelining."""

WARM_UP_CONNECTIONS = 20
SETTLE = 0.3
"""Seconds between the last thing that happened on a server and a reading of its memory."""


@dataclass(frozen=True, order=True)
class Case:
    """One measure at one size."""

    measure: str
    size: int


@dataclass(frozen=True)
class Settings:
    """What the command line asks for."""

    servers: Sequence[str]
    measures: Sequence[str]
    sizes: Sequence[int] | None
    """Bytes of a message; None for all."""
    rounds: int
    seconds: float
    """For which each measurement of a rate runs."""
    connections: int
    memory_runs: int
    pin: str | None
    """"apart", "together" (round trips on one CPU, the rest apart) or None."""
    progress: Callable[[str], None]

    def rate_cases(self) -> Iterator[Case]:
        """The cases that are measured in messages a second."""
        for measure in ("roundtrip", "pipelined"):
            for size in SIZES[measure]:
                if measure in self.measures and (self.sizes is None or size in self.sizes):
                    yield Case(measure, size)


@dataclass
class Results:
    """What came out. The lists have an item a round; a server that failed has fewer."""

    rates: dict[Case, dict[str, list[Sample]]] = field(default_factory=dict)
    memory: dict[str, list[float]] = field(default_factory=dict)
    """Resident bytes for each idle connection."""
    absent: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def figures(self, case: Case) -> dict[str, list[float]]:
        """The plain numbers of a case, by server and in the order of the rounds."""
        if case.measure == "memory":
            return self.memory
        rows = self.rates.get(case, {})
        return {name: [sample.rate for sample in row] for name, row in rows.items()}

    def ratios(self, case: Case, above: str, below: str) -> list[float]:
        """One server's figure over another's, in each round that has both."""
        figures = self.figures(case)
        pairs = zip(figures.get(above, ()), figures.get(below, ()), strict=False)
        return [a / b for a, b in pairs]

    def ratio(self, case: Case, above: str, below: str) -> float | None:
        """The median of `ratios`; None if there are none."""
        ratios = self.ratios(case, above, below)
        return statistics.median(ratios) if ratios else None


class Bench:
    """Runs everything that `settings` asks for; `results` is filled on the way."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.results = Results()
        self._cpus = sorted(os.sched_getaffinity(0))

    def run(self) -> None:
        """All measures, one after the other."""
        if any(True for _ in self.settings.rate_cases()):
            for number in range(self.settings.rounds):
                self._rate_round(number)
        if "memory" in self.settings.measures:
            for number in range(self.settings.memory_runs):
                self._memory_round(number)

    def _usable(self, number: int) -> list[str]:
        """The servers still in the race, in an order of this round's own."""
        out = self.results.absent.keys() | self.results.failed.keys()
        names = [name for name in self.settings.servers if name not in out]
        Random(number).shuffle(names)
        return names

    def _strike(self, name: str, error: Exception) -> None:
        """A server that fails once is out: half a row of figures would only mislead."""
        if isinstance(error, Absent):
            self.results.absent[name] = str(error)
            self.settings.progress(f"{name} is absent: {error}")
        else:
            notes = " ".join(getattr(error, "__notes__", ()))
            self.results.failed[name] = f"{error!r} {notes}".strip()
            self.settings.progress(f"{name} failed: {error!r}")

    def _rate_round(self, number: int) -> None:
        """Every case on every server, the servers started afresh and taking turns."""
        with ExitStack() as stack:
            processes = {}
            for name in self._usable(number):
                try:
                    process = stack.enter_context(ServerProcess(name))
                    self._warm_up(name, process)
                except (Absent, BenchError, OSError) as error:
                    self._strike(name, error)
                else:
                    processes[name] = process
            for case in self.settings.rate_cases():
                self.settings.progress(
                    f"round {number + 1} of {self.settings.rounds}: {case.measure} {case.size} B"
                )
                for name, process in processes.items():
                    if name in self.results.failed:
                        continue
                    try:
                        sample = self._measure(case, name, process)
                    except (BenchError, OSError) as error:
                        error.add_note(f"During {case.measure} at {case.size} B.")
                        error.add_note(process.complaints())
                        self._strike(name, error)
                    else:
                        self.results.rates.setdefault(case, {}).setdefault(name, []).append(sample)
        # Servers of the next round start wherever the scheduler likes, and so does the memory.
        os.sched_setaffinity(0, self._cpus)

    def _warm_up(self, name: str, process: ServerProcess) -> None:
        """Bring a process to the state of one that has served for a while.

        It is no matter of a few percent: asyncio reads into 256 KiB, which glibc maps and unmaps
        for each read until a first connection has ended, nearly doubling the cost of a message.
        """
        framed = name != "tcp"
        exchange = Exchange.of_size(32, framed=framed)
        for sock in self._open(process.port, WARM_UP_CONNECTIONS, exchange, framed=framed):
            disconnect(sock, framed=framed)

    def _measure(self, case: Case, name: str, process: ServerProcess) -> Sample:
        self._place(case, process)
        framed = name != "tcp"
        exchange = Exchange.of_size(case.size, framed=framed)
        seconds, clock = self.settings.seconds, process.cpu_seconds
        path = "/" if case.measure == "roundtrip" else MANY_PATH
        with connect(process.port, path, framed=framed) as sock:
            if case.measure == "roundtrip":
                sample = round_trips(sock, exchange, seconds, clock)
            else:
                sample = pipelined(sock, exchange, seconds, WINDOW, clock)
            disconnect(sock, framed=framed)
        return sample

    def _place(self, case: Case, process: ServerProcess) -> None:
        """Choose CPUs for the server and for ourselves, if asked to."""
        if self.settings.pin is None:
            return
        together = self.settings.pin == "together" and case.measure == "roundtrip"
        process.pin(self._cpus[0])
        os.sched_setaffinity(0, {self._cpus[0 if together else 1]})

    def _memory_round(self, number: int) -> None:
        for name in self._usable(number):
            self.settings.progress(
                f"run {number + 1} of {self.settings.memory_runs}: memory of {name}"
            )
            try:
                with ServerProcess(name) as process:
                    self._warm_up(name, process)
                    figure = self._memory(process, framed=name != "tcp")
            except (Absent, BenchError, OSError) as error:
                self._strike(name, error)
            else:
                self.results.memory.setdefault(name, []).append(figure)

    def _memory(self, process: ServerProcess, *, framed: bool) -> float:
        """Resident bytes that each of many open connections costs, after one echo on each."""
        count = self.settings.connections
        if raise_file_limit() < count + 100:
            raise BenchError(f"the limit on open files is too low for {count} connections")
        exchange = Exchange.of_size(32, framed=framed)
        time.sleep(SETTLE)
        before = process.resident_bytes()
        connections = self._open(process.port, count, exchange, framed=framed)
        time.sleep(SETTLE)
        after = process.resident_bytes()
        for sock in connections:
            sock.close()
        return (after - before) / count

    def _open(
        self, port: int, count: int, exchange: Exchange, *, framed: bool
    ) -> list[socket.socket]:
        with ExitStack() as stack:
            connections = []
            for _ in range(count):
                sock = stack.enter_context(connect(port, "/", framed=framed))
                echo_once(sock, exchange)
                connections.append(sock)
            stack.pop_all()
        return connections
