"""The WebTransport benchmark runs; what it measures is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {
    "round_trips",
    "requests",
    "datagrams",
    "flood",
    "upload",
    "download",
    "sessions",
}

pytestmark = [
    pytest.mark.real_clock,
    pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc"),
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.bench.webtransport", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_quick() -> None:
    """Every row, of each library that is installed; one that is not is no failure."""
    done = run("--quick", "--json", "-")
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    assert figures["failed"] == {}
    assert not {name for name in figures["absent"] if name.startswith("trio_wt")}
    ours = [row for row in figures["samples"] if row["contestant"] == "trio_wt"]
    assert {row["measure"] for row in ours} == OURS
    assert all(sample["rate"] > 0 for row in ours for sample in row["samples"])
    assert "trio_wt" in figures["memory"]
    for rival in {"pywebtransport", "aiopquic"} - figures["absent"].keys():
        rows = [row for row in figures["samples"] if row["contestant"] == rival]
        assert {row["measure"] for row in rows} == OURS
    assert "Datagrams of 64 B one way" in done.stderr


def test_a_choice_that_there_is_not() -> None:
    done = run("--contestants", "nobody")
    assert done.returncode == 2
    assert "nobody" in done.stderr
