"""A contestant's two processes; what they do beyond those of the QUIC benchmark is little."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import NamedTuple

from ..process import ROOT
from ..quic import process as quic


class Contestant(NamedTuple):
    """How a name of the command line is run."""

    server: str
    """The module of the server, after ``with_``."""
    variant: str = ""
    client: str = ""
    """That of the client, if it is another one."""


class PeerProcess(quic.PeerProcess):
    """One run of ``peers.py`` of this package."""

    def __init__(self, name: str, module: str, port: int, *options: str) -> None:
        self.name = name
        self.port = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        command = [sys.executable, "-m", f"{__package__}.peers", module, str(port), *options]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )


class Pair(quic.Pair):
    """A context manager around a server and its client, as that of the QUIC benchmark is."""

    def __init__(self, name: str, contestant: Contestant, folder: str) -> None:
        super().__init__(name, quic.Contestant(contestant.server, contestant.variant), folder)
        self._client_module = contestant.client or contestant.server

    def _start(self, port: int, *options: str) -> quic.PeerProcess:
        module = self._client_module if options else self._contestant.module
        variant = ["--variant", self._contestant.variant]
        process = PeerProcess(self._name, module, port, *self._options, *variant, *options)
        return self._stack.enter_context(process)
