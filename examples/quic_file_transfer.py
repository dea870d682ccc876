"""Sends files of any size, several at once, with progress bars and checksums.

Run it: it starts a server, sends it a file, and compares. `serve DIRECTORY` and `send HOST PORT
FILE` run the ends one by one. It needs the package rich.

A file is a stream: a line of JSON with its name and size, the bytes, and their SHA-256. The server
writes them to a temporary file, checks, and only then gives it its name. It answers with a line of
JSON, or resets the stream with a code that says why.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import trio
from quic_common import (
    Failed,
    client_tls,
    own_tls,
    parsers,
    positive,
    run,
    serve_forever,
    server_tls,
)

try:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
except ImportError:
    raise SystemExit("the progress bars are rich's: pip install rich") from None

import trio_wt

ALPN = "trio-wt-files"
PIECE = 256 * 1024
CHECKSUM = hashlib.sha256().digest_size
MIB = 2**20

BAD_REQUEST, BAD_NAME, EXISTS, TOO_LARGE, CANNOT_WRITE, INCOMPLETE, DAMAGED = range(0x10, 0x17)
REASONS = {
    BAD_REQUEST: "the server did not understand",
    BAD_NAME: "the server does not like this name",
    EXISTS: "the server has a file of this name",
    TOO_LARGE: "the file is larger than the server allows",
    CANNOT_WRITE: "the server cannot write it",
    INCOMPLETE: "the file has become shorter while it was sent",
    DAMAGED: "the bytes that have arrived are others than those that were sent",
}


# ---- the server


async def session(directory: trio.Path, max_size: float, connection: trio_wt.Connection) -> None:
    """Serve one connection: a task for each file."""
    async with trio.open_nursery() as nursery:
        async for stream in connection.incoming_streams:
            nursery.start_soon(receive_file, stream, directory, max_size)


async def receive_file(stream: trio_wt.Stream, directory: trio.Path, max_size: float) -> None:
    """Receive one file; nothing of it is left if it does not arrive whole."""
    with suppress(trio_wt.StreamReset):
        async with stream:
            try:
                name, size = parse_header(await stream.receive_until(b"\n", 4096))
            except (ValueError, RecursionError, trio_wt.IncompleteRead, trio_wt.ReadLimitExceeded):
                raise trio_wt.StreamAbort(BAD_REQUEST) from None
            if not is_plain(name):
                raise trio_wt.StreamAbort(BAD_NAME)
            if size > max_size:
                raise trio_wt.StreamAbort(TOO_LARGE)
            try:
                if await (directory / name).exists():
                    raise trio_wt.StreamAbort(EXISTS)
                checksum = await store(stream, directory, name, size)
            except (OSError, ValueError) as exc:  # a name can be wrong in many ways
                print(f"{name!r} could not be written: {exc}")
                raise trio_wt.StreamAbort(CANNOT_WRITE) from None
            except trio_wt.IncompleteRead:
                raise trio_wt.StreamAbort(INCOMPLETE) from None
            await stream.send_all(json.dumps({"sha256": checksum}).encode(), eof=True)
            print(f"{name!r} has arrived: {size:,} bytes")


def parse_header(line: bytes) -> tuple[str, int]:
    """A file's name and size.

    Raises:
        ValueError: this is something else.
    """
    header = json.loads(line)
    if not isinstance(header, dict):
        raise ValueError("not an object")
    name, size = header.get("name"), header.get("size")
    if not isinstance(name, str) or type(size) is not int or size < 0:
        raise ValueError("not a file's header")
    return name, size


def is_plain(name: str) -> bool:
    """Whether a name stays in its directory."""
    return name.isprintable() and name not in {"", ".", ".."} and name == os.path.basename(name)


async def store(stream: trio_wt.ReceiveStream, directory: trio.Path, name: str, size: int) -> str:
    """Write what comes to a file; its checksum.

    Raises:
        OSError: it cannot be written.
        trio_wt.IncompleteRead: the stream has ended early.
    """
    digest = hashlib.sha256()
    temporary = directory / f".{secrets.token_hex(8)}.part"
    try:
        async with await temporary.open("xb") as file:
            while size:
                piece = await stream.receive_some(min(size, PIECE))
                if not piece:
                    raise trio_wt.IncompleteRead(0)
                digest.update(piece)
                await file.write(piece)
                size -= len(piece)
        if await stream.receive_exactly(CHECKSUM) != digest.digest():
            raise trio_wt.StreamAbort(DAMAGED)
        await temporary.rename(directory / name)
    finally:
        with trio.CancelScope(shield=True):
            await temporary.unlink(missing_ok=True)
    return digest.hexdigest()


async def serve(
    tls: trio_wt.ServerTLS,
    directory: trio.Path,
    max_size: float = 1024 * MIB,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Receive files into a directory until cancelled."""
    if not await directory.is_dir():
        raise Failed(f"{directory}: there is no such directory")
    await trio_wt.serve_quic(
        partial(session, directory, max_size),
        port,
        host=host,
        alpn=[ALPN],
        tls=tls,
        max_streams=16,
        task_status=task_status,
    )


# ---- the client


def progress_bars() -> Progress:
    """With a line for each file."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )


async def send_file(connection: trio_wt.Connection, path: trio.Path, progress: Progress) -> str:
    """Send one file; the checksum that both ends have found.

    Raises:
        Failed: the server has refused it, or has got something else.
        OSError: it cannot be read.
        trio_wt.ConnectionClosed: the connection has ended.
    """
    digest = hashlib.sha256()
    size = (await path.stat()).st_size
    bar = progress.add_task(path.name, total=size)
    try:
        async with await path.open("rb") as file, connection.open_stream() as stream:
            header = json.dumps({"name": path.name, "size": size})
            await stream.send_all(f"{header}\n".encode())
            left = size  # what is appended meanwhile is not sent
            while left and (piece := await file.read(min(left, PIECE))):
                await stream.send_all(piece)  # waits when the network is slower than the disk
                digest.update(piece)
                left -= len(piece)
                progress.update(bar, advance=len(piece))
            await stream.send_all(b"" if left else digest.digest(), eof=True)
            answer = json.loads(await stream.receive_all(4096))
    except trio_wt.StreamReset as exc:
        raise Failed(f"{path}: {REASONS.get(exc.code, exc)}") from exc
    if answer["sha256"] != digest.hexdigest():
        raise Failed(f"{path}: {REASONS[DAMAGED]}")
    return digest.hexdigest()


async def send(host: str, port: int, tls: trio_wt.ClientTLS, files: Sequence[str]) -> None:
    """Send files, all at once; those that can be sent are, whatever becomes of the others.

    Raises:
        Failed: something is wrong with some of them.
    """
    problems: list[str] = []
    checksums: dict[str, str] = {}

    async def send_one(path: trio.Path) -> None:
        try:
            checksums[path.name] = await send_file(connection, path, progress)
        except Failed as exc:
            problems.append(str(exc))
        except OSError as exc:
            problems.append(f"{path}: {exc.strerror}")

    async with trio_wt.open_quic(host, port, alpn=[ALPN], tls=tls) as connection:
        with progress_bars() as progress:
            async with trio.open_nursery() as nursery:
                for file in files:
                    nursery.start_soon(send_one, trio.Path(file))
    for name, checksum in checksums.items():
        print(f"{name}: arrived, SHA-256 {checksum}")
    if problems:
        raise Failed("\n".join(problems))


async def demo() -> None:
    """Both ends on loopback, with a file of 16 MiB."""
    server, client = own_tls()
    with tempfile.TemporaryDirectory() as folder:
        here, there = trio.Path(folder, "a-file"), trio.Path(folder, "there")
        await there.mkdir()
        await here.write_bytes(os.urandom(16 * MIB))
        async with trio.open_nursery() as nursery:
            sockets = await nursery.start(serve, server, there)
            await send("127.0.0.1", sockets[0].local_address[1], client, [str(here)])
            nursery.cancel_scope.cancel()
        same = await (there / here.name).read_bytes() == await here.read_bytes()
    print("the files are the same" if same else "the files differ")


async def program(arguments: Sequence[str] | None) -> None:
    """What the command line says."""
    parser, server, client = parsers(__doc__, client="send")
    server.add_argument("directory", type=trio.Path, help="where to write the files")
    server.add_argument(
        "--max-size", type=positive, default=1024, metavar="MIB", help="the largest file to take"
    )
    client.add_argument("files", nargs="+", metavar="file", help="what to send")
    options = parser.parse_args(arguments)
    if options.command == "serve":
        limit = options.max_size * MIB
        tls = server_tls(options)
        await serve_forever(serve, tls, options.directory, limit, options.host, options.port)
    elif options.command == "send":
        await send(options.host, options.port, client_tls(options), options.files)
    else:
        await demo()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    run(program, arguments)


if __name__ == "__main__":
    main()
