"""A conversation over a WebTransport session on a terminal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import trio

from .._errors import ConnectionClosed
from .._protocol.http3_codes import MAX_APPLICATION_CODE
from .._webtransport.session import WebTransportSession
from .conversation import Conversation, Mistake, hexadecimal_argument
from .prompt import Prompt, open_prompt
from .webtransport_talk import INTERRUPTED, KINDS, Kind, Screen, Talk, shown

__all__ = ["interact_with_session"]

HELP: Final = """\
  TEXT                    send TEXT as --send-as says: {kind}
  //TEXT                  send /TEXT
  /stream TEXT            send TEXT on a new stream, and print the answer
  /send-stream TEXT       send TEXT on a new stream of one direction
  /datagram TEXT          send TEXT as a datagram
  /binary HEX             send bytes as --send-as says: /binary 00 ff 2a
  /ping                   send a ping and print its round-trip time
  /drain                  ask the peer to bring the session to its end
  /close [CODE [REASON]]  close the session; the code is 0 if none is given
  /help                   print this
  Ctrl-D closes with code 0, Ctrl-C with 1.
  "< " begins what comes, with what it comes by, "* " what trio-wt says."""

# A terminal is no place for megabytes of digits.
_MOMENT: Final = 0.2
_SHOWN_BYTES: Final = 1024


async def interact_with_session(
    session: WebTransportSession, kind: Kind, history: Path | None, limit: int | None
) -> ConnectionClosed | None:
    """Talk until the user or the peer ends it.

    Args:
        session: the open session.
        kind: what text goes out as.
        history: where to keep what the user enters; None for nowhere.
        limit: the longest line to wait for the end of; None for any.

    Returns:
        how the session ended; None if this side closed it.
    """
    async with open_prompt(history) as prompt:
        conversation = _Conversation(session, kind, prompt, limit)
        await conversation.run()
    return conversation.end


class _Terminal(Screen):
    def __init__(self, prompt: Prompt, limit: int | None) -> None:
        super().__init__(limit)
        self._prompt = prompt

    async def show(self, label: str, lines: Sequence[bytes]) -> None:
        await self._prompt.print(
            "\n".join(f"< {label}: {shown(line, _SHOWN_BYTES)}" for line in lines)
        )

    async def note(self, label: str, event: str, code: int) -> None:
        await self._prompt.print(f"* {label} was {event} by the peer with code {code}")


class _Conversation(Conversation):
    done_code = 0
    interrupted_code = INTERRUPTED

    def __init__(
        self, session: WebTransportSession, kind: Kind, prompt: Prompt, limit: int | None
    ) -> None:
        super().__init__(prompt)
        self.help_text = HELP.format(kind=kind)
        self._session = session
        self._kind = kind
        self._talk = Talk(session, _Terminal(prompt, limit))
        self._closing = False
        self.commands |= {"binary": self._binary, "ping": self._ping, "drain": self._drain}
        for name in KINDS:
            self.commands[name] = self._sender(name)

    def greeting(self) -> str:
        request = self._session.request
        agreed = [f"drafts {self._session.statistics().dialect} of WebTransport"]
        if self._session.subprotocol is not None:
            agreed.insert(0, f"subprotocol {self._session.subprotocol}")
        return f"connected to https://{request.host}{request.target} ({', '.join(agreed)})"

    async def send_text(self, text: str) -> None:
        await self._send(self._kind, text.encode())

    async def close(self, code: int, reason: str = "") -> None:
        if code > MAX_APPLICATION_CODE:
            raise Mistake("a code is less than 2^32")
        self._closing = True
        self._talk.stop()
        await self._talk.finished.wait()
        await self._session.aclose(code, reason)

    @property
    def is_closed(self) -> bool:
        return self._session.closed is not None

    async def listen(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_draining)
            await self._talk.run()
            nursery.cancel_scope.cancel()
        end = await self._session.wait_closed() if self._closing else self._session.closed
        if end is not None and end.remote:
            self.end = end

    async def _tell_draining(self) -> None:
        try:
            await self._session.wait_draining()
        except (ConnectionClosed, trio.ClosedResourceError):
            return
        await self.say("the peer asks to bring the session to its end")

    def _sender(self, kind: Kind) -> Callable[[str], Awaitable[None]]:
        async def send(text: str) -> None:
            await self._send(kind, text.encode())

        return send

    async def _send(self, kind: Kind, data: bytes) -> None:
        if kind == "datagram":
            await self._talk.send_datagram(data)
        else:
            # It may wait for the peer; the prompt does not, but for a moment: what was handed over is not given up by leaving.
            sent = trio.Event()
            self.nursery.start_soon(self._send_stream, data, kind, sent)
            with trio.move_on_after(_MOMENT):
                await sent.wait()

    async def _send_stream(self, data: bytes, kind: Kind, sent: trio.Event) -> None:
        try:
            await self._talk.send_stream(data, answered=kind == "stream")
        except trio.ClosedResourceError:
            return
        finally:
            sent.set()

    async def _binary(self, argument: str) -> None:
        await self._send(self._kind, hexadecimal_argument(argument, "binary"))

    async def _ping(self, argument: str) -> None:
        self.nursery.start_soon(self._tell_round_trip)
        await trio.lowlevel.checkpoint()

    async def _tell_round_trip(self) -> None:
        try:
            seconds = await self._session.connection.ping()
        except (ConnectionClosed, trio.ClosedResourceError):
            return
        await self.say(f"answered after {seconds * 1000:.2f} ms")

    async def _drain(self, argument: str) -> None:
        self._session.drain()
        await trio.lowlevel.checkpoint()
