"""The fan-out benchmark runs; what it measures is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
MEASURES = {"rate", "cpu", "client_load", "median", "worst", "memory"}

pytestmark = [
    pytest.mark.real_clock,
    pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc"),
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.bench.fanout", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_quick() -> None:
    """Every figure of each library that is installed; one that is not is no failure."""
    done = run("--quick", "--json", "-")
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    assert figures["failed"] == {}
    assert not {"topic", "broadcast"} & figures["absent"].keys()
    for name in {"topic", "broadcast", "websockets"} - figures["absent"].keys():
        (sample,) = figures["samples"][name]
        assert sample.keys() == MEASURES
        assert sample["rate"] > 0
        assert 0 < sample["median"] <= sample["worst"]
    assert [target["target"] for target in figures["targets"]] == [
        "messages a second",
        "worst latency",
    ]
    assert "Messages a second to all subscribers" in done.stderr


def test_a_target_without_its_rival_is_not_measured() -> None:
    done = run("--quick", "--servers", "topic", "--json", "-")
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    assert {target["verdict"] for target in figures["targets"]} == {"not measured"}


@pytest.mark.parametrize("wrong", [("--servers", "nobody"), ("--rounds", "0"), ("--size", "-1")])
def test_a_choice_that_there_is_not(wrong: tuple[str, ...]) -> None:
    done = run(*wrong)
    assert done.returncode == 2
    assert "usage" in done.stderr
