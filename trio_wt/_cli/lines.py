"""Lines of bytes, and how scripts read and write them.

Standard input and output are read and written in worker threads, straight from and to the descriptors: a reader that does not
come to an end, or a writer that nobody reads from, then can be left behind when the connection ends, and holds no lock
that the interpreter wants at exit.
"""

from __future__ import annotations

import os
import sys
from typing import Final

import trio

__all__ = ["Lines", "read_input", "write_output"]

_CHUNK: Final = 65536


class Lines:
    """Cuts bytes into lines, however they come.

    Args:
        limit: of a longer line, what is there comes out as if it were one; None to hold lines of any length.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        # Of a line that has not come to its end.
        self._begun: list[bytes] = []
        self._size = 0
        self._cut = False

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete with what has come, without their ends."""
        *ends, rest = data.split(b"\n")
        complete = []
        for end in ends:
            line = b"".join([*self._begun, end])
            if line or not self._cut:
                complete.append(line)
            self._begun.clear()
            self._size, self._cut = 0, False
        self._begun.append(rest)
        self._size += len(rest)
        if self._limit is not None and self._size > self._limit:
            complete += self.end()
            self._cut = True
        return complete

    def end(self) -> list[bytes]:
        """What is left without an end, if there is anything."""
        line = b"".join(self._begun)
        self._begun.clear()
        self._size = 0
        return [line] if line else []


async def read_input() -> bytes:
    """What there is of standard input; nothing at its end."""
    if sys.stdin is None:  # closed by whoever started this
        await trio.lowlevel.checkpoint()
        return b""
    descriptor = sys.stdin.fileno()
    return await trio.to_thread.run_sync(os.read, descriptor, _CHUNK, abandon_on_cancel=True)


async def write_output(data: bytes) -> None:
    """Write to standard output.

    Raises:
        BrokenPipeError: nobody reads it any more.
    """
    descriptor = sys.stdout.fileno()

    def write() -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]

    await trio.to_thread.run_sync(write, abandon_on_cancel=True)
