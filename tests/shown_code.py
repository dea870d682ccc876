"""Code that is shown to readers: loaded from its file, and checked to run to the last line."""

from __future__ import annotations

import ast
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["ROOT", "free_port", "loaded"]

ROOT = Path(__file__).parent.parent

# They compile to nothing that runs, or what they hold is looked at by itself.
_SILENT = (ast.Nonlocal, ast.Global, ast.Try)


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _statements(node: ast.AST) -> Iterator[range]:
    """The lines of each statement that must run; of a block the lines of its head."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "__name__ == '__main__'":
            continue
        yield from _statements(child)
        if not isinstance(child, ast.stmt) or isinstance(child, _SILENT):
            continue
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue  # a docstring
        if isinstance(child, ast.ImportFrom) and child.module == "__future__":
            continue
        body = getattr(child, "body", None)
        end = body[0].lineno if body else child.end_lineno or child.lineno
        yield range(child.lineno, max(end, child.lineno) + 1)


@contextmanager
def loaded(
    path: Path, *, replace: Mapping[str, str] | None = None, complete: bool = True
) -> Iterator[Any]:
    """Run a file as a module that is not the main one; every statement of it must run in the block.

    Args:
        path: the file.
        replace: what to put in place of other text before.
        complete: False lets statements be left out.

    Yields:
        the names that the file defines, as attributes.

    Raises:
        AssertionError: the block has ended, and some statement has not run.
    """
    source = path.read_text()
    for old, new in (replace or {}).items():
        assert old in source
        source = source.replace(old, new)
    name = str(path)
    ran: set[int] = set()

    def trace_line(frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            ran.add(frame.f_lineno)
        return trace_line

    def trace_call(frame: FrameType, event: Any, argument: object) -> Any:
        if frame.f_code.co_filename == name:
            return trace_line
        return before(frame, event, argument) if before is not None else None

    class Module:
        pass

    module = Module()
    module.__dict__.update(__name__=path.stem, __file__=name)
    before = sys.gettrace()
    if not complete:
        exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
        yield module
        return
    sys.settrace(trace_call)
    try:
        exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
        yield module
    finally:
        sys.settrace(before)
    text = [""] + source.splitlines()
    missed = [
        lines.start
        for lines in _statements(ast.parse(source))
        if ran.isdisjoint(lines) and not text[lines.start].endswith("# not reached")
    ]
    assert not missed, f"{path.name}: not run were lines {sorted(missed)}"
