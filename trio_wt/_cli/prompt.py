"""A line to edit at the bottom of the terminal, while text is printed above it.

General theory of operation:

prompt_toolkit runs on asyncio. One event loop of asyncio's runs in one worker thread for as long as the prompt is
open; `Prompt._call` runs a coroutine there, waits for it without blocking Trio, and when cancelled cancels it and
waits until it has put the terminal back in order. So no thread is ever left behind.

Everything that touches the terminal runs in that loop, printing too. (prompt_toolkit's own ``patch_stdout`` writes
from a thread of its own, and loses what it is about to print when a prompt's loop ends at that moment.)
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import trio
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app_session, in_terminal
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

__all__ = ["Prompt", "PromptInterrupted", "history_path", "open_prompt"]

T = TypeVar("T")

# A history file that has grown past this is cut to half of it.
_HISTORY_MAX: Final = 2**19


class PromptInterrupted(Exception):
    """Ctrl-C was pressed."""


class Prompt:
    """Asks for lines and prints above them; `open_prompt` makes it."""

    def __init__(self, history: History) -> None:
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._history = history
        self._session: PromptSession[str] | None = None

    async def ask(self) -> str:
        """The next line that the user enters.

        Raises:
            EOFError: Ctrl-D was pressed.
            PromptInterrupted: Ctrl-C was pressed.

        Cancelled, what the user has typed so far is lost, and the terminal is as before.
        """
        return await self._call(self._ask)

    async def print(self, text: str) -> None:
        """Print lines above the prompt; they must be free of control characters."""
        await self._call(lambda: self._print(text))

    async def _ask(self) -> str:
        if self._session is None:
            self._session = PromptSession(history=self._history, enable_history_search=True)
        try:
            return await self._session.prompt_async("> ", handle_sigint=False)
        except KeyboardInterrupt:
            # Only a key was pressed; as a KeyboardInterrupt it would tear down the loop.
            raise PromptInterrupted from None

    async def _print(self, text: str) -> None:
        output = get_app_session().output
        async with in_terminal():
            output.write(text + "\n")
            output.flush()

    async def _call(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        token = trio.lowlevel.current_trio_token()
        done = trio.Event()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            task = self._loop.create_task(function())
            task.add_done_callback(lambda _: token.run_sync_soon(done.set))
            tasks.append(task)

        await trio.lowlevel.checkpoint_if_cancelled()
        self._loop.call_soon_threadsafe(begin)
        try:
            await done.wait()
        except trio.Cancelled:
            self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            with trio.CancelScope(shield=True):
                await done.wait()
            if not tasks[0].cancelled():
                tasks[0].exception()  # seen; asyncio would complain otherwise
            raise
        return tasks[0].result()

    async def run(self) -> None:
        """Run the loop until `stop`."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._run)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(_wait(self._stopped))

    def stop(self) -> None:
        """End the loop, once nothing runs in it any more."""
        self._loop.call_soon_threadsafe(self._stopped.set)


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


@asynccontextmanager
async def open_prompt(history: Path | None) -> AsyncIterator[Prompt]:
    """A prompt on the terminal that standard input and output are.

    Args:
        history: the file that keeps what was entered; None to forget it at the end.

    What the block raises comes out in an `ExceptionGroup`.
    """
    prompt = Prompt(InMemoryHistory() if history is None else _PrivateHistory(history))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(prompt.run)
        try:
            yield prompt
        finally:
            prompt.stop()


def history_path() -> Path:
    """Where the history is kept: ``trio-wt/history`` in the user's directory for state."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "trio-wt" / "history"


class _PrivateHistory(FileHistory):
    """A history that only its user may read, of bounded size; without a file that works it lasts for the session.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            if path.stat().st_size > _HISTORY_MAX:
                recent = path.read_bytes()[-_HISTORY_MAX // 2 :]
                # Each entry begins with an empty line and a comment.
                path.write_bytes(recent[max(recent.find(b"\n#"), 0) :])

    def load_history_strings(self) -> list[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)
