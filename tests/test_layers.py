"""The house: imports go down only, the protocols are pure, files stay short."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "trio_wt"

# From the top floor to the ground; a room may import from those below it and from itself.
FLOORS = [
    ["__main__"],
    ["cli"],
    ["_cli"],
    ["interop"],
    ["watch"],
    ["app"],
    ["testing"],
    ["_webtransport"],
    ["_websocket"],
    ["_http"],
    ["_quic"],
    ["_transport"],
    ["_protocol"],
    ["_errors"],
    ["_util"],
    ["_headers"],
    ["_version"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
IMPURE = {"trio", "socket", "time", "ssl", "select", "selectors", "threading", "asyncio"}
MAX_LINES = 600


def modules() -> dict[str, str]:
    """Every module of the package by its dotted name below it, and its source."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path.read_text("utf-8")
    return found


def imports(name: str, source: str, *, is_package: bool = False) -> set[str]:
    """What a module imports, wherever in it: other packages by name, our own modules as ``.room.module``."""
    found = set()
    package = name.split(".") if is_package else name.split(".")[:-1]
    if name == "__init__":
        package = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.add(re.sub(r"^trio_wt(?=\.|$)", "", alias.name) or ".")
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                target = [*base, *(node.module or "").split(".")] if node.module else base
                if target:
                    found.add("." + ".".join(target))
                else:
                    found.update("." + alias.name for alias in node.names)
            elif node.module is not None:
                found.add(re.sub(r"^trio_wt(?=\.|$)", "", node.module) or ".")
    return found


def private_names(source: str) -> set[str]:
    """Names with one underscore, taken from anything but `self` and `cls`, or imported from aioquic."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}):
                found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "aioquic":
            found.update(alias.name for alias in node.names)
    return {name for name in found if re.match(r"_(?!_)", name)}


def violations(name: str, source: str, *, is_package: bool = False) -> list[str]:
    """What a module does that its room must not."""
    wrong = []
    room = name.split(".")[0]
    for imported in sorted(imports(name, source, is_package=is_package)):
        if imported.startswith("."):
            other = imported[1:].split(".")[0]
            if room == "__init__":
                continue  # the front door shows what is on every floor
            if not other or (other != room and FLOOR[other] <= FLOOR[room]):
                wrong.append(f"{name} imports {imported}, which is not below it")
        elif room == "_protocol" and imported.split(".")[0].lstrip("_") in IMPURE:
            wrong.append(f"{name} imports {imported}, but protocols are pure")
    if len(source.splitlines()) > MAX_LINES:
        wrong.append(f"{name} has more than {MAX_LINES} lines")
    is_engine = name.split(".")[:2] == ["_protocol", "quic"]
    if not is_engine and re.search(r"\bQuicConnection\b", source):
        wrong.append(f"{name} knows aioquic's QuicConnection; only _protocol.quic may")
    knows_aioquic = any(i.split(".")[0] == "aioquic" for i in imports(name, source))
    if not is_engine and knows_aioquic and (private := private_names(source)):
        wrong.append(f"{name} knows aioquic and uses {sorted(private)}; only _protocol.quic may")
    return wrong


def test_the_house_stands() -> None:
    found = modules()
    assert {"_protocol.websocket", "_websocket.connection", "__init__"} <= set(found)
    unknown = {name.split(".")[0] for name in found} - set(FLOOR) - {"__init__"}
    assert not unknown, f"rooms that have no floor: {unknown}"
    wrong = []
    for name, source in found.items():
        is_package = (PACKAGE / Path(*name.split(".")) / "__init__.py").exists()
        wrong += violations(name, source, is_package=is_package)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("_protocol.x", "from .._transport import tcp"),
        ("_protocol.x", "import trio"),
        ("_protocol.x", "import time as t"),
        ("_protocol.x", "def f():\n    from socket import socket"),
        ("_protocol.x", "if TYPE_CHECKING:\n    import trio.abc"),
        ("_protocol.x", "import trio_wt._websocket.client"),
        ("_protocol.x", "import trio_wt"),
        ("_transport.x", "from trio_wt._http.request import Request"),
        ("_transport.x", "from .. import _websocket"),
        ("_http.x", "from .._websocket.websocket import WebSocket"),
        ("_websocket.x", "from .._webtransport import session"),
        ("_errors", "from ._protocol import frames"),
        ("_util", "from ._errors import TrioWTError"),
        ("_protocol.x", "import _socket"),
        ("_websocket.x", "QuicConnection"),
        ("_quic.x", "from aioquic.h3.connection import H3Connection\ndef f(h3): h3._stream = {}"),
        ("_protocol.x", "from aioquic.buffer import _private"),
        ("_websocket.x", "\n" * (MAX_LINES + 1)),
    ],
)
def test_what_must_not_be_is_found(name: str, source: str) -> None:
    assert violations(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("_protocol.x", "from .frames import Opcode\nimport struct"),
        ("_transport.x", "from .._protocol.frames import Opcode\nimport trio, socket"),
        ("_websocket.x", "from .._http.request import Request\nfrom . import client"),
        ("__init__", "from ._websocket.client import open_websocket"),
        ("_protocol.quic", "from aioquic.quic.connection import QuicConnection\nQuicConnection._x"),
        (
            "_protocol.quic.a",
            "from aioquic.quic.connection import QuicConnection\nQuicConnection._x",
        ),
        ("_protocol.x", "from aioquic.buffer import Buffer\nclass A:\n    def f(self): self._b"),
    ],
)
def test_what_may_be_is_let_through(name: str, source: str) -> None:
    assert not violations(name, source)
