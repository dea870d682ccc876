"""Typed requests and replies in JSON, many at once, by WebSocket and WebTransport from one handler.

    python examples/app_json_service.py serve
    python examples/app_json_service.py connect 127.0.0.1 4433 put name ann --hash HEX
    python examples/app_json_service.py connect 127.0.0.1 4433 get name --websocket

The server prints what to write for HEX, unless it is given a certificate, which is for HTTP/3 only
here. Without a command both ends run on loopback.

The service keeps texts by name. A call has a number, and its answer has the same, so an answer that
takes its time holds up no other. What is wrong with a request is told with the field that it is
about. The client connects again by itself, and asks again what was not answered; that is right
because every request here may be done twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import count
from typing import Annotated, TypeAlias

import msgspec
import trio
from quic_common import Failed, client_tls, https_url, own_tls, parsers, run, server_tls

import trio_wt
from trio_wt.app import (
    App,
    IncompleteMessage,
    InvalidMessage,
    JsonCodec,
    MessageChannel,
    Serving,
    Session,
)

MAX_MESSAGE = 65536  # bytes
MAX_AT_ONCE = 32  # calls of a channel
MAX_NAMES = 10_000
PATH = "/texts"

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
Text = Annotated[str, msgspec.Meta(max_length=10_000)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=60)]
Number = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


# ---- requests


class Put(msgspec.Struct, tag="put"):
    """Keep a text: `Done`."""

    name: Name
    text: Text


class Get(msgspec.Struct, tag="get"):
    """The text of a name, once there is one: `Found`, or `Missing` after so many seconds."""

    name: Name
    wait: Seconds = 0.0


# ---- replies


class Done(msgspec.Struct, tag="done"):
    """It was done."""


class Found(msgspec.Struct, tag="found"):
    """Here it is."""

    text: str


class Missing(msgspec.Struct, tag="missing"):
    """There is none."""


class Wrong(msgspec.Struct, tag="wrong"):
    """The request cannot be done: the field that is wrong, such as "$.name", and why."""

    field: str
    reason: str


Request = Put | Get
Reply = Done | Found | Missing | Wrong


# ---- what goes over a channel


class Call(msgspec.Struct, tag="call"):
    """A request that is not looked into yet: whatever it is, its answer can say the number."""

    number: Number
    request: msgspec.Raw


class Answer(msgspec.Struct, tag="answer"):
    """The reply to a call; with no number, to something that was no call."""

    number: Number | None
    reply: Reply


Channel: TypeAlias = MessageChannel[Call | Answer]

MESSAGE = JsonCodec[Call | Answer](Call | Answer)
REQUEST = JsonCodec[Request](Request)


def channel_over(carrier: trio_wt.WebSocket | trio_wt.Stream) -> Channel:
    """Both sides' messages, over either."""
    return MessageChannel(carrier, MESSAGE, max_size=MAX_MESSAGE)


# ---- the server


class Service:
    """Texts by name."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._changed = trio.Event()

    async def do(self, request: Request) -> Reply:
        """What there is to do for a request."""
        match request:
            case Put(name, text):
                if name not in self._texts and len(self._texts) >= MAX_NAMES:
                    return Wrong("$.name", "there are too many names already")
                self._texts[name] = text
                self._changed.set()
                self._changed = trio.Event()
                return Done()
            case Get(name, wait):
                with trio.move_on_after(wait):
                    while name not in self._texts:
                        await self._changed.wait()
                text_or_none = self._texts.get(name)
                return Missing() if text_or_none is None else Found(text_or_none)

    async def session(self, session: Session) -> None:
        """Serve a client: a WebSocket is a channel, and so is each stream of a WebTransport one."""
        if isinstance(session, trio_wt.WebSocket):
            await self.serve_channel(channel_over(session))
            return
        async with trio.open_nursery() as nursery:
            async for stream in session.incoming_streams:
                nursery.start_soon(self.serve_stream, stream)
            nursery.cancel_scope.cancel()  # the session has ended: nobody takes an answer

    async def serve_stream(self, stream: trio_wt.Stream) -> None:
        try:
            async with stream:
                await self.serve_channel(channel_over(stream))
        except* (trio_wt.StreamReset, IncompleteMessage):
            pass  # the client has given it up

    async def serve_channel(self, channel: Channel) -> None:
        """Answer calls, each in a task of its own; past a number of them, no more are read."""
        free = trio.Semaphore(MAX_AT_ONCE)
        async with trio.open_nursery() as nursery:
            while True:
                await free.acquire()
                try:
                    message = await channel.receive()
                except InvalidMessage as exc:
                    await channel.send(Answer(None, Wrong(exc.path, exc.reason)))
                    free.release()
                except trio_wt.ConnectionClosed:
                    nursery.cancel_scope.cancel()  # nobody is there any more to take answers
                    break
                except trio.EndOfChannel:
                    break  # of a stream: the client has no more calls, and waits for the answers
                else:
                    nursery.start_soon(self.answer, channel, message, free)

    async def answer(self, channel: Channel, message: Call | Answer, free: trio.Semaphore) -> None:
        match message:
            case Call(number, request):
                try:
                    reply = await self.do(REQUEST.decode(bytes(request)))
                except InvalidMessage as exc:
                    reply = Wrong(exc.path, exc.reason)
                await channel.send(Answer(number, reply))
            case Answer(number):
                await channel.send(Answer(number, Wrong("$.type", "nobody has asked")))
        free.release()


async def serve(
    tls: trio_wt.ServerTLS,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    task_status: trio.TaskStatus[Serving] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until a signal comes, or until cancelled."""
    app = App()
    app.session(PATH)(Service().session)
    await app.serve(host, port, http3=tls, shutdown_timeout=1, task_status=task_status)


# ---- the client


class Refused(Exception):
    """The service cannot do a request."""

    def __init__(self, wrong: Wrong) -> None:
        super().__init__(f"{wrong.reason}, at {wrong.field or 'the request'}")
        self.field = wrong.field


#: A call, and where its reply is waited for.
_Asked: TypeAlias = tuple[Call, trio.MemorySendChannel[Reply]]


class Client:
    """Asks, over one session after the other.

    Args:
        connect: opens a session.
    """

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[Session]]) -> None:
        self._connect = connect
        self._numbers = count()
        self._calls, self._next_calls = trio.open_memory_channel[_Asked](0)
        # What was sent at least once, and not answered.
        self._unanswered: dict[int, _Asked] = {}

    async def ask(self, request: Request) -> Reply:
        """The reply; it waits while there is no connection. Any number of tasks may ask.

        Raises:
            Refused: the request is wrong.
        """
        call = Call(next(self._numbers), msgspec.Raw(REQUEST.encode(request).encode()))
        send, receive = trio.open_memory_channel[Reply](1)
        try:
            await self._calls.send((call, send))
            reply = await receive.receive()
        finally:
            self._unanswered.pop(call.number, None)
        if isinstance(reply, Wrong):
            raise Refused(reply)
        return reply

    async def run(self) -> None:
        """Stay connected, until cancelled."""
        async for attempt in trio_wt.reconnect(self._connect, initial_delay=0.1):
            async with (
                attempt as session,
                open_channel(session) as channel,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(self._send_calls, channel)
                async for message in channel:
                    if isinstance(message, Answer) and message.number in self._unanswered:
                        _, send = self._unanswered.pop(message.number)
                        send.send_nowait(message.reply)
                nursery.cancel_scope.cancel()

    async def _send_calls(self, channel: Channel) -> None:
        for call, _ in list(self._unanswered.values()):
            await channel.send(call)
        async for call, send in self._next_calls:
            self._unanswered[call.number] = call, send
            await channel.send(call)


@asynccontextmanager
async def open_channel(session: Session) -> AsyncIterator[Channel]:
    """A WebSocket is a channel; of a WebTransport session, a stream is."""
    if isinstance(session, trio_wt.WebSocket):
        yield channel_over(session)
    else:
        async with session.open_stream() as stream:
            yield channel_over(stream)


def open_session(url: str, tls: trio_wt.ClientTLS | None) -> AbstractAsyncContextManager[Session]:
    """Connect by WebSocket (ws:, wss:), or by WebTransport (https:)."""
    if url.startswith("ws"):
        return trio_wt.open_websocket(url)
    return trio_wt.open_webtransport(url, tls=tls, keep_alive=10)


@asynccontextmanager
async def open_client(url: str, tls: trio_wt.ClientTLS | None = None) -> AsyncIterator[Client]:
    """A client that stays connected for as long as the block lasts."""
    client = Client(partial(open_session, url, tls))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        yield client
        nursery.cancel_scope.cancel()


async def demo() -> None:
    """Both ends on loopback, with a client of each kind."""
    server, tls = own_tls()

    async def wait_for(name: str) -> None:
        print(f"{name}: {await by_webtransport.ask(Get(name, wait=30))}")

    async with trio.open_nursery() as nursery:
        serving = await nursery.start(serve, server)
        async with (
            open_client(serving.url("ws", PATH)) as by_websocket,
            open_client(serving.url("webtransport", PATH), tls) as by_webtransport,
            trio.open_nursery() as waiting,
        ):
            waiting.start_soon(wait_for, "tea")
            waiting.start_soon(wait_for, "milk")
            try:
                await by_websocket.ask(Put("", "nothing can be without a name"))
            except Refused as exc:
                print(f"refused: {exc}")
            await by_websocket.ask(Put("milk", "there it is"))
            await by_websocket.ask(Put("tea", "it is ready"))
        serving.shut_down()


async def program(arguments: Sequence[str] | None) -> None:
    """What the command line says."""
    parser, _, client = parsers(__doc__)
    client.add_argument("--websocket", action="store_true", help="instead of WebTransport")
    client.add_argument("request", choices=["put", "get"])
    client.add_argument("name")
    client.add_argument("text", nargs="?", default="")
    options = parser.parse_args(arguments)
    if options.command == "serve":
        async with trio.open_nursery() as nursery:
            tls = server_tls(options)
            serving = await nursery.start(serve, tls, options.host, options.port)
            print(f"listening on {serving.url('ws', PATH)} and", end=" ")
            print(f"{serving.url('webtransport', PATH)}; stop with Ctrl-C", flush=True)
    elif options.command == "connect":
        url = https_url(options.host, options.port, PATH)
        if options.websocket:
            url = url.replace("https", "ws", 1)
        is_put = options.request == "put"
        async with open_client(url, client_tls(options)) as asking:
            try:
                name, text = options.name, options.text
                print(await asking.ask(Put(name, text) if is_put else Get(name)))
            except Refused as exc:
                raise Failed(str(exc)) from None
    else:
        await demo()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    run(program, arguments)


if __name__ == "__main__":
    main()
