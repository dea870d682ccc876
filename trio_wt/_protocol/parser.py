"""Frames into messages (RFC 6455 sections 5 and 6.2): the receiving half of a connection.

Bytes stay as they came until `FrameParser.parse` is called with room for what they mean. Whole messages in whole
frames, the common case, are parsed in one loop; everything else goes through a header step and payload steps, so a
frame that arrives in pieces is unmasked, inflated and checked piece by piece and costs linear time.
"""

from __future__ import annotations

from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from .events import Event, Fragment, Violation
from .extensions import ExtensionCodec, ExtensionError
from .frames import CONTROL_PAYLOAD_MAX, FIN, RSV, CloseCode, Opcode
from .masking import apply_mask

__all__ = ["FrameParser"]

_TEXT_WHOLE: Final = FIN | Opcode.TEXT
_BINARY_WHOLE: Final = FIN | Opcode.BINARY
_WHOLE: Final = (_TEXT_WHOLE, _BINARY_WHOLE)
# How much is given to an extension at once; deflate makes at most 1032 bytes of one.
_DECODE_PIECE: Final = 1024


class FrameParser:
    """The parser of one connection.

    Args:
        client: whether this side is the client, so that frames come unmasked.
        codecs: the extensions agreed on, in the order of the response.
        max_message_size: the largest message, in bytes after inflation; None for no limit.
        max_fragments: how many frames a message may come in, an empty last one not counted.
        on_control: gets each control frame, opcode and payload, and the list of events to add to.
    """

    __slots__ = (
        "_buffer",
        "_client",
        "_codecs",
        "_encoded",
        "_fragments",
        "_frame_final",
        "_frame_left",
        "_mask",
        "_mask_phase",
        "_max_fragments",
        "_max_message_size",
        "_message_opcode",
        "_message_size",
        "_on_control",
        "_pos",
        "_scanned",
        "_started",
        "_stopped",
        "_utf8",
    )

    def __init__(
        self,
        *,
        client: bool,
        codecs: Sequence[ExtensionCodec],
        max_message_size: int | None,
        max_fragments: int,
        on_control: Callable[[int, bytes, list[Event]], None],
    ) -> None:
        self._client = client
        self._codecs = codecs
        self._max_message_size = max_message_size
        self._max_fragments = max_fragments
        self._on_control = on_control
        # Unparsed bytes, from _pos on; _scanned is how far take_controls has looked.
        self._buffer = b""
        self._pos = 0
        self._scanned = 0
        self._stopped = False
        # The data frame whose payload is arriving: bytes left (None between frames), its mask.
        self._frame_left: int | None = None
        self._frame_final = False
        self._mask: bytes | None = None
        self._mask_phase = 0
        # The message that is arriving (0 between messages), and whether a piece of it was given out.
        self._message_opcode = 0
        self._message_size = 0
        self._fragments = 0
        self._started = False
        self._encoded: Sequence[ExtensionCodec] = ()
        self._utf8: IncrementalDecoder | None = None

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        if self._stopped:
            return
        self._scanned -= self._pos
        self._buffer = self._buffer[self._pos :] + data if self._pos < len(self._buffer) else data
        self._pos = 0

    def compact(self) -> None:
        """Let go of the bytes that were parsed; what is left is less than a frame's header or a control frame."""
        if self._pos:
            self._scanned = max(self._scanned - self._pos, 0)
            self._buffer = self._buffer[self._pos :]
            self._pos = 0

    def stop(self) -> None:
        """Drop what was not parsed, and take nothing more."""
        self._stopped = True
        self._buffer = b""
        self._pos = self._scanned = 0

    @property
    def unparsed(self) -> int:
        """How many bytes wait."""
        return len(self._buffer) - self._pos

    def parse(self, found: list[Event], max_messages: int, max_bytes: int) -> bool:
        """Parse frames, one after the other, into events.

        Args:
            found: where to put them.
            max_messages: stop after so many whole messages.
            max_bytes: stop when the messages and pieces found have so many bytes.

        Returns:
            whether it stopped because bytes are missing.

        Raises:
            Violation: the peer broke a rule.
        """
        limit = self._max_message_size
        expected_mask = 0 if self._client else 0x80
        while max_messages > 0 and max_bytes > 0:
            if self._frame_left is not None:
                size = self._parse_payload(found, max_bytes)
                if size is None:
                    return True
                max_bytes -= size
                if not self._message_opcode:
                    max_messages -= 1
                continue
            buffer, pos = self._buffer, self._pos
            if len(buffer) - pos < 2:
                return True
            first, second = buffer[pos], buffer[pos + 1]
            # The common case: a whole data frame that is a whole message, nothing reserved.
            if first in _WHOLE and second & 0x80 == expected_mask and not self._message_opcode:
                length = second & 0x7F
                start = pos + 2
                if length == 126:
                    length = int.from_bytes(buffer[start : start + 2], "big")
                    start += 2
                    minimal = length > 125
                elif length == 127:
                    length = int.from_bytes(buffer[start : start + 8], "big")
                    start += 8
                    minimal = length > 65535
                else:
                    minimal = True
                mask_at = start
                if expected_mask:
                    start += 4
                end = start + length
                if minimal and end <= len(buffer) and (limit is None or length <= limit):
                    if expected_mask:
                        payload = apply_mask(buffer, buffer[mask_at:start], start, end)
                    else:
                        payload = buffer[start:end]
                    self._pos = end
                    if first == _TEXT_WHOLE:
                        try:
                            found.append(str(payload, "utf-8"))
                        except UnicodeDecodeError:
                            raise Violation(CloseCode.INVALID_DATA, "text is not UTF-8") from None
                    else:
                        found.append(payload)
                    max_messages -= 1
                    max_bytes -= length
                    continue
            if not self._parse_header(found):
                return True
            if self._stopped:
                break
        return False

    def _parse_header(self, found: list[Event]) -> bool:
        """One frame's header, and all of a control frame; False if bytes are missing."""
        buffer, pos = self._buffer, self._pos
        first, second = buffer[pos], buffer[pos + 1]
        opcode, length = first & 0x0F, second & 0x7F
        self._check_first_byte(first)
        if (second & 0x80 != 0) is self._client:  # section 5.1
            raise Violation(CloseCode.PROTOCOL_ERROR, "a frame is masked the wrong way")
        pos += 2
        if opcode >= 8:
            if not first & FIN or length > CONTROL_PAYLOAD_MAX:  # section 5.5
                raise Violation(
                    CloseCode.PROTOCOL_ERROR, "a control frame is fragmented or too long"
                )
        elif length >= 126:
            size = 2 if length == 126 else 8
            if len(buffer) < pos + size:
                return False
            length = int.from_bytes(buffer[pos : pos + size], "big")
            if length < (126 if size == 2 else 65536) or length >> 63:  # section 5.2
                raise Violation(CloseCode.PROTOCOL_ERROR, "a frame's length is encoded wrongly")
            pos += size
        mask = None
        if not self._client:
            if len(buffer) < pos + 4:
                return False
            mask = buffer[pos : pos + 4]
            pos += 4
        if opcode >= 8:
            if len(buffer) < pos + length:
                return False
            payload = buffer[pos : pos + length]
            self._pos = pos + length
            self._on_control(opcode, apply_mask(payload, mask) if mask else payload, found)
            return True
        self._pos = pos
        self._frame_left = length
        self._frame_final = bool(first & FIN)
        self._mask = mask
        self._mask_phase = 0
        if opcode:
            self._message_opcode = opcode
            self._message_size = 0
            self._fragments = 0
            self._started = False
            self._encoded = [codec for codec in self._codecs if codec.rsv & first]
        self._fragments += 1
        # An empty last frame is how some end what they send in parts; it is not counted.
        if self._fragments > self._max_fragments and (length or not first & FIN):
            raise Violation(CloseCode.POLICY_VIOLATION, "a message has too many fragments")
        limit = self._max_message_size
        if limit is not None and not self._encoded and self._message_size + length > limit:
            self._too_big()
        return True

    def _check_first_byte(self, first: int) -> None:
        opcode, reserved = first & 0x0F, first & RSV
        if opcode in (Opcode.TEXT, Opcode.BINARY):
            if self._message_opcode:  # section 5.4
                raise Violation(CloseCode.PROTOCOL_ERROR, "a message begins inside another")
            for codec in self._codecs:
                reserved &= ~codec.rsv
        elif opcode == Opcode.CONTINUATION:
            if not self._message_opcode:
                raise Violation(CloseCode.PROTOCOL_ERROR, "there is no message to continue")
        elif opcode not in (Opcode.CLOSE, Opcode.PING, Opcode.PONG):
            raise Violation(CloseCode.PROTOCOL_ERROR, f"unknown opcode {opcode}")
        if reserved:  # section 5.2: nothing was agreed that uses these bits here
            raise Violation(CloseCode.PROTOCOL_ERROR, "a reserved bit is set")

    def _parse_payload(self, found: list[Event], max_bytes: int) -> int | None:
        """Some of the current data frame's payload: how many bytes came out, None if bytes are missing."""
        assert self._frame_left is not None
        available = min(self._frame_left, len(self._buffer) - self._pos)
        if not available and self._frame_left:
            return None
        size = min(available, _DECODE_PIECE if self._encoded else max_bytes)
        start, end = self._pos, self._pos + size
        if self._mask is not None:
            data = apply_mask(self._buffer, self._mask, start, end, self._mask_phase)
            self._mask_phase = (self._mask_phase + size) & 3
        else:
            data = self._buffer[start:end]
        self._pos = end
        self._frame_left -= size
        frame_ends = not self._frame_left
        final = frame_ends and self._frame_final
        if frame_ends:
            self._frame_left = None
        if self._encoded:
            data = self._decode(data, final)
        return self._emit(data, final, found)

    def _emit(self, data: bytes, final: bool, found: list[Event]) -> int:
        text = self._message_opcode == Opcode.TEXT
        self._message_size += len(data)
        whole = final and not self._started
        try:
            if whole:
                found.append(str(data, "utf-8") if text else data)
            else:
                if text:
                    if self._utf8 is None:
                        self._utf8 = getincrementaldecoder("utf-8")()
                    self._utf8.decode(data, final)
                if data or final:
                    found.append(Fragment(data, text, not self._started, final))
                    self._started = True
        except UnicodeDecodeError:
            raise Violation(CloseCode.INVALID_DATA, "text is not UTF-8") from None
        if final:
            self._message_opcode = 0
            self._utf8 = None
        return len(data)

    def _decode(self, data: bytes, final: bool) -> bytes:
        room = None
        if self._max_message_size is not None:
            room = self._max_message_size - self._message_size
        try:
            for codec in self._encoded[:0:-1]:
                data = codec.decode(data, final=final, max_length=None)
            data = self._encoded[0].decode(data, final=final, max_length=room)
        except ExtensionError as exc:
            raise Violation(CloseCode.INVALID_DATA, str(exc)) from None
        if room is not None and len(data) > room:
            self._too_big()
        return data

    def _too_big(self) -> NoReturn:
        raise Violation(
            CloseCode.MESSAGE_TOO_BIG, f"a message has more than {self._max_message_size} bytes"
        )

    def take_controls(self, found: list[Event]) -> None:
        """Take pings and pongs out of the bytes that `parse` had no room for.

        Anything else, a Close frame or a violation, waits for its turn.

        Args:
            found: where ``on_control`` is to put its events.
        """
        buffer = self._buffer
        at = max(self._scanned, self._pos + (self._frame_left or 0))
        kept_from = 0
        kept: list[bytes] = []
        while (end := self._skip_frame(at)) is not None:
            first = buffer[at]
            if first & 0x0F >= 8:
                if first not in (FIN | Opcode.PING, FIN | Opcode.PONG):
                    break
                length = buffer[at + 1]
                if length & 0x7F > CONTROL_PAYLOAD_MAX or (length & 0x80 != 0) is self._client:
                    break
                start = at + 2
                if self._client:
                    payload = buffer[start:end]
                else:
                    payload = apply_mask(buffer, buffer[start : start + 4], start + 4, end)
                self._on_control(first & 0x0F, payload, found)
                kept.append(buffer[kept_from:at])
                kept_from = end
            at = end
        self._scanned = at
        if kept:
            kept.append(buffer[kept_from:])
            self._buffer = b"".join(kept)
            self._scanned -= len(buffer) - len(self._buffer)

    def _skip_frame(self, at: int) -> int | None:
        """Where the frame at ``at`` ends, or None if it is not all there."""
        buffer = self._buffer
        if len(buffer) < at + 2:
            return None
        length = buffer[at + 1] & 0x7F
        start = at + 2
        if length >= 126:
            size = 2 if length == 126 else 8
            length = int.from_bytes(buffer[start : start + size], "big")
            start += size
        end = start + length + (0 if self._client else 4)
        return end if end <= len(buffer) else None
