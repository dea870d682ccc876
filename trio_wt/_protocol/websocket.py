"""One WebSocket connection after its handshake, as a pure object (RFC 6455).

General theory of operation:

Bytes go in with `receive_data`; `events` parses them, one step at a time and never further than its caller has
room for, so the unparsed bytes are the backlog and a compressed message is not inflated before somebody wants
it. What is to be sent collects in `outgoing`, as whole frames; `take_outgoing` hands it over.

Nothing a peer sends makes a method raise: a violation becomes a Close frame with the right code and the event
`Closed`. Methods that send do raise, `ValueError` or `LocalStateError`, for a caller's mistake, and then have
changed nothing.

Whole messages are plain `str` and `bytes`; a message that arrives in pieces (frames, or parts of a frame) comes
as `Fragment` events whose bytes are checked to be UTF-8 as they arrive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .events import TRANSITIONS, Closed, Event, Input, Pong, State, Violation
from .extensions import ExtensionCodec
from .frames import (
    CONTROL_PAYLOAD_MAX,
    FIN,
    CloseCode,
    MaskingKeys,
    Opcode,
    close_payload,
    encode_frame,
    parse_close_payload,
)
from .parser import FrameParser

__all__ = ["LocalStateError", "WebSocketProtocol"]

_TEXT_WHOLE: Final = FIN | Opcode.TEXT
_BINARY_WHOLE: Final = FIN | Opcode.BINARY
# How many pings that come at once are answered one by one; of more only the newest is.
_MAX_PONGS: Final = 16
# Frames are joined up to so many bytes: one copy more, several system calls less.
_SMALL: Final = 65536


class LocalStateError(Exception):
    """The caller asked for what the state does not allow, such as sending after Close."""


class WebSocketProtocol:
    """See the module's docstring.

    Args:
        client: whether this side is the client: clients mask what they send (RFC 6455 section 5.3).
        codecs: the extensions agreed on, in the order of the response.
        max_message_size: the largest message to receive, in bytes, after inflation; None for no limit.
        max_fragments: how many frames a message may come in.
    """

    __slots__ = (
        "_client",
        "_close",
        "_deferred",
        "_eof",
        "_flooded",
        "_keys",
        "_parser",
        "_pongs_owed",
        "_sending_opcode",
        "closed",
        "codecs",
        "outgoing",
        "outgoing_size",
        "state",
    )

    def __init__(
        self,
        *,
        client: bool,
        codecs: Sequence[ExtensionCodec] = (),
        max_message_size: int | None = 2**20,
        max_fragments: int = 65536,
    ) -> None:
        self.state: State = State.OPEN
        #: the last event, once it has been given out
        self.closed: Closed | None = None
        #: frames to send, in pieces; and how many bytes they are
        self.outgoing: list[bytes] = []
        self.outgoing_size: int = 0
        self._client = client
        self._keys = MaskingKeys() if client else None
        #: the extensions agreed on
        self.codecs: tuple[ExtensionCodec, ...] = tuple(codecs)
        self._parser = FrameParser(
            client=client,
            codecs=self.codecs,
            max_message_size=max_message_size,
            max_fragments=max_fragments,
            on_control=self._receive_control,
        )
        self._close: Closed | None = None  # what we sent, while State.CLOSING
        self._pongs_owed: list[bytes] = []
        self._flooded = False  # more pings than are answered one by one
        # The peer's Close, or its violation, found behind messages in the same bytes.
        self._deferred: bytes | Violation | None = None
        self._sending_opcode = 0
        self._eof = False

    # ---- receiving

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the peer; `events` gives what they mean."""
        self._parser.feed(data)

    def receive_eof(self) -> None:
        """No more bytes will come."""
        self._eof = True

    @property
    def unparsed(self) -> int:
        """How many received bytes `events` has not looked at yet."""
        return self._parser.unparsed

    @property
    def closed_by_us(self) -> bool:
        """Whether this side began the closing handshake."""
        return self._close is not None

    @property
    def has_incoming(self) -> bool:
        """Whether bytes wait to be parsed, or the end was found or given out."""
        return bool(self._parser.unparsed or self._deferred is not None or self.closed is not None)

    def events(self, max_messages: int, max_bytes: int) -> list[Event]:
        """Parse what has arrived.

        Args:
            max_messages: stop after so many whole messages.
            max_bytes: stop when the messages given out have so many bytes; exceeded by at most one message that
                was whole in the buffer, or 1 MiB where extensions expand.

        Returns:
            the events in order; none if more bytes are needed. The end of the connection only comes in the next
            call after it was found, so that what came before can still be answered (see `end_pending`).
        """
        found: list[Event] = []
        if self.closed is not None:
            return found
        if self._deferred is not None:
            self._apply_deferred(found)
            return found
        try:
            hungry = self._parser.parse(found, max_messages, max_bytes)
        except Violation as violation:
            self._deferred = violation
        else:
            if hungry or not self._parser.unparsed:
                # An idle connection must not hold what it once received.
                self._parser.compact()
            if hungry and self._eof and not found:
                # Section 7.1.5: no Close frame from the peer makes it 1006, whatever we sent.
                self._end(Input.EOF, Closed(CloseCode.ABNORMAL, "", remote=True), found)
        return found

    @property
    def end_pending(self) -> bool:
        """Whether the peer's Close, or its violation, was found, and the next `events` will end the connection."""
        return self._deferred is not None and self.closed is None

    def _apply_deferred(self, found: list[Event]) -> None:
        if isinstance(self._deferred, Violation):
            self._fail(self._deferred.code, self._deferred.reason, found)
        elif self._deferred is not None:
            try:
                self._receive_close(self._deferred, found)
            except Violation as violation:
                self._fail(violation.code, violation.reason, found)

    def look_ahead(self) -> list[Pong]:
        """Find the pings and pongs in the bytes that `events` had no room for.

        So a ping is answered although nobody takes the messages before it (section 5.5.2: "as soon as is
        practical").
        """
        found: list[Event] = []
        self._parser.take_controls(found)
        return [event for event in found if isinstance(event, Pong)]

    def _receive_control(self, opcode: int, payload: bytes, found: list[Event]) -> None:
        if opcode == Opcode.PING:
            if self.state is State.OPEN:  # section 5.5.1: nothing follows our Close
                self._pongs_owed.append(payload)
                self._flooded = self._flooded or len(self._pongs_owed) > _MAX_PONGS
                if self._flooded:
                    self.forget_old_pongs()
        elif opcode == Opcode.PONG:
            found.append(Pong(payload))
        else:
            self._parser.stop()  # section 5.5.1: nothing follows Close
            self._deferred = payload

    def _receive_close(self, payload: bytes, found: list[Event]) -> None:
        try:
            code, reason = parse_close_payload(payload)
        except UnicodeDecodeError:
            raise Violation(CloseCode.INVALID_DATA, "the close reason is not UTF-8") from None
        except ValueError as exc:
            raise Violation(CloseCode.PROTOCOL_ERROR, str(exc)) from None
        if self.state is State.OPEN:
            self._push(FIN | Opcode.CLOSE, payload)
        closed = self._close or Closed(code, reason, remote=True)
        self._end(Input.REMOTE_CLOSE, closed, found)

    # ---- ending

    def _end(self, what: Input, closed: Closed, found: list[Event]) -> None:
        self.state = TRANSITIONS[self.state, what]
        self.closed = closed
        self._parser.stop()
        found.append(closed)

    def _fail(self, code: int, reason: str, found: list[Event]) -> None:
        if self.state is State.OPEN:
            self._push(FIN | Opcode.CLOSE, close_payload(code, reason))
        self._end(Input.FAILURE, Closed(code, reason, remote=False), found)

    def fail(self, code: int, reason: str) -> None:
        """Fail the connection (section 7.1.7) for a reason outside the protocol, such as a timeout.

        Sends Close where that is still allowed; what still arrives is ignored. Does nothing after the end.
        """
        if self.closed is None:
            self._fail(code, reason, [])

    # ---- sending

    @property
    def has_outgoing(self) -> bool:
        """Whether `take_outgoing` would give something."""
        return bool(self.outgoing) or bool(self._pongs_owed)

    def forget_old_pongs(self) -> None:
        """The peer does not take what is sent: keep the newest pong only (section 5.5.3)."""
        del self._pongs_owed[:-1]

    def take_only_piece(self) -> bytes | None:
        """As `take_outgoing`, if all that is to be sent makes one small piece; None if not, and nothing is taken."""
        if self._pongs_owed or not 0 < self.outgoing_size <= _SMALL:
            return None
        data = self.outgoing[0] if len(self.outgoing) == 1 else b"".join(self.outgoing)
        self.outgoing.clear()
        self.outgoing_size = 0
        return data

    def take_outgoing(self, into: list[bytes | memoryview]) -> int:
        """Hand over what is to be sent now; from here on it is the caller's to send.

        Args:
            into: where to append it, in pieces.

        Returns:
            how many bytes it is.
        """
        size = self.outgoing_size
        for payload in self._pongs_owed:  # no pong waits behind queued messages
            for piece in encode_frame(FIN | Opcode.PONG, payload, self._keys):
                into.append(piece)
                size += len(piece)
        self._pongs_owed.clear()
        self._flooded = False
        into += self.outgoing
        self.outgoing.clear()
        self.outgoing_size = 0
        return size

    def _push(self, first_byte: int, payload: bytes) -> None:
        for piece in encode_frame(first_byte, payload, self._keys):
            self.outgoing.append(piece)
            self.outgoing_size += len(piece)

    def _check_open(self) -> None:
        if self.state is not State.OPEN:
            raise LocalStateError(f"nothing can be sent in state {self.state.name}")

    def send_message(self, payload: bytes, *, text: bool, compress: bool | None = None) -> None:
        """Queue a whole message.

        Args:
            payload: the message's bytes; of text its UTF-8, which is not checked here.
            text: whether it is text.
            compress: True or False to insist, None to leave it to the extension.

        Raises:
            LocalStateError: Close was sent or received, or a message is being sent in fragments.
        """
        if self.state is not State.OPEN or self._sending_opcode:
            self._check_open()
            raise LocalStateError("a message is being sent in fragments")
        first_byte = _TEXT_WHOLE if text else _BINARY_WHOLE
        if self.codecs:
            reserved, payload = self._encode(payload, first=True, final=True, compress=compress)
            first_byte |= reserved
        frame = encode_frame(first_byte, payload, self._keys)
        self.outgoing += frame
        self.outgoing_size += len(frame[0]) if len(frame) == 1 else sum(map(len, frame))

    def send_shared(
        self, payload: bytes, *, text: bool, frame: list[bytes] | None
    ) -> list[bytes] | None:
        """Queue a whole message that many connections get, past all extensions.

        An extension must let a message pass untouched (RFC 7692 section 6: RSV1 unset), so servers can share a frame.

        Args:
            payload: the message's bytes.
            text: whether it is text.
            frame: the frame that an earlier call for the same message returned, or None.

        Returns:
            the frame to share; None from a client, which masks each frame for itself.
        """
        self._check_open()
        if self._sending_opcode:
            raise LocalStateError("a message is being sent in fragments")
        if self._client or frame is None:
            frame = encode_frame(_TEXT_WHOLE if text else _BINARY_WHOLE, payload, self._keys)
        for piece in frame:
            self.outgoing.append(piece)
            self.outgoing_size += len(piece)
        return None if self._client else frame

    def send_fragment(
        self, payload: bytes, *, text: bool, final: bool, compress: bool | None = None
    ) -> None:
        """Queue a fragment; the first one after a whole message begins a new message.

        Raises:
            LocalStateError: Close was sent or received.
        """
        self._check_open()
        first = not self._sending_opcode
        opcode = Opcode.TEXT if text else Opcode.BINARY
        first_byte = opcode if first else Opcode.CONTINUATION
        reserved = 0
        if self.codecs:
            reserved, payload = self._encode(payload, first=first, final=final, compress=compress)
        self._sending_opcode = 0 if final else opcode
        self._push(first_byte | (FIN if final else 0) | (reserved if first else 0), payload)

    def _encode(
        self, payload: bytes, *, first: bool, final: bool, compress: bool | None
    ) -> tuple[int, bytes]:
        reserved = 0
        for codec in self.codecs:
            payload, applied = codec.encode(payload, first=first, final=final, wanted=compress)
            if applied:
                reserved |= codec.rsv
        return reserved, payload

    def send_ping(self, payload: bytes) -> None:
        """Queue a ping.

        Raises:
            LocalStateError: Close was sent or received.
            ValueError: the payload has more than 125 bytes (section 5.5).
        """
        self._send_control(Opcode.PING, payload)

    def send_pong(self, payload: bytes) -> None:
        """Queue a pong that answers no ping (section 5.5.3); errors as for `send_ping`."""
        self._send_control(Opcode.PONG, payload)

    def _send_control(self, opcode: int, payload: bytes) -> None:
        if len(payload) > CONTROL_PAYLOAD_MAX:
            raise ValueError(
                f"the payload of a ping or pong has at most {CONTROL_PAYLOAD_MAX} bytes"
            )
        self._check_open()
        self._push(FIN | opcode, payload)

    def send_close(self, code: int, reason: str) -> None:
        """Queue Close and begin the closing handshake (section 7.1.2).

        Args:
            code: the close code; 1005 sends a Close frame without one.
            reason: at most 123 bytes of UTF-8, without CR or LF.

        Raises:
            LocalStateError: Close was sent or received before.
            ValueError: the code must not be on the wire, or the reason does not fit.
        """
        payload = close_payload(code, reason)
        self._check_open()
        self.state = TRANSITIONS[self.state, Input.LOCAL_CLOSE]
        self._close = Closed(code, reason, remote=False)
        self._push(FIN | Opcode.CLOSE, payload)
