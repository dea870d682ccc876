"""A place for files: uploads and downloads that go on where they were when the connection is cut.

    python examples/app_file_drop.py serve FOLDER
    python examples/app_file_drop.py put 127.0.0.1 4433 FILE... --hash HEX
    python examples/app_file_drop.py get 127.0.0.1 4433 NAME... --hash HEX --to FOLDER

The server prints what to write for HEX, unless it is given a certificate. Without a command both
ends run on loopback. It needs the packages rich and msgspec.

A file has a WebTransport stream, and both directions work the same way. The sender offers it, by a
line of JSON with its name, size and SHA-256. The receiver answers from which byte on it needs it.
Those bytes follow, and when the SHA-256 of all of them is right, the receiver says so. What has
come of a file is kept under the name of its SHA-256 and size, so two versions are never mixed. It
has one writer at a time, the newest: who comes back after a cut takes over from its old connection,
whose end may not have been noticed yet.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from math import inf
from typing import Annotated, TypeAlias, TypeVar

import msgspec
import trio
from quic_common import (
    Failed,
    client_tls,
    https_url,
    own_tls,
    port_number,
    positive,
    run,
    server_tls,
)

try:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
except ImportError:
    raise SystemExit("the progress bars are rich's: pip install rich") from None

import trio_wt
from trio_wt.app import App, InvalidMessage, JsonCodec, Serving

PIECE, MIB = 256 * 1024, 2**20
MAX_LINE = 4096  # bytes
MAX_FILES = 1000  # in the server's folder, those included that have not arrived as a whole
PATH = "/files"
STOP_WITHIN = 5.0  # seconds, for what is under way when the server is stopped

BAD_REQUEST, NOT_FOUND, EXISTS, TOO_LARGE, FULL, NO_ACCESS, DAMAGED, OVERTAKEN = range(0x10, 0x18)
REASONS = {
    BAD_REQUEST: "the other side says what makes no sense here",
    NOT_FOUND: "there is no such file",
    EXISTS: "there is another file of this name",
    TOO_LARGE: "the file is larger than the server allows",
    FULL: "the server has too many files",
    NO_ACCESS: "the server cannot read or write it",
    DAMAGED: "other bytes have arrived than those that were offered; try again",
    OVERTAKEN: "another connection has begun to send the same file",
}

# Nothing that leads out of a folder, and nothing hidden.
_PLAIN = r"/\\:\x00-\x1f\x7f-\x9f"
Name = Annotated[str, msgspec.Meta(max_length=200, pattern=rf"\A[^.{_PLAIN}][^{_PLAIN}]*\Z")]
Size = Annotated[int, msgspec.Meta(ge=0, lt=2**60)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Offer(msgspec.Struct, tag="offer"):
    """The sender has this file."""

    name: Name
    size: Size
    sha256: Sha256


class Wanted(msgspec.Struct, tag="wanted"):
    """The client wants to be offered a file."""

    name: Name


class Start(msgspec.Struct, tag="start"):
    """The receiver has everything before this byte."""

    offset: Size


class Arrived(msgspec.Struct, tag="arrived"):
    """The receiver has all of it, and it is right."""


REQUEST = JsonCodec[Offer | Wanted](Offer | Wanted)
OFFER, START, ARRIVED = JsonCodec(Offer), JsonCodec(Start), JsonCodec(Arrived)

T = TypeVar("T")
#: Opens a session.
Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[trio_wt.WebTransportSession]]
#: Is told how many bytes are there, and of how many.
Tell: TypeAlias = Callable[[int, int], object]


class Refused(Exception):
    """A file is not sent or not received; the code is one of those above."""

    def __init__(self, code: int) -> None:
        super().__init__(REASONS[code])
        self.code = code


# ---- what both sides do


async def send_line(stream: trio_wt.Stream, codec: JsonCodec[T], message: T) -> None:
    """Send a line of JSON."""
    await stream.send_all(codec.encode(message).encode() + b"\n")


async def receive_line(stream: trio_wt.Stream, codec: JsonCodec[T]) -> T:
    """Receive one."""
    try:
        return codec.decode(await stream.receive_until(b"\n", MAX_LINE))
    except (InvalidMessage, trio_wt.IncompleteRead, trio_wt.ReadLimitExceeded):
        raise Refused(BAD_REQUEST) from None


async def digest_of(path: trio.Path) -> str:
    """A file's SHA-256, in hexadecimal."""

    def read() -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return await trio.to_thread.run_sync(read)


async def offer_of(path: trio.Path) -> Offer:
    """A file, as it is now."""
    if not await path.is_file():
        raise Refused(NOT_FOUND)
    return Offer(path.name, (await path.stat()).st_size, await digest_of(path))


async def send_file(stream: trio_wt.Stream, path: trio.Path, offer: Offer, tell: Tell) -> None:
    """Offer a file, and send what the other side does not have yet."""
    await send_line(stream, OFFER, offer)
    offset = min((await receive_line(stream, START)).offset, offer.size)
    async with await path.open("rb") as file:
        await file.seek(offset)
        tell(offset, offer.size)
        while piece := await file.read(min(PIECE, offer.size - offset)):
            await stream.send_all(piece)  # waits while the network is slower than the disk
            offset += len(piece)
            tell(offset, offer.size)
    await stream.send_eof()
    await receive_line(stream, ARRIVED)


class Folder:
    """Where files arrive.

    Args:
        path: where it is.
        max_files: the most that there may be, with those that have not arrived as a whole.
    """

    def __init__(self, path: trio.Path, max_files: float = inf) -> None:
        self.path = path
        self._max_files = max_files
        # Held from looking which files there are until there is one more, or one has its name.
        self._looking = trio.Lock()
        # Who writes a part, and whether it has ended.
        self._writers: dict[trio.Path, tuple[trio.CancelScope, trio.Event]] = {}

    def part_of(self, offer: Offer) -> trio.Path:
        """Where a file is until all of it is there, and right."""
        return self.path / f".{offer.sha256}.{offer.size}.part"

    @asynccontextmanager
    async def only_writer(self, part: trio.Path) -> AsyncIterator[None]:
        """Write a part, and stop whoever does so already."""
        before = self._writers.get(part)
        scope, ended = self._writers[part] = trio.CancelScope(), trio.Event()
        try:
            if before is not None:
                before[0].cancel()
                with trio.CancelScope(shield=True):  # so that there are never two
                    await before[1].wait()
            with scope:
                yield
        finally:
            ended.set()
            if self._writers[part][1] is ended:
                del self._writers[part]
        if scope.cancelled_caught:
            raise Refused(OVERTAKEN)

    async def make_part(self, part: trio.Path) -> None:
        """Begin with a part, or find it as it was left."""
        async with self._looking:
            if not await part.exists():
                if len(list(await self.path.iterdir())) >= self._max_files:
                    raise Refused(FULL)
                await part.touch()

    async def give_name(self, part: trio.Path, target: trio.Path) -> None:
        """Make a file of a part."""
        async with self._looking:
            if await target.exists():  # somebody else has been faster
                raise Refused(EXISTS)
            await part.rename(target)


async def receive_file(
    stream: trio_wt.Stream, folder: Folder, name: str, offer: Offer, tell: Tell
) -> None:
    """Take what is not there yet of a file that was offered."""
    target, part = folder.path / name, folder.part_of(offer)
    async with folder.only_writer(part):
        if not await target.exists():
            await folder.make_part(part)
            await receive_rest(stream, part, offer, tell)
            await folder.give_name(part, target)
        elif await digest_of(target) == offer.sha256:  # it came before, and the word got lost
            tell(offer.size, offer.size)
            await send_line(stream, START, Start(offer.size))
        else:
            raise Refused(EXISTS)
    await send_line(stream, ARRIVED, Arrived())


async def receive_rest(stream: trio_wt.Stream, part: trio.Path, offer: Offer, tell: Tell) -> None:
    """Take what is not there yet of a file into its part, and check all of it."""
    async with await part.open("r+b") as file:
        offset = min(await file.seek(0, os.SEEK_END), offer.size)
        await file.seek(offset)
        tell(offset, offer.size)
        await send_line(stream, START, Start(offset))
        while offset < offer.size:
            piece = await stream.receive_some(min(PIECE, offer.size - offset))
            if not piece:
                raise Refused(DAMAGED)  # the file has become shorter since it was offered
            await file.write(piece)
            offset += len(piece)
            tell(offset, offer.size)
        await file.truncate()
    if await digest_of(part) != offer.sha256:
        await part.unlink()
        raise Refused(DAMAGED)


def progress_bars() -> Progress:
    """With a line for each file; the names may come from anybody."""
    name = TextColumn("{task.description}", markup=False)
    return Progress(name, BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())


@contextmanager
def bar(progress: Progress, name: str) -> Iterator[Tell]:
    """A line for a file; when all has gone well, another one says so in its place."""
    task = progress.add_task(name, total=None)
    try:
        yield lambda done, size: progress.update(task, completed=done, total=size)
        progress.console.print(f"{name}: there, and checked", markup=False)
    finally:
        progress.remove_task(task)


# ---- the server


def make_app(path: trio.Path, max_size: float, progress: Progress) -> App:
    """An application that keeps files in a folder."""
    folder = Folder(path, MAX_FILES)
    app = App()

    @app.webtransport(PATH)
    async def serve_session(session: trio_wt.WebTransportSession) -> None:
        async with trio.open_nursery() as nursery:
            async for stream in session.incoming_streams:
                nursery.start_soon(serve_stream, stream)

    async def serve_stream(stream: trio_wt.Stream) -> None:
        with suppress(trio_wt.StreamReset):  # the client has given this one up
            async with stream:
                try:
                    await serve_file(stream)
                except Refused as exc:
                    raise trio_wt.StreamAbort(exc.code) from None
                except OSError as exc:
                    progress.console.print(f"{exc}", markup=False)
                    raise trio_wt.StreamAbort(NO_ACCESS) from None

    async def serve_file(stream: trio_wt.Stream) -> None:
        request = await receive_line(stream, REQUEST)
        with bar(progress, request.name) as tell:
            if isinstance(request, Wanted):
                file = path / request.name
                await send_file(stream, file, await offer_of(file), tell)
            elif request.size > max_size:
                raise Refused(TOO_LARGE)
            else:
                await receive_file(stream, folder, request.name, request, tell)

    return app


async def serve(
    tls: trio_wt.ServerTLS,
    folder: trio.Path,
    max_size: float = 1024 * MIB,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    task_status: trio.TaskStatus[Serving] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until a signal comes, or until cancelled."""
    if not await folder.is_dir():
        raise Failed(f"{folder}: there is no such folder")
    with progress_bars() as progress:
        app = make_app(folder, max_size, progress)
        settings = trio_wt.WebTransportSettings(max_streams=8)
        async with trio.open_nursery() as nursery:
            serve_app = partial(app.serve, host, port, tls=tls, webtransport_settings=settings)
            serving = await nursery.start(partial(serve_app, shutdown_timeout=STOP_WITHIN))
            print(f"listening on {serving.url('webtransport')}; stop with Ctrl-C", flush=True)
            task_status.started(serving)


# ---- the client


def connector(url: str, tls: trio_wt.ClientTLS, patience: float = 6) -> Connect:
    """What opens sessions; a connection that is silent for so many seconds is taken for cut."""
    return partial(
        trio_wt.open_webtransport,
        url,
        tls=tls,
        idle_timeout=patience,
        keep_alive=patience / 3,
    )


async def persist(
    connect: Connect, progress: Progress, transfer: Callable[[trio_wt.Stream], Awaitable[None]]
) -> None:
    """Do something on a stream, from the beginning whenever the connection is cut.

    Raises:
        Refused: one of the sides does not want to.
    """

    def tell_why(exc: Exception, _: float) -> None:
        progress.console.print(f"connecting again: {exc}", markup=False)

    try:
        async for attempt in trio_wt.reconnect(
            connect, on_retry=tell_why, initial_delay=0.2, max_delay=5
        ):
            async with attempt as session, session.open_stream() as stream:
                await transfer(stream)
                return
    except trio_wt.StreamReset as exc:
        if exc.code not in REASONS:
            raise
        raise Refused(exc.code) from None


async def put(connect: Connect, path: trio.Path, progress: Progress) -> None:
    """Upload a file."""
    offer = await offer_of(path)
    with bar(progress, path.name) as tell:
        await persist(connect, progress, lambda stream: send_file(stream, path, offer, tell))


async def get(connect: Connect, name: str, folder: trio.Path, progress: Progress) -> None:
    """Download a file into a folder."""

    async def transfer(stream: trio_wt.Stream) -> None:
        await send_line(stream, REQUEST, Wanted(name))
        await receive_file(stream, Folder(folder), name, await receive_line(stream, OFFER), tell)

    with bar(progress, name) as tell:
        await persist(connect, progress, transfer)


async def move(url: str, tls: trio_wt.ClientTLS, files: Sequence[str], to: str | None) -> None:
    """Download files into a folder; without one, upload them."""
    connect = connector(url, tls)
    with progress_bars() as progress:
        for file in files:
            try:
                if to is None:
                    await put(connect, trio.Path(file), progress)
                else:
                    await get(connect, file, trio.Path(to), progress)
            except Refused as exc:
                raise Failed(f"{file}: {exc}") from None


async def demo() -> None:
    """Both ends on loopback, with a file of 16 MiB: there, and back."""
    server, client = own_tls()
    with tempfile.TemporaryDirectory() as name:
        here, there, back = (trio.Path(name, part) for part in ("a-file", "there", "back"))
        await there.mkdir()
        await back.mkdir()
        await here.write_bytes(os.urandom(16 * MIB))
        async with trio.open_nursery() as nursery:
            serving = await nursery.start(serve, server, there)
            url = serving.url("webtransport", PATH)
            await move(url, client, [str(here)], None)
            await move(url, client, [here.name], str(back))
            serving.shut_down()
        same = await (back / here.name).read_bytes() == await here.read_bytes()
    print("the files are the same" if same else "the files differ")


async def program(arguments: Sequence[str] | None) -> None:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", title="one end only")
    server = commands.add_parser("serve", help="run the server")
    server.add_argument("folder", type=trio.Path, help="where the files are")
    server.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    server.add_argument("--port", type=port_number, default=4433, help="the port; 0 for any")
    server.add_argument("--cert", metavar="FILE", help="the certificate; without, one is made")
    server.add_argument("--key", metavar="FILE", help="its key, if that is in another file")
    server.add_argument("--max-size", type=positive, default=1024, metavar="MIB", help="of a file")
    for command, what in (("put", "upload files"), ("get", "download files")):
        client = commands.add_parser(command, help=what)
        client.add_argument("host", help="the server's name or address")
        client.add_argument("port", type=port_number, help="its port")
        client.add_argument("files", nargs="+", metavar="file")
        client.add_argument("--hash", metavar="HEX", help="SHA-256 of the server's certificate")
        client.add_argument("--ca", metavar="FILE", help="who may have signed it")
        if command == "get":
            client.add_argument("--to", default=".", metavar="FOLDER", help="where to put them")
    options = parser.parse_args(arguments)
    if options.command == "serve":
        limit = options.max_size * MIB
        await serve(server_tls(options), options.folder, limit, options.host, options.port)
    elif options.command is not None:
        to = options.to if options.command == "get" else None
        url = https_url(options.host, options.port, PATH)
        await move(url, client_tls(options), options.files, to)
    else:
        await demo()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    run(program, arguments)


if __name__ == "__main__":
    main()
