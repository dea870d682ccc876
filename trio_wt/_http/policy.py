"""How a server decides about a request, whatever version of HTTP carried it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from .._protocol.handshake import BadRequest, Origins, origin_allowed
from .._util import safe_text
from .request import Accept, Reject, Request

__all__ = ["OnRequest", "check_origins", "decide"]

logger = logging.getLogger("trio_wt.server")

#: Sees every request before it is answered; may be async.
OnRequest: TypeAlias = Callable[[Request], Awaitable[None] | None]


def check_origins(origins: Origins) -> None:
    """Raise `ValueError` for what says nothing about Origins."""
    if isinstance(origins, str) and origins not in ("same-host", "any"):
        raise ValueError(f'origins is "same-host", "any" or a sequence of origins, not {origins!r}')


async def decide(
    request: Request,
    *,
    on_request: OnRequest | None,
    origins: Origins,
    default: Callable[[Request], Accept | Reject],
) -> Accept | Reject:
    """What becomes of a request: what the application says, or else what ``default`` does.

    Raises:
        BadRequest: its Origin is not allowed, or the application failed.
    """
    if request.asks_for_session and not origin_allowed(request.origin, request.host, origins):
        raise BadRequest(403, "this Origin is not allowed")
    if on_request is not None:
        try:
            result = on_request(request)
            if inspect.isawaitable(result):
                await result
        except Exception:
            logger.exception("on_request failed for %s", safe_text(request.raw_path))
            raise BadRequest(500, "internal server error") from None
    return request.decide(default)
