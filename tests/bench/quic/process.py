"""A contestant's two processes: a server and a client of the same library. Linux only."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ..client import BenchError
from ..process import ROOT, ServerProcess
from .wire import free_port

if TYPE_CHECKING:
    from types import TracebackType

LONGEST_JOB = 120
"""Seconds that a job may take beyond the time it was given to measure."""


class Contestant(NamedTuple):
    """How a name of the command line is run."""

    module: str
    variant: str = ""


class PeerProcess(ServerProcess):
    """One run of ``peers.py``; the process of a server but for its command."""

    def __init__(self, name: str, contestant: Contestant, port: int, *options: str) -> None:
        self.name = name
        self.port = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        command = [sys.executable, "-m", f"{__package__}.peers"]
        command += [contestant.module, str(port), *options, "--variant", contestant.variant]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def pin(self, cpu: int) -> None:
        """Keep all threads that there are on one CPU from now on, and those they will start."""
        for thread in os.listdir(f"/proc/{self.pid}/task"):
            os.sched_setaffinity(int(thread), {cpu})

    def ask(self, **order: Any) -> dict[str, Any]:
        """What a client answers to a job. Raises BenchError if the job fails, or takes too long."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(order).encode() + b"\n")
        stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            line = stdout.readline() if selector.select(LONGEST_JOB) else b""
        if not line:
            raise BenchError(f"the client gave no answer. {self.complaints()}")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise BenchError(f"the client failed: {answer['failed']} {self.complaints()}")
        return answer

    def resident_now(self) -> int:
        """Resident memory as it is."""
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return next(
            int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Rss:")
        )


class Pair:
    """A context manager around a server and its client, each a process of its own.

    Entering raises Absent when the library is missing, and BenchError, with what the process
    wrote to its standard error, when one does not come up.
    """

    def __init__(
        self, name: str, contestant: Contestant, folder: str, *, many_streams: bool = False
    ) -> None:
        self._name, self._contestant = name, contestant
        self._options = [folder, *(["--many-streams"] if many_streams else [])]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            port = free_port()
            self.server = self._start(port)
            self.client = self._start(port, "--client-of", str(self.server.pid))
            self._stack = self._stack.pop_all()
        return self

    def _start(self, port: int, *options: str) -> PeerProcess:
        process = PeerProcess(self._name, self._contestant, port, *self._options, *options)
        return self._stack.enter_context(process)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def place(self, pin: str | None, cpus: list[int], *, together: bool) -> None:
        """Choose CPUs, if asked to."""
        if pin is not None:
            self.server.pin(cpus[0])
            self.client.pin(cpus[0 if together and pin == "together" else 1])

    def settle(self, seconds: float) -> tuple[int, int]:
        """Resident memory of the server and the client, after a pause."""
        time.sleep(seconds)
        return self.server.resident_bytes(), self.client.resident_now()
