"""The pages on applications say what is so: every line of their code runs in here, and every name they give is there."""

from __future__ import annotations

import inspect
import re
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import trio

import trio_wt
import trio_wt.app
from tests.shown_code import ROOT, free_port, loaded
from trio_wt._cli.certificate import make_certificate

DOCS = ROOT / "docs"


def shown(name: str, **replace: str) -> AbstractContextManager[Any]:
    return loaded(DOCS / "code" / f"{name}.py", replace=replace)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The test runs in a folder with the certificate that the code on the pages has a name for."""
    made = make_certificate()
    (tmp_path / "cert.pem").write_bytes(made.certificate)
    (tmp_path / "key.pem").write_bytes(made.key)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@asynccontextmanager
async def running(main: Any) -> AsyncIterator[None]:
    """Run a program on a page for as long as the block lasts."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(main)
        yield
        nursery.cancel_scope.cancel()


async def until_it_listens(port: int) -> None:
    with trio.fail_after(10):
        while True:
            try:
                await (await trio.open_tcp_stream("localhost", port)).aclose()
            except OSError:
                await trio.sleep(0.02)
            else:
                return


def fetch(url: str, method: str = "GET") -> tuple[int, str]:
    """An answer's status and text, as any client of HTTP/1.1 sees them."""
    context = ssl.create_default_context(cafile="cert.pem")
    try:
        with urlopen(Request(url, method=method), timeout=10, context=context) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as exc:
        return exc.code, exc.read().decode()


@pytest.mark.real_clock
async def test_a_first_application(here: Path) -> None:
    port = free_port()
    tls = trio_wt.ClientTLS(ca="cert.pem")
    with shown("app_first", **{"4433": str(port)}) as page:
        async with running(page.main):
            await until_it_listens(port)
            base = f"localhost:{port}"
            ask = partial(trio.to_thread.run_sync, fetch)
            assert "Greetings" in (await ask(f"https://{base}/"))[1]
            assert await ask(f"https://{base}/greetings/fr") == (200, "bonjour")
            assert await ask(f"https://{base}/greetings/xx") == (404, "nobody speaks that here\n")
            assert await ask(f"https://{base}/admin/health") == (200, "ok\n")
            assert (await ask(f"https://{base}/admin/health", "POST"))[0] == 405
            assert (await ask(f"https://{base}/count/ten"))[0] == 404
            assert (await ask(f"https://{base}/count/10"))[0] == 426
            context = ssl.create_default_context(cafile="cert.pem")
            open_websocket = partial(trio_wt.open_websocket, ssl_context=context)
            async with open_websocket(f"wss://{base}/greet/en") as ws:
                await ws.send("world")
                assert await ws.receive() == "hello, world"
            async with open_websocket(f"wss://{base}/count/10") as ws:
                assert await ws.receive() == "11"
            async with trio_wt.open_webtransport(f"https://{base}/count/10", tls=tls) as session:
                assert await session.datagrams.receive() == b"11"
                async with session.connection.open_websocket("/greet/fr") as ws:
                    await ws.send("world")
                    assert await ws.receive() == "bonjour, world"
    assert page.app.state[page.GREETINGS] == {}


@pytest.mark.real_clock
async def test_serving(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    app = trio_wt.app.App()
    app.http("/")(lambda request: "hello")
    with shown("app_serving", **{"4433": str(port)}) as page:
        async with running(partial(page.serve_for_a_year, app)):
            await until_it_listens(port)
            answer = await trio.to_thread.run_sync(fetch, f"https://localhost:{port}/")
            assert answer == (200, "hello")
        await page.serve_and_more(app)
    assert re.fullmatch(
        r"listening on ws://(127.0.0.1|\[::1\]):\d+/\n1 requests so far\n", capsys.readouterr().out
    )


# ---- names


def rows(table: str) -> list[tuple[str, str]]:
    text = (DOCS / "app" / "names.rst").read_text()
    body = text.partition(f":name: {table}")[2].partition(".. list-table")[0]
    found = re.findall(r"^   \* - (.+)\n     - (.+)$", body, re.M)
    assert len(found) > 4, table
    return [row for row in found[1:] if isinstance(row, tuple)]


TABLES = ["names-pywebtransport-table", "names-websockets-table", "names-trio-websocket-table"]


@pytest.mark.parametrize("table", TABLES)
def test_names_of_ours_are_there(table: str) -> None:
    for _, ours in rows(table):
        for name in re.findall(r"(?<![`:])`([A-Za-z_]+)`(?!`)", ours):
            assert hasattr(trio_wt, name) or hasattr(trio_wt.app, name), name
        for name in re.findall(r"\b([A-Z][A-Za-z]+)\(", ours):
            assert hasattr(trio_wt, name) or hasattr(trio_wt.app, name), name


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the peer needs Python 3.12")
def test_names_of_pywebtransport_are_there() -> None:
    peer = pytest.importorskip("pywebtransport")
    session = peer.WebTransportSession
    for name in (
        "accept",
        "close",
        "create_bidirectional_stream",
        "create_unidirectional_stream",
        "diagnose",
        "events",
        "export_keying_material",
        "incoming_bidirectional_streams",
        "incoming_unidirectional_streams",
        "read_datagram",
        "reject",
        "send_datagram",
        "wt_available_protocols",
        "wt_protocol",
    ):
        assert hasattr(session, name), name
        assert any(name in theirs for theirs, _ in rows(TABLES[0])), name


# ---- the table of bounds, and the reference


def test_the_table_of_bounds() -> None:
    text = (DOCS / "app" / "bounds.rst").read_text()
    found = {}
    for _, parameter, default, _ in re.findall(
        r"^   \* - (.+)\n     -(?: (.+))?\n     -(?: (.+))?\n     -(?: (.+))?$", text, re.M
    ):
        if match := re.fullmatch(r"``([\w.]+)``: ``(\w+)``", parameter):
            found[match[1], match[2]] = default
    owners: dict[str, Any] = {
        "App.serve": trio_wt.app.App.serve,
        "subscribe": trio_wt.app.Topic.subscribe,
        **{name: getattr(trio_wt.app, name) for name in trio_wt.app.__all__},
    }
    checked = 0
    for (owner, name), told in found.items():
        default = inspect.signature(owners[owner]).parameters[name].default
        if default is None:
            assert told == "no limit" or told.startswith("1 of a WebSocket"), (owner, name)
        else:
            number = {"1 MiB": "1048576"}.get(told, told.removesuffix(" s").replace(",", ""))
            assert float(number) == default, (owner, name)
            checked += 1
    assert checked >= 10


def test_the_reference_has_every_public_name() -> None:
    text = (DOCS / "app" / "reference.rst").read_text()
    shown = set(re.findall(r"^\.\. (?:auto\w+|data):: (\S+)$", text, re.M))
    # shown where they belong to the package itself
    elsewhere = {"Request", "Response", "Attempt", "Reconnect", "reconnect", "is_transient"}
    assert shown == set(trio_wt.app.__all__) - elsewhere
