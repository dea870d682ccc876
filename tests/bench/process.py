"""A server's process: started, asked, measured, and ended by its own handle. Linux only."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from .client import BenchError

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT = 20
"""Seconds that a server may take to listen, or to collect its garbage."""


class Absent(Exception):
    """The server's library is not installed, or has no server yet."""


class ServerProcess:
    """A context manager around one run of ``servers.py``.

    Entering raises Absent when the library is missing, and BenchError, with what the process
    wrote to its standard error, when it does not come up.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        command = [sys.executable, "-m", f"{__package__}.servers", name]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )

    def __enter__(self) -> Self:
        try:
            word, _, rest = self._answer().partition(" ")
            if word == "absent":
                raise Absent(rest)
            self.port = int(rest)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _answer(self) -> str:
        """The next line the process prints."""
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            line = stdout.readline() if selector.select(START_LIMIT) else b""
        if not line:
            raise BenchError(f"the server gave no answer. {self.complaints()}")
        return line.decode().strip()

    def complaints(self) -> str:
        """What the process wrote to its standard error."""
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace").strip()
        return f"Its standard error: {text[-2000:]}" if text else "Its standard error is empty."

    def pin(self, cpu: int) -> None:
        """Keep the thread that serves on one CPU from now on."""
        os.sched_setaffinity(self._process.pid, {cpu})

    def cpu_seconds(self) -> float:
        """CPU time, user and system, that all the process's threads have used.

        The kernel encodes "the CPU clock of that process" in a clock's number; /proc has the
        same in ticks of 10 ms, too coarse for a measurement of half a second.
        """
        return time.clock_gettime(~self._process.pid << 3 | 2)

    def resident_bytes(self) -> int:
        """Resident memory after a garbage collection."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(b"gc\n")
        stdin.flush()
        if self._answer() != "collected":
            raise BenchError("the server did not collect its garbage")
        rollup = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text()
        for line in rollup.splitlines():
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
        raise BenchError("the kernel gives no resident size")


class ForeignLoad:
    """How much of the machine others took since this object was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._before = self._busy()

    def share(self) -> float:
        """CPU time used by others, or stolen by a hypervisor, as a share of one CPU's.

        Servers must have ended: only then does their time count as ours.
        """
        return (self._busy() - self._before) / (time.monotonic() - self._start)

    @staticmethod
    def _busy() -> float:
        """Seconds of CPU that were neither idle nor used by us or by children that ended."""
        fields = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
        ticks = user + nice + system + irq + softirq + steal
        return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])
