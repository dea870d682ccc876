"""A conversation with a WebSocket server on a terminal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

from .._errors import ConnectionClosed
from .._websocket.websocket import WebSocket
from .prompt import Prompt, PromptInterrupted, open_prompt
from .text import escape, hexadecimal

__all__ = ["interact"]

HELP: Final = """\
  TEXT                    send TEXT as a text message
  //TEXT                  send /TEXT
  /text TEXT              send TEXT, which may be empty
  /binary HEX             send a binary message: /binary 00 ff 2a
  /ping [TEXT]            send a ping and print its round-trip time
  /close [CODE [REASON]]  close the connection; the code is 1000 if none is given
  /help                   print this
  Ctrl-D closes with code 1000, Ctrl-C with 1001.
  "< " begins a text message, "<binary" a binary one, "* " what trio-wt says."""

# A terminal is no place for megabytes of digits.
_SHOWN_BYTES: Final = 1024


class _Mistake(Exception):
    """What the user entered cannot be done."""


async def interact(websocket: WebSocket, history: Path | None) -> ConnectionClosed | None:
    """Talk until the user or the peer ends it.

    Args:
        websocket: the open connection.
        history: where to keep what the user enters; None for nowhere.

    Returns:
        how the connection ended; None if this side closed it.
    """
    async with open_prompt(history) as prompt:
        conversation = _Conversation(websocket, prompt)
        await conversation.run()
    return conversation.end


class _Conversation:
    def __init__(self, websocket: WebSocket, prompt: Prompt) -> None:
        self._websocket = websocket
        self._prompt = prompt
        self._commands: dict[str, Callable[[str], Awaitable[None]]] = {
            "text": websocket.send,
            "binary": self._binary,
            "ping": self._ping,
            "close": self._close,
            "help": self._help,
        }
        self.end: ConnectionClosed | None = None

    async def run(self) -> None:
        await self._say(_greeting(self._websocket))
        await self._say("/help tells what can be entered")
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._print_messages)
            while True:
                try:
                    line = await self._prompt.ask()
                except EOFError:
                    await self._websocket.close(1000)
                except PromptInterrupted:
                    await self._websocket.close(1001)
                else:
                    await self._enter(line)
                if self._websocket.close_code is not None:
                    # `_print_messages` ends this, when it has printed everything.
                    await trio.sleep_forever()

    async def _say(self, text: str) -> None:
        await self._prompt.print(f"* {escape(text)}")

    async def _print_messages(self) -> None:
        try:
            while True:
                messages = await self._websocket.receive_many()
                await self._prompt.print("\n".join(map(_shown, messages)))
        except ConnectionClosed as exc:
            self.end = exc
        except trio.ClosedResourceError:
            await self._websocket.wait_closed()
        self._nursery.cancel_scope.cancel()

    async def _enter(self, line: str) -> None:
        try:
            if not line.startswith("/"):
                if line:
                    await self._websocket.send(line)
            elif line.startswith("//"):
                await self._websocket.send(line[1:])
            else:
                name, _, argument = line[1:].partition(" ")
                command = self._commands.get(name)
                if command is None:
                    raise _Mistake(f"there is no /{name}; /help lists what there is, // sends a /")
                await command(argument)
        except (_Mistake, ValueError) as exc:
            await self._say(str(exc))
        except (ConnectionClosed, trio.ClosedResourceError):
            return  # whoever receives learns of the end

    async def _binary(self, argument: str) -> None:
        try:
            data = bytes.fromhex(argument)
        except ValueError:
            raise _Mistake("/binary takes pairs of hexadecimal digits") from None
        await self._websocket.send(data)

    async def _ping(self, argument: str) -> None:
        payload = argument.encode() or None
        if payload is not None and len(payload) > 125:
            raise _Mistake("a ping's payload has at most 125 bytes")
        self._nursery.start_soon(self._tell_round_trip, payload)
        await trio.lowlevel.checkpoint()

    async def _tell_round_trip(self, payload: bytes | None) -> None:
        try:
            seconds = await self._websocket.ping(payload)
        except ValueError as exc:
            await self._say(str(exc))
        except (ConnectionClosed, trio.ClosedResourceError):
            return
        else:
            await self._say(f"pong after {seconds * 1000:.2f} ms")

    async def _close(self, argument: str) -> None:
        code, _, reason = argument.partition(" ")
        if code and not (code.isascii() and code.isdigit()):
            raise _Mistake("/close takes a code, such as 1000, and then a reason")
        await self._websocket.close(int(code or 1000), reason)

    async def _help(self, argument: str) -> None:
        await self._prompt.print(HELP)


def _greeting(websocket: WebSocket) -> str:
    request = websocket.request
    scheme = "wss" if request.scheme == "https" else "ws"
    agreed = list(websocket.extensions)
    if websocket.subprotocol is not None:
        agreed.insert(0, f"subprotocol {websocket.subprotocol}")
    details = f" ({', '.join(agreed)})" if agreed else ""
    return f"connected to {scheme}://{request.host}{request.target}{details}"


def _shown(message: str | bytes) -> str:
    if isinstance(message, str):
        return f"< {escape(message)}"
    return f"<binary, {len(message)} bytes> {hexadecimal(message, _SHOWN_BYTES)}"
