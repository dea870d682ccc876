"""Key logs: the secrets of connections for Wireshark, one a line (NSS Key Log Format)."""

from __future__ import annotations

import io
import logging
import os
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["open_keylog"]

logger = logging.getLogger("trio_wt.quic")

_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT


def open_keylog(path: str | os.PathLike[str] | None) -> TextIO | None:
    """A file to append secrets to; None for no path.

    It is made with mode 0600 if it does not exist. Any number of connections and processes can share one: each line is
    one write at its end. A write that fails later is logged once, and harms no connection.

    Raises:
        OSError: it cannot be written to.
    """
    if path is None:
        return None
    raw = _Appender(os.path.abspath(path))
    raw.check()
    # TextIOWrapper takes any raw file, though typeshed asks for a buffer.
    return io.TextIOWrapper(raw, "ascii", newline="\n", write_through=True)  # type: ignore[type-var]


class _Appender(io.RawIOBase):
    """Opens the file for each write: there are a few a connection, and so there is nothing to close or to count."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._complained = False

    def check(self) -> None:
        os.close(os.open(self._path, _FLAGS, 0o600))

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        line = bytes(data)
        try:
            descriptor = os.open(self._path, _FLAGS, 0o600)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as exc:
            if not self._complained:
                logger.warning("cannot write to the key log %s: %s", self._path, exc.strerror)
            self._complained = True
        return len(line)
