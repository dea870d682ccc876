"""Pages that people are given: those of `trio-wt serve`, of the docs, and of the chat among the examples, in a real browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.browser.chromium import BROWSER, DRIVER, Chromium
from tests.shown_code import ROOT, free_port
from trio_wt._cli.certificate import make_certificate

pytestmark = [
    pytest.mark.real_clock,
    pytest.mark.skipif(
        not (BROWSER and DRIVER) and not os.environ.get("CI"),
        reason="chromium and chromium-driver are not installed",
    ),
]

LIMIT = 20.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    chromium = Chromium()
    yield chromium
    chromium.close()


def wait_for(browser: Chromium, expression: str, pattern: str) -> str:
    """What the page says, once it is that."""
    deadline = time.monotonic() + LIMIT
    while True:
        script = {"script": f"return {expression}", "args": []}
        text: str = browser.call("POST", "/execute/sync", script)
        if re.search(pattern, text):
            return text
        assert time.monotonic() < deadline, f"{pattern} does not come: {text!r}"
        time.sleep(0.05)


def go(browser: Chromium, url: str) -> None:
    browser.call("POST", "/url", {"url": url})


def run(browser: Chromium, script: str) -> None:
    browser.call("POST", "/execute/sync", {"script": script, "args": []})


@contextmanager
def running(
    command: Sequence[str], pattern: str, folder: Path | None = None
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A program, and what it says of itself."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
    )
    with process:
        try:
            assert process.stdout is not None
            told = next(filter(None, (re.search(pattern, line) for line in process.stdout)))
            yield told[1], process
        finally:
            process.kill()


def test_the_page_of_the_command(browser: Chromium) -> None:
    command = ("-m", "trio_wt", "serve", "--port", "0")
    with running(command, r"page for browsers: (\S+)") as (url, process):
        # `localhost` leads to the address on which the server listens.
        for start in (url, url.replace("127.0.0.1", "localhost")):
            go(browser, start)
            wait_for(browser, "document.getElementById('state').textContent", "^connected to https")
            for kind, label in (
                ("stream", "stream"),
                ("send-stream", "receive-stream"),
                ("datagram", "datagram"),
            ):
                run(
                    browser,
                    f"document.getElementById('kind').value = '{kind}';"
                    f"document.getElementById('text').value = '<b>{kind}</b>';"
                    "document.getElementById('form').requestSubmit();",
                )
                log = "document.getElementById('log').innerText"
                wait_for(browser, log, rf"^{label}: <b>{kind}</b>")
        process.terminate()
        state = "document.getElementById('state').textContent"
        wait_for(browser, state, "^closed with code 0$")
        assert process.wait(LIMIT) == 0


def test_the_page_of_the_docs(browser: Chromium, tmp_path: Path) -> None:
    made = make_certificate()
    (tmp_path / "cert.pem").write_bytes(made.certificate)
    (tmp_path / "key.pem").write_bytes(made.key)
    port = free_port()
    program = (
        "import sys, trio; sys.path.insert(0, sys.argv[1]); import webtransport_page as page\n"
        "async def main():\n"
        "    async with trio.open_nursery() as nursery:\n"
        "        nursery.start_soon(page.main, int(sys.argv[2]))\n"
        "        await trio.testing.wait_all_tasks_blocked()\n"
        "        print('ready', flush=True)\n"
        "import trio.testing; trio.run(main)\n"
    )
    command = ("-c", program, str(ROOT / "docs" / "code"), str(port))
    with running(command, "(ready)", tmp_path):
        go(browser, f"http://127.0.0.1:{port}/")
        state = "document.getElementById('state').textContent"
        wait_for(browser, state, "^the server said: hello$")


def test_the_page_of_the_chat(browser: Chromium) -> None:
    port = free_port()
    program = (
        "import sys, trio; sys.path.insert(0, sys.argv[1]); import webtransport_chat_page as chat\n"
        "chat.run(chat.main, int(sys.argv[2]))\n"
    )
    log = "document.getElementById('log').innerText"
    with running(("-c", program, str(ROOT / "examples"), str(port)), r"open (\S+/)\?") as (url, _):
        go(browser, f"{url}?name=ann")
        wait_for(browser, "document.title", "Chat")
        ann = browser.call("GET", "/window")
        bob = browser.call("POST", "/window/new", {"type": "tab"})["handle"]
        browser.call("POST", "/window", {"handle": bob})
        go(browser, f"{url}?name=bob")
        wait_for(browser, log, r"\* bob has come")
        run(browser, "document.getElementById('text').value = 'hello <i>you</i>';")
        run(browser, "document.getElementById('form').requestSubmit();")
        wait_for(browser, log, "bob: hello <i>you</i>")
        browser.call("POST", "/window", {"handle": ann})
        wait_for(browser, log, "bob: hello <i>you</i>")
        run(browser, "say('hello, bob')")
        browser.call("POST", "/window", {"handle": bob})
        wait_for(browser, log, "ann: hello, bob")
        run(
            browser,
            "window.typing = setInterval(() => tellTyping(), 100);",
        )
        browser.call("POST", "/window", {"handle": ann})
        wait_for(browser, "document.getElementById('typing').innerText", "^bob is typing$")
        browser.call("POST", "/window", {"handle": bob})
        browser.call("DELETE", "/window")
        browser.call("POST", "/window", {"handle": ann})
        wait_for(browser, log, r"\* bob has gone")
