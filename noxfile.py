from __future__ import annotations

from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["tests", "lint", "types", "docs"]

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    session.install("-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    # .ci/run says why these are off.
    off = "ASYNC109,ASYNC113,ASYNC114,ASYNC120,ASYNC128,ASYNC910,ASYNC911,ASYNC912,ASYNC913"
    session.run("flake8-async", f"--disable={off}", *map(str, Path("trio_wt").rglob("*.py")))


@nox.session
def types(session: nox.Session) -> None:
    session.install("-e", ".[dev]")
    session.run("mypy")
    # Type checkers do not follow the hook of an editable install.
    env = {"PYTHONPATH": str(Path.cwd())}
    session.run("pyright", "--ignoreexternal", "--verifytypes", "trio_wt", env=env)


@nox.session
def docs(session: nox.Session) -> None:
    session.install("-e", ".[docs,cli]")
    session.run("sphinx-build", "-W", "-b", "html", "docs", "docs/_build/html")


@nox.session
def autobahn(session: nox.Session) -> None:
    """All of Autobahn's cases, both sides."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.autobahn", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Echo servers side by side, as ratios."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.bench", *session.posargs)
