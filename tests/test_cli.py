"""`trio-wt` as a whole: its demonstration, its help, and how failures are told."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import trio_wt
from trio_wt._cli import demo
from trio_wt._cli.errors import describe
from trio_wt._cli.text import escape, hexadecimal, one_line
from trio_wt.cli import main

from .cli_tools import LIMIT, Process, environment, fails, run, write_script


def test_the_demonstration() -> None:
    done = run("demo")
    assert (done.returncode, done.stderr) == (0, b"")
    output = done.stdout.decode()
    for expected in (
        r"server +trio-wt \S+ listens on ws://127\.0\.0\.1:\d+/",
        r"handshake +HTTP 101, subprotocol demo, permessage-deflate",
        r"text +.* came back, \d+ bytes",
        r"binary +65536 bytes came back",
        r"fragments +one message in five fragments came back whole",
        r"compression +90000 bytes of text went as \d{1,4} and came back as \d{1,4}",
        r"ping +\d+ round trips: min \d+, median \d+, max \d+ µs",
        r"echo +\d+ round trips: min \d+, median \d+, max \d+ µs",
        r"broadcast +one message reached 5 clients",
        r"cancelled +a block was cancelled; the server saw: .* code 1001",
        r"task tree",
        r" +├─ nursery",
        r" +.*─ trio_wt writer",
        r"goodbye +the client left its block: closed with code 1000",
        r"webtransport +a server listens on https://127\.0\.0\.1:\d+/, with a certificate .*",
        r"session +HTTP/3 200, subprotocol demo, drafts [\d-]+",
        r"streams +100 at once, each with its answer, in \d+ ms",
        r"large stream +1048576 bytes there and back in \d+ ms",
        r"datagrams +\d+ of 20 came back; one has \d+ bytes at most",
        r"cancelled +a stream's block was cancelled; the server saw: .* code 1",
        r"connection +2 sessions, a WebSocket and GET /health shared it",
        r"goodbye +the client left the session's block; the server saw: .* with code 0",
        r"server +shut down; everything was as it must be",
    ):
        assert re.search(f"^{expected}$", output, re.MULTILINE), f"{expected} not in\n{output}"


def test_the_demonstration_does_without_proxies_and_unicode() -> None:
    done = run("demo", env=environment(http_proxy="http://127.0.0.1:1", PYTHONIOENCODING="ascii"))
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_demonstration_that_goes_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody(*args: object) -> int:
        await trio.lowlevel.checkpoint()
        return 0

    async def not_even(*args: object) -> None:
        await trio.sleep_forever()

    def failure() -> str:
        with pytest.raises(SystemExit) as exit_:
            main(["demo"])
        assert exit_.value.code == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    monkeypatch.setattr(demo, "_cancellation", not_even)
    monkeypatch.setattr(demo, "_LIMIT", 0.5)
    assert failure() == "trio-wt: the demonstration took more than 0.5 seconds\n"
    monkeypatch.setattr(demo, "broadcast", nobody)
    assert "0.5 seconds" in failure()  # the clients wait for what was not sent
    monkeypatch.setattr(demo, "_TEXT", b"bytes that come back as bytes")
    monkeypatch.setattr(demo, "_check", lambda right, otherwise: demo._tell("x", otherwise))
    assert "internal error, AttributeError" in failure()


def test_both_ways_to_start_it() -> None:
    expected = f"trio-wt {trio_wt.__version__} (Python "
    assert run("--version").stdout.decode().startswith(expected)
    code = "import sys; sys.argv[0] = 'trio-wt'; from trio_wt.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], capture_output=True, timeout=LIMIT, check=True
    )
    assert done.stdout.decode().startswith(expected)


@pytest.mark.parametrize("command", [[], ["connect"], ["serve"], ["baton"], ["cert"], ["demo"]])
def test_help(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    for option in ("-h", "--help"):
        with pytest.raises(SystemExit) as exit_:
            main([*command, option])
        assert exit_.value.code == 0
        output = capsys.readouterr()
        assert output.out.startswith(f"Usage: {' '.join(['trio-wt', *command])} ")
        assert output.err == ""


def test_no_command_is_answered_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("Usage: trio-wt ")


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["--nonsense"], ["demo", "more"], ["demo", "--nonsense"]]
)
def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    message = fails(capsys, *arguments, code=2)
    assert message.endswith("--help)")


@pytest.mark.parametrize(
    ("missing", "arguments"), [("click", ["--version"]), ("cryptography", ["cert"])]
)
def test_a_missing_extra_is_told(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    arguments: list[str],
) -> None:
    for name in [name for name in sys.modules if name.startswith("trio_wt._cli")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    # A string as the code is what Python prints before it exits with 1.
    assert re.fullmatch(
        rf'trio-wt: {missing}[\w.]* is not installed: pip install "trio-wt\[cli\]"',
        str(exit_.value.code),
    )


def test_any_other_missing_module_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("trio_wt._cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "trio_wt._cli.commands", None)
    with pytest.raises(ModuleNotFoundError):
        main(["--version"])


def test_an_error_that_nobody_thought_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("what\nis this")

    monkeypatch.setattr(demo, "_show", broken)
    message = fails(capsys, "demo")
    assert message == (
        r"internal error, KeyError: 'what\nis this' (trio-wt --traceback shows where)"
    )
    with pytest.raises(SystemExit) as exit_:
        main(["--traceback", "demo"])
    assert exit_.value.code == 1
    assert "in broken" in capsys.readouterr().err


def test_an_interrupt_is_quiet(tmp_path: Path) -> None:
    command = write_script(
        tmp_path / "interrupted.py",
        "import trio\n"
        "from trio_wt._cli import demo\n"
        "from trio_wt.cli import main\n"
        "async def wait():\n"
        "    print('now', flush=True)\n"
        "    await trio.sleep_forever()\n"
        "demo._show = wait\n"
        "main(['demo'])\n",
    )
    with Process(command=command) as process:
        assert process.line() == "now"
        process.signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.errors() == ""


def test_output_that_nobody_reads() -> None:
    with Process("demo") as process:
        assert process.popen.stdout is not None
        process.popen.stdout.close()
        assert process.wait() == 1
        assert process.errors() == ""


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (FileNotFoundError(2, "No such file", "/a/file"), "/a/file: No such file"),
        (OSError("no number"), "no number"),
        (ValueError(), "ValueError"),
        (ValueError("two\nlines\x1b[31m"), r"two lines\x1b[31m"),
        (trio_wt.HandshakeFailed("it failed"), "it failed"),
        (
            trio_wt.Rejected(401, trio_wt.Headers(), b""),
            "the server answered with HTTP status 401; the server wants credentials, "
            "see the `auth` parameter",
        ),
        (
            trio_wt.InternalError("a bug"),
            "internal error, InternalError: a bug (trio-wt --traceback shows where)",
        ),
        (ValueError("x" * 2000), "x" * 1000 + "..."),
    ],
    ids=repr,
)
def test_descriptions(exc: Exception, expected: str) -> None:
    assert describe(exc) == expected


@given(st.text())
def test_nothing_dangerous_is_shown(text: str) -> None:
    shown = escape(text)
    shown.encode()
    assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]", shown)
    assert len(shown.splitlines()) <= 1
    assert escape(shown) == shown
    assert len(one_line(text).splitlines()) <= 1


@given(st.binary(max_size=100), st.integers(0, 100))
def test_hexadecimal_digits(data: bytes, limit: int) -> None:
    assert bytes.fromhex(hexadecimal(data)) == data
    shown, _, rest = hexadecimal(data, limit).partition("...")
    assert bytes.fromhex(shown) == data[:limit]
    assert rest == (f" and {len(data) - limit} more" if len(data) > limit else "")
