"""What the engine relies on in aioquic: the check passes for the one that is installed, and for no other."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aioquic
import pytest
from aioquic.quic.connection import QuicConnection

from tests.quic_engines import Link
from trio_wt._protocol.quic import contract
from trio_wt._protocol.quic.contract import check_aioquic


def other(self: Any, nothing: None) -> None:
    """A method with another signature, and another source."""


def with_method(name: str, method: Callable[..., Any]) -> type:
    return type("Other", (QuicConnection,), {name: method})


def without_method(name: str) -> type:
    members = {key: value for key, value in vars(QuicConnection).items() if key != name}
    for key in ("__dict__", "__weakref__"):
        del members[key]
    return type("Other", (), members)


def test_the_installed_aioquic_passes() -> None:
    check_aioquic()
    check_aioquic(QuicConnection, aioquic.__version__)


def test_the_check_is_made_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("trio_wt._protocol.quic.contract")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(aioquic, "__version__", "1.8.0")
    with pytest.raises(ImportError, match="aioquic"):
        spec.loader.exec_module(module)


@pytest.mark.parametrize("version", ["1.7.2", "1.7.3", "1.7.10", "1.7.2.post1"])
def test_versions_that_pass(version: str) -> None:
    check_aioquic(version=version)


@pytest.mark.parametrize("version", ["1.7.3rc1", "1.8.0rc1", "2.0a1", "unknown", ""])
def test_a_version_of_another_form_raises_nothing_else(version: str) -> None:
    with suppress(ImportError):
        check_aioquic(version=version)


@pytest.mark.parametrize(
    "version", ["1.7.1", "1.7", "1.6.9", "0.9.25", "1.8", "1.8.0", "1.8.0.dev1", "2.0.0", "17.2.0"]
)
def test_other_versions_fail(version: str) -> None:
    with pytest.raises(ImportError, match=f"found {version}"):
        check_aioquic(version=version)


@pytest.mark.parametrize("name", sorted(contract._SIGNATURES))
def test_another_signature_fails(name: str) -> None:
    with pytest.raises(ImportError, match=f"another {name};"):
        check_aioquic(with_method(name, other))


@pytest.mark.parametrize("name", sorted({*contract._SIGNATURES, *contract._SOURCES}))
def test_a_method_that_is_gone_fails(name: str) -> None:
    with pytest.raises(ImportError, match=f"another {name};"):
        check_aioquic(without_method(name))


@pytest.mark.parametrize("name", sorted(contract._SOURCES))
def test_another_source_fails(name: str) -> None:
    with pytest.raises(ImportError, match=f"another {name};"):
        check_aioquic(with_method(name, other))


@pytest.mark.parametrize(
    ("name", "line"), [(name, line) for name, lines in contract._SOURCES.items() for line in lines]
)
def test_each_line_counts(name: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table in which one line differs stands for a source in which it does."""
    lines = tuple(text + " # changed" if text == line else text for text in contract._SOURCES[name])
    monkeypatch.setitem(contract._SOURCES, name, lines)
    with pytest.raises(ImportError, match=f"another {name};"):
        check_aioquic()


def test_a_method_without_source_fails() -> None:
    """As in a build without its Python files, where nothing can be checked."""
    scope: dict[str, Any] = {}
    exec("def handle_timer(self, now): pass", scope)
    with pytest.raises(ImportError, match="another handle_timer;"):
        check_aioquic(with_method("handle_timer", scope["handle_timer"]))


@pytest.mark.parametrize(
    ("owner", "line"),
    [(owner, line) for owner, lines in contract._PROTECTION.items() for line in lines],
)
def test_each_line_of_protection_counts(
    owner: type, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = tuple(
        text + " # changed" if text == line else text for text in contract._PROTECTION[owner]
    )
    monkeypatch.setitem(contract._PROTECTION, owner, lines)
    with pytest.raises(ImportError, match=f"another {owner.__name__};"):
        check_aioquic()


def used_on_self(owners: set[str]) -> set[str]:
    """The names that these classes of the engine's modules read from themselves."""
    names: set[str] = set()
    for path in Path(contract.__file__).parent.glob("*.py"):
        for owner in ast.walk(ast.parse(path.read_text())):
            if isinstance(owner, ast.ClassDef) and owner.name in owners:
                for node in ast.walk(owner):
                    match node:
                        case ast.Attribute(ast.Name("self"), name, ast.Load()):
                            names.add(name)
    return names


def test_what_the_engine_uses_is_there() -> None:
    """An attribute that has another name in a later aioquic would be missed only where it is used."""
    engine = Link().client.engine
    names = used_on_self({owner.__name__ for owner in type(engine).__mro__})
    assert {"_streams", "_close_event", "_network_paths", "tls"} <= names
    assert {name for name in names if not hasattr(engine, name)} == set()
