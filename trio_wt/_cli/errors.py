"""How a command ends: its exit code, and the one line that says why."""

from __future__ import annotations

import os
import signal
import ssl
from collections.abc import Awaitable, Callable, Iterator

import trio

from .._errors import HandshakeFailed, InternalError, Rejected, TrioWTError
from .._quic.verification import CertificateRejected
from .text import one_line

__all__ = ["CommandFailed", "Interrupted", "describe", "run_trio"]


class CommandFailed(Exception):
    """The command did not do what it was asked to; the message is one line for the user."""


class Interrupted(Exception):
    """A signal ended the command, which has said goodbye already.

    Attributes:
        exit_code: 128 and the signal's number, as shells have it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


_EXPECTED = (CommandFailed, TrioWTError, OSError, ValueError)


def run_trio(main: Callable[[], Awaitable[None]]) -> None:
    """Run a command's async part; what it raises comes out alone, not in groups.

    Raises:
        Interrupted: Ctrl-C, where ``main`` does not handle it.
        BaseException: what ``main`` raises; of a group, what matters most.
    """
    try:
        try:
            trio.run(main)
        except BaseExceptionGroup as group:
            leaves = list(_leaves(group))
            # An interruption is not to be hidden by what broke because of it.
            worst = next((leaf for leaf in leaves if not isinstance(leaf, Exception)), leaves[0])
            raise worst from group
    except KeyboardInterrupt:
        # Click would print an empty line for it.
        raise Interrupted(signal.SIGINT) from None


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    else:
        yield exc


def describe(exc: BaseException) -> str:
    """One line that tells a user what went wrong."""
    if isinstance(exc, Rejected):
        said = exc.body.decode(errors="replace").strip().partition("\n")[0]
        return one_line(f"{exc}: {said}" if said else str(exc), 400)
    if isinstance(exc, CertificateRejected):
        return one_line(
            f"{exc}; --cafile FILE or --server-certificate-hash SHA256 trusts a certificate of your own"
        )
    if isinstance(exc, HandshakeFailed):
        return one_line(_with_causes(exc))
    if isinstance(exc, OSError) and exc.strerror:
        name = f"{exc.filename}: " if exc.filename else ""
        return one_line(f"{name}{exc.strerror}")
    if isinstance(exc, _EXPECTED) and not isinstance(exc, InternalError):
        return one_line(str(exc) or type(exc).__name__)
    what = f"{type(exc).__name__}: {exc}"
    return one_line(f"internal error, {what} (trio-wt --traceback shows where)")


def _with_causes(exc: HandshakeFailed) -> str:
    """The message, with the system's reasons where it does not tell them, and with what may help."""
    message = str(exc)
    reasons: list[str] = []
    untrusted = False
    cause = exc.__cause__
    while cause is not None:
        for leaf in _leaves(cause):
            untrusted = untrusted or isinstance(leaf, ssl.SSLCertVerificationError)
            if isinstance(leaf, OSError) and leaf.errno and not isinstance(leaf, ssl.SSLError):
                reason = leaf.strerror if leaf.errno < 0 else os.strerror(leaf.errno)
                if reason and reason not in message and reason not in reasons:
                    reasons.append(reason)
        cause = cause.__cause__
    if reasons:
        message += f" ({', '.join(reasons)})"
    if untrusted:
        message += "; --cafile FILE trusts a certificate of your own"
    return message
