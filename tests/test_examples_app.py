"""The programs in examples/ that stand on trio_wt.app do what they say; their page is in tests/browser/test_app_chat.py."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import os
import re
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import trio
import trio.testing

import trio_wt
from tests.shown_code import ROOT
from trio_wt._cli.certificate import make_certificate
from trio_wt.app import JsonCodec, MessageChannel, Serving
from trio_wt.testing import Network, websocket_pair, webtransport_pair

EXAMPLES = ROOT / "examples"
MIB = 2**20


@pytest.fixture(autouse=True)
def examples_find_each_other(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As when they run as programs."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


def example(name: str) -> ModuleType:
    return importlib.import_module(name)


async def program(name: str, *arguments: str) -> tuple[int, str, str]:
    """Run an example as a program: its exit code, and what it writes to stdout and stderr."""
    done = await trio.run_process(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@asynccontextmanager
async def serving(serve: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Serving]:
    """Run a server for as long as the block lasts."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(partial(serve, *args, **kwargs))
        nursery.cancel_scope.cancel()


async def get(url: str) -> tuple[int, str, str]:
    """The status, type and content of a page."""

    def load() -> tuple[int, str, str]:
        try:
            response = urlopen(url, timeout=10)
        except HTTPError as exc:
            response = exc
        with response:
            return response.status, response.headers["content-type"], response.read().decode()

    return await trio.to_thread.run_sync(load)


def json_over(carrier: Any) -> MessageChannel[Any]:
    """Any JSON, framed as on all channels of messages."""
    return MessageChannel(carrier, JsonCodec[Any](Any))


BOTH = pytest.mark.parametrize("kind", ["websocket", "webtransport"])


@asynccontextmanager
async def connected(kind: str, serve: Any) -> AsyncIterator[MessageChannel[Any]]:
    """A client's channel to a handler of sessions, in memory."""
    async with AsyncExitStack() as stack:
        if kind == "websocket":
            near, far = await stack.enter_async_context(websocket_pair())
            channel = json_over(near)
        else:
            session, far = await stack.enter_async_context(webtransport_pair())
            channel = json_over(await stack.enter_async_context(session.open_stream()))
        nursery = await stack.enter_async_context(trio.open_nursery())

        async def handle() -> None:
            # As a server closes, and as it keeps quiet about a session that ended.
            try:
                await serve(far)
            except* (trio_wt.ConnectionClosed, trio_wt.StreamReset):
                pass
            if kind == "websocket":
                await far.close()
            else:
                await far.aclose()

        nursery.start_soon(handle)
        yield channel
        nursery.cancel_scope.cancel()


async def ending(channel: MessageChannel[Any]) -> Exception:
    """How a channel ends, whatever comes before."""
    while True:
        try:
            await channel.receive()
        except (trio.EndOfChannel, trio.BrokenResourceError) as exc:
            return exc


# ---- the chat


@asynccontextmanager
async def member(chat: ModuleType, kind: str, room: str, name: str) -> AsyncIterator[Any]:
    async with connected(kind, partial(chat.chat, room=room)) as channel:
        await channel.send({"type": "join", "name": name})
        assert (await channel.receive())["name"] == name
        yield channel


async def test_app_chat() -> None:
    chat = example("app_chat")
    async with (
        member(chat, "websocket", "milk", "cid") as cid,
        member(chat, "websocket", "tea", "ann") as ann,
    ):
        async with member(chat, "webtransport", "tea", "<b>bob</b>") as bob:
            came = {"type": "came", "name": "<b>bob</b>", "members": 2}
            assert await ann.receive() == came
            for speaker, name in ((ann, "ann"), (bob, "<b>bob</b>")):
                await speaker.send({"type": "say", "text": "hello"})
                said = {"type": "said", "name": name, "text": "hello"}
                assert await ann.receive() == await bob.receive() == said
        assert await ann.receive() == {"type": "went", "name": "<b>bob</b>", "members": 1}
        with trio.move_on_after(5) as waited:
            await cid.receive()
        assert waited.cancelled_caught
    assert list(chat.rooms) == []


@BOTH
@pytest.mark.parametrize(
    "messages",
    [
        [{"type": "say", "text": "before joining"}],
        [{"type": "join", "name": ""}],
        [{"type": "join", "name": "x" * 31}],
        [{"type": "join"}],
        [{"type": "join", "name": "eve"}, {"type": "say", "text": "x" * 1001}],
        [{"type": "join", "name": "eve"}, {"type": "said", "name": "ann", "text": "x"}],
        [{"type": "join", "name": "eve"}, [[]]],
        [{"type": "join", "name": "eve"}, {"type": "say", "text": "x" * 10_000}],
    ],
)
async def test_app_chat_ends_who_sends_what_is_wrong(kind: str, messages: list[Any]) -> None:
    chat = example("app_chat")
    async with member(chat, "websocket", "tea", "ann") as ann:
        async with connected(kind, partial(chat.chat, room="tea")) as channel:
            for message in messages:
                await channel.send(message)
            end = await ending(channel)
        if isinstance(end, trio_wt.ConnectionClosed | trio_wt.StreamReset):
            assert end.remote
            assert end.code in {0, 1000, 1007, 1009}
        await ann.send({"type": "say", "text": "still here"})
        said = [await ann.receive() for _ in range(2 * len(messages) - 1)]
        kinds = ["came", "went", "said"] if len(messages) == 2 else ["said"]
        assert [message["type"] for message in said] == kinds


async def test_app_chat_bears_one_who_leaves_in_the_middle_of_a_message() -> None:
    chat = example("app_chat")
    async with webtransport_pair() as (session, far):
        async with session.open_stream() as stream:
            await stream.send_all(b"\0\0\0\x50{", eof=True)
            await chat.chat(far, room="tea")


@pytest.mark.parametrize("joins_first", [False, True])
@pytest.mark.parametrize("way", ["ends its stream", "resets its stream"])
async def test_app_chat_takes_every_end_for_leaving(way: str, joins_first: bool) -> None:
    chat = example("app_chat")
    async with webtransport_pair() as (session, far), trio.open_nursery() as nursery:
        async with session.open_stream() as stream:
            if joins_first:
                await json_over(stream).send({"type": "join", "name": "bob"})
            else:
                await stream.send_all(b"\0")
            nursery.start_soon(partial(chat.chat, far, room="tea"))
            await trio.testing.wait_all_tasks_blocked()
            if way == "ends its stream":
                await stream.send_eof()
            else:
                stream.reset(5)
            await trio.sleep(1)
    assert list(chat.rooms) == []


async def test_app_chat_bears_one_who_leaves_before_saying_anything() -> None:
    chat = example("app_chat")
    async with webtransport_pair() as (session, far):
        async with session.open_stream() as stream:
            await stream.send_eof()
            await chat.chat(far, room="tea")


@pytest.mark.parametrize("sends", ["nothing", "a byte", "no stream"])
async def test_app_chat_does_not_wait_for_ever_for_a_member_to_join(sends: str) -> None:
    chat = example("app_chat")
    with trio.fail_after(20):
        if sends == "nothing":
            async with connected("websocket", partial(chat.chat, room="tea")) as channel:
                assert isinstance(await ending(channel), trio_wt.ConnectionClosedOK)
            return
        async with webtransport_pair() as (session, far), AsyncExitStack() as stack:
            if sends == "a byte":
                stream = await stack.enter_async_context(session.open_stream())
                await stream.send_all(b"\0")
            await chat.chat(far, room="tea")


@BOTH
async def test_app_chat_lets_members_be_silent_once_they_have_joined(kind: str) -> None:
    chat = example("app_chat")
    async with member(chat, kind, "tea", "ann") as ann:
        await trio.sleep(25)
        await ann.send({"type": "say", "text": "still here"})
        assert (await ann.receive())["text"] == "still here"


async def test_app_chat_disconnects_who_does_not_read_and_nobody_else_notices() -> None:
    chat = example("app_chat")
    text = "x" * 1000
    async with member(chat, "websocket", "tea", "ann") as ann:
        async with member(chat, "webtransport", "tea", "lazy") as lazy:
            await ann.receive()
            said = 0
            while True:
                await ann.send({"type": "say", "text": text})
                message = await ann.receive()
                if message["type"] == "went":
                    break
                said += 1
                assert said < 2000
            assert message == {"type": "went", "name": "lazy", "members": 1}
            end = await ending(lazy)
        assert isinstance(end, trio_wt.StreamReset)
        assert (end.code, end.remote) == (1008, True)
        assert said > chat.MAX_UNSENT


async def test_app_chat_reads_a_member_in_a_hurry_more_slowly() -> None:
    chat = example("app_chat")
    async with member(chat, "websocket", "tea", "ann") as ann:
        started = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def talk() -> None:
                for _ in range(100):
                    await ann.send({"type": "say", "text": "x"})

            nursery.start_soon(talk)
            for _ in range(100):
                await ann.receive()
        assert trio.current_time() - started >= 99 * chat.PAUSE - 0.001


@pytest.mark.real_clock
async def test_app_chat_as_it_is_served(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    chat = example("app_chat")
    async with serving(chat.serve, port=0) as server:
        shown = capsys.readouterr().out
        assert f"page for browsers: {server.url()}?room=tea&name=ann\n" in shown
        status, kind, text = await get(server.url())
        assert (status, kind, text) == (200, "text/html; charset=utf-8", chat.PAGE)
        _, _, in_base64 = await get(server.url(path="/certificate-hash"))
        known = base64.b64decode(in_base64)
        assert known.hex(":").upper() in shown
        tls = trio_wt.ClientTLS(server_certificate_hashes=[known])
        tea = server.url("webtransport", "/chat/tea")
        with pytest.raises(trio_wt.Rejected, match="403"):
            async with trio_wt.open_webtransport(tea, tls=tls, origin="https://evil.example"):
                pass
        async with AsyncExitStack() as stack:
            for _ in range(chat.MAX_MEMBERS_OF_A_ROOM):
                opened = trio_wt.open_websocket(server.url("ws", "/chat/tea"))
                await stack.enter_async_context(opened)
            with pytest.raises(trio_wt.Rejected, match="429"):
                async with trio_wt.open_webtransport(tea, tls=tls):
                    pass
            milk = server.url("webtransport", "/chat/milk")
            async with trio_wt.open_webtransport(milk, tls=tls) as session:
                async with session.open_stream() as stream:
                    channel = json_over(stream)
                    await channel.send({"type": "join", "name": "ann"})
                    assert (await channel.receive())["type"] == "came"
                    await channel.send("junk")
                    end = await ending(channel)
                    assert isinstance(end, trio_wt.StreamReset)
                    assert end.code == 1007
    assert not caplog.records


@pytest.mark.real_clock
async def test_app_chat_with_a_certificate(tmp_path: Path) -> None:
    made = make_certificate()
    both = tmp_path / "both.pem"
    both.write_bytes(made.certificate + made.key)
    chat = example("app_chat")
    certificate = trio_wt.Certificate.load(both)
    async with serving(chat.serve, port=0, certificate=certificate) as server:
        tls = trio_wt.ClientTLS(ca=made.certificate)
        url = server.url("webtransport")
        assert server.url().startswith("https:")
        async with trio_wt.open_webtransport_connection(url, tls=tls) as connection:
            response = await connection.request("GET", "/certificate-hash")
            assert response.body == b""
    code, _, err = await program("app_chat", "--cert", str(tmp_path / "missing"))
    assert code == 2
    assert "No such file or directory" in err.splitlines()[-1]


# ---- the place for files


class Relay:
    """Carries datagrams between clients and a server; each client's way ends after so many bytes.

    Args:
        port: the server's.
        ends: after how many bytes, for the first clients in turn; later ones have no end.
    """

    def __init__(self, port: int, ends: list[int]) -> None:
        self._there = ("127.0.0.1", port)
        self._ends = deque(ends)
        self.carried = 0
        self.clients = 0

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        backs: dict[Any, trio.socket.SocketType] = {}
        left: dict[Any, float] = {}

        def may_pass(client: Any, size: int) -> bool:
            left[client] -= size
            self.carried += size if left[client] >= 0 else 0
            return left[client] >= 0

        async def return_datagrams(back: trio.socket.SocketType, client: Any) -> None:
            while True:
                data = await back.recv(65535)
                if may_pass(client, len(data)):
                    await front.sendto(data, client)

        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as front:
            await front.bind(("127.0.0.1", 0))
            async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
                task_status.started(front.getsockname()[1])
                while True:
                    data, client = await front.recvfrom(65535)
                    if client not in backs:
                        back = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
                        backs[client] = stack.enter_context(back)
                        await back.connect(self._there)
                        left[client] = self._ends.popleft() if self._ends else float("inf")
                        self.clients += 1
                        nursery.start_soon(return_datagrams, back, client)
                    if may_pass(client, len(data)):
                        await backs[client].send(data)


class Files:
    """A running server of files, and folders for both sides."""

    def __init__(self, tmp_path: Path) -> None:
        self.module = example("app_file_drop")
        self.here, self.there = trio.Path(tmp_path, "here"), trio.Path(tmp_path, "there")
        (tmp_path / "here").mkdir()
        (tmp_path / "there").mkdir()
        self.server_tls, self.client_tls = self.module.own_tls()
        self.port = 0

    def serving(self, **kwargs: Any) -> Any:
        return serving(self.module.serve, self.server_tls, self.there, port=self.port, **kwargs)

    def connector(self, port: int, patience: float = 0.4) -> Any:
        url = f"https://127.0.0.1:{port}{self.module.PATH}"
        return self.module.connector(url, self.client_tls, patience)

    async def put(self, port: int, name: str) -> None:
        with self.module.progress_bars() as progress:
            await self.module.put(self.connector(port), self.here / name, progress)

    async def get(self, port: int, name: str) -> None:
        with self.module.progress_bars() as progress:
            await self.module.get(self.connector(port), name, self.here, progress)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.mark.real_clock
async def test_app_file_drop(capsys: pytest.CaptureFixture[str]) -> None:
    await example("app_file_drop").demo()
    shown = capsys.readouterr().out
    assert shown.count("a-file: there, and checked") == 4
    assert shown.endswith("the files are the same\n")


CUTS = [700_000, 1_000_000, 600_000]


@pytest.mark.real_clock
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_app_file_drop_goes_on_after_each_cut(
    files: Files, direction: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = os.urandom(3 * MIB)
    source, target = (files.here, files.there) if direction == "up" else (files.there, files.here)
    await (source / "large").write_bytes(content)
    async with files.serving() as server, trio.open_nursery() as nursery:
        relay = Relay(server.port, CUTS)
        port = await nursery.start(relay.run)
        await (files.put if direction == "up" else files.get)(port, "large")
        nursery.cancel_scope.cancel()
    assert await (target / "large").read_bytes() == content
    assert [path.name for path in await target.iterdir()] == ["large"]
    assert relay.clients == len(CUTS) + 1
    # What had arrived was not sent again, but for what was on its way.
    assert relay.carried < len(content) * 1.3
    assert capsys.readouterr().out.count("connecting again: the connection was lost") == len(CUTS)


@pytest.mark.real_clock
async def test_app_file_drop_waits_for_a_server_that_is_restarted(files: Files) -> None:
    module = files.module
    module.STOP_WITHIN = 0.05
    content = os.urandom(MIB)
    path = files.here / "a"
    await path.write_bytes(content)
    offer = await module.offer_of(path)
    half_way = trio.Event()

    async def transfer(stream: trio_wt.Stream) -> None:
        if not half_way.is_set():
            await module.send_line(stream, module.OFFER, offer)
            await module.receive_line(stream, module.START)
            await stream.send_all(content[: MIB // 2])
            half_way.set()
            await stream.receive_some()
        await module.send_file(stream, path, offer, lambda done, size: starts.append(done))

    async def put() -> None:
        with module.progress_bars() as progress:
            await module.persist(files.connector(files.port, 5), progress, transfer)

    starts: list[int] = []
    async with trio.open_nursery() as nursery:
        async with files.serving() as server:
            files.port = server.port
            nursery.start_soon(put)
            await half_way.wait()
            server.shut_down()
        async with files.serving():
            while not await (files.there / "a").exists():
                await trio.sleep(0.01)
    assert await (files.there / "a").read_bytes() == content
    assert 0 < starts[0] <= MIB // 2


@pytest.mark.real_clock
async def test_app_file_drop_says_what_it_does_not_take(files: Files) -> None:
    module = files.module
    for name, content in (("same", b"x"), ("other", b"xx"), ("large", b"x" * 1001)):
        await (files.here / name).write_bytes(content)
    await (files.there / "same").write_bytes(b"x")
    await (files.there / "other").write_bytes(b"yy")
    module.MAX_FILES = 2
    async with files.serving(max_size=1000) as server:
        port = server.port
        await files.put(port, "same")
        await files.get(port, "same")
        for transfer, name, code in (
            (files.put, "other", module.EXISTS),
            (files.put, "large", module.TOO_LARGE),
            (files.put, "missing", module.NOT_FOUND),
            (files.get, "missing", module.NOT_FOUND),
            (files.get, "other", module.EXISTS),
            (files.get, "../here/same", module.BAD_REQUEST),
            (files.get, ".hidden", module.BAD_REQUEST),
        ):
            with pytest.raises(module.Refused) as refused:
                await transfer(port, name)
            assert refused.value.code == code, name
        await (files.here / "third").write_bytes(b"3")
        with pytest.raises(module.Refused, match="too many files"):
            await files.put(port, "third")
    assert sorted([path.name for path in await files.there.iterdir()]) == ["other", "same"]


SHA = "0" * 64


@pytest.mark.real_clock
async def test_app_file_drop_checks_what_comes(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    module = files.module
    offer = {"type": "offer", "name": "a", "size": 3, "sha256": SHA}
    await (files.there / "there").write_bytes(b"x" * 10)
    async with files.serving() as server, files.connector(server.port, 5)() as session:
        for content, code in (
            (b"junk\n", module.BAD_REQUEST),
            (b"[" * 5000 + b"\n", module.BAD_REQUEST),
            (b'{"type": "offer"', module.BAD_REQUEST),
            (_line(offer | {"name": "../a"}), module.BAD_REQUEST),
            (_line(offer | {"name": ".a"}), module.BAD_REQUEST),
            (_line(offer | {"name": "a\\b"}), module.BAD_REQUEST),
            (_line(offer | {"name": "a\n"}), module.BAD_REQUEST),
            (_line(offer | {"name": ""}), module.BAD_REQUEST),
            (_line(offer | {"name": "x" * 201}), module.BAD_REQUEST),
            (_line(offer | {"size": -1}), module.BAD_REQUEST),
            (_line(offer | {"sha256": "../" + SHA[3:]}), module.BAD_REQUEST),
            (_line(offer | {"sha256": SHA + "\n"}), module.BAD_REQUEST),
            (_line(offer) + b"ab", module.DAMAGED),
            (_line(offer) + b"abc", module.DAMAGED),
            (_line({"type": "wanted", "name": "there"}) + b"junk\n", module.BAD_REQUEST),
        ):
            async with session.open_stream() as stream:
                await stream.send_all(content, eof=True)
                with pytest.raises(trio_wt.StreamReset) as refused:
                    await stream.receive_exactly(MIB)
                assert refused.value.code == code, content
        async with session.open_stream() as stream:
            # No file system here has names of 800 bytes.
            await stream.send_all(_line(offer | {"name": "\U0001f600" * 200}) + b"abc", eof=True)
            with pytest.raises(trio_wt.StreamReset) as refused:
                await stream.receive_exactly(MIB)
            assert refused.value.code in {module.NO_ACCESS, module.DAMAGED}
        async with session.open_stream() as stream:
            await stream.send_all(_line(offer))
            await stream.receive_until(b"\n")
            stream.reset(77)
        async with session.open_stream() as stream:
            await stream.send_all(_line({"type": "wanted", "name": "there"}))
            assert json.loads(await stream.receive_until(b"\n"))["size"] == 10
            await stream.send_all(_line({"type": "start", "offset": 7}))
            assert await stream.receive_all() == b"xxx"
            await stream.send_all(_line({"type": "arrived"}))
        left = {path.name: (await path.stat()).st_size for path in await files.there.iterdir()}
        assert left == {"there": 10, f".{SHA}.3.part": 0}
        digest = hashlib.sha256(b"abc").hexdigest()
        async with session.open_stream() as late:
            await late.send_all(_line(offer | {"sha256": digest}))
            await late.receive_until(b"\n")
            await (files.there / "a").write_bytes(b"another's")
            await late.send_all(b"abc", eof=True)
            with pytest.raises(trio_wt.StreamReset) as refused:
                await late.receive_all()
            assert refused.value.code == module.EXISTS
        assert await (files.there / "a").read_bytes() == b"another's"
    assert not caplog.records


@pytest.mark.real_clock
async def test_app_file_drop_lets_nobody_write_to_what_was_checked(files: Files) -> None:
    module = files.module
    content = os.urandom(MIB)
    offer = _offer("a", content)
    async with files.serving() as server:
        connect = files.connector(server.port, 5)
        async with connect() as one, connect() as another:
            async with one.open_stream() as early, another.open_stream() as late:
                await early.send_all(offer)
                await early.receive_until(b"\n")
                # One that comes back after a cut may be faster than the news of it.
                await late.send_all(offer)
                await late.receive_until(b"\n")
                with pytest.raises(trio_wt.StreamReset) as overtaken:
                    await early.receive_some()
                assert overtaken.value.code == module.OVERTAKEN
                await late.send_all(content, eof=True)
                assert await late.receive_until(b"\n") == b'{"type":"arrived"}\n'
                with pytest.raises(trio_wt.StreamReset):
                    await early.send_all(b"EVIL" * (MIB // 4), eof=True)
            async with another.open_stream() as again:
                await again.send_all(offer, eof=True)
                start = b'{"type":"start","offset":%d}\n' % len(content)
                assert await again.receive_all() == start + b'{"type":"arrived"}\n'
    assert [path.name for path in await files.there.iterdir()] == ["a"]
    assert await (files.there / "a").read_bytes() == content


@pytest.mark.real_clock
async def test_app_file_drop_has_one_writer_however_many_come(files: Files) -> None:
    module = files.module
    content = os.urandom(MIB)
    ends: list[bytes | int] = []

    async def upload(session: trio_wt.WebTransportSession) -> None:
        try:
            async with session.open_stream() as stream:
                await stream.send_all(_offer("a", content))
                start = json.loads(await stream.receive_until(b"\n"))["offset"]
                await stream.send_all(content[start:], eof=True)
                ends.append(await stream.receive_all())
        except trio_wt.StreamReset as exc:
            ends.append(exc.code)

    async with files.serving() as server, AsyncExitStack() as stack:
        connect = files.connector(server.port, 5)
        sessions = [await stack.enter_async_context(connect()) for _ in range(4)]
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                for session in sessions:
                    nursery.start_soon(upload, session)
    assert len(ends) == 16
    assert set(ends) == {b'{"type":"arrived"}\n', module.OVERTAKEN}
    assert [path.name for path in await files.there.iterdir()] == ["a"]
    assert await (files.there / "a").read_bytes() == content


@pytest.mark.real_clock
async def test_app_file_drop_keeps_the_first_of_several_files_of_a_name(files: Files) -> None:
    module = files.module
    arrived: list[bytes] = []
    codes: list[int] = []

    async def upload(session: trio_wt.WebTransportSession, content: bytes) -> None:
        try:
            async with session.open_stream() as stream:
                await stream.send_all(_offer("a", content) + content, eof=True)
                await stream.receive_all()
                arrived.append(content)
        except trio_wt.StreamReset as exc:
            codes.append(exc.code)

    async with files.serving() as server, files.connector(server.port, 5)() as session:
        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(upload, session, b"%d" % number)
    assert codes == [module.EXISTS] * 15
    assert await (files.there / "a").read_bytes() == arrived[0]


@pytest.mark.real_clock
async def test_app_file_drop_leaves_parts_alone_whose_size_is_another(files: Files) -> None:
    content = os.urandom(MIB)
    async with files.serving() as server, files.connector(server.port, 5)() as session:

        async def offset() -> Any:
            await stream.send_all(_offer("a", content))
            return json.loads(await stream.receive_until(b"\n"))["offset"]

        async with session.open_stream() as stream:
            assert await offset() == 0
            await stream.send_all(content[:1000], eof=True)
            with pytest.raises(trio_wt.StreamReset):
                await stream.receive_some()
        for size in (0, 1, 2 * MIB):
            async with session.open_stream() as stream:
                await stream.send_all(_offer("b", content, size) + b"EVIL", eof=True)
                with pytest.raises(trio_wt.StreamReset):
                    await stream.receive_all()
        async with session.open_stream() as stream:
            assert await offset() == 1000


@pytest.mark.real_clock
async def test_app_file_drop_has_its_bound_when_many_come_at_once(files: Files) -> None:
    module = files.module
    module.MAX_FILES = 5
    codes: list[int] = []

    async def begin(session: trio_wt.WebTransportSession, number: int) -> None:
        try:
            async with session.open_stream() as stream:
                await stream.send_all(_offer(f"{number}", b"%d" % number))
                await stream.receive_until(b"\n")
        except trio_wt.StreamReset as exc:
            codes.append(exc.code)

    async with files.serving() as server, AsyncExitStack() as stack:
        connect = files.connector(server.port, 5)
        sessions = [await stack.enter_async_context(connect()) for _ in range(4)]
        async with trio.open_nursery() as nursery:
            for number in range(24):
                nursery.start_soon(begin, sessions[number % 4], number)
        assert len(list(await files.there.iterdir())) == 5
    assert codes == [module.FULL] * 19


def _offer(name: str, content: bytes, size: int | None = None) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    size = len(content) if size is None else size
    return _line({"type": "offer", "name": name, "size": size, "sha256": digest})


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


@pytest.mark.real_clock
async def test_app_file_drop_as_a_program(files: Files, tmp_path: Path) -> None:
    name = "app_file_drop"
    await (files.here / "[red]one").write_bytes(b"1")
    async with files.serving() as server:
        digest = files.client_tls.server_certificate_hashes[0].hex()
        target = ("127.0.0.1", str(server.port))
        code, out, _ = await program(
            name, "put", *target, str(files.here / "[red]one"), "--hash", digest
        )
        assert (code, out.split("\n")[0]) == (0, "[red]one: there, and checked")
        got = ("get", *target, "[red]one", "two", "--hash", digest, "--to", str(tmp_path))
        code, _, err = await program(name, *got)
        assert (code, err) == (1, "two: there is no such file\n")
        assert await trio.Path(tmp_path, "[red]one").read_bytes() == b"1"
    code, _, err = await program(name, "serve", str(tmp_path / "nowhere"))
    assert (code, err) == (1, f"{tmp_path / 'nowhere'}: there is no such folder\n")


# ---- the ticker


async def test_app_ticker(capsys: pytest.CaptureFixture[str]) -> None:
    await example("app_ticker").demo()
    shown = capsys.readouterr().out.splitlines()
    pattern = re.compile(
        r"(.+): seat (\d); of (\d+) states (\d+) were used and (\d+) missed, "
        r"(\d+) came too late; at most (\d+) in a row were missed"
    )
    figures = {}
    for line in shown:
        match = pattern.fullmatch(line)
        assert match is not None, line
        figures[match[1]] = [int(group) for group in match.groups()[1:]]
    assert {seat for seat, *_ in figures.values()} == {0, 1, 2}
    _, total, used, missed, late, _ = figures["a good network"]
    assert (total, used, missed, late) == (151, 151, 0, 0)
    _, total, used, missed, late, behind = figures["every fifth is lost"]
    assert 0.05 < missed / total < 0.4
    assert late == 0
    assert behind < 10
    _, total, used, missed, late, behind = figures["half are lost, others overtake"]
    assert 0.3 < missed / total < 0.8
    assert late > 0


async def playing(module: ModuleType, game: Any, stack: AsyncExitStack) -> tuple[Any, Any]:
    """A player's session, and a view of the game with its seat."""
    session, far = await stack.enter_async_context(webtransport_pair(network=Network()))
    nursery = await stack.enter_async_context(trio.open_nursery())
    stack.callback(nursery.cancel_scope.cancel)
    nursery.start_soon(game.play, far)
    async with await session.incoming_receive_streams.receive() as stream:
        return session, module.View((await stream.receive_all())[0])


async def until(session: Any, view: Any, condition: Any) -> None:
    with trio.fail_after(2):
        while not condition():
            view.take(await session.datagrams.receive())


async def test_app_ticker_takes_the_newest_input_only() -> None:
    module = example("app_ticker")
    game = module.Game()
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        nursery.start_soon(game.run)
        session, view = await playing(module, game, stack)
        _, other = await playing(module, game, stack)
        assert (view.seat, other.seat) == (0, 1)
        player = game.players[0]
        steer = module.INPUT.pack
        for data in (
            steer(5, 1, 0),
            steer(4, -1, 0),  # it was overtaken
            steer(6, 127, 0),  # nobody is so fast
            steer(7, 0, -2),
            steer(8, 0, 1) + b"x",
            b"",
        ):
            await session.datagrams.send(data)
        await until(session, view, lambda: view.players.get(0, (0, 0))[0] > 520)
        assert view.players[1] == (500, 500)
        assert (player.direction, player.last_input) == ((1, 0), 5)
        await until(session, view, lambda: view.players[0] == (module.WIDTH, 500))
        await session.datagrams.send(steer(9, 0, -1))
        await until(session, view, lambda: view.players[0] == (module.WIDTH, 0))
        nursery.cancel_scope.cancel()
    assert game.players == {}


def test_app_ticker_drops_states_that_are_late_or_make_no_sense() -> None:
    module = example("app_ticker")
    game = module.Game()
    with game.seat() as (seat, player):
        view = module.View(seat)
        player.x = 1
        old = game.state(3)
        player.x = 2
        new = game.state(5)
    for data in (new, old, new, b"", b"x", new + b"x", new[:-1], b"\0\0\0\x09\x02" + new[5:]):
        view.take(data)
    assert view.players == {0: (2, 500)}
    assert (view.used, view.late, view.missed) == (1, 2, 0)
    view.take(game.state(8))
    assert view.players == {}
    assert (view.used, view.missed) == (2, 2)


def test_app_ticker_fits_a_datagram() -> None:
    module = example("app_ticker")
    assert module.HEAD.size + module.MAX_PLAYERS * module.PLAYER.size < 1000


@pytest.mark.real_clock
async def test_app_ticker_as_it_is_served() -> None:
    module = example("app_ticker")
    server_tls, client_tls = example("quic_common").own_tls()
    module.MAX_PLAYERS = 2
    app = module.make_app(module.Game())
    async with serving(app.serve, "127.0.0.1", 0, http3=server_tls) as server:
        url = server.url("webtransport", module.PATH)
        async with trio_wt.open_webtransport(url, tls=client_tls) as session:
            digest = client_tls.server_certificate_hashes[0].hex()
            target = ("127.0.0.1", str(server.port), "--hash", digest)
            code, out, _ = await program("app_ticker", "connect", *target, "--ticks", "10")
            assert code == 0
            assert out.startswith(f"{url}: seat 1; of 1")
            while json.loads((await get(server.url(path="/figures")))[2])["players"] > 1:
                await trio.sleep(0.01)
            async with trio_wt.open_webtransport(url, tls=client_tls):
                with pytest.raises(trio_wt.Rejected, match="503"):
                    async with trio_wt.open_webtransport(url, tls=client_tls):
                        pass
            assert session.closed is None


# ---- the service


@BOTH
@pytest.mark.parametrize(
    ("message", "number", "field", "reason"),
    [
        ([1], None, "", "Expected `object`"),
        ({"type": "call", "request": {}}, None, "", "missing required field `number`"),
        ({"type": "call", "number": -1, "request": {}}, None, "$.number", ">= 0"),
        ({"type": "call", "number": 1, "request": 5}, 1, "", "Expected `object`, got `int`"),
        ({"type": "call", "number": 1, "request": {"type": "drop"}}, 1, "$.type", "drop"),
        (
            {"type": "call", "number": 1, "request": {"type": "get", "name": ""}},
            1,
            "$.name",
            "length >= 1",
        ),
        (
            {"type": "call", "number": 1, "request": {"type": "get", "name": "a", "wait": 61}},
            1,
            "$.wait",
            "<= 60",
        ),
        (
            {"type": "call", "number": 1, "request": {"type": "put", "name": "a", "text": 1}},
            1,
            "$.text",
            "Expected `str`, got `int`",
        ),
        ({"type": "answer", "number": 1, "reply": {"type": "done"}}, 1, "$.type", "nobody"),
        ("x" * 70_000, None, "", "at most 65536"),
    ],
)
async def test_app_json_service_says_what_is_wrong(
    kind: str, message: Any, number: int | None, field: str, reason: str
) -> None:
    module = example("app_json_service")
    async with connected(kind, module.Service().session) as channel:
        await channel.send(message)
        answer = await channel.receive()
        assert (answer["number"], answer["reply"]["type"]) == (number, "wrong")
        assert answer["reply"]["field"] == field
        assert reason in answer["reply"]["reason"]
        await channel.send(_call(2, type="get", name="a"))
        assert await channel.receive() == _answer(2, type="missing")


def _call(number: int, **request: Any) -> dict[str, Any]:
    return {"type": "call", "number": number, "request": request}


def _answer(number: int, **reply: Any) -> dict[str, Any]:
    return {"type": "answer", "number": number, "reply": reply}


@BOTH
async def test_app_json_service_answers_what_it_can_first(kind: str) -> None:
    module = example("app_json_service")
    service = module.Service()
    async with connected(kind, service.session) as channel:
        await channel.send(_call(1, type="get", name="tea", wait=60))
        await channel.send(_call(2, type="get", name="milk", wait=5))
        await channel.send(_call(3, type="get", name="milk"))
        assert await channel.receive() == _answer(3, type="missing")
        assert await channel.receive() == _answer(2, type="missing")
        await channel.send(_call(4, type="put", name="tea", text="ready"))
        both = [await channel.receive() for _ in range(2)]
        assert _answer(4, type="done") in both
        assert _answer(1, type="found", text="ready") in both


@BOTH
async def test_app_json_service_has_its_bounds(kind: str) -> None:
    module = example("app_json_service")
    module.MAX_NAMES = 2
    async with connected(kind, module.Service().session) as channel:
        for name, reply in (("a", "done"), ("b", "done"), ("c", "wrong"), ("a", "done")):
            await channel.send(_call(1, type="put", name=name, text=""))
            assert (await channel.receive())["reply"]["type"] == reply
        for number in range(module.MAX_AT_ONCE):
            await channel.send(_call(number, type="get", name="z", wait=10))
        await channel.send(_call(99, type="get", name="a"))
        started = trio.current_time()
        first = await channel.receive()
        assert first["number"] != 99
        assert trio.current_time() - started > 9.9
        others = [(await channel.receive())["number"] for _ in range(module.MAX_AT_ONCE)]
        assert 99 in others


@BOTH
async def test_app_json_service_bears_clients_that_go(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = example("app_json_service")
    service = module.Service()
    async with connected(kind, service.session) as channel:
        await channel.send(_call(1, type="get", name="a", wait=60))
    async with webtransport_pair() as (session, far), trio.open_nursery() as nursery:
        nursery.start_soon(service.session, far)
        async with session.open_stream() as cut_off:
            await cut_off.send_all(b"\0\0\0\x50{", eof=True)
            with suppress(trio_wt.StreamReset):
                await cut_off.receive_all()
        async with session.open_stream() as given_up:
            await json_over(given_up).send(_call(1, type="get", name="a", wait=60))
            await trio.sleep(1)
            given_up.reset(1)
        await trio.sleep(1)
        async with session.open_stream() as stream:
            channel = json_over(stream)
            await channel.send(_call(2, type="get", name="a"))
            assert await channel.receive() == _answer(2, type="missing")
        await session.aclose()


async def test_app_json_service_answers_what_it_has_read_after_the_end_of_a_stream() -> None:
    module = example("app_json_service")
    async with webtransport_pair() as (session, far), trio.open_nursery() as nursery:
        nursery.start_soon(module.Service().session, far)
        async with session.open_stream() as stream:
            channel = json_over(stream)
            for number in range(20):
                await channel.send(_call(number, type="get", name="a", wait=number))
            await channel.send(_call(20, type="put", name="b", text=""))
            await stream.send_eof()
            numbers = [answer["number"] async for answer in channel]
        assert sorted(numbers) == list(range(21))
        await session.aclose()


async def test_app_json_service_does_nothing_more_after_the_end_of_a_session() -> None:
    module = example("app_json_service")
    async with webtransport_pair() as (session, far), trio.open_nursery() as nursery:
        nursery.start_soon(module.Service().session, far)
        async with session.open_stream() as whole, session.open_stream() as half:
            for stream in (whole, half):
                await json_over(stream).send(_call(1, type="get", name="a", wait=60))
            await half.send_eof()
            await trio.sleep(1)
            await session.aclose()
        left_at = trio.current_time()
    assert trio.current_time() - left_at < 5


@pytest.mark.real_clock
async def test_app_json_service(capsys: pytest.CaptureFixture[str]) -> None:
    await example("app_json_service").demo()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "refused: Expected `str` of length >= 1, at $.name"
    assert sorted(shown[1:]) == [
        "milk: Found(text='there it is')",
        "tea: Found(text='it is ready')",
    ]


@pytest.mark.real_clock
@BOTH
async def test_app_json_service_client_asks_again_after_a_restart(kind: str) -> None:
    module = example("app_json_service")
    server_tls, client_tls = example("quic_common").own_tls()
    scheme = "ws" if kind == "websocket" else "webtransport"
    found: list[Any] = []

    async def ask(request: Any) -> None:
        found.append(await client.ask(request))

    async with serving(module.serve, server_tls) as server:
        port = server.port  # one that is free
        url = server.url(scheme, module.PATH)
    async with module.open_client(url, client_tls) as client, trio.open_nursery() as nursery:
        async with serving(module.serve, server_tls, port=port) as server:
            await client.ask(module.Put("a", "first life"))
            nursery.start_soon(ask, module.Get("b", wait=20))
            assert await client.ask(module.Get("a")) == module.Found("first life")
            with trio.move_on_after(0.05):
                await client.ask(module.Get("never", wait=20))
            server.shut_down()
        async with serving(module.serve, server_tls, port=port):
            # It waits while there is no connection.
            assert await client.ask(module.Put("b", "second life")) == module.Done()
            while not found:
                await trio.sleep(0.01)
            assert await client.ask(module.Get("a")) == module.Missing()
    assert found == [module.Found("second life")]


@pytest.mark.real_clock
async def test_app_json_service_as_a_program() -> None:
    name = "app_json_service"
    server_tls, client_tls = example("quic_common").own_tls()
    digest = client_tls.server_certificate_hashes[0].hex()
    async with serving(example(name).serve, server_tls) as server:
        target = ("connect", "127.0.0.1", str(server.port))
        done = await program(name, *target, "put", "a", "b", "--hash", digest)
        assert done == (0, "Done()\n", "")
        done = await program(name, *target, "get", "a", "--websocket")
        assert done == (0, "Found(text='b')\n", "")
        code, _, err = await program(name, *target, "get", "x" * 101, "--websocket")
        assert (code, err) == (1, "Expected `str` of length <= 100, at $.name\n")
