"""Groups 1 to 10 of Autobahn's cases, against our server and our client."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

_ROOT: Final = Path(__file__).parents[2]
# How many cases each group has: a case without a verdict must not pass for a good one.
_GROUPS: Final = {1: 16, 2: 11, 3: 7, 4: 10, 5: 20, 6: 145, 7: 37, 9: 54, 10: 1}
_TIMEOUT: Final = 240  # seconds; it takes about 10


@dataclass(frozen=True)
class Run:
    """What came of a run: its exit status, what it printed, and every verdict."""

    status: int
    output: str
    verdicts: list[dict[str, Any]]


@pytest.fixture(scope="module", params=["server", "client"])
def side(request: pytest.FixtureRequest) -> str:
    """What is under test."""
    value: str = request.param
    return value


@pytest.fixture(scope="module")
def run(side: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All of the cases, in one go.

    The run has a process of its own, since importing kosoku changes `sys.path` and `binascii`.
    """
    if importlib.util.find_spec("kosoku") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("kosoku is not installed")
        pytest.skip("kosoku is not installed")
    report = tmp_path_factory.mktemp("autobahn") / f"{side}.json"
    groups = ",".join(map(str, _GROUPS))
    command = [sys.executable, "-m", "tests.autobahn", "--side", side, "--groups", groups]
    done = subprocess.run(
        [*command, "--report", str(report)],
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode in {0, 1}, output
    assert report.exists(), output
    verdicts: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))
    return Run(done.returncode, output, verdicts)


@pytest.mark.parametrize("group", _GROUPS)
def test_group(run: Run, side: str, group: int) -> None:
    """Each case of the group is OK or INFORMATIONAL, in its messages and in its close."""
    verdicts = [verdict for verdict in run.verdicts if verdict["group"] == group]
    assert {verdict["side"] for verdict in verdicts} == {side}
    assert len(verdicts) == _GROUPS[group]
    accepted = {"OK", "INFORMATIONAL"}
    failed = [
        f"{verdict['case']}: {verdict['behavior']}, close {verdict['behavior_close']}"
        for verdict in verdicts
        if not {verdict["behavior"], verdict["behavior_close"]} <= accepted
    ]
    assert not failed, run.output


def test_run_ends_well(run: Run) -> None:
    """No case failed, and the server and client under test ended by themselves, without an error."""
    assert run.status == 0, run.output
