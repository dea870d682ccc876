"""The docs say what is so: their tables, commands and code blocks are compared with the package."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trio_wt
import trio_wt.testing
import trio_wt.watch
from tests.shown_code import ROOT, free_port
from trio_wt import Deflate, Settings, WebSocket
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


def run(*command: str, cwd: Path, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


# ---- the pages


def test_docs_build(tmp_path: Path) -> None:
    build = run(sys.executable, "-m", "sphinx", "-q", "-W", "-E", str(DOCS), str(tmp_path), cwd=ROOT)
    assert build.returncode == 0, build.stderr
    assert (tmp_path / "index.html").exists()


def test_the_reference_has_every_public_name() -> None:
    documented = set(re.findall(r"^\.\. auto\w+:: (\S+)$", (DOCS / "reference.rst").read_text(), re.M))
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


async def _peer_closes(a: WebSocket, b: WebSocket) -> None:
    await b.close(1001)


async def _peer_closes_otherwise(a: WebSocket, b: WebSocket) -> None:
    await b.close(1011)



async def _we_half_close(a: WebSocket, b: WebSocket) -> None:
    await a.send_close(3000)
    await a.wait_closed()


async def _we_close(a: WebSocket, b: WebSocket) -> None:
    await a.close()


ERRORS = {
    "was closed by the peer with 1000 or 1001": _peer_closes,
    "was closed by the peer with another code": _peer_closes_otherwise,
    "was lost": None,
    "had its Close sent by ``send_close()``, and answered": _we_half_close,
    "was closed by our ``close()``": _we_close,
}


async def test_the_table_of_errors() -> None:
    async def kind(call: Awaitable[object]) -> str:
        try:
            await call
        except Exception as exc:
            name = type(exc).__name__
            return f"``{name}``" if isinstance(exc, trio.ClosedResourceError) else f"`{name}`"
        return "nothing"

    rows = list_table("errors.rst", "errors-table")
    assert [row[0] for row in rows] == list(ERRORS)
    for what, *expected in rows:
        end = ERRORS[what]
        if end is not None:
            async with websocket_pair() as (a, b):
                await end(a, b)
                await trio.testing.wait_all_tasks_blocked()
                assert [await kind(a.receive()), await kind(a.send("")), await kind(a.ping())] == expected
        else:
            here, there = trio.testing.memory_stream_pair()
            async with trio.open_nursery() as nursery:

                async def accept(stream: trio.abc.Stream = there) -> None:
                    with trio.CancelScope(shield=True):
                        try:
                            async with trio_wt.wrap_server_stream(stream):
                                await stream.aclose()
                        except trio.ClosedResourceError:
                            pass

                nursery.start_soon(accept)
                async with trio_wt.wrap_client_stream(here, "ws://test/") as a:
                    await a.wait_closed()
                    assert a.close_code == 1006
                    assert [await kind(a.receive()), await kind(a.send("")), await kind(a.ping())] == expected
