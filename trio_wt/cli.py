"""The command ``trio-wt``: connect, serve, baton, cert and demo."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]

_EXTRA = {"click", "cryptography", "prompt_toolkit"}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``trio-wt`` and exit.

    Args:
        arguments: what follows the program's name; None for the process's own.

    Raises:
        SystemExit: always. 0: all went well; 1: it failed, and one line on standard error says why; 2: the
            arguments make no sense; 130: interrupted.
    """
    try:
        from ._cli.commands import run

        code = run(sys.argv[1:] if arguments is None else arguments)
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in _EXTRA:
            raise
        sys.exit(f'trio-wt: {exc.name} is not installed: pip install "trio-wt[cli]"')
    sys.exit(code)
