"""What is shipped, and what is said about it."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import metadata, version
from importlib.resources import files
from pathlib import Path

import trio_wt

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_the_version_is_the_same_everywhere() -> None:
    assert version("trio-wt") == trio_wt.__version__


def test_types_are_shipped() -> None:
    assert (files("trio_wt") / "py.typed").is_file()
    # An editable install shows the source tree; what a wheel takes along is what is named here.
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"]["trio_wt"]
    assert metadata("trio-wt")["Requires-Python"] == ">=3.11"


def test_everything_public_is_exported_and_documented() -> None:
    for name in trio_wt.__all__:
        thing = getattr(trio_wt, name)
        if name != "__version__":
            assert thing.__doc__, f"{name} has no docstring"


def test_news_have_a_type_that_towncrier_knows() -> None:
    types = {entry["directory"] for entry in PYPROJECT["tool"]["towncrier"]["type"]}
    fragments = [p for p in (ROOT / "newsfragments").iterdir() if p.name != "README.md"]
    for fragment in fragments:
        # NUMBER.TYPE.md, or NUMBER.TYPE.COUNTER.md where a change has more than one
        assert re.fullmatch(rf"[^.]+\.({'|'.join(types)})(\.\d+)?\.md", fragment.name), (
            fragment.name
        )
        assert fragment.read_text("utf-8").strip()
