"""The page on typed messages says what is so: every line of its code runs in here."""

from __future__ import annotations

from functools import partial

import pytest
import trio

import trio_wt
from tests.shown_code import ROOT, loaded
from trio_wt.testing import websocket_pair, webtransport_pair

PAGE = ROOT / "docs" / "app" / "messages.rst"


@pytest.mark.real_clock
async def test_app_messages(capsys: pytest.CaptureFixture[str]) -> None:
    with loaded(ROOT / "docs" / "code" / "app_messages.py") as code:
        async with trio.open_nursery() as nursery:
            serve = partial(trio_wt.serve_websocket, code.chat, 0, host="127.0.0.1")
            listeners = await nursery.start(serve)
            await code.greet(f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/")
            while "tea" not in (printed := capsys.readouterr().out):
                await trio.sleep(0.01)
            assert printed == "tea: hello, at volume 5\n"
            nursery.cancel_scope.cancel()

        async with websocket_pair() as (a, b):
            await a.send('{"type":"say","text":"hello","volume":"loud"}')
            await a.send('{"type":"say","text":"hello","volume":5}')
            await a.send_close()
            assert await code.patient_chat(b) == [code.Say("hello")]
            printed = capsys.readouterr().out
            assert f"text\n\n   {printed}" in PAGE.read_text()

        async with websocket_pair() as (a, b):
            await a.send('{"type":"join","room":"tea"}')
            await a.send('{"type":"leave"}')
            with pytest.raises(code.InvalidMessage):
                await code.strict_chat(b)
            with pytest.raises(trio_wt.ConnectionClosedError) as closed:
                await a.receive()
            assert closed.value.code == 1007
            assert capsys.readouterr().out == "Join(room='tea')\n"

        async with webtransport_pair() as (client, server), trio.open_nursery() as nursery:
            nursery.start_soon(code.follow, server)
            async with client.open_stream() as stream:
                channel = code.MessageChannel(stream, code.MessagePackCodec(code.Join | code.Say))
                await channel.send(code.Join("tea"))
                assert await channel.receive() == code.Join("tea")
            nursery.start_soon(code.tell_the_time, server)
            times = code.MessageChannel(client.datagrams, code.ProtobufCodec(code.Timestamp))
            assert (await times.receive()).seconds > 1_700_000_000
            nursery.cancel_scope.cancel()

        async with websocket_pair() as (a, b):
            await code.MessageChannel(a, code.Celsius()).send(20.0)
            await a.send("21.0")
            assert await code.average(b, 2) == 20.5
            for wrong in ("-300", "warm", b"\xff"):
                await a.send(wrong)
                with pytest.raises(code.InvalidMessage):
                    await code.average(b, 1)
