"""A headless Firefox, driven over WebDriver BiDi: JSON on a WebSocket, for which we have a client.

It need not be installed: ``python -m tests.browser.firefox FOLDER`` unpacks Debian's into a folder, which the environment
variable FIREFOX_FOLDER then names. What it needs of the system, Chromium's packages have brought.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

import trio_wt
from tests.browser.driven import Page, Program, left_at_the_end

# Firefox itself, and what it needs that nothing else does.
PACKAGES = ["firefox-esr", "libvpx7"]
PREFERENCES = {
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    # A page that was left is gone, and does not wait to be shown again.
    "browser.sessionhistory.max_total_viewers": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "toolkit.telemetry.enabled": False,
}


def unpack(folder: Path) -> None:
    """Debian's packages, without installing them."""
    with tempfile.TemporaryDirectory() as downloads:
        subprocess.run(["apt-get", "download", "-q", *PACKAGES], cwd=downloads, check=True)
        for package in Path(downloads).glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(folder)], check=True)


def find() -> tuple[str, dict[str, str]] | None:
    """The program and its environment, or None if there is none."""
    if not (folder := os.environ.get("FIREFOX_FOLDER")):
        found = shutil.which("firefox-esr") or shutil.which("firefox")
        return (found, {}) if found else None
    root = Path(folder).resolve() / "usr" / "lib"
    libraries = [root / "firefox-esr", *root.glob("*-linux-gnu")]
    environment = {"LD_LIBRARY_PATH": ":".join(map(str, libraries))}
    program = root / "firefox-esr" / "firefox-esr"
    return (str(program), environment) if program.is_file() else None


class Firefox:
    """A browser; each page has a BiDi session of its own."""

    def __init__(self) -> None:
        found = find()
        assert found is not None, "Firefox is not installed"
        program, environment = found
        environment |= {"MOZ_CRASHREPORTER_DISABLE": "1", "MOZ_HEADLESS": "1"}
        self._program = Program("firefox", r"WebDriver BiDi listening on (ws://\S+)", environment)
        profile = self._program.folder / "profile"
        profile.mkdir()
        lines = [
            f"user_pref({json.dumps(name)}, {json.dumps(value)});\n"
            for name, value in PREFERENCES.items()
        ]
        (profile / "user.js").write_text("".join(lines))
        options = ["--headless", "--no-remote", "--remote-debugging-port", "0"]
        command = [program, *options, "--profile", str(profile), "about:blank"]
        self._url = self._program.start(command) + "/session"
        self.version = "unknown"

    @asynccontextmanager
    async def page(self, url: str) -> AsyncIterator[Page]:
        async with trio_wt.open_websocket(self._url) as ws:
            page = _Page(ws)
            session = await page.command("session.new", capabilities={})
            self.version = session["capabilities"]["browserVersion"]
            try:
                tree = await page.command("browsingContext.getTree")
                page.context = tree["contexts"][0]["context"]
                await page.go(url)
                async with left_at_the_end(page):
                    yield page
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(5):
                    await page.command("session.end")

    def close(self) -> None:
        self._program.stop()


class _Page(Page):
    context = ""

    def __init__(self, ws: trio_wt.WebSocket) -> None:
        self._ws = ws
        self._number = 0

    async def command(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        await self._ws.send(json.dumps(command))
        while True:
            answer = json.loads(await self._ws.receive())
            # Anything else is an event, or the answer to what was cancelled.
            if answer.get("id") == self._number:
                break
        if answer["type"] == "error":
            raise RuntimeError(f"{method}: {answer['error']}: {answer['message']}")
        return answer["result"]

    async def _evaluate(self, expression: str) -> str:
        result = await self.command(
            "script.evaluate",
            expression=expression,
            target={"context": self.context},
            awaitPromise=True,
        )
        if result["type"] == "exception":
            raise RuntimeError(result["exceptionDetails"]["text"])
        value: str = result["result"]["value"]
        return value

    async def go(self, url: str) -> None:
        await self.command(
            "browsingContext.navigate", context=self.context, url=url, wait="complete"
        )


if __name__ == "__main__":
    unpack(Path(sys.argv[1]))
