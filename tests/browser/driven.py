"""What the browsers' drivers share: programs that tell their address in their log, and pages that run scripts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import trio


class ScriptFailed(Exception):
    """A script on the page threw what it did not catch."""


class Program:
    """A running program with a folder of its own, whose log tells where it listens."""

    def __init__(
        self, name: str, log_pattern: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"trio-wt-{name}-"))
        self._environment = {
            # The machine's proxies are no business of tests on loopback.
            name: value
            for name, value in {**os.environ, **(environment or {})}.items()
            if not name.lower().endswith("_proxy")
        }
        self._pattern = re.compile(log_pattern)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], patience: float = 20) -> str:
        """What the log tells."""
        log = self.folder / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={**self._environment, "HOME": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        until = time.monotonic() + patience
        while time.monotonic() < until and self._process.poll() is None:
            if match := self._pattern.search(log.read_text(errors="replace")):
                return match[1]
            time.sleep(0.05)
        text = log.read_text(errors="replace")
        self.stop()
        raise RuntimeError(f"{command[0]} did not start: {text[-2000:]}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        # The browser's own processes may still be writing.
        shutil.rmtree(self.folder, ignore_errors=True)


class Page(ABC):
    """A page that has loaded page.js."""

    async def run(self, body: str, **arguments: Any) -> Any:
        """Run the body of an async function on the page, and give what it returns."""
        call = f"run({json.dumps(list(arguments))}, {json.dumps(list(arguments.values()))}, {json.dumps(body)})"
        result = json.loads(await self._evaluate(call))
        if "error" in result:
            raise ScriptFailed("{name}: {message}\n{stack}".format(**result["error"]))
        return result.get("value")

    @abstractmethod
    async def _evaluate(self, expression: str) -> str:
        """The string that a promise gives."""

    @abstractmethod
    async def go(self, url: str) -> None:
        """Navigate, and wait until it is loaded."""


class Browser(Protocol):
    """A running browser."""

    version: str

    def page(self, url: str) -> AbstractAsyncContextManager[Page]: ...

    def close(self) -> None: ...


@asynccontextmanager
async def left_at_the_end(page: Page) -> AsyncIterator[Page]:
    """Nothing of a test goes on in the next one."""
    try:
        yield page
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(5):
            await page.go("about:blank")
