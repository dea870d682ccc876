"""A connected pair of WebSockets in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Unpack

import trio
import trio.testing

from .._errors import HandshakeFailed
from .._headers import HeadersLike
from .._protocol.handshake import Origins
from .._websocket.client import wrap_client_stream
from .._websocket.server import OnRequest, wrap_server_stream
from .._websocket.settings import SettingsKwargs
from .._websocket.websocket import WebSocket

__all__ = ["websocket_pair"]


@asynccontextmanager
async def websocket_pair(
    url: str = "ws://example.test/",
    *,
    subprotocols: Sequence[str] = (),
    headers: HeadersLike = (),
    origin: str | None = None,
    on_request: OnRequest | None = None,
    origins: Origins = "same-host",
    server_settings: SettingsKwargs | None = None,
    **settings: Unpack[SettingsKwargs],
) -> AsyncIterator[tuple[WebSocket, WebSocket]]:
    """Two WebSockets with each other, after a real handshake, without a network.

    Nothing here takes time, so under `trio.testing.MockClock` with autojump every wait ends at once.

    Args:
        url: what the client asks for.
        subprotocols: what the client offers, and the server supports.
        headers: further request headers.
        origin: the client's Origin header.
        on_request: the server's decision, as for `serve_websocket`.
        origins: the server's policy for Origin.
        server_settings: the server's settings, where they differ from the client's.
        settings: the settings of both sides, as in `Settings`.

    Yields:
        the client's side and the server's. The client leaves its block first.

    Raises:
        HandshakeFailed: as for `open_websocket`.
    """
    client_stream, server_stream = trio.testing.memory_stream_pair()
    server_kwargs: SettingsKwargs = {**settings, **(server_settings or {})}
    opened: list[WebSocket] = []
    ready, done = trio.Event(), trio.Event()

    async def serve() -> None:
        try:
            async with wrap_server_stream(
                server_stream,
                on_request=on_request,
                subprotocols=subprotocols,
                origins=origins,
                **server_kwargs,
            ) as websocket:
                opened.append(websocket)
                ready.set()
                await done.wait()
        except HandshakeFailed:
            return  # the client tells

    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        try:
            async with wrap_client_stream(
                client_stream,
                url,
                subprotocols=subprotocols,
                headers=headers,
                origin=origin,
                **settings,
            ) as websocket:
                await ready.wait()
                yield websocket, opened[0]
        except BaseException as exc:  # noqa: ASYNC103
            # Kept out of the nursery's sight, which would wrap it.
            failure = exc
        done.set()
    if failure is not None:
        raise failure
