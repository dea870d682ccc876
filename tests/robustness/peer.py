"""A peer that speaks HTTP and frames by hand, so that it can break every rule."""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from dataclasses import dataclass

import h11
import trio

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "DEFLATE",
    "KEY",
    "PING",
    "PONG",
    "REQUEST",
    "TEXT",
    "Answer",
    "RawPeer",
    "accept_for",
    "close_frame",
    "deflated",
    "frame",
    "parse_answer",
    "request",
    "switching",
]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
DEFLATE = "permessage-deflate; client_max_window_bits"
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def request(
    *extra: str, drop: str = "", first: str = "GET / HTTP/1.1", host: str = "localhost"
) -> bytes:
    """A handshake request, less the line that begins with ``drop``, plus the extra lines."""
    lines = [
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
    ]
    kept = [line for line in lines if not drop or not line.lower().startswith(drop.lower())]
    return "\r\n".join([first, *kept, *extra, "", ""]).encode("latin-1")


REQUEST = request()


def accept_for(key: str) -> str:
    return base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()


def switching(key: str, *extra: str, accept: str | None = None) -> bytes:
    """A 101 response for a key."""
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept_for(key) if accept is None else accept}",
        *extra,
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    masked: bool = True,
    fin: bool = True,
    rsv: int = 0,
    length: int | None = None,
    length_bytes: int | None = None,
) -> bytes:
    """One frame; ``length`` lies about its length, ``length_bytes`` says how it is written.

    The masking key is zero: large payloads then cost nothing to mask.
    """
    if length is None:
        length = len(payload)
    if length_bytes is None:
        length_bytes = 0 if length < 126 else 2 if length < 65536 else 8
    bit = 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | rsv | opcode])
    if length_bytes == 0:
        head += bytes([bit | length])
    elif length_bytes == 2:
        head += struct.pack("!BH", bit | 126, length)
    else:
        head += struct.pack("!BQ", bit | 127, length)
    return head + (b"\0\0\0\0" if masked else b"") + payload


def close_frame(code: int, reason: bytes = b"", *, masked: bool = True) -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason, masked=masked)


def deflated(data: bytes) -> bytes:
    """A message's payload under permessage-deflate, with the smallest window (RFC 7692 section 7.2.1)."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -9)
    out = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return out[:-4]


@dataclass(frozen=True)
class Answer:
    """A whole HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


def parse_answer(data: bytes, *, method: str = "GET") -> Answer:
    """Exactly one complete response followed by nothing; anything else fails the test."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "localhost")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    response = client.next_event()
    assert type(response) is h11.Response, response
    headers = {name.decode(): value.decode() for name, value in response.headers}
    body = b""
    while type(event := client.next_event()) is h11.Data:
        body += event.data
    assert type(event) is h11.EndOfMessage, "the response is cut off"
    assert client.trailing_data[0] == b"", "something follows the response"
    assert headers["connection"] == ("close, upgrade" if "upgrade" in headers else "close")
    assert "content-length" in headers
    return Answer(response.status_code, headers, body)


class RawPeer:
    """One end of a stream; the other end is ours.

    Args:
        stream: where to talk.
        client: the role: clients mask.

    Attributes:
        received: what has arrived and was not parsed yet.
        broken: the connection did not end, it broke.
    """

    def __init__(self, stream: trio.abc.Stream, *, client: bool = True) -> None:
        self.stream = stream
        self.client = client
        self.received = bytearray()
        self.broken = False

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def send_frame(self, opcode: int, payload: bytes = b"", **how: int) -> None:
        await self.send(frame(opcode, payload, masked=self.client, **how))  # type: ignore[arg-type]

    async def try_send(self, data: bytes) -> None:
        """Send to a peer that may be closing."""
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError:
            self.broken = True

    async def more(self) -> bool:
        """Receive something; False at the end, however it comes."""
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            self.broken = True
            return False
        self.received += data
        return bool(data)

    async def rest(self) -> bytes:
        """All until the end."""
        while await self.more():
            pass
        data = bytes(self.received)
        self.received.clear()
        return data

    async def head(self) -> bytes:
        """Up to an empty line."""
        while (end := self.received.find(b"\r\n\r\n")) < 0:
            assert await self.more(), f"the end came after {bytes(self.received)!r}"
        head = bytes(self.received[: end + 4])
        del self.received[: end + 4]
        return head

    async def upgrade(self, *extra: str, behind: bytes = b"", host: str = "localhost") -> bytes:
        """As a client: ask for a WebSocket and get it.

        Args:
            extra: further header lines.
            behind: bytes to send in the same segment.
            host: the Host header.
        """
        await self.send(request(*extra, host=host) + behind)
        head = await self.head()
        assert head.startswith(b"HTTP/1.1 101 "), head
        assert accept_for(KEY).encode() in head
        return head

    async def accept(self, *extra: str, behind: bytes = b"") -> bytes:
        """As a server: take the request and say yes.

        Returns:
            the request's head.
        """
        head = await self.head()
        await self.send(switching(key_of(head), *extra) + behind)
        return head

    async def next_frame(self) -> tuple[int, bytes] | None:
        """First byte and payload of the next frame; None at the end."""
        while (parsed := self._parse()) is None:
            if not await self.more():
                assert not self.received, f"a frame is cut off: {bytes(self.received[:99])!r}"
                return None
        return parsed

    def _parse(self) -> tuple[int, bytes] | None:
        data = self.received
        if len(data) < 2:
            return None
        length, at = data[1] & 0x7F, 2
        if length >= 126:
            size = 2 if length == 126 else 8
            length, at = int.from_bytes(data[2 : 2 + size], "big"), 2 + size
        masked = bool(data[1] & 0x80)
        assert masked is not self.client, "masked the wrong way"
        if masked:
            key, at = bytes(data[at : at + 4]), at + 4
        if len(data) < at + length:
            return None
        payload = bytes(data[at : at + length])
        if masked:
            stream = (key * (length // 4 + 1))[:length]
            payload = (int.from_bytes(payload) ^ int.from_bytes(stream)).to_bytes(length)
        first = data[0]
        del data[: at + length]
        return first, payload

    async def until_close(self) -> tuple[int, str]:
        """Code and reason of the Close frame; frames before it are dropped."""
        while (found := await self.next_frame()) is not None:
            first, payload = found
            if first & 0x0F == CLOSE:
                assert first == 0x88
                if not payload:
                    return 1005, ""
                return int.from_bytes(payload[:2]), payload[2:].decode()
        raise AssertionError("the connection ended without a Close frame")

    async def expect_failure(self, code: int) -> None:
        """A Close frame with this code, and nothing but the end after it."""
        assert (await self.until_close())[0] == code
        assert await self.rest() == b""

    async def echo(self, text: str) -> None:
        """Send text and get it back."""
        await self.send_frame(TEXT, text.encode())
        while (found := await self.next_frame()) is not None:
            if found[0] & 0x0F < 8:
                assert found == (0x81, text.encode()), found
                return
        raise AssertionError("the connection ended before the echo")

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


def key_of(head: bytes) -> str:
    """The key in a request's head."""
    for line in head.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        if name.lower() == "sec-websocket-key":
            return value.strip()
    raise AssertionError(f"no key in {head!r}")
