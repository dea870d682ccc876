"""What a server asks of an application: to answer a request, whatever version of HTTP carried it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

from .._protocol.handshake import BadRequest
from .request import Accept, Reject, Request

__all__ = ["Application", "Exchange", "answer", "rejection_of"]


class Exchange(ABC):
    """One request, which is to be answered once: by `accept` or by `respond`.

    Attributes:
        request: the request; it is valid, and nothing has been decided about it, not even by its Origin.
        answered: whether it was answered.
    """

    __slots__ = ("answered", "request")

    def __init__(self, request: Request) -> None:
        self.request: Request = request
        self.answered: bool = False

    @abstractmethod
    async def accept(self, accepted: Accept) -> tuple[AbstractAsyncContextManager[object], Any]:
        """Open the session that is asked for.

        Returns:
            the block in which it lives, and the session: a WebSocket or a WebTransport session.

        Raises:
            BadRequest: it cannot be opened after all, and the request is still to be answered.
            trio.BrokenResourceError: the client is gone.
        """

    @abstractmethod
    async def respond(self, response: Reject) -> None:
        """Send a plain response. Nothing is raised for a client that does not take it.

        Cancelled before it has begun, the request is still to be answered.
        """


#: Answers requests. What it raises is a failure of its own, and is logged.
Application: TypeAlias = Callable[[Exchange], Awaitable[object]]


def rejection_of(exc: BadRequest) -> Reject:
    """The response that a bad request gets."""
    return Reject(exc.status, exc.headers, f"{exc.message}\n".encode())


async def answer(application: Application, exchange: Exchange) -> None:
    """Let an application answer; a request that proves bad on the way gets its status."""
    try:
        await application(exchange)
    except BadRequest as exc:
        if exchange.answered:
            raise
        await exchange.respond(rejection_of(exc))
