"""Listening sockets, and accepting from them for as long as it takes."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import trio

__all__ = ["Listener", "accept_forever", "open_listeners"]

#: Anything that gives streams.
Listener: TypeAlias = trio.abc.Listener[trio.abc.Stream]

logger = logging.getLogger("trio_wt.server")

# Too many open files, or no memory for another socket: they pass when connections end.
_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_BACK_OFF: Final = 0.1


async def open_listeners(
    *,
    port: int | None,
    host: str | bytes | None,
    unix_path: str | os.PathLike[str] | None,
    listeners: Sequence[Listener] | None,
    backlog: int | None,
) -> list[Listener]:
    """The listeners for exactly one of a port, a path or given ones.

    Raises:
        ValueError: none of them was given, or more than one.
        OSError: the address cannot be listened on.
    """
    given = [
        name
        for name, value in (("port", port), ("unix_path", unix_path), ("listeners", listeners))
        if value is not None
    ]
    if len(given) != 1:
        await trio.lowlevel.checkpoint()
        raise ValueError(
            f"give one of port, unix_path and listeners; given: {', '.join(given) or 'none'}"
        )
    if port is not None:
        return list(await trio.open_tcp_listeners(port, host=host, backlog=backlog))
    if unix_path is not None:
        return [await _open_unix(os.fspath(unix_path), backlog)]
    await trio.lowlevel.checkpoint()
    assert listeners is not None
    return list(listeners)


async def _open_unix(path: str, backlog: int | None) -> trio.SocketListener:
    try:
        # A socket that a process left behind; anything else in its place is an error that bind() tells.
        if stat.S_ISSOCK(os.stat(path).st_mode) and not await _answers(path):
            os.unlink(path)
    except FileNotFoundError:
        pass
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.bind(path)
        sock.listen(min(backlog or 0xFFFF, 0xFFFF))
        return trio.SocketListener(sock)
    except BaseException:
        sock.close()
        raise


async def _answers(path: str) -> bool:
    try:
        stream = await trio.open_unix_socket(path)
    except OSError:
        return False
    await trio.aclose_forcefully(stream)
    return True


async def accept_forever(
    listener: Listener,
    handle: Callable[[trio.abc.Stream], Awaitable[object]],
    nursery: trio.Nursery,
) -> None:
    """Accept until cancelled; each stream gets a task of its own, which must not raise for what a peer does.

    Running out of file descriptors is waited out; one line in the log says so each time it begins.
    """
    exhausted = False
    while True:
        try:
            stream = await listener.accept()
        except OSError as exc:
            if exc.errno not in _EXHAUSTED:
                raise
            if not exhausted:
                logger.warning("cannot accept connections for now: %s", os.strerror(exc.errno))
            exhausted = True
            await trio.sleep(_BACK_OFF)
        else:
            exhausted = False
            nursery.start_soon(handle, stream)
