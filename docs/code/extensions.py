"""Compression, and an extension of our own."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import trio_wt


async def compress_some(ws: trio_wt.WebSocket, photo: bytes, table: str) -> None:
    await ws.send(photo, compress=False)  # a JPEG is as small as it gets
    await ws.send(table)


def small_memory() -> trio_wt.Deflate:
    return trio_wt.Deflate(
        server_no_context_takeover=True,
        client_no_context_takeover=True,
        threshold=256,
    )


class Checksum(trio_wt.Extension):
    """Four bytes of CRC-32 behind every message."""

    name = "x-crc32"

    def offer(self) -> Sequence[Sequence[tuple[str, str | None]]]:
        return [[]]  # one offer, without parameters

    def confirm(self, response: Sequence[tuple[str, str | None]]) -> ChecksumCodec:
        if response:
            raise trio_wt.ExtensionError("x-crc32 has no parameters")
        return ChecksumCodec()

    def accept(self, offer: Sequence[tuple[str, str | None]]) -> ChecksumCodec | None:
        return None if offer else ChecksumCodec()


class ChecksumCodec(trio_wt.ExtensionCodec):
    name = "x-crc32"
    rsv = 0x20  # RSV2 says that a message has a checksum
    response = ()

    def __init__(self) -> None:
        self.sent = self.received = 0
        self.held = b""  # what may turn out to be the checksum

    def encode(
        self, data: bytes, *, first: bool, final: bool, wanted: bool | None
    ) -> tuple[bytes, bool]:
        self.sent = zlib.crc32(data, 0 if first else self.sent)
        return data + (self.sent.to_bytes(4) if final else b""), True

    def decode(self, data: bytes, *, final: bool, max_length: int | None) -> bytes:
        data = self.held + data
        data, self.held = data[:-4], data[-4:]
        self.received = zlib.crc32(data, self.received)
        if final:
            if self.held != self.received.to_bytes(4):
                raise trio_wt.ExtensionError("a message is damaged")
            self.held, self.received = b"", 0
        return data
