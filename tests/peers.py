"""Other implementations, which the test extra installs."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest


def require(name: str) -> ModuleType:
    """Import a peer; where it is missing the test is skipped, but in CI it fails."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{name} is not installed: {exc}", allow_module_level=True)
