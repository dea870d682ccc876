"""`trio-wt connect` with an https URL: sessions for scripts, options and failures."""

from __future__ import annotations

import base64
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import trio_wt
from trio_wt._cli.certificate import make_certificate
from trio_wt._cli.lines import Lines
from trio_wt._cli.webtransport_connect import certificate_hash
from trio_wt._cli.webtransport_talk import shown

from .cli_tools import (
    COMMAND,
    LIMIT,
    Process,
    Server,
    environment,
    fails,
    one_line,
    run,
    serving_sessions,
)

Session = trio_wt.WebTransportSession


def target(server: Server, *more: str) -> tuple[str, ...]:
    """The command line that connects to it."""
    return ("connect", "--server-certificate-hash", server.hash, *more, server.url)


async def echo(session: Session) -> None:
    """Send back what comes: streams on themselves or on new ones, datagrams as datagrams."""

    async def answer(stream: trio_wt.Stream) -> None:
        async with stream:
            async for data in stream:
                await stream.send_all(data)

    async def streams() -> None:
        async for stream in session.incoming_streams:
            nursery.start_soon(answer, stream)

    async def receive_streams() -> None:
        async for stream in session.incoming_receive_streams:
            async with stream, session.open_send_stream() as back:
                await back.send_all(await stream.receive_all())

    async def datagrams() -> None:
        async for data in session.datagrams:
            await session.datagrams.send(data)

    async with trio.open_nursery() as nursery:
        for task in (streams, receive_streams, datagrams):
            nursery.start_soon(task)


async def stay(session: Session) -> None:
    await session.wait_closed()


# ---- what goes out, and what is printed


def test_each_line_is_a_stream_and_its_answer_a_line() -> None:
    received: list[bytes] = []

    async def handler(session: Session) -> None:
        for _ in range(5):
            async with await session.incoming_streams.receive() as stream:
                received.append(await stream.receive_all())
                await stream.send_all(received[-1].upper())

    with serving_sessions(handler) as server:
        done = run(*target(server, "--linger", "inf"), data=b"eins\n\nzwei \r\n/ping\n\xff\x00")
    assert (done.returncode, done.stderr) == (0, b"")
    assert received == [b"eins", b"", b"zwei ", b"/ping", b"\xff\x00"]
    assert sorted(done.stdout.decode().splitlines()) == [
        "stream 12: ZWEI ",
        "stream 16: /PING",
        "stream 20: 0xff00",
        "stream 4: EINS",
        "stream 8: ",
    ]
    assert server.closed == [0]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("stream", ["stream 4: one", "stream 8: two"]),
        ("send-stream", ["receive-stream 7: one", "receive-stream 11: two"]),
        ("datagram", ["datagram: one", "datagram: two"]),
    ],
)
def test_what_a_line_goes_out_as(kind: str, expected: list[str]) -> None:
    with (
        serving_sessions(echo) as server,
        Process(*target(server, "--send-as", kind, "--linger=0")) as process,
    ):
        for line, printed in zip((b"one\n", b"two\n"), expected, strict=True):
            process.write(line)
            shown_line = process.line()
            # The first free number is another where HTTP/3 itself has taken some.
            assert shown_line.split(": ")[1] == printed.split(": ")[1]
            assert shown_line.split()[0].rstrip(":") == printed.split()[0].rstrip(":")
        process.end_input()
        assert process.wait() == 0
        assert process.errors() == ""


def test_what_the_peer_begins_is_printed_with_its_kind() -> None:
    ended: list[bytes] = []

    async def handler(session: Session) -> None:
        async with session.open_stream() as stream:
            await stream.send_all(b"both ways")
            await stream.send_eof()
            ended.append(await stream.receive_all())
        async with session.open_send_stream() as sending:
            await sending.send_all(b"one way")
        await trio.sleep(0.05)
        await session.datagrams.send(b"once")
        await trio.sleep(0.05)

    with serving_sessions(handler) as server:
        done = run(*target(server, "--linger", "inf"))
    kinds = [line.partition(": ") for line in done.stdout.decode().splitlines()]
    assert sorted((kind.split()[0], text) for kind, _, text in kinds) == [
        ("datagram", "once"),
        ("receive-stream", "one way"),
        ("stream", "both ways"),
    ]
    assert ended == [b""]
    assert done.returncode == 0


def test_a_stream_is_printed_line_by_line_as_it_comes() -> None:
    go_on = trio.Event()

    async def handler(session: Session) -> None:
        async with session.open_send_stream() as stream:
            await stream.send_all(b"first\nsecond\nhal")
            # That the first lines are printed while the stream is open.
            await session.datagrams.receive()
            await stream.send_all(b"f\n\nlast")
        await go_on.wait()

    with (
        serving_sessions(handler) as server,
        Process(*target(server, "--send-as", "datagram")) as process,
    ):
        lines = [process.line(), process.line()]
        process.write(b"go on\n")
        lines += [process.line() for _ in range(3)]
        assert [line.partition(": ")[2] for line in lines] == [
            "first",
            "second",
            "half",
            "",
            "last",
        ]
        assert len({line.partition(": ")[0] for line in lines}) == 1


def test_what_is_received_is_harmless() -> None:
    async def handler(session: Session) -> None:
        async with session.open_send_stream() as stream:
            await stream.send_all("\x1b[31mred\x9b, tab\t, \u202eleft, 👩\u200d💻\r".encode())
        async with session.open_send_stream() as stream:
            await stream.send_all(b"\x00\xff")
        await trio.sleep(0.05)

    with serving_sessions(handler) as server:
        done = run(*target(server, "--linger", "inf"))
    assert sorted(line.partition(": ")[2] for line in done.stdout.decode().splitlines()) == [
        "0x00ff",
        r"\x1b[31mred\x9b, tab" + "\t" + r", \u202eleft, 👩" + "\u200d💻" + r"\r",
    ]


def test_streams_that_are_cut_off_are_told() -> None:
    async def handler(session: Session) -> None:
        async with await session.incoming_streams.receive() as stream:
            await stream.send_all(b"whole\npartial")
            # What was sent has been printed when there is more to receive.
            if session.request.path == "/lines":
                await session.incoming_streams.receive()
            else:
                await stream.receive_exactly(4)
            stream.reset(7)
        await session.wait_closed()

    with serving_sessions(handler) as server:
        with Process(*target(server)[:-1], f"{server.url}lines") as process:
            process.write(b"x\n")
            assert process.line() == "stream 4: whole"
            process.write(b"y\n")
            assert process.line() == "stream 4: partial"
            assert process.line() == "stream 4, reset: code 7"
    with serving_sessions(handler) as server:
        with Process(*target(server, "--binary")) as process:
            process.write(b"x\n")
            assert process.line() == "whole"
            process.write(b"y\n")
            assert process.wait() == 1
            message = one_line(process.errors())
            assert message == "stream 4 was reset by the peer with code 7"


def test_a_peer_that_wants_no_more() -> None:
    async def handler(session: Session) -> None:
        async with await session.incoming_receive_streams.receive() as stream:
            stream.stop(9)
            await session.wait_closed()

    with serving_sessions(handler) as server:
        data = b"x" * 4_000_000 + b"\n"
        done = run(*target(server, "--send-as", "send-stream", "--linger=0"), data=data)
        assert (done.returncode, done.stderr) == (0, b"")
        kind, _, event = done.stdout.decode().partition(", ")
        assert (kind.split()[0], event) == ("send-stream", "stopped: code 9\n")


def test_more_lines_than_streams_at_a_time() -> None:
    lines = [f"line {number}" for number in range(400)]
    with serving_sessions(echo, max_streams=10) as server:
        done = run(*target(server, "--linger", "0.5"), data="\n".join(lines).encode())
    assert done.returncode == 0
    printed = [line.partition(": ")[2] for line in done.stdout.decode().splitlines()]
    assert sorted(printed) == sorted(lines)


@pytest.mark.parametrize("kind", ["stream", "send-stream"])
def test_all_is_delivered_without_lingering(kind: str) -> None:
    received: list[int] = []

    async def take(stream: trio_wt.ReceiveStream) -> None:
        received.append(len(await stream.receive_all()))
        await stream.aclose()

    async def handler(session: Session) -> None:
        async with trio.open_nursery() as nursery:
            incoming: trio.abc.ReceiveChannel[trio_wt.ReceiveStream] = (
                session.incoming_streams if kind == "stream" else session.incoming_receive_streams  # type: ignore[assignment]
            )
            async for stream in incoming:
                nursery.start_soon(take, stream)

    data = b"".join(b"x" * size + b"\n" for size in range(0, 100_000, 5_000))
    with serving_sessions(handler) as server:
        done = run(*target(server, "--linger=0", "--send-as", kind), data=data)
        assert (done.returncode, done.stderr) == (0, b"")
        assert server.wait_closed() == [0]
    assert sorted(received) == list(range(0, 100_000, 5_000))


def test_binary_goes_and_comes_as_it_is() -> None:
    data = bytes(range(256)) * 5000
    with serving_sessions(echo) as server:
        with Process(*target(server, "--binary")) as process:
            process.write(data[:50_000])
            assert process.popen.stdout is not None
            # It is answered while the input goes on.
            assert process.popen.stdout.read(50_000) == data[:50_000]
            process.end_input()
            assert process.wait() == 0
        done = run(*target(server, "--binary", "--linger", "0.5"), data=data)
        assert (done.returncode, done.stdout == data) == (0, True)
        done = run(*target(server, "--binary", "--send-as", "datagram"), data=b"\x00\xffsmall\n")
        assert (done.returncode, done.stdout) == (0, b"\x00\xffsmall\n")


def test_long_lines_are_cut_up() -> None:
    async def handler(session: Session) -> None:
        async with session.open_send_stream() as stream:
            await stream.send_all(b"x" * 5000 + b"\nshort\n")
        await trio.sleep(0.05)

    with serving_sessions(handler) as server:
        for limit, longest in (("1000", 2000), ("0", 5000)):
            done = run(*target(server, "--max-size", limit, "--linger", "inf"))
            texts = [line.partition(": ")[2] for line in done.stdout.decode().splitlines()]
            assert "".join(texts) == "x" * 5000 + "short"
            assert texts[-1] == "short"
            assert max(map(len, texts)) <= max(longest, 5000)
            assert (len(texts) == 2) == (limit == "0") or len(texts) > 1


def test_a_datagram_must_fit() -> None:
    with serving_sessions(stay) as server:
        data = b"fits\n" + b"x" * 70_000 + b"\n"
        done = run(*target(server, "--send-as", "datagram"), data=data)
        assert done.returncode == 1
        message = one_line(done.stderr)
        assert message.startswith("line 2 of standard input: the datagram has 70000 bytes, and at")
        assert message.endswith("; --send-as stream takes any size")
        done = run(*target(server, "--send-as", "datagram", "--binary"), data=data)
        assert one_line(done.stderr).startswith("standard input: the datagram has ")


def test_many_datagrams_are_not_dropped_on_this_side() -> None:
    received: list[bytes] = []

    async def handler(session: Session) -> None:
        async for data in session.datagrams:
            received.append(data)

    lines = [b"%d" % number for number in range(1000)]
    with serving_sessions(handler) as server:
        done = run(
            *target(server, "--send-as", "datagram", "--linger", "0.2"), data=b"\n".join(lines)
        )
        assert done.returncode == 0
    assert set(received) == set(lines)


def test_after_the_input_it_lingers() -> None:
    with (
        serving_sessions(stay) as server,
        Process(*target(server, "--linger", "0.5")) as process,
    ):
        process.write(b"x\n")
        begin = time.monotonic()
        process.end_input()
        assert process.wait() == 0
        assert time.monotonic() - begin >= 0.5
        assert server.wait_closed() == [0]


def test_a_peer_that_never_stops_does_not_hold_it() -> None:
    async def chatty(session: Session) -> None:
        async with trio.open_nursery() as nursery:

            async def datagrams() -> None:
                while True:
                    await session.datagrams.send(b"more")

            nursery.start_soon(datagrams)
            async with session.open_send_stream() as stream:
                while True:
                    await stream.send_all(b"more\n")

    with serving_sessions(chatty) as server:
        done = run(*target(server, "--linger", "0.2"))
    assert (done.returncode, done.stderr) == (0, b"")
    assert {line.partition(": ")[2] for line in done.stdout.decode().splitlines()} == {"more"}


def test_a_closed_standard_input_is_an_empty_one() -> None:
    with serving_sessions(stay) as server:
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, *target(server, "--linger=0")],
            capture_output=True,
            timeout=LIMIT,
            env=environment(),
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# ---- how it ends


@pytest.mark.parametrize("more", [(), ("--binary",)], ids=["lines", "binary"])
def test_a_clean_close_ends_it_while_the_input_is_open(more: tuple[str, ...]) -> None:
    async def handler(session: Session) -> None:
        async with session.open_send_stream() as stream:
            await stream.send_all(b"goodbye\n")

    with serving_sessions(handler) as server, Process(*target(server, *more)) as process:
        assert process.line().endswith("goodbye")
        assert process.wait() == 0
        assert process.errors() == ""


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (
            lambda session: session.close_now(42, "out of \x1b[5m order"),
            r"the peer closed the session with code 42: out of \x1b[5m order",
        ),
        (
            lambda session: session.close_now(2**32 - 1),
            "the peer closed the session with code 4294967295",
        ),
        (
            lambda session: session.connection._driver.shut(0x102, "oh"),
            "the connection was lost: its connection has ended: the peer closed it with "
            "H3_INTERNAL_ERROR",
        ),
    ],
    ids=["42", "largest", "connection"],
)
def test_any_other_end_is_a_failure(end: object, message: str) -> None:
    async def handler(session: Session) -> None:
        await session.datagrams.send(b"before")
        await session.incoming_streams.receive()
        end(session)  # type: ignore[operator]

    with serving_sessions(handler) as server:
        done = run(*target(server, "--linger", "inf"), data=b"now\n")
    assert (done.returncode, done.stdout) == (1, b"datagram: before\n")
    assert one_line(done.stderr).startswith(message)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_a_signal_says_goodbye(number: signal.Signals, code: int) -> None:
    async def handler(session: Session) -> None:
        await session.datagrams.send(b"hello")
        await session.wait_closed()

    with serving_sessions(handler) as server, Process(*target(server)) as process:
        assert process.line() == "datagram: hello"
        process.signal(number)
        assert process.wait() == code
        assert process.errors() == ""
        assert server.wait_closed() == [1]


def test_nobody_reads_the_output() -> None:
    async def chatty(session: Session) -> None:
        async with session.open_send_stream() as stream:
            while True:
                await stream.send_all(b"more\n")

    with serving_sessions(chatty) as server, Process(*target(server)) as process:
        process.line()
        assert process.popen.stdout is not None
        process.popen.stdout.close()
        assert process.wait() == 1
        assert process.errors() == ""
        assert server.wait_closed() == [1]


def test_an_interrupt_while_it_connects_is_quiet() -> None:
    with silent() as server, Process("connect", url_of(server)) as process:
        server.recv(65536)
        process.signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.errors() == ""


# ---- options


def test_the_request_is_as_told() -> None:
    with serving_sessions(stay, subprotocols=["chat.2"], origins="any") as server:
        done = run(
            *target(server, "--linger=0", "-H", "X-One: 1: and more", "-s", "chat.1")[:-1],
            *("-s", "chat.2", "--origin", "https://example.com", "--auth", "user:pass:word"),
            "--no-proxy",
            server.url + "path?query=1",
        )
    assert (done.returncode, done.stderr) == (0, b"")
    (request,) = server.requests
    assert request.headers["x-one"] == "1: and more"
    assert list(request.subprotocols) == ["chat.1", "chat.2"]
    assert request.origin == "https://example.com"
    expected = base64.b64encode(b"user:pass:word").decode()
    assert request.headers["authorization"] == f"Basic {expected}"
    assert request.target == "/path?query=1"


def test_whom_it_believes(tmp_path: Path) -> None:
    made = make_certificate()
    file = tmp_path / "cert.pem"
    file.write_bytes(made.certificate)
    with serving_sessions(stay, certificate=made) as server:
        for option in (
            ("--server-certificate-hash", made.sha256),
            ("--server-certificate-hash", made.sha256.lower().replace(":", "")),
            ("--server-certificate-hash", made.sha256_base64),
            ("--server-certificate-hash", "00" * 32, "--server-certificate-hash", made.sha256),
            ("--cafile", str(file)),
        ):
            done = run("connect", "--linger=0", *option, server.url)
            assert (done.returncode, done.stderr) == (0, b""), option
        done = run("connect", "--linger=0", "--insecure", server.url)
        assert done.returncode == 0
        assert done.stderr.startswith(b"WARNING: --insecure: ")
        for option in ((), ("--server-certificate-hash", "00" * 32)):
            done = run("connect", "--linger=0", *option, server.url)
            assert done.returncode == 1
            message = one_line(done.stderr)
            assert "certificate" in message
            assert "--server-certificate-hash SHA256" in message


def test_the_keepalive_is_as_told() -> None:
    async def handler(session: Session) -> None:
        before = session.connection.statistics().packets_received
        with trio.move_on_after(5):
            while session.connection.statistics().packets_received < before + 20:
                await trio.sleep(0.01)
            await session.datagrams.send(b"pings came")
            await trio.sleep(0.05)

    with serving_sessions(handler) as server:
        done = run(*target(server, "--ping-interval", "0.02", "--linger", "inf"))
    assert done.stdout == b"datagram: pings came\n"


# ---- failures before there is a session


@contextmanager
def silent() -> Iterator[socket.socket]:
    """A UDP socket that never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(LIMIT)
        sock.bind(("127.0.0.1", 0))
        yield sock


def url_of(sock: socket.socket) -> str:
    return f"https://127.0.0.1:{sock.getsockname()[1]}/"


def test_a_rejection_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    def on_request(request: trio_wt.Request) -> None:
        if request.path == "/private":
            request.reject(403, body="members only\x1b[2J\nsecond line")

    with serving_sessions(stay, on_request=on_request) as server:
        message = fails(capsys, *target(server)[:-1], server.url + "private")
        assert "status 403" in message
        assert r"members only\x1b[2J" in message
        assert "second line" not in message
        message = fails(capsys, *target(server, "--origin", "https://evil.example"))
        assert "this Origin is not allowed" in message
    with serving_sessions(stay) as server:
        pass
    # Nobody is there any more.
    message = fails(capsys, *target(server, "--timeout", "0.5"))
    assert message.startswith("no QUIC connection to 127.0.0.1 port ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-H", "a b: c"], "header"),
        (["-H", "WT-Protocol: no"], "belongs to the request"),
        (["-s", "ü"], "subprotocol"),
    ],
)
def test_a_request_that_makes_no_sense(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    with serving_sessions(stay) as server:
        assert expected in fails(capsys, *target(server, *arguments))


def test_a_server_that_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with silent() as server:
        message = fails(capsys, "connect", "--timeout", "0.05", url_of(server))
    assert "within 0.05 s" in message


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["http://localhost/"], 1, "must begin with ws://, wss://, ws+unix:// or https://"),
        (["localhost:443"], 1, "must begin with ws://"),
        (["https://[::1/"], 1, "IPv6"),
        (["https://localhost:99999/"], 1, "port"),
        (["https://user:secret@localhost/"], 1, "use headers"),
        (["https://localhost/#part"], 1, "fragment"),
        (["https://no.such.host.invalid/"], 1, "cannot find no.such.host.invalid: "),
        (["--send-as", "pigeon", "https://localhost/"], 2, "pigeon"),
        (["--proxy", "http://x", "https://localhost/"], 2, "WebTransport goes over UDP"),
        (["--server-certificate-hash", "abc", "https://localhost/"], 2, "'abc' is no SHA-256"),
        (["--server-certificate-hash", "00" * 32, "wss://localhost/"], 2, "for https:// only"),
        (
            ["--server-certificate-hash", "00" * 32, "--insecure", "https://localhost/"],
            2,
            "excludes --cafile and --insecure",
        ),
        (["--cafile", __file__, "https://localhost/"], 1, "no usable certificate"),
        (["--cafile", __file__, "--insecure", "https://localhost/"], 2, "exclude"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, expected: str
) -> None:
    message = fails(capsys, "connect", "--timeout", "2", *arguments, code=code)
    assert expected in message
    assert "secret" not in message
    assert ("trio-wt connect --help" in message) == (code == 2)


# ---- the parts


@given(st.binary().map(lambda data: data.replace(b"\x01", b"\n")), st.data())
def test_lines_are_the_same_however_they_come(data: bytes, draw: st.DataObject) -> None:
    lines, found, rest = Lines(), [], data
    while rest:
        size = draw.draw(st.integers(1, len(rest)))
        found += lines.feed(rest[:size])
        rest = rest[size:]
    assert found + lines.end() == data.removesuffix(b"\n").split(b"\n")[: None if data else 0]
    assert lines.end() == []


@given(st.lists(st.binary(max_size=30)), st.integers(0, 20))
def test_lines_hold_no_more_than_their_limit(chunks: list[bytes], limit: int) -> None:
    lines, found = Lines(limit), []
    for chunk in chunks:
        found += lines.feed(chunk)
        assert lines._size <= limit
    found += lines.end()
    assert b"".join(found) == b"".join(chunks).replace(b"\n", b"")


def test_a_line_that_was_cut_ends_without_an_empty_one() -> None:
    lines = Lines(3)
    assert lines.feed(b"abcd") == [b"abcd"]
    assert lines.feed(b"\n\nx") == [b""]
    assert lines.end() == [b"x"]


def test_hashes_in_both_ways() -> None:
    made = make_certificate()
    for text in (made.sha256, made.sha256.replace(":", " "), made.sha256_base64):
        assert certificate_hash(text) == bytes.fromhex(made.sha256.replace(":", ""))
    for text in ("", "00" * 31, "00" * 33, base64.b64encode(bytes(31)).decode(), "ü", "%" * 44):
        with pytest.raises(ValueError, match="is no SHA-256"):
            certificate_hash(text)


@given(st.binary())
def test_whatever_is_shown_is_one_harmless_line(data: bytes) -> None:
    text = shown(data)
    assert len(text.splitlines()) <= 1
    assert "\x1b" not in text
