"""Other QUIC implementations behind one face: a server that does what streams tell it, and a client that is told what to do.

A server sends a bidirectional stream back at its end, and answers a unidirectional one, at its end, on one of its own. A stream
whose content is ``reset 7`` is reset with code 7; on ``stop 7`` the sender is asked to stop with code 7, before its end;
``close 7 why`` closes the connection with that code and reason. Datagrams are sent back.

The peers are all driven through the interface that aioquic has given its asyncio parts, and that qh3 and aiopquic have taken
over.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import trio

from tests.interop.asyncio_thread import asyncio_server, in_asyncio
from tests.peers import require
from trio_wt import Connection, Stream, StreamReset

ALPN = "interop"
LIMIT = 8 * 2**20


@dataclass
class Seen:
    """What a peer has noticed, by stream."""

    data: dict[int, bytearray] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    resets: dict[int, int] = field(default_factory=dict)
    stops: dict[int, int] = field(default_factory=dict)
    datagrams: list[bytes] = field(default_factory=list)
    closed: tuple[int, str] | None = None


def command(data: bytes) -> tuple[str, int, str] | None:
    """The order that a stream's content is: what, the code, and a reason."""
    found = re.match(rb"(reset|stop|close) (\d+)(?: ([ -~]*))?", data)
    if found is None:
        return None
    return found[1].decode(), int(found[2]), (found[3] or b"").decode()


class Peer:
    """An implementation with aioquic's asyncio interface.

    Args:
        name: the package.
        datagrams: whether it has datagrams.
    """

    def __init__(self, name: str, *, datagrams: bool = True) -> None:
        self.name = name
        self.datagrams = datagrams

    def __repr__(self) -> str:
        return self.name

    def _modules(self) -> tuple[Any, Any, Any]:
        require(self.name)
        return (
            import_module(f"{self.name}.asyncio"),
            import_module(f"{self.name}.quic.configuration"),
            import_module(f"{self.name}.quic.events"),
        )

    def _configuration(self, *, client: bool, **options: Any) -> Any:
        configuration = self._modules()[1].QuicConfiguration
        return configuration(
            alpn_protocols=[ALPN], is_client=client, max_datagram_frame_size=65535, **options
        )

    def _protocol(self, seen: Seen, *, serve: bool, changed: Callable[[], None]) -> Any:
        asyncio_part, _, events = self._modules()

        class Protocol(asyncio_part.QuicConnectionProtocol):  # type: ignore[misc, name-defined]
            def quic_event_received(self, event: Any) -> None:
                if isinstance(event, events.StreamDataReceived):
                    seen.data.setdefault(event.stream_id, bytearray()).extend(bytes(event.data))
                    if event.end_stream:
                        seen.ended.add(event.stream_id)
                    if serve:
                        self._serve(event.stream_id, event.end_stream)
                elif isinstance(event, events.StreamReset):
                    seen.resets[event.stream_id] = event.error_code
                elif isinstance(event, events.StopSendingReceived):
                    seen.stops[event.stream_id] = event.error_code
                elif isinstance(event, events.DatagramFrameReceived):
                    seen.datagrams.append(bytes(event.data))
                    if serve:
                        self._quic.send_datagram_frame(bytes(event.data))
                        self._flush()
                elif isinstance(event, events.ConnectionTerminated):
                    seen.closed = (event.error_code, event.reason_phrase)
                changed()

            def _flush(self) -> None:
                if hasattr(self, "transmit"):
                    self.transmit()

            def _serve(self, stream_id: int, ended: bool) -> None:
                data = bytes(seen.data[stream_id])
                order = command(data)
                if order is not None and (ended or order[0] == "stop"):
                    what, code, reason = order
                    if what == "reset":
                        self._quic.reset_stream(stream_id, code)
                    elif what == "stop":
                        self._quic.stop_stream(stream_id, code)
                    else:
                        self._quic.close(error_code=code, reason_phrase=reason)
                elif ended and stream_id & 2:
                    answer = self._quic.get_next_available_stream_id(is_unidirectional=True)
                    self._quic.send_stream_data(answer, data, True)
                elif ended:
                    self._quic.send_stream_data(stream_id, data, True)
                self._flush()

        return Protocol

    @asynccontextmanager
    async def server(self, certfile: str, keyfile: str) -> AsyncIterator[tuple[int, Seen]]:
        """A server on loopback: its port, and what it notices of its connection."""
        asyncio_part = self._modules()[0]
        seen = Seen()

        async def start() -> tuple[int, Callable[[], Awaitable[object]]]:
            configuration = self._configuration(client=False, **self._identity(certfile, keyfile))
            if self.name != "aiopquic":
                configuration.load_cert_chain(certfile, keyfile)
            port = free_port()
            server = await asyncio_part.serve(
                "127.0.0.1",
                port,
                configuration=configuration,
                create_protocol=self._protocol(seen, serve=True, changed=lambda: None),
            )

            async def stop() -> None:
                server.close()

            return port, stop

        async with asyncio_server(start) as port:
            yield port, seen

    def _identity(self, certfile: str, keyfile: str) -> dict[str, str]:
        if self.name == "aiopquic":
            return {"certificate_file": certfile, "private_key_file": keyfile}
        return {}

    async def client(
        self,
        port: int,
        act: Callable[[Any, Seen, Callable[[Callable[[], bool]], Awaitable[None]]], Awaitable[Any]],
    ) -> Any:
        """Connect, and run ``act(protocol, seen, until)``, where ``until`` waits for a condition."""
        asyncio_part = self._modules()[0]
        seen = Seen()

        async def run() -> Any:
            changed = asyncio.Event()
            configuration = self._configuration(
                client=True, verify_mode=ssl.CERT_NONE, server_name="localhost"
            )

            async def until(condition: Callable[[], bool]) -> None:
                while not condition():
                    changed.clear()
                    await changed.wait()

            async with asyncio_part.connect(
                "127.0.0.1",
                port,
                configuration=configuration,
                create_protocol=self._protocol(seen, serve=False, changed=changed.set),
            ) as protocol:
                return await act(protocol, seen, until)

        return await in_asyncio(run)


def free_port() -> int:
    """A UDP port of loopback that nobody has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def serve_peer(connection: Connection) -> None:
    """Our side's server: what the peers' servers do."""
    async with trio.open_nursery() as nursery:

        async def answer_stream(stream: Stream) -> None:
            try:
                async with stream:
                    first = await stream.receive_some()
                    order = command(first)
                    if order is not None and order[0] == "stop":
                        stream.stop(order[1])
                        return
                    data = first + await stream.receive_all(LIMIT)
                    order = command(data)
                    if order is None:
                        await stream.send_all(data, eof=True)
                    elif order[0] == "reset":
                        stream.reset(order[1])
                    else:
                        connection.close_now(order[1], order[2])
                        nursery.cancel_scope.cancel()
            except StreamReset:
                return

        async def answer_datagrams() -> None:
            async for datagram in connection.datagrams:
                await connection.datagrams.send(datagram)

        async def answer_one_way() -> None:
            async for stream in connection.incoming_receive_streams:
                async with stream, connection.open_send_stream() as answer:
                    await answer.send_all(await stream.receive_all(LIMIT))

        nursery.start_soon(answer_datagrams)
        nursery.start_soon(answer_one_way)
        async for stream in connection.incoming_streams:
            nursery.start_soon(answer_stream, stream)
