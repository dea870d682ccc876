"""A chat in the browser: one program serves the page by TCP, and the sessions of the page by UDP.

Run it, and open http://127.0.0.1:8765/ in two tabs. What is said goes over a stream, and so nothing
is lost or out of order. That somebody is typing goes as a datagram: if it is lost, the next key
brings another. The browser knows the server by the hash of a certificate made for this run, which
the page is given.

Where UDP does not get through, the page takes a WebSocket, and is in the same room.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import trio
from quic_common import make_certificate, run

import trio_wt

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<link rel="icon" href="data:,">
<title>Chat</title>
<form id="form"><input id="text" autofocus autocomplete="off"> <button>Say</button></form>
<p id="typing">&nbsp;</p>
<pre id="log"></pre>
<script>
"use strict";
const hash = Uint8Array.from(atob(HASH), (c) => c.charCodeAt(0));
const name = new URLSearchParams(location.search).get("name") ?? "guest";
const there = `${location.host}/chat?name=${encodeURIComponent(name)}`;
const $ = (id) => document.getElementById(id);
const show = (line) => $("log").prepend(line + "\\n");  // as text, never as HTML
let say, tellTyping = () => {};

async function byWebTransport() {
  const session = new WebTransport(`https://${there}`, {
    serverCertificateHashes: [{ algorithm: "sha-256", value: hash }],
  });
  await session.ready;
  const stream = await session.createBidirectionalStream();
  const writer = stream.writable.getWriter(), datagrams = session.datagrams;
  const sender = (datagrams.createWritable?.() ?? datagrams.writable).getWriter();
  say = (line) => writer.write(new TextEncoder().encode(line + "\\n"));
  tellTyping = () => sender.write(new Uint8Array());
  say("");  // the server learns of the stream with its first bytes
  session.closed.then(({ reason }) => show(`* closed: ${reason}`), () => show("* lost"));
  showTyping(datagrams.readable.getReader());
  let rest = "";
  const reader = stream.readable.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\\n");
    rest = lines.pop();
    lines.forEach(show);
  }
}

async function showTyping(reader) {
  for (let timer; ;) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) return;
    $("typing").textContent = new TextDecoder().decode(value) + " is typing";
    clearTimeout(timer);
    timer = setTimeout(() => { $("typing").textContent = "\\u00a0"; }, 1000);
  }
}

function byWebSocket() {
  const socket = new WebSocket(`ws://${there}`);
  say = (line) => socket.send(line);
  socket.onmessage = ({ data }) => show(data);
  socket.onclose = () => show("* closed");
}

$("text").addEventListener("input", () => tellTyping());
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  say($("text").value);
  $("text").value = "";
});
if (typeof WebTransport === "undefined") byWebSocket();
else byWebTransport().catch((error) => say === undefined ? byWebSocket() : show(`* ${error}`));
</script>
</html>
"""

MAX_LINE = 4096
MAX_NAME = 40


class Room:
    """Who is there."""

    def __init__(self) -> None:
        self._members: set[trio.MemorySendChannel[str]] = set()
        self._sessions: set[trio_wt.WebTransportSession] = set()

    def tell(self, line: str) -> None:
        """Say something to everybody; one that is too slow misses lines, and holds nobody up."""
        for member in self._members:
            with suppress(trio.WouldBlock):
                member.send_nowait(line)

    async def attend(
        self,
        name: str,
        hear: Callable[[], Awaitable[str | None]],
        say: Callable[[str], Awaitable[None]],
    ) -> None:
        """Serve one member, from coming to going.

        Args:
            name: who it is.
            hear: the next line of the member's, None at the end.
            say: sends the member a line.
        """
        send, receive = trio.open_memory_channel[str](100)

        async def forward() -> None:
            async for line in receive:
                await say(line)

        self._members.add(send)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(forward)
                self.tell(f"* {name} has come")
                while (line := await hear()) is not None:
                    if line:
                        self.tell(f"{name}: {line}")
                nursery.cancel_scope.cancel()
        finally:
            self._members.discard(send)
            self.tell(f"* {name} has gone")

    async def session(self, session: trio_wt.WebTransportSession) -> None:
        """Serve a member that comes by WebTransport: a stream for what is said, and datagrams."""
        name = name_of(session.request)

        async def pass_typing() -> None:
            async for _ in session.datagrams:
                for other in self._sessions - {session}:
                    with suppress(trio_wt.TrioWTError, trio.ClosedResourceError):
                        other.datagrams.send_nowait(name.encode())

        self._sessions.add(session)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pass_typing)
                async with await session.incoming_streams.receive() as stream:

                    async def hear() -> str | None:
                        try:
                            return (await stream.receive_until(b"\n", MAX_LINE)).decode().rstrip()
                        except trio_wt.IncompleteRead:
                            return None

                    await self.attend(
                        name, hear, lambda line: stream.send_all(f"{line}\n".encode())
                    )
                nursery.cancel_scope.cancel()
        finally:
            self._sessions.discard(session)

    async def websocket(self, ws: trio_wt.WebSocket) -> None:
        """Serve a member that comes by WebSocket."""

        async def hear() -> str | None:
            try:
                return str(await ws.receive())
            except trio.EndOfChannel:
                return None

        await self.attend(name_of(ws.request), hear, ws.send)


def name_of(request: trio_wt.Request) -> str:
    """Who asks."""
    name = " ".join(parse_qs(request.query).get("name", ["somebody"])[0].split())
    return name[:MAX_NAME] or "somebody"


def on_request(page: str, request: trio_wt.Request) -> None:
    """The page is here, and the chat there."""
    if request.asks_for_session:
        if request.path != "/chat":
            request.reject(404, body="the chat is at /chat\n")
    elif request.path == "/":
        request.respond(200, [("Content-Type", "text/html; charset=utf-8")], page)
    else:
        request.respond(404, body="there is nothing here\n")


async def main(
    port: int = 8765, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve on loopback until cancelled."""
    room = Room()
    certificate = make_certificate()
    hash_in_base64 = base64.b64encode(certificate.sha256).decode()
    answer = partial(on_request, PAGE.replace("HASH", json.dumps(hash_in_base64), 1))
    async with trio.open_nursery() as nursery:
        by_tcp = partial(
            trio_wt.serve_websocket,
            room.websocket,
            port,
            host="127.0.0.1",
            on_request=answer,
            max_message_size=MAX_LINE,
        )
        listeners = await nursery.start(by_tcp)
        port = listeners[0].socket.getsockname()[1]
        by_udp = partial(
            trio_wt.serve_webtransport,
            room.session,
            port,
            host="127.0.0.1",
            tls=trio_wt.ServerTLS(certificate),
            on_request=answer,
            max_sessions=1,
            keep_alive=15,  # browsers send no pings, and a chat may be silent
        )
        await nursery.start(by_udp)
        print(f"open http://127.0.0.1:{port}/?name=ann in a browser; stop with Ctrl-C", flush=True)
        task_status.started(listeners)


if __name__ == "__main__":
    run(main)
