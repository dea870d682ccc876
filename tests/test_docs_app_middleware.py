"""The page on middleware says what is so: every line of its code runs in here."""

from __future__ import annotations

import re

import pytest
import trio
import trio.testing

from tests.app_exchange import MemoryExchange, ask, logged, request_of
from tests.shown_code import ROOT, loaded
from tests.test_app_middleware_authentication import basic
from trio_wt import Headers

PAGE = ROOT / "docs" / "app" / "middleware.rst"


def without_sizes(line: str) -> str:
    return re.sub(r"(received|sent)=\d+ (?=sent|messages)", r"\1=N ", line)


async def test_app_middleware() -> None:
    with loaded(ROOT / "docs" / "code" / "app_middleware.py") as code:
        exchange = MemoryExchange(
            request_of("/rooms/tea?token=0ther", is_websocket=True, peer=("192.0.2.7", 50000))
        )
        with logged("trio_wt.access") as records:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: code.app._answer(exchange, Headers(), raise_errors=True))
                await trio.sleep(1)
                assert exchange.block is not None and exchange.client is not None
                async with exchange.block:
                    await exchange.client.send("hello")
                    assert await exchange.client.receive() == "bob in tea: hello"
                    assert exchange.accepted and exchange.accepted.headers["x-rooms"] == "0"

                    bearer = {"Authorization": "Bearer s3cret"}
                    other = await ask(code.app, "/rooms/tea", bearer, is_websocket=True)
                    assert other.status == 409

                    root = {"Authorization": basic("root", "correct horse")}
                    assert (await ask(code.admin, "/figures")).status == 401
                    figures = await ask(code.admin, "/figures", root)
                    assert figures.body == b"refused: 0, inside: 1\n"
                    from_elsewhere = {**root, "Origin": "https://example.com"}
                    assert (await ask(code.admin, "/figures", from_elsewhere)).status == 403

                    await exchange.client.wait_closed()
                    assert exchange.client.close_reason == "your token has expired"
        (line,) = [
            r.getMessage()
            for r in records
            if "kind=websocket" in r.getMessage() and "status=101" in r.getMessage()
        ]
        shown = re.search(r"^   (peer=.*)$", PAGE.read_text(), re.M)
        assert shown and re.sub(r"seconds=2\.\d+", "seconds=2.000", without_sizes(line)) == (
            without_sizes(shown[1])
        )


@pytest.mark.parametrize("what", ["time is\n   up", "1001", "503", "trio_wt.access", "trio_wt.app"])
def test_the_page_has_what_the_code_has(what: str) -> None:
    assert what in PAGE.read_text()
