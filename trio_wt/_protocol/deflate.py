"""permessage-deflate (RFC 7692), with inflation that is bounded."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from .extensions import Extension, ExtensionCodec, ExtensionError, Parameters

__all__ = ["Deflate"]

_TAIL: Final = (
    b"\x00\x00\xff\xff"  # RFC 7692 section 7.2.1: cut when sending, put back when receiving
)
_NO_CONTEXT: Final = ("client_no_context_takeover", "server_no_context_takeover")
_WINDOW: Final = ("client_max_window_bits", "server_max_window_bits")


def _check_parameters(parameters: Parameters, *, bare_client_window: bool) -> dict[str, str | None]:
    """The four parameters of RFC 7692 section 7.1, each at most once and well formed."""
    known: dict[str, str | None] = {}
    for name, value in parameters:
        if name in known:
            raise ExtensionError(f"parameter {name} is repeated")
        if name in _NO_CONTEXT:
            if value is not None:
                raise ExtensionError(f"parameter {name} must not have a value")
        elif name in _WINDOW:
            bare = value is None and name == "client_max_window_bits" and bare_client_window
            # Section 7.1.2.1: decimal, no leading zero, 8 to 15.
            if not bare and value not in {str(bits) for bits in range(8, 16)}:
                raise ExtensionError(f"parameter {name} must be 8 to 15, not {value}")
        else:
            raise ExtensionError(f"parameter {name} is unknown")
        known[name] = value
    return known


class _DeflateCodec(ExtensionCodec):
    name = "permessage-deflate"
    rsv = 0x40

    def __init__(
        self,
        configuration: Deflate,
        response: Parameters,
        *,
        send_bits: int,
        send_takeover: bool,
        receive_bits: int,
        receive_takeover: bool,
    ) -> None:
        self.response = response
        self._configuration = configuration
        # zlib cannot make raw streams of window 8; one of 9 would need the peer to hold 512 bytes, so with
        # 8 agreed for our side messages go as they are (RSV1 unset is always allowed, section 6.1).
        self._send_bits = send_bits
        self._send_takeover = send_takeover
        self._receive_bits = max(receive_bits, 9)
        self._receive_takeover = receive_takeover
        self._compressor: zlib._Compress | None = None
        self._decompressor: zlib._Decompress | None = None
        self._compressing = False

    def encode(
        self, data: bytes, *, first: bool, final: bool, wanted: bool | None
    ) -> tuple[bytes, bool]:
        if first:
            if wanted is None:
                wanted = not final or len(data) >= self._configuration.threshold
            self._compressing = wanted and self._send_bits > 8
        if not self._compressing:
            return data, False
        if self._compressor is None:
            self._compressor = zlib.compressobj(
                self._configuration.level,
                zlib.DEFLATED,
                -self._send_bits,
                self._configuration.memory_level,
            )
        out = self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        if final:
            # With nothing new to flush zlib says nothing; section 7.2.3.6 has the block for "empty".
            out = out[: -len(_TAIL)] if out else b"\x00"
            if not self._send_takeover:
                self._compressor = None
        return out, True

    def decode(self, data: bytes, *, final: bool, max_length: int | None) -> bytes:
        if self._decompressor is None:
            self._decompressor = zlib.decompressobj(-self._receive_bits)
        # One byte more than allowed tells "exactly at the limit" from "beyond it".
        limit = 0 if max_length is None else max_length + 1
        try:
            out = self._inflate(data, limit)
            if final and (not limit or len(out) < limit):
                out += self._inflate(_TAIL, limit and limit - len(out))
        except zlib.error as exc:
            raise ExtensionError("invalid compressed data") from exc
        if final and not self._receive_takeover:
            self._decompressor = None
        return out

    def _inflate(self, data: bytes, limit: int) -> bytes:
        assert self._decompressor is not None
        out = self._decompressor.decompress(data, limit)
        # A block with BFINAL ends the stream, yet the message may go on in a new one (section 7.2.3.4).
        while self._decompressor.eof:
            rest = self._decompressor.unused_data
            self._decompressor = zlib.decompressobj(-self._receive_bits)
            if not rest or (limit and len(out) >= limit):
                break
            out += self._decompressor.decompress(rest, limit and limit - len(out))
        return out


@dataclass(frozen=True, slots=True)
class Deflate(Extension):
    """permessage-deflate (RFC 7692): which windows and contexts to ask for and to allow, and when to compress.

    The defaults cost about 64 KiB a connection that uses it, not zlib's 316 KiB.

    Args:
        client_max_window_bits: the largest window the client may use, 8 to 15 (bits: 2**n bytes).
        server_max_window_bits: the largest window the server may use, 8 to 15.
        client_no_context_takeover: the client forgets its window after each message.
        server_no_context_takeover: the server forgets its window after each message.
        threshold: messages shorter than this, in bytes, go uncompressed.
        level: zlib's compression level, 0 to 9, or -1 for its default.
        memory_level: zlib's memLevel, 1 to 9: memory of a compressor.

    Raises:
        ValueError: a value is out of its range.
    """

    name: ClassVar[str] = "permessage-deflate"

    client_max_window_bits: int = 12
    server_max_window_bits: int = 12
    client_no_context_takeover: bool = False
    server_no_context_takeover: bool = False
    threshold: int = 64
    level: int = -1
    memory_level: int = 5

    def __post_init__(self) -> None:
        for field, low, high in (
            ("client_max_window_bits", 8, 15),
            ("server_max_window_bits", 8, 15),
            ("level", -1, 9),
            ("memory_level", 1, 9),
        ):
            if not low <= getattr(self, field) <= high:
                raise ValueError(f"{field} must be {low} to {high}, not {getattr(self, field)}")
        if self.threshold < 0:
            raise ValueError(f"threshold must not be negative, and is {self.threshold}")

    def offer(self) -> Sequence[Parameters]:
        """Ask for what the configuration says; the bare client window says that we can reduce ours."""
        offer: list[tuple[str, str | None]] = []
        if self.server_no_context_takeover:
            offer.append(("server_no_context_takeover", None))
        if self.client_no_context_takeover:
            offer.append(("client_no_context_takeover", None))
        if self.server_max_window_bits < 15:
            offer.append(("server_max_window_bits", str(self.server_max_window_bits)))
        bits = str(self.client_max_window_bits) if self.client_max_window_bits < 15 else None
        offer.append(("client_max_window_bits", bits))
        return [offer]

    def confirm(self, response: Parameters) -> ExtensionCodec:
        """RFC 7692 sections 7.1.1.1 to 7.1.2.2: a response may not loosen what was asked for."""
        agreed = _check_parameters(response, bare_client_window=False)
        server_bits = int(agreed.get("server_max_window_bits") or 15)
        if server_bits > self.server_max_window_bits:
            raise ExtensionError("the server wants a larger window than was offered")
        if self.server_no_context_takeover and "server_no_context_takeover" not in agreed:
            raise ExtensionError("the server ignores server_no_context_takeover")
        client_bits = int(agreed.get("client_max_window_bits") or 15)
        return _DeflateCodec(
            self,
            response,
            send_bits=min(client_bits, self.client_max_window_bits),
            send_takeover=not self.client_no_context_takeover
            and "client_no_context_takeover" not in agreed,
            receive_bits=server_bits,
            receive_takeover="server_no_context_takeover" not in agreed,
        )

    def accept(self, offer: Parameters) -> ExtensionCodec | None:
        """RFC 7692 section 7: an offer that is malformed or cannot be met is declined, not an error."""
        try:
            asked = _check_parameters(offer, bare_client_window=True)
        except ExtensionError:
            return None
        response: list[tuple[str, str | None]] = []
        response += [(name, None) for name in _NO_CONTEXT if name in asked or getattr(self, name)]
        server_bits = min(
            self.server_max_window_bits, int(asked.get("server_max_window_bits") or 15)
        )
        if server_bits < 15:
            response.append(("server_max_window_bits", str(server_bits)))
        client_bits = 15
        if "client_max_window_bits" in asked:
            client_bits = min(
                self.client_max_window_bits, int(asked["client_max_window_bits"] or 15)
            )
            if client_bits < 15:
                response.append(("client_max_window_bits", str(client_bits)))
        names = {name for name, _ in response}
        return _DeflateCodec(
            self,
            response,
            send_bits=server_bits,
            send_takeover="server_no_context_takeover" not in names,
            receive_bits=client_bits,
            receive_takeover="client_no_context_takeover" not in names,
        )
