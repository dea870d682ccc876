"""The page of examples/app_chat.py in a real browser: both ways to the server, rooms, and the end."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from tests.browser.chromium import BROWSER, DRIVER, Chromium
from tests.browser.test_pages import LIMIT, go, run, running, wait_for
from tests.shown_code import ROOT

pytestmark = [
    pytest.mark.real_clock,
    pytest.mark.skipif(
        not (BROWSER and DRIVER) and not os.environ.get("CI"),
        reason="chromium and chromium-driver are not installed",
    ),
]

COMMAND = (str(ROOT / "examples" / "app_chat.py"), "--port", "0")
TOLD = r"page for browsers: (\S+/)\?"

LOG = "document.getElementById('log').innerText"
STATE = "document.getElementById('state').textContent"


class Tab:
    """A tab with a member in it.

    Args:
        browser: the browser.
        url: where the chat is.
        name: who it is.
        room: in which room.
        prepare: a script that runs on the page before those that it has.
        extra: more of the query.
    """

    def __init__(
        self, browser: Chromium, url: str, name: str, room: str, prepare: str = "", extra: str = ""
    ) -> None:
        self._browser = browser
        self._handle = browser.call("POST", "/window/new", {"type": "tab"})["handle"]
        self._switch()
        if prepare:
            command = "Page.addScriptToEvaluateOnNewDocument"
            parameters = {"cmd": command, "params": {"source": prepare}}
            browser.call("POST", "/goog/cdp/execute", parameters)
        go(browser, f"{url}?{urlencode({'room': room, 'name': name})}{extra}")

    def _switch(self) -> None:
        self._browser.call("POST", "/window", {"handle": self._handle})

    def waits_for(self, expression: str, pattern: str) -> str:
        self._switch()
        return wait_for(self._browser, expression, pattern)

    def is_in(self, room: str, by: str) -> None:
        self.waits_for(STATE, f"^in {room}, by {by}$")

    def sees(self, line: str) -> None:
        self.waits_for(LOG, f"(?m)^{line}$")

    def log(self) -> str:
        self._switch()
        return self.waits_for(LOG, "")

    def says(self, text: str) -> None:
        self._switch()
        script = f"document.getElementById('text').value = {json.dumps(text)};"
        run(self._browser, script + "document.getElementById('desk').requestSubmit();")

    def close(self) -> None:
        self._switch()
        self._browser.call("DELETE", "/window")


@pytest.fixture
def browser() -> Iterator[Chromium]:
    chromium = Chromium()
    yield chromium
    chromium.close()


def stops(process: subprocess.Popen[str]) -> None:
    process.terminate()
    assert process.wait(LIMIT) == 0


def test_rooms_by_both_ways(browser: Chromium) -> None:
    with running(COMMAND, TOLD) as (url, process):
        ann = Tab(browser, url, "ann", "tea & cake")
        ann.is_in("tea & cake", "WebTransport")
        ann.sees("ann has come; 1 here")
        bob = Tab(browser, url, "<img src=x onerror=alert(1)>", "tea & cake")
        bob.is_in("tea & cake", "WebTransport")
        # As in a browser that has no WebTransport.
        cid = Tab(browser, url, "cid", "tea & cake", prepare="delete window.WebTransport;")
        cid.is_in("tea & cake", "WebSocket")
        dan = Tab(browser, url, "dan", "milk", extra="&websocket")
        dan.is_in("milk", "WebSocket")
        everybody = (ann, bob, cid)
        for tab in everybody:
            tab.sees("cid has come; 3 here")
        for tab, line in (
            (ann, "ann: hello <b>all</b> \U0001f642"),
            (bob, "<img src=x onerror=alert\\(1\\)>: good day"),
            (cid, "cid: hi"),
        ):
            tab.says(line.partition(": ")[2])
            for other in everybody:
                other.sees(line)
        for tab in everybody:
            tab.waits_for("String(document.querySelectorAll('#log img, #log b').length)", "^0$")
        bob.close()
        for tab in (ann, cid):
            tab.sees(r"<img src=x onerror=alert\(1\)> has gone; 2 here")
        dan.says("is anybody here?")
        dan.sees("dan: is anybody here\\?")
        assert dan.log().splitlines() == ["dan: is anybody here?", "dan has come; 1 here"]
        assert "dan" not in ann.log() + cid.log()
        stops(process)
        for tab in (ann, cid, dan):
            tab.waits_for(STATE, "^closed: the server is shutting down$")


def test_a_page_without_udp_takes_a_websocket(browser: Chromium) -> None:
    with running(COMMAND, TOLD) as (url, process):
        # Nobody listens on this port.
        elsewhere = (
            "const Real = WebTransport;"
            "window.WebTransport = class extends Real {"
            "  constructor(url, options) { super('https://127.0.0.1:1/', options); }"
            "};"
        )
        ann = Tab(browser, url, "ann", "tea", prepare=elsewhere)
        ann.is_in("tea", "WebSocket")
        ann.says("through")
        ann.sees("ann: through")
        stops(process)


def test_the_door(browser: Chromium) -> None:
    with running(COMMAND, TOLD) as (url, process):
        go(browser, url)
        run(
            browser,
            "const door = document.getElementById('door').elements;"
            "door.name.value = 'ann'; door.room.value = 'tea';"
            "document.getElementById('door').requestSubmit();",
        )
        wait_for(browser, STATE, "^in tea, by WebTransport$")
        wait_for(browser, LOG, "^ann has come; 1 here$")
        stops(process)
        wait_for(browser, STATE, "^closed: the server is shutting down$")
