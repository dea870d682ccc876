"""A conversation on a terminal, whatever it is carried by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import ClassVar

import trio

from .._errors import ConnectionClosed
from .prompt import Prompt, PromptInterrupted
from .text import escape

__all__ = ["Conversation", "Mistake", "hexadecimal_argument"]


class Mistake(Exception):
    """What the user entered cannot be done."""


class Conversation(ABC):
    """Asks for lines, carries out what they say, and prints what comes above them.

    Args:
        prompt: the terminal.

    Attributes:
        end: how it ended; None if this side has closed.
        commands: what can be entered after a slash.
        nursery: where what goes on behind the prompt runs; once `listen` is done, everything is.
    """

    #: What /help prints.
    help_text: str
    #: The codes with which Ctrl-D and Ctrl-C close.
    done_code: ClassVar[int]
    interrupted_code: ClassVar[int]

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.commands: dict[str, Callable[[str], Awaitable[None]]] = {
            "close": self._close,
            "help": self._help,
        }
        self.end: ConnectionClosed | None = None

    @abstractmethod
    def greeting(self) -> str:
        """What is said first."""

    @abstractmethod
    async def listen(self) -> None:
        """Print what comes until the end."""

    @abstractmethod
    async def send_text(self, text: str) -> None:
        """Send what was entered."""

    @abstractmethod
    async def close(self, code: int, reason: str = "") -> None:
        """Close from this side."""

    @property
    @abstractmethod
    def is_closed(self) -> bool:
        """Whether there was an end."""

    async def run(self) -> None:
        """Talk until the user or the peer ends it."""
        await self.say(self.greeting())
        await self.say("/help tells what can be entered")
        async with trio.open_nursery() as self.nursery:
            self.nursery.start_soon(self._listen)
            while True:
                try:
                    line = await self.prompt.ask()
                except EOFError:
                    await self.close(self.done_code)
                except PromptInterrupted:
                    await self.close(self.interrupted_code)
                else:
                    await self._enter(line)
                if self.is_closed:
                    # `_listen` ends this, when it has printed everything.
                    await trio.sleep_forever()

    async def say(self, text: str) -> None:
        """Print a line that comes from here and not from the peer."""
        await self.prompt.print(f"* {escape(text)}")

    async def _listen(self) -> None:
        await self.listen()
        self.nursery.cancel_scope.cancel()

    async def _enter(self, line: str) -> None:
        try:
            if not line.startswith("/"):
                if line:
                    await self.send_text(line)
            elif line.startswith("//"):
                await self.send_text(line[1:])
            else:
                name, _, argument = line[1:].partition(" ")
                command = self.commands.get(name)
                if command is None:
                    raise Mistake(f"there is no /{name}; /help lists what there is, // sends a /")
                await command(argument)
        except (Mistake, ValueError) as exc:
            await self.say(str(exc))
        except (ConnectionClosed, trio.ClosedResourceError):
            return  # whoever receives learns of the end

    async def _close(self, argument: str) -> None:
        code, _, reason = argument.partition(" ")
        if code and not (code.isascii() and code.isdigit()):
            raise Mistake(f"/close takes a code, such as {self.done_code}, and then a reason")
        await self.close(int(code or self.done_code), reason)

    async def _help(self, argument: str) -> None:
        await self.prompt.print(self.help_text)


def hexadecimal_argument(argument: str, command: str) -> bytes:
    """What stands behind a command that takes bytes.

    Raises:
        Mistake: it is something else.
    """
    try:
        return bytes.fromhex(argument)
    except ValueError:
        raise Mistake(f"/{command} takes pairs of hexadecimal digits") from None
