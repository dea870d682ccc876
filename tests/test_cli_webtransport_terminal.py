"""`trio-wt connect` with an https URL on a terminal."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio

import trio_wt

from .cli_tools import Server, Terminal, serving_sessions
from .test_cli_webtransport import Session, echo, stay


def connect(server: Server, state: Path, *more: str) -> Terminal:
    return Terminal(
        "connect",
        "--server-certificate-hash",
        server.hash,
        *more,
        server.url,
        XDG_STATE_HOME=str(state),
    )


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_a_conversation(state: Path) -> None:
    with serving_sessions(echo, subprotocols=["chat"]) as server:
        with connect(server, state, "-s", "chat") as terminal:
            terminal.wait(
                f"* connected to {server.url} (subprotocol chat, drafts 13-14 of WebTransport)",
                "* /help tells what can be entered",
                ">",
            )
            for entered, printed in [
                ("hello", "< stream 4: hello"),
                ("ünï 👋", "< stream 8: ünï 👋"),
                ("//slash", "< stream 12: /slash"),
                ("/stream /help", "< stream 16: /help"),
                ("/stream ", "< stream 20:"),
                ("/send-stream one way", "< receive-stream ..."),
                ("/datagram once", "< datagram: once"),
                ("/binary 00 fF2a", "< stream 24: 0x00ff2a"),
                ("/ping", "* answered after ..."),
                ("/binary 0", "* /binary takes pairs of hexadecimal digits"),
                ("/close normally", "* /close takes a code, such as 0, and then a reason"),
                ("/close 4294967296", "* a code is less than 2^32"),
                ("/nonsense", "* there is no /nonsense; /help..."),
            ]:
                terminal.type(f"{entered}\r")
                terminal.wait(f"> {entered}".rstrip(), printed, ">")
            terminal.type("/help\r")
            terminal.wait("  Ctrl-D closes...", '  "< " begins what comes...', ">")
            assert "  TEXT                    send TEXT as --send-as says: stream" in (
                terminal.lines()
            )
            terminal.type("\r/close 4321 see you\r")
            assert terminal.finish() == 0
            assert terminal.lines()[-2:] == ["> /close 4321 see you", "* closed with code 4321"]
            assert terminal.echoes()
    assert server.closed == [4321]


def test_what_text_goes_out_as(state: Path) -> None:
    with serving_sessions(echo) as server:
        with connect(server, state, "--send-as", "datagram") as terminal:
            terminal.wait(">")
            terminal.type("/help\r")
            terminal.wait('  "< " begins what comes...', ">")
            terminal.type("hello\r")
            terminal.wait("> hello", "< datagram: hello", ">")
            terminal.type("/binary ff\r")
            terminal.wait("> /binary ff", "< datagram: 0xff", ">")
            # More than fits the largest packets that are ever tried.
            terminal.type(f"{'👋' * 2300}\r")
            terminal.wait("* the datagram has 9200 bytes, and at most ...", ">")
            terminal.type("\x04")
            assert terminal.finish() == 0


def test_the_peer_is_not_to_be_waited_for(state: Path) -> None:
    """A stream that the peer lets wait does not hold up the prompt."""
    with serving_sessions(stay, max_streams=1) as server, connect(server, state) as terminal:
        terminal.wait(">")
        terminal.type("one\rtwo\rthree\r/ping\r")
        terminal.wait("* answered after ...", ">")
        terminal.type("\x04")
        assert terminal.finish() == 0
        assert server.wait_closed() == [0]


def test_what_arrives_is_printed_above_what_is_being_typed(state: Path) -> None:
    async def handler(session: Session) -> None:
        async with await session.incoming_streams.receive() as stream:
            for number in range(500):
                await stream.send_all(b"line %d\n" % number)
            await stream.send_all(b"all")
        await session.wait_closed()

    with serving_sessions(handler) as server, connect(server, state) as terminal:
        terminal.type("x\rhalf a li")
        terminal.wait("< stream 4: line 499", "< stream 4: all", "> half a li")
        terminal.type("\x15\x04")
        assert terminal.finish() == 0
        lines = terminal.lines()
        first = lines.index("< stream 4: line 0")
        assert lines[first : first + 500] == [f"< stream 4: line {n}" for n in range(500)]


def test_a_peer_cannot_drive_the_terminal(state: Path) -> None:
    nasty = "\x1b]0;title\x07\x1b[2J\x1b[H\r* closed with code 0\x9b31m\u202ex"
    shown = r"\x1b]0;title\x07\x1b[2J\x1b[H\r* closed with code 0\x9b31m\u202ex"

    async def handler(session: Session) -> None:
        async with session.open_send_stream() as stream:
            await stream.send_all(nasty.encode() + b"\n\xff" + b"\x1b[2J" * 1000 + b"\nend")
        await session.incoming_streams.receive()
        await session.aclose(3000, "\x1b[2J reason")

    with serving_sessions(handler) as server, connect(server, state) as terminal:
        terminal.wait("< receive-stream 7: end", ">")
        terminal.type("now\r")
        assert terminal.finish() == 1
        lines = terminal.lines()
        assert lines[2] == f"< receive-stream 7: {shown}"
        assert any("... and 2977 more" in line for line in lines)
        assert lines[-1] == (r"trio-wt: the peer closed the session with code 3000: \x1b[2J reason")
        assert terminal.screen.title == ""


def test_what_becomes_of_streams_and_of_the_session_is_told(state: Path) -> None:
    async def handler(session: Session) -> None:
        async with await session.incoming_streams.receive() as stream:
            await stream.receive_all()
            stream.reset(7)
        await session.datagrams.receive()
        session.drain()
        await session.incoming_receive_streams.receive()

    with serving_sessions(handler) as server, connect(server, state) as terminal:
        terminal.wait(">")
        terminal.type("x\r")
        terminal.wait("* stream 4 was reset by the peer with code 7", ">")
        terminal.type("/datagram and now\r")
        terminal.wait("* the peer asks to bring the session to its end", ">")
        terminal.type("/send-stream bye\r")
        assert terminal.finish() == 0
        assert terminal.lines()[-1] == "* the peer closed the session with code 0"
        assert terminal.echoes()


def test_asking_the_peer_for_the_end(state: Path) -> None:
    async def handler(session: Session) -> None:
        await session.wait_draining()
        await session.datagrams.send(b"as you wish")
        await trio.sleep(0.05)

    with serving_sessions(handler) as server, connect(server, state) as terminal:
        terminal.wait(">")
        terminal.type("/drain\r")
        assert terminal.finish() == 0
        assert "< datagram: as you wish" in terminal.lines()


@pytest.mark.parametrize(("key", "code"), [("\x04", 0), ("\x03", 1)], ids=["Ctrl-D", "Ctrl-C"])
def test_leaving_with_a_key(state: Path, key: str, code: int) -> None:
    with serving_sessions(echo) as server, connect(server, state) as terminal:
        terminal.wait(">")
        terminal.type(key)
        assert terminal.finish() == 0
        assert terminal.lines()[-1] == f"* closed with code {code}"
        assert terminal.echoes()
        assert server.wait_closed() == [code]


def test_leaving_sees_out_what_was_sent(state: Path) -> None:
    received: list[int] = []

    async def handler(session: Session) -> None:
        async with await session.incoming_receive_streams.receive() as stream:
            received.append(len(await stream.receive_all()))
        await session.wait_closed()

    with serving_sessions(handler) as server, connect(server, state) as terminal:
        terminal.wait(">")
        terminal.type(f"/send-stream {'x' * 500}\r\x04")
        assert terminal.finish() == 0
        assert server.wait_closed() == [0]
    assert received == [500]


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_leaving_with_a_signal(state: Path, number: signal.Signals, exit_code: int) -> None:
    with serving_sessions(echo) as server, connect(server, state) as terminal:
        terminal.wait(">")
        terminal.type("unfinished")
        terminal.wait("> unfinished")
        terminal.kill(number)
        assert terminal.finish() == exit_code
        assert terminal.echoes()
        assert server.wait_closed() == [1]


def test_the_connection_is_lost(state: Path) -> None:
    async def handler(session: Session) -> None:
        await session.incoming_streams.receive()
        session.connection._driver.shut(0x102, "oh")

    with serving_sessions(handler) as server, connect(server, state) as terminal:
        terminal.wait(">")
        terminal.type("x\r")
        assert terminal.finish() == 1
        assert terminal.lines()[-1].startswith("trio-wt: the connection was lost: ")
        assert terminal.echoes()


def test_a_dumb_terminal_gets_lines(state: Path) -> None:
    with serving_sessions(echo) as server:
        arguments = ("--server-certificate-hash", server.hash, "--linger", "0", server.url)
        with Terminal("connect", *arguments, TERM="dumb") as terminal:
            terminal.type("plain\n")
            terminal.wait("plain", "stream 4: plain")
            terminal.type("\x04")
            assert terminal.finish() == 0
            assert terminal.lines() == ["plain", "stream 4: plain"]
    assert trio_wt.ConnectionClosedOK(0, remote=True).code == server.closed[0]
