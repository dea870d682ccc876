"""Which pages may ask, beyond what routes say about sessions."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

from ..._protocol.handshake import origin_allowed
from .._context import Context, HTTPError, Middleware

__all__ = ["allow_origins"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def allow_origins(origins: Sequence[str | re.Pattern[str]], *, plain: bool = False) -> Middleware:
    """Refuse, with 403, pages of other Origins (RFC 6454): a list that narrows what is let in already.

    `App` and its routes have ``origins`` for the usual case, and they always hold: an Origin must be in theirs and in this. This
    is for a list that is for many routes or mounted applications at once, and for plain requests.

    A request without an Origin does not come from a page, or is a page's plain GET or HEAD to its own host, and is let in.

    Args:
        origins: strings, exactly as browsers send them, such as ``"https://example.com"`` or ``"null"``, and compiled patterns to
            match in full. An empty list lets in no page.
        plain: for plain requests, too, not only for sessions. It adds no headers for CORS.

    Raises:
        TypeError: it is not a sequence of strings and patterns.
        ValueError: a string is one that no browser sends; the message says what to write.
    """
    if isinstance(origins, str):
        raise TypeError(f"origins must be a sequence, such as [{origins!r}]")
    allowed = tuple(origins)
    for origin in allowed:
        if isinstance(origin, str):
            _check(origin)
        elif not isinstance(origin, re.Pattern) or not isinstance(origin.pattern, str):
            raise TypeError(f"an Origin is a string or a compiled pattern of one, not {origin!r}")

    @asynccontextmanager
    async def check_origin(context: Context) -> AsyncIterator[None]:
        request = context.request
        is_concerned = plain or context.kind != "http"
        if is_concerned and not origin_allowed(request.origin, request.host, allowed):
            raise HTTPError(403, "this Origin is not allowed\n")
        yield

    return check_origin


def _check(origin: str) -> None:
    """Raise `ValueError` unless a browser could send it (RFC 6454 section 6.2)."""
    if origin == "null":
        return
    try:
        parts = urlsplit(origin)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    if not parts.scheme or not host or not origin.isascii():
        raise ValueError(
            f"{origin!r} is no Origin: write scheme and host, such as 'https://example.com', other alphabets as xn--"
        )
    shown = f"[{host}]" if ":" in host else host
    if port is not None and port != _DEFAULT_PORTS.get(parts.scheme):
        shown += f":{port}"
    as_sent = f"{parts.scheme}://{shown}"
    if origin != as_sent:
        raise ValueError(f"no browser sends the Origin {origin!r}: write {as_sent!r}")
