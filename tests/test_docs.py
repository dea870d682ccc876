"""The docs say what is so: their tables, commands and code blocks are compared with the package."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import ssl
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Awaitable, Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trio_wt
import trio_wt.interop
import trio_wt.testing
import trio_wt.watch
from tests.shown_code import ROOT, free_port
from trio_wt import Deflate, Settings, WebSocket
from trio_wt._cli.certificate import make_certificate
from trio_wt._http import h1
from trio_wt._protocol import frames
from trio_wt._protocol import websocket as protocol
from trio_wt._websocket import connection
from trio_wt.testing import websocket_pair

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("**/*.rst"))
README = ROOT / "README.md"


def list_table(page: str, name: str) -> list[list[str]]:
    """The rows of a list-table, without its head."""
    text = (DOCS / page).read_text()
    body = text.partition(f":name: {name}\n")[2]
    rows: list[list[str]] = []
    for line in body.splitlines()[1:]:
        if line and not line.startswith(" "):
            break
        if match := re.match(r"   \* -(?: (.*))?$", line):
            rows.append([match[1] or ""])
        elif match := re.match(r"     -(?: (.*))?$", line):
            rows[-1].append(match[1] or "")
        elif rows and line.strip():
            rows[-1][-1] += " " + line.strip()
    return rows[1:]


def environment() -> dict[str, str]:
    """For programs of this checkout, wherever they run."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


# ---- the pages


def test_docs_build(tmp_path: Path) -> None:
    build = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "-E", str(DOCS), str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    assert (tmp_path / "index.html").exists()


def test_the_reference_has_every_public_name() -> None:
    documented = set(
        re.findall(r"^\.\. auto\w+:: (\S+)$", (DOCS / "reference.rst").read_text(), re.M)
    )
    expected = {name for name in trio_wt.__all__ if name != "__version__"}
    for module in (trio_wt.testing, trio_wt.watch):
        expected |= {module.__name__, *(f"{module.__name__}.{name}" for name in module.__all__)}
    assert documented == expected


def test_python_on_the_pages_comes_from_files_that_are_tested() -> None:
    for page in PAGES:
        text = page.read_text()
        assert not re.search(r"code(-block)?:: *py", text), f"{page.name} has code of its own"
        assert not re.search(r"::\n\n +\S", re.sub(r"^\.\. .*", "", text, flags=re.M))
        for target in re.findall(r"literalinclude:: (\S+)", text):
            file = (page.parent / target).resolve()
            assert file.parent == (DOCS / "code").resolve() and file.exists()


def test_all_code_is_shown() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for file in (DOCS / "code").glob("*.py"):
        names = re.findall(r"^(?:async def|def|class) (\w+)", file.read_text(), re.M)
        shown = f"code/{file.name}"
        whole = re.search(rf"{shown}\n +:start-at", text)
        for name in names:
            if not (whole or re.search(rf"{shown}\n +:pyobject: {name}\n", text)):
                assert name in NOT_SHOWN[file.name]


# What shown code needs around it.
NOT_SHOWN = {
    "network.py": {"echo"},
    "requests.py": {"user_of"},
    "shutdown.py": {"session"},
    "quic_servers.py": {"session"},
    "tree.py": {"ticker", "session", "main"},  # its output is shown
    "groups.py": {"listen", "talk"},
}


def test_examples_that_are_mentioned_exist() -> None:
    for page in (*PAGES, README):
        for name in re.findall(r"examples/(\w+\.py)", page.read_text()):
            assert (ROOT / "examples" / name).exists()


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README.read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target


# ---- the table of limits


def default_of(where: str) -> object:
    """What the code has for a cell of the column "Parameter"."""
    owner, _, name = where.replace("`", "").rpartition(": ")
    if not owner:
        return getattr(Settings(), name)
    return inspect.signature(getattr(trio_wt, owner)).parameters[name].default


# What the rows without a parameter are about.
FIXED = {
    "Head of a request or response": h1.MAX_HEAD,
    "Fields in it": h1.MAX_FIELDS,
    "Body of a rejection that is kept": h1.MAX_BODY,
    "Search for pings behind a full queue": connection._LOOK_AHEAD,
    "Answering messages with the peer's Close, or a violation, right behind them": (
        connection._LAST_WORDS
    ),
    "Payload of a ping, pong or Close": frames.CONTROL_PAYLOAD_MAX,
    "Pongs owed to a flood of pings, when more come at once": protocol._MAX_PONGS,
}


def written(value: object) -> set[str]:
    """The ways in which the table may give a value."""
    ways = {str(value), f"{value} s"}
    if isinstance(value, int):
        ways.add(f"{value:,}")
        if value % 1024 == 0:
            ways.add(f"{value // 1024} KiB")
        if value % 2**20 == 0:
            ways.add(f"{value // 2**20} MiB")
    return ways


def test_the_table_of_limits_has_the_defaults() -> None:
    seen = set()
    for what, parameter, default, past, source in list_table("limits.rst", "limits-table"):
        if what.startswith("**"):
            continue
        value = FIXED[what] if parameter == "fixed" else default_of(parameter)
        assert default in written(value), f"{what}: {default} is {value} in the code"
        assert past
        assert source == "choice" or re.fullmatch(r"RFC \d+, [\d.]+", source), what
        seen.add(what if parameter == "fixed" else parameter.replace("`", ""))
    assert set(FIXED) <= seen
    limits = {field.name for field in fields(Settings)} - {
        "compression",
        "extensions",
        "cancel_on_close",
    }
    assert limits <= seen
    timeouts = {
        f"{function.__name__}: {name}"
        for function in (trio_wt.open_websocket, trio_wt.serve_websocket, trio_wt.reconnect)
        for name, parameter in inspect.signature(function).parameters.items()
        if type(parameter.default) in (int, float)
    }
    assert timeouts <= seen
    assert default_of("Deflate: threshold") == Deflate().threshold


# ---- the table of endings


async def _normal(ws: WebSocket, outer: trio.CancelScope) -> None:
    pass


async def _raises(ws: WebSocket, outer: trio.CancelScope) -> None:
    raise ValueError


async def _own_scope(ws: WebSocket, outer: trio.CancelScope) -> None:
    ws.cancel_scope.cancel()
    await trio.sleep_forever()


async def _outer_scope(ws: WebSocket, outer: trio.CancelScope) -> None:
    outer.cancel()
    await trio.sleep_forever()


async def _closes(ws: WebSocket, outer: trio.CancelScope) -> None:
    await ws.close(4001)


async def _half_closes(ws: WebSocket, outer: trio.CancelScope) -> None:
    await ws.send_close(4001)
    await ws.wait_closed()


async def _abandons(ws: WebSocket, outer: trio.CancelScope) -> None:
    async with ws.send_stream(text=True) as message:
        await message.send("half of ")
        raise ValueError


ENDINGS: dict[str, list[Callable[[WebSocket, trio.CancelScope], Awaitable[None]]]] = {
    "ends normally": [_normal],
    "raises an exception": [_raises],
    "is cancelled by ``ws.cancel_scope``": [_own_scope],
    "is cancelled from outside": [_outer_scope],
    "calls ``ws.close(4001)``": [_closes, _half_closes],
    "leaves ``send_stream``": [_abandons],
    "runs on a server that shuts down": [],
    "never gets to run": [],
}


async def how_it_looks_to_the_peer(ws: WebSocket) -> tuple[str, str]:
    try:
        while True:
            await ws.receive()
    except trio_wt.ConnectionClosed as exc:
        assert exc.code == ws.close_code
        return str(exc.code), f"`{type(exc).__name__}`"


async def test_the_table_of_endings() -> None:
    rows = list_table("tutorial/endings.rst", "endings-table")
    assert len(rows) == len(ENDINGS)
    for what, code, error in rows:
        (blocks,) = (found for start, found in ENDINGS.items() if what.startswith(start))
        for block in blocks:
            here, there = trio.testing.memory_stream_pair()
            outer = trio.CancelScope()

            async def serve(
                block: Any = block, stream: Any = there, outer: trio.CancelScope = outer
            ) -> None:
                with outer:
                    try:
                        async with trio_wt.wrap_server_stream(stream) as ws:
                            await block(ws, outer)
                    except ValueError:
                        pass

            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                async with trio_wt.wrap_client_stream(here, "ws://test/") as ws:
                    assert await how_it_looks_to_the_peer(ws) == (code, error), what


@pytest.mark.real_clock
async def test_the_table_of_endings_where_there_is_a_network() -> None:
    shutdown = trio.Event()
    ended: dict[str, tuple[str, str]] = {}

    async def handler(ws: WebSocket) -> None:
        if ws.request.path == "/stays":
            await how_it_looks_to_the_peer(ws)
        else:
            ended["never gets to run"] = await how_it_looks_to_the_peer(ws)

    async with trio.open_nursery() as nursery:

        async def serve(task_status: Any) -> None:
            await trio_wt.serve_websocket(
                handler, 0, host="127.0.0.1", shutdown=shutdown, task_status=task_status
            )

        listeners = await nursery.start(serve)
        port = listeners[0].socket.getsockname()[1]
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        context = trio_wt.wrap_client_stream(stream, f"ws://127.0.0.1:{port}/gone")
        async with context, trio_wt.open_websocket(f"ws://127.0.0.1:{port}/stays") as ws:
            stream.socket.close()  # as the end of a process does
            while not ended:
                await trio.sleep(0.01)
            shutdown.set()
            ended["runs on a server that shuts down"] = await how_it_looks_to_the_peer(ws)
    rows = {row[0]: tuple(row[1:]) for row in list_table("tutorial/endings.rst", "endings-table")}
    for start, seen in ended.items():
        assert [row for what, row in rows.items() if what.startswith(start)] == [seen]


# ---- the table of errors


async def _peer_closes(ours: WebSocket, peer: WebSocket) -> None:
    await peer.close(1001)


async def _peer_fails(ours: WebSocket, peer: WebSocket) -> None:
    await peer.close(1011)


async def _is_lost(ours: WebSocket, peer: WebSocket) -> None:
    await peer._connection.transport.aclose(graceful=False)


async def _we_half_close(ours: WebSocket, peer: WebSocket) -> None:
    await ours.send_close(3000)
    await ours.wait_closed()


async def _we_close(ours: WebSocket, peer: WebSocket) -> None:
    await ours.close()


ERRORS = {
    "was closed by the peer with 1000 or 1001": _peer_closes,
    "was closed by the peer with another code": _peer_fails,
    "was lost": _is_lost,
    "had its Close sent by ``send_close()``, and answered": _we_half_close,
    "was closed by our ``close()``": _we_close,
}


async def test_the_table_of_errors() -> None:
    async def kind(call: Awaitable[object]) -> str:
        try:
            await call
        except trio_wt.TrioWTError as exc:
            return f"`{type(exc).__name__}`"
        except trio.ClosedResourceError:
            return "``ClosedResourceError``"
        return "nothing"

    rows = list_table("errors.rst", "errors-table")
    assert [row[0] for row in rows] == list(ERRORS)
    for what, *expected in rows:
        async with websocket_pair() as (ours, peer):
            await ERRORS[what](ours, peer)
            await trio.testing.wait_all_tasks_blocked()
            calls = (ours.receive(), ours.send("x"), ours.ping())
            assert [await kind(call) for call in calls] == expected, what


# ---- the README, and commands


def test_programs_of_the_readme(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = make_certificate()
    Path("cert.pem").write_bytes(made.certificate)
    Path("key.pem").write_bytes(made.key)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README.read_text(), re.M | re.S)
    assert {language for language, _ in blocks} == {"console", "python"}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, "README.md", "exec", dont_inherit=True), {"__name__": "__main__"})
    output = capsys.readouterr().out
    shown = (
        r"hello\n[0-9.]+ ms there and back\nbetter late than never\n"
        r"b'hello from HTTP/3'\nb'hello'\n"
    )
    assert re.fullmatch(shown, output), output


def test_code_in_docstrings_is_python() -> None:
    found = 0
    for name in trio_wt.__all__:
        text = inspect.getdoc(getattr(trio_wt, name)) or ""
        for block in re.findall(r"::\n\n((?:    .*\n|\n)+)", text):
            indented = textwrap.indent(textwrap.dedent(block), "    ")
            compile(f"async def shown():\n{indented}", name, "exec")
            found += 1
    assert found


def commands() -> set[str]:
    """Everything behind a prompt, in the README and on the pages."""
    text = "".join(page.read_text() for page in (*PAGES, README))
    lines = re.findall(r"^ *\$ (.*)$", text, re.M)
    return {command.strip() for line in lines for command in line.split("&&")}


def test_every_command_is_known() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for command in commands() - set(TRIO_WT):
        if match := re.fullmatch(r"pip install (?:-e )?\"(?:\.|trio-wt)\[(\w+)\]\"", command):
            assert match[1] in extras
        elif match := re.fullmatch(r"python -m (\S+)", command):
            assert importlib.util.find_spec(match[1]) is not None
        elif match := re.fullmatch(r"(?:\w+=\S+ )?python (examples/\S+\.py)( \S+)*", command):
            assert (ROOT / match[1]).exists()
        else:
            # The second is test_docs_build; the first is how this runs.
            assert command in {"pytest", "sphinx-build -W docs docs/_build/html"}
    assert set(TRIO_WT) <= commands()


# What is typed into each command, and what it then prints, in this order.
TRIO_WT = {
    "trio-wt demo": ("", "task tree"),
    "trio-wt cert": ("", "cert.pem"),
    "trio-wt connect ws://127.0.0.1:8765/": ("hello\n", "hello"),
    "trio-wt connect --cafile cert.pem wss://localhost:8765/": ("in private\n", "in private"),
    "trio-wt connect --cafile cert.pem https://localhost:8765/": ("hello\n", "stream 4: hello"),
    "trio-wt baton --cafile cert.pem --baton 252 https://localhost:8765": (
        "",
        "sent 253 on bidirectional stream 4",
    ),
    "trio-wt serve": ("", "page for browsers: http://127.0.0.1:8765/"),
}


@pytest.mark.real_clock
async def test_commands_of_trio_wt(tmp_path: Path) -> None:
    async def run_it(command: str, port: int) -> None:
        typed, expected = TRIO_WT[command]
        words = command.replace("8765", str(port)).split()[1:]
        done = await trio.run_process(
            [sys.executable, "-m", "trio_wt", *words],
            stdin=typed.encode(),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=tmp_path,
            env=environment(),
        )
        assert done.returncode == 0, done.stderr.decode()
        assert expected in done.stdout.decode()

    async def echo(ws: WebSocket) -> None:
        async for message in ws:
            await ws.send(message)

    async def echo_streams(session: trio_wt.WebTransportSession) -> None:
        if session.request.path == trio_wt.interop.BATON_PATH:
            await trio_wt.interop.serve_baton(session)
            return
        async for stream in session.incoming_streams:
            async with stream:
                await stream.send_all(await stream.receive_all())

    demo, cert, plain, private, over_http3, baton, _ = TRIO_WT
    await run_it(cert, 0)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with trio.open_nursery() as servers:
        ports = []
        for tls in (None, context):
            serve = partial(trio_wt.serve_websocket, echo, 0, host="127.0.0.1", ssl_context=tls)
            listeners = await servers.start(serve)
            ports.append(listeners[0].socket.getsockname()[1])
        certificate = trio_wt.Certificate.load(tmp_path / "cert.pem", tmp_path / "key.pem")
        tls = trio_wt.ServerTLS(certificate)
        serve_sessions = partial(
            trio_wt.serve_webtransport, echo_streams, 0, host="localhost", tls=tls
        )
        sockets = await servers.start(serve_sessions)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_it, over_http3, sockets[0].local_address[1])
            nursery.start_soon(run_it, baton, sockets[0].local_address[1])
            nursery.start_soon(run_it, demo, 0)
            nursery.start_soon(run_it, plain, ports[0])
            nursery.start_soon(run_it, private, ports[1])
        servers.cancel_scope.cancel()


def test_the_server_of_the_pages(tmp_path: Path) -> None:
    """It runs until it is stopped."""
    (command,) = (command for command in TRIO_WT if command.startswith("trio-wt serve"))
    port, (_, expected) = str(free_port()), TRIO_WT[command]
    words = [*command.split()[1:], "--port", port]
    server = subprocess.Popen(
        [sys.executable, "-m", "trio_wt", *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    with server:
        assert server.stdout is not None
        for line in server.stdout:
            if line.strip() == expected.replace("8765", port):
                break
        else:
            raise AssertionError("it does not say so")
        server.terminate()
        assert server.wait(30) == 0
