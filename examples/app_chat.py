"""A chat with rooms: one handler for WebSocket and WebTransport, and a page for browsers.

    python examples/app_chat.py

Open the URL that it prints in two tabs. The page is app_chat.html, in the same folder. It takes
WebTransport where the browser has it, and a WebSocket where not, or where UDP does not get through;
`&websocket` at the end of the URL asks for that. Both kinds meet in one room.

Without --cert the page is served by plain HTTP, which browsers put up with on loopback, and HTTP/3
has a certificate made for this run: the page asks for its hash, and browsers believe it by that.
With --cert and --key, as from an authority, everything has that certificate.

Messages are JSON objects, text on a WebSocket. A WebTransport session has one stream for them, with
the length of each before it, as 4 bytes. A member that does not read is disconnected once a hundred
messages wait for it, and the others do not notice. One that writes too fast is read more slowly.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Annotated

import msgspec
import trio
from quic_common import make_certificate, port_number, run

import trio_wt
from trio_wt.app import (
    App,
    Context,
    IncompleteMessage,
    InvalidMessage,
    JsonCodec,
    MessageChannel,
    Request,
    Response,
    Rooms,
    Serving,
    Session,
    StateKey,
    Topic,
    html_response,
    limit_concurrency,
)

MAX_MESSAGE = 8192  # bytes
MAX_MEMBERS, MAX_MEMBERS_OF_A_ROOM = 2000, 200
MAX_UNSENT = 100  # messages that may wait for a member
JOIN_WITHIN = 10.0  # seconds
PAUSE = 0.05  # seconds between two messages of a member
STOP_WITHIN = 2.0  # seconds

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=30)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


# ---- what members send: {"type": "join", "name": "ann"}, and then {"type": "say", "text": "hello"}


class Join(msgspec.Struct, tag="join"):
    """The first message."""

    name: Name


class Say(msgspec.Struct, tag="say"):
    """Something for everybody in the room."""

    text: Text


# ---- what they get


class Came(msgspec.Struct, tag="came"):
    """Somebody is there from now on; a member's own is the first message that it gets."""

    name: str
    members: int


class Said(msgspec.Struct, tag="said"):
    """Somebody has said something."""

    name: str
    text: str


class Went(msgspec.Struct, tag="went"):
    """Somebody is no longer there."""

    name: str
    members: int


FromMember = Join | Say
ToMember = Came | Said | Went

FROM_MEMBER = JsonCodec[FromMember](FromMember)
TO_MEMBER = JsonCodec[ToMember](ToMember)
CERTIFICATE_HASH = StateKey[str]("certificate's hash, in base64, for the page")
PAGE = Path(__file__).with_suffix(".html").read_text()

app = App()
rooms = Rooms[ToMember](TO_MEMBER)


def room_of(context: Context) -> str:
    """Which room a request is for."""
    return str(context.params["room"])


@app.session(
    "/chat/{room}",
    middleware=[
        limit_concurrency(MAX_MEMBERS),
        limit_concurrency(MAX_MEMBERS_OF_A_ROOM, key=room_of),
    ],
)
async def chat(session: Session, room: str) -> None:
    """Serve a member, however it comes, unless it takes too long to join."""
    with trio.move_on_after(JOIN_WITHIN) as joining:
        if isinstance(session, trio_wt.WebSocket):
            await attend(session, rooms[room], joining)
        else:
            async with await session.incoming_streams.receive() as stream:
                await attend(stream, rooms[room], joining)


async def attend(
    carrier: trio_wt.WebSocket | trio_wt.Stream, room: Topic[ToMember], joining: trio.CancelScope
) -> None:
    """Serve a member from coming to going; what it must not send ends it."""
    channel = MessageChannel(carrier, FROM_MEMBER, max_size=MAX_MESSAGE, invalid="close")
    try:
        first = await channel.receive()
        if isinstance(first, Join):
            joining.deadline = inf
            await converse(carrier, channel, room, first.name)
    except InvalidMessage:
        pass  # the member has been told
    except (trio.EndOfChannel, IncompleteMessage, trio_wt.StreamReset):
        pass  # the member has gone


async def converse(
    carrier: trio_wt.WebSocket | trio_wt.Stream,
    channel: MessageChannel[FromMember],
    room: Topic[ToMember],
    name: str,
) -> None:
    """Give the room what a member says, and the member what is said in the room."""
    try:
        async with room.subscribe(carrier, slow="disconnect", limit=MAX_UNSENT):
            await room.publish(Came(name, len(room)))
            async for message in channel:
                if isinstance(message, Say):
                    await room.publish(Said(name, message.text))
                await trio.sleep(PAUSE)
    finally:
        room.publish_nowait(Went(name, len(room)))


@app.http("/")
def page(request: Request) -> Response:
    """The page, the same for all rooms."""
    return html_response(PAGE)


@app.http("/certificate-hash")
def certificate_hash(request: Request) -> str:
    """By what the browser can believe the server; empty if it needs no help."""
    return app.state[CERTIFICATE_HASH]


async def serve(
    host: str = "127.0.0.1",
    port: int = 8765,
    certificate: trio_wt.Certificate | None = None,
    *,
    task_status: trio.TaskStatus[Serving] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until a signal comes, or until cancelled."""
    own = certificate or make_certificate()
    app.state[CERTIFICATE_HASH] = "" if certificate else base64.b64encode(own.sha256).decode()
    serve_app = partial(
        app.serve,
        host,
        port,
        tls=trio_wt.ServerTLS(certificate) if certificate else None,
        http3=trio_wt.ServerTLS(own),
        websocket_settings=trio_wt.Settings(max_message_size=MAX_MESSAGE),
        # Browsers send no pings, and a chat may be silent.
        webtransport_settings=trio_wt.WebTransportSettings(keep_alive=15),
        shutdown_timeout=STOP_WITHIN,
    )
    async with trio.open_nursery() as nursery:
        serving = await nursery.start(serve_app)
        print(f"certificate's SHA-256: {own.sha256.hex(':').upper()}")
        print(f"page for browsers: {serving.url(path='/?room=tea&name=ann')}", flush=True)
        task_status.started(serving)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it, as the command line says."""
    parser = argparse.ArgumentParser(description="A chat with rooms, for browsers.")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=port_number, default=8765, help="the port; 0 for any")
    parser.add_argument("--cert", metavar="FILE", help="the certificate; without, one is made")
    parser.add_argument("--key", metavar="FILE", help="its key, if that is in another file")
    options = parser.parse_args(arguments)
    try:
        given = trio_wt.Certificate.load(options.cert, options.key) if options.cert else None
    except (OSError, ValueError) as exc:
        parser.error(f"--cert: {exc}")
    run(serve, options.host, options.port, given)


if __name__ == "__main__":
    main()
