"""`trio-wt baton`: games that end well, those that do not, and what is said of both."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import trio_wt
from trio_wt._cli.certificate import make_certificate
from trio_wt.interop import BATON_PATH, check_baton_request, serve_baton

from .cli_tools import Process, Server, fails, free_port, one_line, run, serving_sessions

Session = trio_wt.WebTransportSession


@pytest.fixture
def server() -> Iterator[Server]:
    """One that plays by the rules."""
    with serving_sessions(serve_baton, on_request=check_baton_request) as server:
        yield server


def play(server: Server, *arguments: str, url: str = "") -> tuple[int, list[str], str]:
    """Exit code, lines, and what was said on standard error."""
    target = url or server.url
    done = run("baton", "--server-certificate-hash", server.hash, *arguments, target)
    return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode()


# ---- games that end well


def test_each_pass_is_a_line(server: Server) -> None:
    code, lines, said = play(server, "--baton", "250")
    assert (code, said) == (0, "")
    asked = f"{server.url.rstrip('/')}{BATON_PATH}?version=0&count=1&baton=250"
    assert re.fullmatch(rf"opened {re.escape(asked)}, drafts [\d-]+", lines[0])
    passes = [re.sub(r"\d+$", "N", line) for line in lines[1:-1]]
    assert passes == [
        "received 250 on unidirectional stream N",
        "sent 251 on bidirectional stream N",
        "received 252 on bidirectional stream N",
        "sent 253 on unidirectional stream N",
        "received 254 on bidirectional stream N",
        "sent 255 on bidirectional stream N",
        "received 0 on unidirectional stream N",
    ]
    assert lines[-1] == (
        "1 came to 0, 0 lost; on streams 4 received, 3 sent; in datagrams 0 received, 0 sent"
    )
    assert server.wait_closed() == [0]


def test_datagrams_are_told() -> None:
    with serving_sessions(serve_baton) as server:
        code, lines, _ = play(server, "--baton", "253")
    assert code == 0
    assert "sent 253 in a datagram" in lines


def test_several_batons(server: Server) -> None:
    code, lines, _ = play(server, "--count", "3", "--baton", "254")
    assert code == 0
    assert lines[-1].startswith("3 came to 0, 0 lost; ")
    assert sum(line.startswith("received 254 ") for line in lines) == 3


def test_the_server_may_choose(server: Server) -> None:
    code, lines, _ = play(server)
    assert code == 0
    assert "&baton" not in lines[0]
    assert lines[-1].startswith("1 came to 0, 0 lost; ")


def test_json(server: Server) -> None:
    code, lines, _ = play(server, "--json", "--baton", "254")
    assert code == 0
    first, *moves, last = map(json.loads, lines)
    assert first["what"] == "open"
    assert first["url"].endswith("baton=254")
    on_streams = [move for move in moves if move["by"] != "datagram"]
    assert [(move["what"], move["value"]) for move in on_streams] == [
        ("received", 254),
        ("sent", 255),
        ("received", 0),
    ]
    assert all(type(move["stream_id"]) is int for move in on_streams)
    assert (last["what"], last["finished"], last["reset"]) == ("end", 1, 0)
    assert (last["received"], last["sent"]) == (2, 1)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("", f"{BATON_PATH}?version=0&count=1"),
        ("elsewhere", "/elsewhere?version=0&count=1"),
        ("a/?count=2&x=y", "/a/?count=2&x=y"),
    ],
)
def test_what_is_asked_for(path: str, asked: str) -> None:
    with serving_sessions(serve_baton) as server:
        code, lines, _ = play(server, url=f"{server.url}{path}")
        assert code == 0
        assert server.requests[0].target == asked
    assert f":{server.url.rpartition(':')[2].rstrip('/')}{asked}, " in lines[0]


def test_the_servers_certificate(tmp_path: Path) -> None:
    made = make_certificate()
    cafile = tmp_path / "cert.pem"
    cafile.write_bytes(made.certificate)
    with serving_sessions(serve_baton, certificate=made) as server:
        assert run("baton", "--cafile", str(cafile), server.url).returncode == 0
        done = run("baton", "--insecure", server.url)
        assert done.returncode == 0
        assert done.stderr.startswith(b"WARNING: --insecure: ")
        done = run("baton", server.url)
        assert done.returncode == 1
        assert "--server-certificate-hash SHA256 trusts" in one_line(done.stderr)


def test_its_own_server() -> None:
    with Process("serve", "--port", "0") as process:
        process.line()
        url = process.line().split()[2]
        process.line()
        digest = process.line().removeprefix("in base64: ")
        done = run("baton", "--count", "16", "--server-certificate-hash", digest, url)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\n16 came to 0, 0 lost; " in done.stdout


# ---- those that do not


async def wrong_value(session: Session) -> None:
    """Answers with what is not due."""
    async with session.open_send_stream() as stream:
        await stream.send_all(bytes([0, 250]))
    async with await session.incoming_streams.receive() as stream:
        assert (await stream.receive_all())[-1] == 251
        await stream.send_all(bytes([0, 99]))
    await session.wait_closed()


async def resets(session: Session) -> None:
    async with session.open_send_stream() as stream:
        await stream.send_all(bytes([0, 250]))
    async with await session.incoming_streams.receive() as stream:
        await stream.receive_all()
        stream.reset(3)
    await session.wait_closed()


async def resets_at_once(session: Session) -> None:
    async with session.open_send_stream() as stream:
        await stream.send_all(bytes([0]))
        await session.connection.ping()
        stream.reset(3)
    await session.wait_closed()


async def is_bored(session: Session) -> None:
    await session.aclose(4, "your \x1b[31mturn")


async def leaves(session: Session) -> None:
    await session.aclose()


@pytest.mark.parametrize(
    ("handler", "shown", "expected"),
    [
        (wrong_value, "sent 251", "this side closed the session with SUS (3): 99 is not what was"),
        (resets, "lost a baton: bidirectional stream", "1 baton was lost: the server has reset"),
        (resets_at_once, "lost a baton: unidirectional", "1 baton was lost: the server has reset"),
        (is_bored, "opened", "the peer closed the session with BORED (4): your \\x1b[31mturn"),
        (leaves, "opened", "the peer closed the session with 0: 1 batons were on their way"),
    ],
)
def test_games_that_do_not_end_well(handler: object, shown: str, expected: str) -> None:
    with serving_sessions(handler) as server:  # type: ignore[arg-type]
        code, lines, said = play(server)
    assert code == 1
    assert any(line.startswith(shown) for line in lines)
    assert one_line(said).startswith(expected)


def test_lost_batons_are_told_in_json_too() -> None:
    with serving_sessions(resets) as server:
        code, lines, said = play(server, "--json")
    assert code == 1
    assert "lost" in one_line(said)
    lost, end = map(json.loads, lines[-2:])
    assert (lost["what"], lost["value"], lost["by"]) == ("lost", None, "bidirectional stream")
    assert (end["what"], end["finished"], end["reset"]) == ("end", 0, 1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--version", "1"], "HTTP status 400: the only version is 0"),
        (["--count", "17"], "HTTP status 400: count must be from 1 to 16"),
    ],
)
def test_requests_that_the_server_refuses(
    server: Server, arguments: list[str], expected: str
) -> None:
    code, lines, said = play(server, *arguments)
    assert (code, lines) == (1, [])
    assert expected in one_line(said)


def test_no_such_path(server: Server) -> None:
    code, _, said = play(server, url=f"{server.url}elsewhere")
    assert code == 1
    assert "status 404" in one_line(said)


def test_a_server_that_accepts_any_version() -> None:
    with serving_sessions(serve_baton) as server:
        code, _, said = play(server, "--version", "1")
    assert code == 1
    expected = "the server has accepted an invalid request: the only version is 0"
    assert one_line(said) == expected


def test_nobody_there() -> None:
    done = run("baton", "--timeout", "0.3", f"https://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert one_line(done.stderr)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_session(number: signal.Signals) -> None:
    async def wait(session: Session) -> None:
        await session.wait_closed()

    with serving_sessions(wait) as server:
        with Process("baton", "--server-certificate-hash", server.hash, server.url) as process:
            assert process.line().startswith("opened ")
            process.signal(number)
            assert process.wait() == 128 + number
            assert process.errors() == ""
        assert server.wait_closed() == [0]


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        ([], 2, "URL"),
        (["wss://a.example"], 1, "https://"),
        (["https://a.example:x"], 1, "port"),
        (["https://u:p@a.example"], 1, "user"),
        (["https://no.such.host.invalid"], 1, "cannot find no.such.host.invalid: "),
        (["https://a.example?count=1", "--count", "2"], 2, "write it there instead of --count"),
        (["--count", "0", "https://a.example"], 2, "--count"),
        (["--baton", "0", "https://a.example"], 2, "--baton"),
        (["--baton", "256", "https://a.example"], 2, "--baton"),
        (["--version", "-1", "https://a.example"], 2, "--version"),
        (["--timeout", "nan", "https://a.example"], 2, "--timeout"),
        (["--server-certificate-hash", "x", "https://a.example"], 2, "no SHA-256"),
        (["--insecure", "--cafile", __file__, "https://a.example"], 2, "exclude each other"),
        (["--cafile", "/no/such/file", "https://a.example"], 2, "/no/such/file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, expected: str
) -> None:
    assert expected in fails(capsys, "baton", *arguments, code=code)
