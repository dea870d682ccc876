"""What others have sent, fit to be shown."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["escape", "hexadecimal", "one_line"]

# What can drive a terminal or forge a line (C0 but the tab, DEL, C1, line separators), what reorders the line
# (bidirectional overrides and isolates), and what has no UTF-8 (surrogates). Joiners and the many spaces stay:
# languages and emoji need them.
_DANGEROUS: Final = re.compile(
    r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escape(text: str) -> str:
    """Text with dangerous characters written as Python would write them in a string."""
    return _DANGEROUS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def hexadecimal(data: bytes, limit: int | None = None) -> str:
    """Bytes in hexadecimal.

    Args:
        data: the bytes.
        limit: how many to show at most; what is left out is told.
    """
    if limit is None or len(data) <= limit:
        return data.hex()
    return f"{data[:limit].hex()}... and {len(data) - limit} more"


def one_line(message: str, limit: int = 1000) -> str:
    """A message for one line of standard error, whatever parts of it came from elsewhere."""
    line = escape(" ".join(message.split()))
    return line if len(line) <= limit else line[:limit] + "..."
