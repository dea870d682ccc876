"""The page on rooms says what is so: every line of its code runs in here."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.shown_code import ROOT, loaded
from trio_wt.testing import websocket_pair, webtransport_pair


async def test_app_rooms(capsys: pytest.CaptureFixture[str]) -> None:
    with loaded(ROOT / "docs" / "code" / "app_rooms.py") as code:
        async with (
            websocket_pair("ws://example.test/tea") as (ann, at_ann),
            websocket_pair("ws://example.test/tea") as (bob, at_bob),
            websocket_pair("ws://example.test/coffee") as (eve, at_eve),
            webtransport_pair(path="/tea") as (joe, at_joe),
            trio.open_nursery() as nursery,
        ):
            for ws in (at_ann, at_bob, at_eve):
                nursery.start_soon(code.chat, ws)
            nursery.start_soon(code.watch, at_joe)
            await trio.testing.wait_all_tasks_blocked()
            await ann.send("hello")
            assert [await ann.receive(), await bob.receive()] == ["hello", "hello"]
            await bob.send(b"and bytes")
            assert [await ann.receive(), await bob.receive()] == [b"and bytes", b"and bytes"]
            await eve.send("alone")
            assert await eve.receive() == "alone"
            assert sorted(code.rooms) == ["/coffee", "/tea"]
            nursery.start_soon(code.show_room, joe)
            await trio.sleep(0.1)
            assert capsys.readouterr().out == "b'hello'\nb'and bytes'\n"
            for ws in (ann, bob, eve):
                await ws.close()
            nursery.cancel_scope.cancel()
        assert list(code.rooms) == []

        found: list[float] = []

        async def find() -> None:
            found.append(await code.highest("tin"))

        async with websocket_pair() as (a, b), trio.open_nursery() as nursery:
            nursery.start_soon(code.ticker, b)
            nursery.start_soon(find)
            await trio.testing.wait_all_tasks_blocked()
            for price in (3.5, 4.25, 1.0):
                code.on_price("tin", price)
            assert await a.receive() == '{"tin":3.5}'
            for _ in range(100):
                code.on_price("tin", 2.0)
            assert "waited for" in capsys.readouterr().out
            assert code.load().startswith("2 subscribers, ")
            await trio.testing.wait_all_tasks_blocked()
            await code.prices.publish({})
            await a.close()
        assert found == [4.25]

        async with websocket_pair(server_settings={"write_limit": 100}) as (a, b):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(code.ledger, b)
                await trio.testing.wait_all_tasks_blocked()
                while len(code.prices):
                    code.on_price("tin", 1.0)
        assert capsys.readouterr().out == "/ was too slow\n"
