"""`trio-wt connect` on a terminal."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

import trio_wt

from .cli_tools import LIMIT, Server, Terminal, echo, serving, write_script

END = "* closed with code 1000"


def connect(server: Server, state: Path, *more: str) -> Terminal:
    return Terminal("connect", "--no-proxy", *more, server.url, XDG_STATE_HOME=str(state))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_a_conversation(state: Path) -> None:
    with serving(echo, subprotocols=["chat"]) as server:
        with connect(server, state, "-s", "chat") as terminal:
            terminal.wait(
                f"* connected to {server.url} (subprotocol chat, permessage-deflate)",
                "* /help tells what can be entered",
                ">",
            )
            for entered, printed in [
                ("hello", "< hello"),
                ("ünï 👋", "< ünï 👋"),
                ("//slash", "< /slash"),
                ("/text /help", "< /help"),
                ("/text ", "<"),
                ("/binary 00 fF2a", "<binary, 3 bytes> 00ff2a"),
                ("/binary", "<binary, 0 bytes>"),
                ("/ping", "* pong after ..."),
                ("/ping payload", "* pong after ..."),
                ("/ping " + "x" * 126, "* a ping's payload has at most 125 bytes"),
                ("/binary 0", "* /binary takes pairs of hexadecimal digits"),
                ("/close normally", "* /close takes a code..."),
                ("/close 999", "* ..."),
                ("/close 1006", "* ..."),
                ("/nonsense", "* there is no /nonsense; /help..."),
            ]:
                terminal.type(f"{entered}\r")
                terminal.wait(f"> {entered}".rstrip(), printed, ">")
            terminal.type("/help\r")
            terminal.wait("  Ctrl-D closes...", '  "< " begins a text message...', ">")
            terminal.type("\r/close 4321 see you\r")
            assert terminal.finish() == 0
            assert terminal.lines()[-2:] == ["> /close 4321 see you", "* closed with code 4321"]
            assert terminal.echoes()
    assert server.closed == [4321]


def test_what_arrives_is_printed_above_what_is_being_typed(state: Path) -> None:
    async def handler(websocket: trio_wt.WebSocket) -> None:
        async for message in websocket:
            for number in range(1000):
                await websocket.send(f"{message!s} {number}")
            await websocket.send("all")

    with serving(handler) as server, connect(server, state) as terminal:
        terminal.type("line\rhalf a li")
        terminal.wait("< line 999", "< all", "> half a li")
        terminal.type("ne\r")
        terminal.wait("< half a line 999", "< all", ">")
        terminal.type("\x04")
        assert terminal.finish() == 0
        lines = terminal.lines()
        for sent in ("line", "half a line"):
            first = lines.index(f"< {sent} 0")
            assert lines[first : first + 1000] == [f"< {sent} {number}" for number in range(1000)]


def test_a_peer_cannot_drive_the_terminal(state: Path) -> None:
    nasty = "\x1b]0;title\x07\x1b[2J\x1b[H\r\n* closed with code 1000\x9b31m\u202ex"
    shown = r"< \x1b]0;title\x07\x1b[2J\x1b[H\r\n* closed with code 1000\x9b31m\u202ex"

    async def handler(websocket: trio_wt.WebSocket) -> None:
        await websocket.send(nasty)
        await websocket.send(b"\x1b[2J" * 1000)
        await websocket.send("end")
        await websocket.receive()
        await websocket.close(3000, "\x1b[2J reason")

    with serving(handler) as server, connect(server, state) as terminal:
        terminal.wait("< end", ">")
        terminal.type("now\r")
        assert terminal.finish() == 1
        lines = terminal.lines()
        assert lines[2] == shown
        assert lines[3].startswith("<binary, 4000 bytes> 1b5b324a1b5b")
        assert "".join(lines).count("1b5b324a") == 256
        assert any("... and 2976 more" in line for line in lines)
        assert lines[-1] == (
            r"trio-wt: the peer closed the connection with code 3000: \x1b[2J reason"
        )
        assert terminal.screen.title == ""


@pytest.mark.parametrize(
    ("key", "code"), [("\x04", 1000), ("\x03", 1001)], ids=["Ctrl-D", "Ctrl-C"]
)
def test_leaving_with_a_key(state: Path, key: str, code: int) -> None:
    with serving(echo) as server, connect(server, state) as terminal:
        terminal.wait(">")
        terminal.type(key)
        assert terminal.finish() == 0
        assert terminal.lines()[-1] == f"* closed with code {code}"
        assert terminal.echoes()
        assert server.wait_closed() == [code]


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_leaving_with_a_signal(state: Path, number: signal.Signals, exit_code: int) -> None:
    with serving(echo) as server, connect(server, state) as terminal:
        terminal.wait(">")
        terminal.type("unfinished")
        terminal.wait("> unfinished")
        terminal.kill(number)
        assert terminal.finish() == exit_code
        assert terminal.echoes()
        assert server.wait_closed() == [1001]


def test_the_peer_leaves(state: Path) -> None:
    async def handler(websocket: trio_wt.WebSocket) -> None:
        await websocket.send("a last word")
        await websocket.receive()
        await websocket.close(1001, "lunch")

    with serving(handler) as server, connect(server, state) as terminal:
        terminal.wait("< a last word", ">")
        terminal.type("go\r")
        assert terminal.finish() == 0
        assert terminal.lines()[-1] == "* the peer closed the connection with code 1001: lunch"
        assert terminal.echoes()


def test_the_history_is_kept_for_its_user_only(state: Path) -> None:
    with serving(echo) as server:
        with connect(server, state) as terminal:
            terminal.wait(">")
            terminal.type("first\r")
            terminal.wait("< first", ">")
            terminal.type("\x04")
            assert terminal.finish() == 0
        file = state / "trio-wt" / "history"
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
        with connect(server, state) as terminal:
            terminal.wait(">")
            terminal.type("\x1b[A")
            terminal.wait("> first")
            terminal.type("\r")
            terminal.wait("< first", ">")
            terminal.type("\x04")
            assert terminal.finish() == 0


def test_without_history_nothing_is_kept(state: Path) -> None:
    with serving(echo) as server, connect(server, state, "--no-history") as terminal:
        terminal.wait(">")
        terminal.type("secret\r")
        terminal.wait("< secret", ">")
        terminal.type("\x1b[A")
        terminal.wait("> secret")
        terminal.type("\x15\x04")
        assert terminal.finish() == 0
    assert not state.exists()


def test_a_history_that_cannot_be_kept_is_done_without(state: Path) -> None:
    state.write_text("a file where a directory should be")
    with serving(echo) as server, connect(server, state) as terminal:
        terminal.wait(">")
        terminal.type("hello\r")
        terminal.wait("< hello", ">")
        terminal.type("\x04")
        assert terminal.finish() == 0


def test_a_history_stays_within_bounds(state: Path) -> None:
    file = state / "trio-wt" / "history"
    file.parent.mkdir(parents=True)
    entry = "\n# 2025-01-01 00:00:00.000000\n+" + "x" * 70 + "\n"
    file.write_text(entry * 10_000 + "\n# 2025-01-01 00:00:00.000000\n+newest\n")
    with serving(echo) as server, connect(server, state) as terminal:
        terminal.wait(">")
        terminal.type("\x1b[A")
        terminal.wait("> newest")
        terminal.type("\x15\x04")
        assert terminal.finish() == 0
    kept = file.read_text()
    assert 200_000 < len(kept) < 300_000
    assert kept.startswith(entry)


def test_a_dumb_terminal_gets_lines(state: Path) -> None:
    with serving(echo) as server:
        with Terminal(
            "connect", "--no-proxy", "--linger", "0", server.url, TERM="dumb"
        ) as terminal:
            terminal.type("plain\n")
            terminal.wait("plain", "plain")
            terminal.type("\x04")
            assert terminal.finish() == 0
            assert terminal.lines() == ["plain", "plain"]


def test_the_password_is_asked_for(state: Path) -> None:
    with serving(echo) as server, connect(server, state, "--auth", "me") as terminal:
        terminal.wait("Password of me:")
        terminal.type("geheim\r")
        terminal.wait(">")
        assert "geheim" not in "".join(terminal.lines())
        terminal.type("\x04")
        assert terminal.finish() == 0
    assert server.requests[0].headers["authorization"] == "Basic bWU6Z2VoZWlt"


def test_an_interrupt_at_the_password(state: Path) -> None:
    with serving(echo) as server, connect(server, state, "--auth", "me") as terminal:
        terminal.wait("Password of me:")
        terminal.type("\x03")
        assert terminal.finish() == 130
    assert server.requests == []


def test_the_prompt_needs_its_extra(state: Path, tmp_path: Path) -> None:
    command = write_script(
        tmp_path / "without.py",
        "import sys\n"
        "sys.modules['prompt_toolkit'] = None\n"
        "from trio_wt.cli import main\n"
        "main(sys.argv[1:])\n",
    )
    with serving(echo) as server:
        with Terminal("connect", "--no-proxy", server.url, command=command) as terminal:
            assert terminal.finish() == 1
            assert terminal.lines() == [
                'trio-wt: prompt_toolkit is not installed: pip install "trio-wt[cli]"'
            ]


def test_output_to_a_file_reads_lines_from_the_terminal(state: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    command = ["/bin/sh", "-c", f'exec "$0" "$@" > {output}']
    with serving(echo) as server:
        with Terminal(
            sys.executable,
            "-m",
            "trio_wt",
            "connect",
            "--no-proxy",
            "--linger",
            "0",
            server.url,
            command=command,
        ) as terminal:
            terminal.type("line\n")
            terminal.wait("line")
            deadline = time.monotonic() + LIMIT
            while not output.exists() or output.read_text() != "line\n":
                assert time.monotonic() < deadline
                time.sleep(0.01)
            terminal.type("\x04")
            assert terminal.finish() == 0
