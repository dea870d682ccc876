"""A headless Chromium, driven by chromedriver, which speaks WebDriver over HTTP."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from http.client import HTTPConnection
from typing import Any

import trio

from tests.browser.driven import Page, Program, left_at_the_end

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-back-forward-cache",
]
# Seconds; what a script waits for is to come far sooner.
SCRIPT_LIMIT = 20


class Chromium:
    """A browser with one window."""

    def __init__(self, *flags: str) -> None:
        assert BROWSER is not None, "chromium is not installed"
        assert DRIVER is not None, "chromedriver is not installed"
        self._program = Program("chromium", r"started successfully on port (\d+)")
        self._port = int(self._program.start([DRIVER, "--port=0"]))
        profile = f"--user-data-dir={self._program.folder / 'profile'}"
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": BROWSER, "args": [*FLAGS, profile, *flags]},
            "timeouts": {"script": SCRIPT_LIMIT * 1000},
        }
        self._session = ""
        try:
            opened = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self._program.stop()
            raise
        self._session = f"/session/{opened['sessionId']}"
        self.version: str = opened["capabilities"]["browserVersion"]

    def call(self, method: str, path: str, body: object = None) -> Any:
        """One WebDriver command."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=SCRIPT_LIMIT + 10)
        try:
            content = None if body is None else json.dumps(body).encode()
            headers = {"content-type": "application/json"}
            connection.request(method, self._session + path, content, headers)
            response = connection.getresponse()
            value = json.load(response)["value"]
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{value['error']}: {value['message']}")
        return value

    @asynccontextmanager
    async def page(self, url: str) -> AsyncIterator[Page]:
        page = _Page(self)
        await page.go(url)
        async with left_at_the_end(page):
            yield page

    def close(self) -> None:
        with suppress(OSError, RuntimeError):
            self.call("DELETE", "")
        self._program.stop()


class _Page(Page):
    def __init__(self, browser: Chromium) -> None:
        self._browser = browser

    async def _call(self, path: str, body: object) -> Any:
        call = partial(self._browser.call, "POST", path, body)
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True)

    async def _evaluate(self, expression: str) -> str:
        script = (
            f"const done = arguments[0]; {expression}.then(done, (error) => done(`${{error}}`));"
        )
        result: str = await self._call("/execute/async", {"script": script, "args": []})
        return result

    async def go(self, url: str) -> None:
        await self._call("/url", {"url": url})
