"""Both sides of permessage-deflate, and peers made of zlib by hand."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

from trio_wt._protocol.deflate import Deflate
from trio_wt._protocol.extensions import (
    ExtensionCodec,
    agree_as_client,
    agree_as_server,
    format_extension,
)

TAIL = b"\x00\x00\xff\xff"
#: no compression limits, nothing left uncompressed for being short
OPEN = Deflate(client_max_window_bits=15, server_max_window_bits=15, threshold=0)


def negotiate(
    client: Deflate, server: Deflate, offer: str | None = None
) -> tuple[ExtensionCodec, ExtensionCodec]:
    """Both sides' codecs, by way of the headers' text."""
    if offer is None:
        offer = ", ".join(
            format_extension(client.name, parameters) for parameters in client.offer()
        )
    (at_server,) = agree_as_server(offer, [server])
    response = format_extension(at_server.name, at_server.response)
    (at_client,) = agree_as_client(response, [client])
    return at_client, at_server


def encode(codec: ExtensionCodec, *fragments: bytes, wanted: bool | None = True) -> list[bytes]:
    """A message in fragments, as it goes out; checks that it is compressed."""
    found = []
    for i, fragment in enumerate(fragments):
        out, applied = codec.encode(
            fragment, first=i == 0, final=i == len(fragments) - 1, wanted=wanted
        )
        assert applied
        found.append(out)
    return found


def decode(
    codec: ExtensionCodec, data: bytes, *, piece: int = 1024, max_length: int | None = None
) -> bytes:
    """A message as it comes in, cut into pieces."""
    out = b""
    starts = range(0, len(data), piece) if data else [0]
    for at in starts:
        room = None if max_length is None else max_length - len(out)
        out += codec.decode(data[at : at + piece], final=at + piece >= len(data), max_length=room)
        if max_length is not None and len(out) > max_length:
            break
    return out


class Inflater:
    """A peer that has its window and nothing else: zlib may not look back into what it gave out."""

    def __init__(self, bits: int, *, takeover: bool) -> None:
        self._bits = bits
        self._takeover = takeover
        self._zlib = zlib.decompressobj(-bits)

    def message(self, data: bytes) -> bytes:
        out, data = b"", data + TAIL
        while True:
            part = self._zlib.decompress(data, 32)
            out, data = out + part, self._zlib.unconsumed_tail
            if not part and not data:
                break
        if not self._takeover:
            self._zlib = zlib.decompressobj(-self._bits)
        return out


class Deflater:
    """A peer that uses all of its window."""

    def __init__(self, bits: int, *, takeover: bool) -> None:
        self._make: Callable[[], zlib._Compress] = lambda: zlib.compressobj(
            9, zlib.DEFLATED, -bits, 9
        )
        self._takeover = takeover
        self._zlib = self._make()

    def message(self, data: bytes) -> bytes:
        out = self._zlib.compress(data) + self._zlib.flush(zlib.Z_SYNC_FLUSH)
        if not self._takeover:
            self._zlib = self._make()
        return out.removesuffix(TAIL)


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def far_back(bits: int) -> bytes:
    """Data that a compressor shortens only if its window is larger than ``2**bits`` bytes."""
    block = noise(2**bits)
    return block + block
