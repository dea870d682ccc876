"""Other WebTransport implementations behind one face, which tests drive from Trio.

A peer is a server or a client in an asyncio thread. Its sessions and streams are objects whose methods Trio's tasks await, each
of which runs a coroutine in that thread. So a test reads the same whichever implementation is at the other end, and whichever
end is the client. `TrioWT` puts the same face on our own sessions, for tests that do not care who is who.
"""

from __future__ import annotations

import asyncio
import functools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import trio
import trustme

import trio_wt
from tests.interop.asyncio_thread import asyncio_server
from tests.interop.quic_peers import free_port
from tests.peers import require

HOST = "127.0.0.1"
LIMIT = 16 * 2**20
CHUNK = 65536

P = ParamSpec("P")
T = TypeVar("T")


class Files:
    """A certificate for localhost, as files."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", HOST)
        self.chain, self.key, self.ca = (
            str(folder / name) for name in ("chain.pem", "key.pem", "ca.pem")
        )
        Path(self.chain).write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(self.key)
        authority.cert_pem.write_to_path(self.ca)


class PeerReset(Exception):
    """What a peer says of a stream that the other side has reset, or wants no more of."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class PeerClosed(Exception):
    """What a peer says of a session that is over."""


class PeerRefused(Exception):
    """What a peer's client says of a session that it was not given."""

    def __init__(self, status: int | None) -> None:
        super().__init__(status)
        self.status = status


# ---- the face


class AnyStream(ABC):
    """A stream at whoever's end."""

    @abstractmethod
    async def send(self, data: bytes, *, end: bool = False) -> None:
        """Send bytes, and perhaps the end. A peer raises `PeerReset` where they are not wanted."""

    @abstractmethod
    async def read_all(self) -> bytes:
        """All up to the end. A peer raises `PeerReset`."""


class AnySession(ABC):
    """A session at whoever's end."""

    @property
    @abstractmethod
    def subprotocol(self) -> str | None:
        """What was agreed on."""

    @abstractmethod
    async def open_stream(self) -> AnyStream: ...

    @abstractmethod
    async def open_send_stream(self) -> AnyStream: ...

    @abstractmethod
    async def next_stream(self) -> AnyStream:
        """The next bidirectional stream that the other side has opened."""

    @abstractmethod
    async def next_receive_stream(self) -> AnyStream:
        """The next unidirectional one."""

    @abstractmethod
    async def send_datagram(self, data: bytes) -> None: ...

    @abstractmethod
    async def next_datagram(self) -> bytes:
        """A peer raises `PeerClosed` when the session is over."""

    @abstractmethod
    async def close(self, code: int = 0, reason: str = "") -> None: ...

    @abstractmethod
    async def closed(self) -> tuple[int, str]:
        """Wait until the session is over: why."""


class AnyServer(ABC):
    """A server on loopback."""

    port: int

    @abstractmethod
    async def next_session(self) -> AnySession:
        """The next session that a client has opened."""


class AnyClient(ABC):
    """A client. It has one connection, if it can have several sessions on one."""

    @abstractmethod
    async def connect(
        self, port: int, path: str = "/", *, subprotocols: Sequence[str] = ()
    ) -> AnySession:
        """Open a session. A peer raises `PeerRefused`."""


class Implementation(ABC):
    """A library that has clients and servers.

    Attributes:
        name: the package.
        several_paths: whether its server takes sessions on more than one path.
        several_sessions: whether it can have several sessions on a connection.
    """

    name: ClassVar[str]
    several_paths: ClassVar[bool] = True
    several_sessions: ClassVar[bool] = True

    def __repr__(self) -> str:
        return self.name

    @abstractmethod
    def server(
        self, files: Files, *, paths: Sequence[str] = ("/",), subprotocols: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[AnyServer]:
        """A server that takes sessions on these paths, and picks the client's first subprotocol that it has."""

    @abstractmethod
    def client(self, files: Files) -> AbstractAsyncContextManager[AnyClient]: ...


class PeerStream(AnyStream):
    """A stream at a peer."""

    @abstractmethod
    async def read(self) -> bytes:
        """What has come, ``b""`` at the end. Raises `PeerReset`."""

    @abstractmethod
    async def reset(self, code: int) -> None:
        """Cut off what this side sends."""

    @abstractmethod
    async def stop(self, code: int) -> None:
        """Want no more of what the other side sends."""

    @abstractmethod
    async def stopped(self) -> int:
        """Wait until the other side wants no more; its code."""


class PeerSession(AnySession):
    """A session at a peer."""

    @abstractmethod
    async def open_stream(self) -> PeerStream: ...

    @abstractmethod
    async def open_send_stream(self) -> PeerStream: ...

    @abstractmethod
    async def next_stream(self) -> PeerStream: ...

    @abstractmethod
    async def next_receive_stream(self) -> PeerStream: ...

    @abstractmethod
    async def drain(self) -> None:
        """Ask the other side to come to an end."""

    @abstractmethod
    async def draining(self) -> None:
        """Wait until the other side asks for that."""

    async def disconnect(self) -> None:
        """Close the whole connection, without a word to the session."""
        raise NotImplementedError

    async def export_keying_material(self, label: str, context: bytes, length: int) -> bytes:
        """The exporter of the session."""
        raise NotImplementedError


class PeerServer(AnyServer):
    @abstractmethod
    async def next_session(self) -> PeerSession: ...


class PeerClient(AnyClient):
    @abstractmethod
    async def connect(
        self, port: int, path: str = "/", *, subprotocols: Sequence[str] = ()
    ) -> PeerSession: ...


class Peer(Implementation):
    """Another implementation than ours.

    Attributes:
        refuses_with: the status that its server has for a path that it does not serve.
        tells_status: whether its client tells the status of a refusal.
        exports: whether it has the exporter.
        disconnects: whether it can close a connection without closing the session.
        half_resets: whether it can still send on a stream whose other half was reset.
        sends_empty_datagrams: whether it can.
        migrates: whether its server gives its clients connection ids to migrate with.
    """

    refuses_with: ClassVar[int] = 404
    tells_status: ClassVar[bool] = True
    exports: ClassVar[bool] = True
    disconnects: ClassVar[bool] = True
    half_resets: ClassVar[bool] = True
    sends_empty_datagrams: ClassVar[bool] = True
    migrates: ClassVar[bool] = True

    @abstractmethod
    def server(
        self, files: Files, *, paths: Sequence[str] = ("/",), subprotocols: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[PeerServer]: ...

    @abstractmethod
    def client(self, files: Files) -> AbstractAsyncContextManager[PeerClient]: ...


# ---- across threads


class Thread:
    """An event loop of asyncio's in a thread of its own, which Trio's tasks call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there; cancelled here, it is cancelled there."""
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        future.add_done_callback(lambda _: token.run_sync_soon(done.set))
        try:
            await done.wait()
        except trio.Cancelled:
            future.cancel()
            raise
        return future.result()


@asynccontextmanager
async def asyncio_thread() -> AsyncIterator[Thread]:
    """Such a thread, for as long as the block lasts."""
    loops = []

    async def start() -> tuple[int, Callable[[], Coroutine[Any, Any, None]]]:
        loops.append(asyncio.get_running_loop())

        async def stop() -> None:
            pass

        return 0, stop

    async with asyncio_server(start):
        yield Thread(loops[0])


class InThread:
    """What lives in such a thread."""

    thread: Thread


S = TypeVar("S", bound=InThread)


def across(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Of a coroutine method of asyncio's, one that Trio's tasks await."""

    @functools.wraps(method)
    async def call(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.thread.run(method(self, *args, **kwargs))

    return call


class Stops:
    """What the other side wants no more of, by stream."""

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        self._changed = asyncio.Event()

    def note(self, stream_id: int, code: int) -> None:
        self.codes[stream_id] = code
        self._changed.set()

    async def wait(self, stream_id: int) -> int:
        while stream_id not in self.codes:
            self._changed.clear()
            await self._changed.wait()
        return self.codes[stream_id]


# ---- pywebtransport


class PyStream(InThread, PeerStream):
    def __init__(self, session: PySession, stream: Any) -> None:
        self.thread = session.thread
        self._stops = session.stops
        self._stream = stream
        self._errors = import_module("pywebtransport.exceptions")

    @across
    async def send(self, data: bytes, *, end: bool = False) -> None:
        try:
            await self._stream.write_all(data=data, end_stream=end)
        except self._errors.StreamError as exc:
            # Once the stop has been dealt with, the stream is only said to be gone.
            number = self._stream.stream_id
            raise PeerReset(self._stops.codes.get(number, exc.error_code)) from exc

    @across
    async def read(self) -> bytes:
        return await self._read(self._stream.read())

    @across
    async def read_all(self) -> bytes:
        return await self._read(self._stream.read_all())

    async def _read(self, reading: Coroutine[Any, Any, bytes]) -> bytes:
        try:
            return await reading
        except self._errors.StreamError as exc:
            raise PeerReset(exc.error_code) from exc

    @across
    async def reset(self, code: int) -> None:
        await self._stream.reset(error_code=code)

    @across
    async def stop(self, code: int) -> None:
        await self._stream.stop_receiving(error_code=code)

    @across
    async def stopped(self) -> int:
        return await self._stops.wait(self._stream.stream_id)


class PySession(InThread, PeerSession):
    def __init__(self, thread: Thread, session: Any) -> None:
        self.thread = thread
        self.stops = Stops()
        self._session = session
        self._streams = session.incoming_bidirectional_streams()
        self._receive_streams = session.incoming_unidirectional_streams()
        self._closed: asyncio.Future[tuple[int, str]] = asyncio.Future()
        self._draining = asyncio.Event()
        self._errors = import_module("pywebtransport.exceptions")
        types = import_module("pywebtransport.types").EventType
        for event_type, handler in (
            (types.STREAM_OPENED, partial(self._opened, types.STREAM_STOP_SENDING_RECEIVED)),
            (types.SESSION_CLOSED, self._ended),
            (types.SESSION_DRAINING, lambda _: self._draining.set()),
        ):
            session.events.on(event_type=event_type, handler=handler)
        session.connection.events.on(
            event_type=types.CONNECTION_CLOSED, handler=lambda _: self._over(0, "")
        )

    def _opened(self, event_type: Any, event: Any) -> None:
        event.data["stream"].events.on(
            event_type=event_type,
            handler=lambda event: self.stops.note(
                # The code is missing if it is none of an application's.
                event.data["stream_id"],
                event.data.get("error_code", 0),
            ),
        )

    def _ended(self, event: Any) -> None:
        self._over(event.data.get("error_code") or 0, event.data.get("reason") or "")

    def _over(self, code: int, reason: str) -> None:
        if not self._closed.done():
            self._closed.set_result((code, reason))

    @property
    def subprotocol(self) -> str | None:
        return self._session.wt_protocol  # type: ignore[no-any-return]

    @across
    async def open_stream(self) -> PeerStream:
        return PyStream(self, await self._session.create_bidirectional_stream())

    @across
    async def open_send_stream(self) -> PeerStream:
        return PyStream(self, await self._session.create_unidirectional_stream())

    @across
    async def next_stream(self) -> PeerStream:
        return PyStream(self, await anext(self._streams))

    @across
    async def next_receive_stream(self) -> PeerStream:
        return PyStream(self, await anext(self._receive_streams))

    @across
    async def send_datagram(self, data: bytes) -> None:
        await self._session.send_datagram(data=data)

    @across
    async def next_datagram(self) -> bytes:
        try:
            return await self._session.read_datagram()  # type: ignore[no-any-return]
        except (self._errors.SessionError, self._errors.ConnectionError) as exc:
            raise PeerClosed from exc

    @across
    async def close(self, code: int = 0, reason: str = "") -> None:
        await self._session.close(error_code=code, reason=reason)

    @across
    async def closed(self) -> tuple[int, str]:
        return await asyncio.shield(self._closed)

    @across
    async def draining(self) -> None:
        await self._draining.wait()

    @across
    async def drain(self) -> None:
        # A method of the connection's, which asks all its sessions, and waits for them.
        self._closing = asyncio.create_task(self._session.connection.close_gracefully())

    @across
    async def disconnect(self) -> None:
        await self._session.connection.close()

    @across
    async def export_keying_material(self, label: str, context: bytes, length: int) -> bytes:
        return await self._session.export_keying_material(  # type: ignore[no-any-return]
            label=label, context=context, length=length
        )


class PyServer(InThread, PeerServer):
    def __init__(
        self, thread: Thread, files: Files, paths: Sequence[str], subprotocols: Sequence[str]
    ) -> None:
        self.thread = thread
        self.port = free_port()
        self._files = files
        self._paths = paths
        self._subprotocols = subprotocols
        self._tasks: list[asyncio.Task[None]] = []

    @across
    async def start(self) -> None:
        library = import_module("pywebtransport")
        self._sessions: asyncio.Queue[PeerSession] = asyncio.Queue()
        config = library.ServerConfig(
            bind_host=HOST,
            bind_port=self.port,
            certfile=self._files.chain,
            keyfile=self._files.key,
        )
        self._server = library.WebTransportServer(config=config)
        await self._server.listen()
        self._tasks.append(asyncio.create_task(self._take_connections()))

    async def _take_connections(self) -> None:
        async for connection in self._server.incoming_connections():
            self._tasks.append(asyncio.create_task(self._take_sessions(connection)))

    async def _take_sessions(self, connection: Any) -> None:
        async for session in connection.incoming_sessions():
            if session.path.partition("?")[0] not in self._paths:
                await session.reject(status_code=Py.refuses_with)
                continue
            offered = session.wt_available_protocols or []
            chosen = next((name for name in offered if name in self._subprotocols), None)
            await session.accept(wt_protocol=chosen)
            # What the session says of its subprotocol comes with an event that is still to be handled.
            await session.ensure_ready()
            await self._sessions.put(PySession(self.thread, session))

    @across
    async def next_session(self) -> PeerSession:
        return await self._sessions.get()

    @across
    async def stop(self) -> None:
        await self._server.close()
        for task in self._tasks:
            task.cancel()


class PyClient(InThread, PeerClient):
    def __init__(self, thread: Thread, files: Files) -> None:
        self.thread = thread
        self._files = files
        self._first: Any = None

    @across
    async def start(self) -> None:
        library = import_module("pywebtransport")
        self._errors = import_module("pywebtransport.exceptions")
        self._client = library.WebTransportClient(
            config=library.ClientConfig(ca_certs=self._files.ca)
        )

    @across
    async def connect(
        self, port: int, path: str = "/", *, subprotocols: Sequence[str] = ()
    ) -> PeerSession:
        offer = list(subprotocols) or None
        try:
            if self._first is None:
                session = self._first = await self._client.connect(
                    url=f"https://{HOST}:{port}{path}", wt_available_protocols=offer
                )
            else:
                session = await self._first.connection.create_session(
                    authority=f"{HOST}:{port}", path=path, wt_available_protocols=offer
                )
        except self._errors.WebTransportError as exc:
            raise PeerRefused(None) from exc
        return PySession(self.thread, session)

    @across
    async def stop(self) -> None:
        await self._client.close()


class Py(Peer):
    """pywebtransport, which speaks the latest drafts only."""

    name = "pywebtransport"
    # It says that the session was not opened, with one code for all reasons.
    tells_status = False
    refuses_with = 418
    migrates = False

    @asynccontextmanager
    async def server(
        self, files: Files, *, paths: Sequence[str] = ("/",), subprotocols: Sequence[str] = ()
    ) -> AsyncIterator[PeerServer]:
        require(self.name)
        async with asyncio_thread() as thread:
            server = PyServer(thread, files, paths, subprotocols)
            await server.start()
            try:
                yield server
            finally:
                with trio.CancelScope(shield=True):
                    await server.stop()

    @asynccontextmanager
    async def client(self, files: Files) -> AsyncIterator[PeerClient]:
        require(self.name)
        async with asyncio_thread() as thread:
            client = PyClient(thread, files)
            await client.start()
            try:
                yield client
            finally:
                with trio.CancelScope(shield=True):
                    await client.stop()


# ---- aiopquic


class AioStream(InThread, PeerStream):
    def __init__(self, session: AioSession, number: int) -> None:
        self.thread = session.thread
        self._session = session
        self._number = number
        self._events = session.session.receive_stream_data(number)
        self._ended = False

    @across
    async def send(self, data: bytes, *, end: bool = False) -> None:
        session = self._session.session
        for start in range(0, max(1, len(data)), CHUNK):
            part = data[start : start + CHUNK]
            last = end and start + CHUNK >= len(data)
            try:
                await session.send_stream_data_drained(self._number, part, last)
            except ConnectionError as exc:
                if not session.session_closed:
                    # The event that tells why may still be on its way to us.
                    code = await self._session.stops.wait(self._number)
                    raise PeerReset(code) from exc
            if session.session_closed:
                raise PeerClosed

    @across
    async def read(self) -> bytes:
        return await self._read()

    async def _read(self) -> bytes:
        while not self._ended:
            event = await anext(self._events)
            if isinstance(event, self._session.library.WebTransportStreamReset):
                raise PeerReset(event.error_code)
            self._ended = event.end_stream
            if event.data:
                return bytes(event.data)
        return b""

    @across
    async def read_all(self) -> bytes:
        pieces = []
        while piece := await self._read():
            pieces.append(piece)
        return b"".join(pieces)

    @across
    async def reset(self, code: int) -> None:
        self._session.session.reset_stream(self._number, code)

    @across
    async def stop(self, code: int) -> None:
        self._session.session.stop_stream(self._number, code)

    @across
    async def stopped(self) -> int:
        return await self._session.stops.wait(self._number)


class AioSession(InThread, PeerSession):
    def __init__(self, thread: Thread, session: Any) -> None:
        self.thread = thread
        self.session = session
        self.stops = Stops()
        self.library = import_module("aiopquic.asyncio.webtransport")
        self._streams: asyncio.Queue[int] = asyncio.Queue()
        self._receive_streams: asyncio.Queue[int] = asyncio.Queue()
        self._datagrams: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._draining = asyncio.Event()
        self._task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        library = self.library
        async for event in self.session.events():
            if isinstance(event, library.WebTransportNewStream):
                number = event.stream_id
                (self._receive_streams if number & 2 else self._streams).put_nowait(number)
            elif isinstance(event, library.WebTransportDatagramReceived):
                self._datagrams.put_nowait(bytes(event.data))
            elif isinstance(event, library.WebTransportStopSending):
                self.stops.note(event.stream_id, event.error_code)
            elif isinstance(event, library.WebTransportSessionDraining):
                self._draining.set()
        self._datagrams.put_nowait(None)

    @property
    def subprotocol(self) -> str | None:
        return self.session.negotiated_protocol  # type: ignore[no-any-return]

    @across
    async def open_stream(self) -> PeerStream:
        return AioStream(self, await self.session.create_stream())

    @across
    async def open_send_stream(self) -> PeerStream:
        return AioStream(self, await self.session.create_stream(bidir=False))

    @across
    async def next_stream(self) -> PeerStream:
        return AioStream(self, await self._streams.get())

    @across
    async def next_receive_stream(self) -> PeerStream:
        return AioStream(self, await self._receive_streams.get())

    @across
    async def send_datagram(self, data: bytes) -> None:
        while not self.session.send_datagram_frame(data):
            await self.session.get_datagram_tx_drain_event().wait()

    @across
    async def next_datagram(self) -> bytes:
        data = await self._datagrams.get()
        if data is None:
            raise PeerClosed
        return data

    @across
    async def close(self, code: int = 0, reason: str = "") -> None:
        self.session.close(code, reason.encode())

    @across
    async def closed(self) -> tuple[int, str]:
        await self.session.wait_closed()
        event = self.session._session_close_event
        # There is none of a session that this side has closed.
        return (0, "") if event is None else (event.error_code, bytes(event.reason).decode())

    @across
    async def drain(self) -> None:
        self.session.drain()

    @across
    async def draining(self) -> None:
        await self._draining.wait()


class AioServer(InThread, PeerServer):
    def __init__(
        self,
        thread: Thread,
        files: Files,
        paths: Sequence[str],
        subprotocols: Sequence[str],
        web_folder: Path | None,
    ) -> None:
        self._web_folder = web_folder
        self.thread = thread
        self.port = free_port()
        self._files = files
        (self._path,) = paths
        self._subprotocols = subprotocols

    @across
    async def start(self) -> None:
        library = import_module("aiopquic.asyncio.webtransport")
        self._sessions: asyncio.Queue[PeerSession] = asyncio.Queue()

        async def take(session: Any) -> None:
            await self._sessions.put(AioSession(self.thread, session))

        self._server = await library.serve_webtransport(
            HOST,
            self.port,
            self._path,
            handler=take,
            cert_file=self._files.chain,
            key_file=self._files.key,
            wt_supported_protocols=list(self._subprotocols) or None,
            web_folder=None if self._web_folder is None else str(self._web_folder),
        )

    @across
    async def next_session(self) -> PeerSession:
        return await self._sessions.get()

    @across
    async def stop(self) -> None:
        await self._server.aclose()


class AioClient(InThread, PeerClient):
    def __init__(self, thread: Thread, files: Files) -> None:
        self.thread = thread
        self._files = files
        self._stack = AsyncExitStack()
        self._opened: list[Any] = []

    @across
    async def connect(
        self, port: int, path: str = "/", *, subprotocols: Sequence[str] = ()
    ) -> PeerSession:
        library = import_module("aiopquic.asyncio.webtransport")
        opening = library.connect_webtransport(
            HOST,
            port,
            path,
            sni="localhost",
            ca_file=self._files.ca,
            wt_available_protocols=list(subprotocols) or None,
        )
        try:
            session = await self._stack.enter_async_context(opening)
        except library.WebTransportError as exc:
            status = str(exc).partition("HTTP ")[2].rstrip(")")
            raise PeerRefused(int(status) if status else None) from exc
        self._opened.append(session)
        return AioSession(self.thread, session)

    @across
    async def stop(self) -> None:
        for session in self._opened:
            session.close()
            # Servers may keep the connection for a while, which it would wait for.
            session._cnx_closed.set()
        await self._stack.aclose()


class Aio(Peer):
    """aiopquic, on picoquic.

    Args:
        web_folder: what its server serves to plain requests.
    """

    name = "aiopquic"
    several_paths = False
    # Each client has a connection of its own, and servers do not take part in the flow control that it needs.
    several_sessions = False
    exports = False
    disconnects = False
    # To it, the other side's reset is the end of both directions.
    half_resets = False
    sends_empty_datagrams = False

    def __init__(self, web_folder: Path | None = None) -> None:
        self._web_folder = web_folder

    @asynccontextmanager
    async def server(
        self, files: Files, *, paths: Sequence[str] = ("/",), subprotocols: Sequence[str] = ()
    ) -> AsyncIterator[PeerServer]:
        require(self.name)
        async with asyncio_thread() as thread:
            server = AioServer(thread, files, paths, subprotocols, self._web_folder)
            await server.start()
            try:
                yield server
            finally:
                with trio.CancelScope(shield=True):
                    await server.stop()

    @asynccontextmanager
    async def client(self, files: Files) -> AsyncIterator[PeerClient]:
        require(self.name)
        async with asyncio_thread() as thread:
            client = AioClient(thread, files)
            try:
                yield client
            finally:
                with trio.CancelScope(shield=True):
                    await client.stop()


# ---- ours


class OurStream(AnyStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def send(self, data: bytes, *, end: bool = False) -> None:
        await self._stream.send_all(data, eof=end)

    async def read_all(self) -> bytes:
        return await self._stream.receive_all(LIMIT)  # type: ignore[no-any-return]


class OurSession(AnySession):
    """Our sessions with the same face; tasks of the nursery hold the blocks of streams."""

    def __init__(self, session: trio_wt.WebTransportSession, nursery: trio.Nursery) -> None:
        self._session = session
        self._nursery = nursery

    @property
    def subprotocol(self) -> str | None:
        return self._session.subprotocol

    async def _open(self, opening: AbstractAsyncContextManager[Any]) -> AnyStream:
        async def hold(*, task_status: trio.TaskStatus[AnyStream]) -> None:
            async with opening as stream:
                task_status.started(OurStream(stream))
                await self._session.wait_closed()

        return await self._nursery.start(hold)  # type: ignore[no-any-return]

    async def open_stream(self) -> AnyStream:
        return await self._open(self._session.open_stream())

    async def open_send_stream(self) -> AnyStream:
        return await self._open(self._session.open_send_stream())

    async def next_stream(self) -> AnyStream:
        return OurStream(await self._session.incoming_streams.receive())

    async def next_receive_stream(self) -> AnyStream:
        return OurStream(await self._session.incoming_receive_streams.receive())

    async def send_datagram(self, data: bytes) -> None:
        await self._session.datagrams.send(data)

    async def next_datagram(self) -> bytes:
        try:
            return await self._session.datagrams.receive()
        except (trio_wt.ConnectionClosed, trio.ClosedResourceError) as exc:
            raise PeerClosed from exc

    async def close(self, code: int = 0, reason: str = "") -> None:
        await self._session.aclose(code, reason)

    async def closed(self) -> tuple[int, str]:
        end = await self._session.wait_closed()
        return end.code, end.reason


class OurServer(AnyServer):
    def __init__(self, port: int, sessions: trio.MemoryReceiveChannel[AnySession]) -> None:
        self.port = port
        self._sessions = sessions

    async def next_session(self) -> AnySession:
        return await self._sessions.receive()


class OurClient(AnyClient):
    def __init__(self, files: Files, nursery: trio.Nursery) -> None:
        self._files = files
        self._nursery = nursery
        self._connection: trio_wt.WebTransportConnection | None = None

    async def connect(
        self, port: int, path: str = "/", *, subprotocols: Sequence[str] = ()
    ) -> AnySession:
        if self._connection is None:
            self._connection = await self._nursery.start(self._hold_connection, port)
        connection = self._connection

        async def hold(*, task_status: trio.TaskStatus[AnySession]) -> None:
            async with connection.open_session(path, subprotocols=subprotocols) as session:
                task_status.started(OurSession(session, self._nursery))
                await session.wait_closed()

        return await self._nursery.start(hold)  # type: ignore[no-any-return]

    async def _hold_connection(
        self, port: int, *, task_status: trio.TaskStatus[trio_wt.WebTransportConnection]
    ) -> None:
        tls = trio_wt.ClientTLS(ca=Path(self._files.ca))
        url = f"https://{HOST}:{port}"
        async with trio_wt.open_webtransport_connection(url, tls=tls) as connection:
            task_status.started(connection)
            await connection.wait_closed()


class TrioWT(Implementation):
    """Ours."""

    name = "trio_wt"

    @asynccontextmanager
    async def server(
        self, files: Files, *, paths: Sequence[str] = ("/",), subprotocols: Sequence[str] = ()
    ) -> AsyncIterator[AnyServer]:
        send, receive = trio.open_memory_channel[AnySession](16)
        certificate = trio_wt.Certificate.load(files.chain, files.key)

        def decide(request: trio_wt.Request) -> None:
            if request.path not in paths:
                request.reject(404)
                return
            offered = request.subprotocols
            request.accept(
                subprotocol=next((name for name in offered if name in subprotocols), None)
            )

        async with trio.open_nursery() as nursery:

            async def handle(session: trio_wt.WebTransportSession) -> None:
                await send.send(OurSession(session, nursery))
                await session.wait_closed()

            serve = partial(
                trio_wt.serve_webtransport,
                handle,
                0,
                host=HOST,
                tls=trio_wt.ServerTLS(certificate),
                on_request=decide,
            )
            sockets = await nursery.start(serve)
            yield OurServer(sockets[0].local_address[1], receive)
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def client(self, files: Files) -> AsyncIterator[AnyClient]:
        async with trio.open_nursery() as nursery:
            yield OurClient(files, nursery)
            nursery.cancel_scope.cancel()
