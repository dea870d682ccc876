"""Uploads of any size as one message, sent and received piece by piece in bounded memory.

Run it with the name of a file, or without for its own: it starts a server, uploads the file to it,
printing the progress, and compares checksums.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import trio

import trio_wt

PIECE = 64 * 1024


async def receive_upload(ws: trio_wt.WebSocket) -> None:
    """The server's side: digest the message as it comes, and answer with its checksum."""
    digest = hashlib.sha256()
    async with ws.receive_stream() as upload:
        if upload.text:
            await ws.close(1003, "uploads are binary")
            return
        async for piece in upload:
            assert isinstance(piece, bytes)
            digest.update(piece)  # or write it to a file
    await ws.send(digest.hexdigest())


async def upload_file(ws: trio_wt.WebSocket, path: trio.Path) -> str:
    """The client's side.

    Returns:
        the checksum that the server has calculated.
    """
    size = (await path.stat()).st_size
    sent = 0
    async with await path.open("rb") as file, ws.send_stream(text=False) as upload:
        while piece := await file.read(PIECE):
            # Waits when the network is slower than the disk.
            await upload.send(piece)
            sent += len(piece)
            print(f"\r{sent:,} of {size:,} bytes", end="", flush=True)
    print()
    return str(await ws.receive())


async def serve(
    port: int = 8765, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
) -> None:
    """Take uploads on loopback until cancelled."""
    await trio_wt.serve_websocket(
        receive_upload,
        port,
        host="127.0.0.1",
        max_message_size=None,  # nothing is kept but what has just arrived
        task_status=task_status,
    )


async def main(file: str, port: int = 0) -> None:
    """Start a server, upload a file to it, compare, and stop."""
    path = trio.Path(file)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(serve, port)
        url = f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        async with trio_wt.open_websocket(url, compression=None) as ws:
            checksum = await upload_file(ws, path)
        nursery.cancel_scope.cancel()
    same = checksum == hashlib.sha256(await path.read_bytes()).hexdigest()
    print("the checksums are the same" if same else "the checksums differ")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else __file__)
