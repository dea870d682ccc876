"""Sending over a WebTransport session, and showing all that comes, for people and for scripts alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, Literal, TypeAlias, get_args

import trio

from .._errors import ConnectionClosed, StreamReset
from .._quic.receive_stream import ReceiveStream
from .._quic.send_stream import SendStream
from .._quic.streams import Stream
from .._webtransport.session import WebTransportSession
from .lines import Lines
from .text import escape, hexadecimal

__all__ = ["INTERRUPTED", "KINDS", "Kind", "Screen", "Talk", "shown"]

#: What a text can go out as: a stream whose answer is shown, a stream of one direction, a datagram.
Kind: TypeAlias = Literal["stream", "send-stream", "datagram"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

#: The code of a session that did not come to a good end, which is also what a cancelled block has.
INTERRUPTED: Final = 1
_OVER: Final = (ConnectionClosed, trio.ClosedResourceError)


class Screen(ABC):
    """Where it is shown what comes.

    Args:
        limit: the longest line to wait for the end of; None for any length.
        raw: bytes are shown as they come, and not as lines.
    """

    def __init__(self, limit: int | None, *, raw: bool = False) -> None:
        self.limit = limit
        self.raw = raw

    @abstractmethod
    async def show(self, label: str, lines: Sequence[bytes]) -> None:
        """Show what has come.

        Args:
            label: what it has come by, such as ``stream 4``.
            lines: the lines.
        """

    @abstractmethod
    async def note(self, label: str, event: str, code: int) -> None:
        """Tell what else has become of a stream: it was ``reset`` or ``stopped`` with a code."""


class Talk:
    """A session that is being talked over.

    Streams are shown line by line, as the lines come; an empty stream is an empty line.

    Args:
        session: the session.
        screen: where to show what comes.

    Attributes:
        finished: set when nothing is shown any more.
    """

    def __init__(self, session: WebTransportSession, screen: Screen) -> None:
        self.finished = trio.Event()
        self._session = session
        self._screen = screen
        self._nursery: trio.Nursery | None = None
        self._stopped = False
        # What is given up by `stop`, and what is by the session's end.
        self._scopes: set[trio.CancelScope] = set()
        self._inputs: set[trio.CancelScope] = set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Show what comes until the session has ended, or until `stop`."""
        async with trio.open_nursery() as self._nursery:
            for loop in (
                self._take_streams,
                self._take_receive_streams,
                self._take_datagrams,
                self._give_up_inputs,
            ):
                self._nursery.start_soon(self._loop, loop)
            task_status.started()
        self.finished.set()

    def stop(self) -> None:
        """Receive no more, and give up what is not sent completely; what is, will be delivered."""
        self._stopped = True
        for scope in self._scopes:
            scope.cancel()

    @contextmanager
    def _until_stopped(self) -> Iterator[trio.CancelScope]:
        with trio.CancelScope() as scope:
            if self._stopped:
                scope.cancel()
            self._scopes.add(scope)
            try:
                yield scope
            finally:
                self._scopes.discard(scope)

    # ---- sending

    async def send_datagram(self, data: bytes) -> None:
        """Send a datagram.

        Raises:
            DatagramTooLarge: it does not fit a packet.
            ConnectionClosed: the session has ended.
            trio.ClosedResourceError: it was closed on this side.
        """
        await self._session.datagrams.send(data)

    async def send_stream(
        self,
        data: bytes,
        more: Callable[[], Awaitable[bytes]] | None = None,
        *,
        answered: bool,
    ) -> None:
        """Send on a stream of its own; returns when all is handed over, or the peer wants no more.

        Args:
            data: what to send.
            more: gives more, up to an empty one.
            answered: the peer can send on the stream as well, and what it sends is shown.

        Raises:
            trio.ClosedResourceError: the session has ended.
        """
        if self._session.closed is not None or self._nursery is None:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError("the session has ended")
        sent = trio.Event()
        self._nursery.start_soon(self._exchange, data, more, answered, sent)
        await sent.wait()

    async def _exchange(
        self,
        data: bytes,
        more: Callable[[], Awaitable[bytes]] | None,
        answered: bool,
        sent: trio.Event,
    ) -> None:
        try:
            with suppress(*_OVER), self._until_stopped() as scope:
                if not answered:
                    async with self._session.open_send_stream() as stream:
                        await self._send(stream, data, more)
                    return
                async with self._session.open_stream() as both, trio.open_nursery() as nursery:
                    nursery.start_soon(self._read, both, f"stream {both.stream_id}")
                    await self._send(both, data, more)
                    # From now on only the reading is given up.
                    self._scopes.discard(scope)
                    sent.set()
        finally:
            sent.set()

    async def _send(
        self, stream: SendStream, data: bytes, more: Callable[[], Awaitable[bytes]] | None
    ) -> None:
        try:
            with suppress(*_OVER):
                await stream.send_all(data, eof=more is None)
                if more is not None:
                    while data := await self._input(more):
                        await stream.send_all(data)
                    await stream.send_eof()
        except StreamReset as exc:
            kind = "stream" if isinstance(stream, Stream) else "send-stream"
            await self._screen.note(f"{kind} {stream.stream_id}", "stopped", exc.code)

    async def _input(self, more: Callable[[], Awaitable[bytes]]) -> bytes:
        data = b""
        with trio.CancelScope() as scope:
            self._inputs.add(scope)
            data = await more()
        self._inputs.discard(scope)
        return data

    async def _give_up_inputs(self) -> None:
        await self._session.wait_closed()
        for scope in self._inputs:
            scope.cancel()

    # ---- receiving

    async def _loop(self, loop: Callable[[], Awaitable[None]]) -> None:
        with suppress(*_OVER), self._until_stopped():
            await loop()

    async def _take_streams(self) -> None:
        assert self._nursery is not None
        async for stream in self._session.incoming_streams:
            self._nursery.start_soon(self._hear_out, stream)

    async def _take_receive_streams(self) -> None:
        assert self._nursery is not None
        async for stream in self._session.incoming_receive_streams:
            self._nursery.start_soon(self._hear_out, stream)

    async def _take_datagrams(self) -> None:
        datagrams = self._session.datagrams
        async for data in datagrams:
            # All that are there at once: few may wait, and showing takes its time.
            waiting = [data]
            while datagrams.unread:
                waiting.append(datagrams.receive_nowait())
            await self._screen.show("datagram", waiting)

    async def _hear_out(self, stream: ReceiveStream) -> None:
        async with stream:
            label = f"receive-stream {stream.stream_id}"
            if isinstance(stream, Stream):
                # There is nothing to answer.
                label = f"stream {stream.stream_id}"
                with suppress(StreamReset, *_OVER):
                    await stream.send_eof()
            await self._read(stream, label)

    async def _read(self, stream: ReceiveStream, label: str) -> None:
        """Show a stream up to its end, or the session's."""
        lines, screen, empty = Lines(self._screen.limit), self._screen, True
        reset = None
        with self._until_stopped():
            try:
                with suppress(*_OVER):
                    async for data in stream:
                        complete = [data] if screen.raw else lines.feed(data)
                        empty = False
                        if complete:
                            await screen.show(label, complete)
            except StreamReset as exc:
                reset = exc
            rest = lines.end()
            if empty and reset is None and self._session.closed is None:
                rest = [b""]
            if rest:
                await screen.show(label, rest)
            if reset is not None:
                await screen.note(label, "reset", reset.code)


def shown(data: bytes, limit: int | None = None) -> str:
    """Bytes on one line: as text if they are UTF-8, and else in hexadecimal.

    Args:
        data: the bytes.
        limit: how many to show in hexadecimal at most.
    """
    try:
        return escape(data.decode())
    except UnicodeDecodeError:
        return f"0x{hexadecimal(data, limit)}"
