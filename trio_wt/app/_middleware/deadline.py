"""How long a request may take, and a session last."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from ..._protocol.frames import close_payload
from ..._protocol.http3_codes import MAX_APPLICATION_CODE
from ..._transport.services import Services
from ..._websocket.websocket import WebSocket
from .._context import Context, HTTPError, Middleware, Session

__all__ = ["deadline"]


def deadline(
    seconds: float | Callable[[Context], float | None],
    *,
    websocket_code: int = 1001,
    webtransport_code: int = 0,
    reason: str = "time is up",
    status: int = 503,
) -> Middleware:
    """Bound how long a request may take, from when it comes here: for a session, how long it lasts.

    When a session's time is up, these happen in this order, and at once:

    1. Its handler is cancelled, and so is what else there is inside of this middleware. As with any cancellation, `trio.Cancelled` is
       raised where it waits, ``finally`` blocks run, and what they await is cancelled as well, unless it is shielded.
    2. The session is closed with the code and the reason. The peer need not wait for the handler's cleanup; and so a ``finally``
       block cannot send anything any more, shielded or not: that raises `trio.ClosedResourceError`, or `ConnectionClosed`.

    The session's block then ends as it always does, within its ``close_timeout``. To the middlewares outside of this one, the handler has returned: nothing is
    raised. What it raises itself while it is cancelled goes on, and is logged.

    A session that is not open yet, and a plain request whose answer is not being sent yet, are answered with ``status``, once the
    cancelled handler is done. A handler that is not at a checkpoint, or shields itself, is waited for.

    Args:
        seconds: how long; or a function of the `Context` that says so, such as until a token expires, or None for as long as it takes. What is
            0 or less is over at once.
        websocket_code: the close code for WebSockets (RFC 6455 section 7.4): 1001, going away, is no failure, and clients know to come
            again.
        webtransport_code: the code for WebTransport sessions, below 2^32; 0 is a clean end.
        reason: why, for people; at most 123 bytes of UTF-8, in one line.
        status: the answer to plain requests, 500 to 599.

    Raises:
        ValueError: a number is out of its range, or the code or the reason cannot be sent.
    """
    if not callable(seconds) and not seconds > 0:
        raise ValueError(f"seconds must be greater than 0, and is {seconds}")
    close_payload(websocket_code, reason)
    if not 0 <= webtransport_code <= MAX_APPLICATION_CODE:
        raise ValueError(
            f"webtransport_code is at least 0 and less than 2^32, not {webtransport_code}"
        )
    if not 500 <= status <= 599:
        raise ValueError(f"status must be 500 to 599, and is {status}")

    async def close(session: Session) -> None:
        # Nothing may run before the state has changed, or the handler's end would be what the peer is told.
        if isinstance(session, WebSocket):
            await session.close(websocket_code, reason)
        else:
            session.close_now(webtransport_code, reason)

    @asynccontextmanager
    async def limit(context: Context) -> AsyncIterator[None]:
        given = seconds(context) if callable(seconds) else seconds
        if given is not None and not given > 0:
            raise HTTPError(status, f"{reason}\n")
        ends_at = math.inf if given is None else trio.current_time() + given
        if ends_at == math.inf:
            yield
            return
        scope = trio.CancelScope()

        async def watch(_: trio.CancelScope) -> None:
            await trio.sleep_until(ends_at)
            if context.session is not None:
                # In this order: Cancelled is what the handler is to see, not the end of its session.
                scope.cancel()
                await close(context.session)
            elif context.status is None:
                # An answer that is on its way already is not cut off.
                scope.cancel()

        async with Services(scope, _say_nothing, _failed) as services:
            services.start_soon(watch, name="trio_wt deadline")
            yield
        if scope.cancelled_caught and context.status is None:
            raise HTTPError(status, f"{reason}\n")

    return limit


async def _say_nothing(_: BaseException | None) -> None:
    """The session has said its goodbye."""


def _failed(exc: Exception) -> None:
    # It closes a session that was checked to be closable: this is our own mistake.
    raise exc
