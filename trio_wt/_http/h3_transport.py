"""A request's stream as the transport of a WebSocket (RFC 9220): one more pair of byte streams."""

from __future__ import annotations

import trio

from .._protocol.http3_codes import Http3Code
from .._transport.transport import CHUNK, Address, Pieces, Transport, take
from .request_stream import RequestStream

__all__ = ["Http3Transport"]


class Http3Transport(Transport):
    """Content is what moves; the end of the stream is the end of the bytes.

    Args:
        stream: a request that was answered with 200; owned from now on.
        peer: what `Transport.peer` is to say.
        local: what `Transport.local` is to say.
        certificate: what `Transport.certificate` is to say.
    """

    __slots__ = ("_certificate", "_stream")

    def __init__(
        self, stream: RequestStream, *, peer: Address, local: Address, certificate: bytes | None
    ) -> None:
        self._stream = stream
        self.peer = peer
        self.local = local
        self._certificate = certificate

    async def receive(self) -> bytes:
        return await self._stream.receive_some()

    def send_nowait(self, data: bytes) -> int:
        return self._stream.send_content_nowait(data)

    async def send_some(self, pieces: Pieces) -> None:
        parts: list[bytes | memoryview] = []
        size = 0
        for piece in pieces:
            part = memoryview(piece)[: CHUNK - size]
            parts.append(part)
            size += len(part)
            if size == CHUNK:
                break
        await self._stream.send_content(b"".join(parts))
        take(pieces, size)

    async def send_eof(self) -> None:
        try:
            await self._stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def aclose(self, *, graceful: bool) -> None:
        if graceful:
            await self._stream.aclose()
        else:
            # RFC 9220 section 3: as a TCP connection is aborted.
            self._stream.reject(Http3Code.REQUEST_CANCELLED)
            await trio.lowlevel.checkpoint()

    def certificate(self) -> bytes | None:
        return self._certificate
