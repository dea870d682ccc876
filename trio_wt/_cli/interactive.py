"""A conversation with a WebSocket server on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import trio

from .._errors import ConnectionClosed
from .._websocket.websocket import WebSocket
from .conversation import Conversation, Mistake, hexadecimal_argument
from .prompt import Prompt, open_prompt
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


class _Conversation(Conversation):
    help_text = HELP
    done_code = 1000
    interrupted_code = 1001

    def __init__(self, websocket: WebSocket, prompt: Prompt) -> None:
        super().__init__(prompt)
        self._websocket = websocket
        self.commands |= {"text": websocket.send, "binary": self._binary, "ping": self._ping}

    def greeting(self) -> str:
        return _greeting(self._websocket)

    async def send_text(self, text: str) -> None:
        await self._websocket.send(text)

    async def close(self, code: int, reason: str = "") -> None:
        await self._websocket.close(code, reason)

    @property
    def is_closed(self) -> bool:
        return self._websocket.close_code is not None

    async def listen(self) -> None:
        try:
            while True:
                messages = await self._websocket.receive_many()
                await self.prompt.print("\n".join(map(_shown, messages)))
        except ConnectionClosed as exc:
            self.end = exc
        except trio.ClosedResourceError:
            await self._websocket.wait_closed()

    async def _binary(self, argument: str) -> None:
        await self._websocket.send(hexadecimal_argument(argument, "binary"))

    async def _ping(self, argument: str) -> None:
        payload = argument.encode() or None
        if payload is not None and len(payload) > 125:
            raise Mistake("a ping's payload has at most 125 bytes")
        self.nursery.start_soon(self._tell_round_trip, payload)
        await trio.lowlevel.checkpoint()

    async def _tell_round_trip(self, payload: bytes | None) -> None:
        try:
            seconds = await self._websocket.ping(payload)
        except ValueError as exc:
            await self.say(str(exc))
        except (ConnectionClosed, trio.ClosedResourceError):
            return
        else:
            await self.say(f"pong after {seconds * 1000:.2f} ms")


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
