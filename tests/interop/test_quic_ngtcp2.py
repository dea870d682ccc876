"""ngtcp2's client, from Debian's ngtcp2-client, at our server."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.interop.test_quic_interop import Files
from tests.peers import require
from trio_wt import Certificate, ServerTLS, serve_quic

require("pylsqpack")
from tests.interop.quic_h3_stub import Answerer, content  # noqa: E402

PROGRAM = shutil.which("gtlsclient")
pytestmark = [
    pytest.mark.real_clock,
    pytest.mark.skipif(
        PROGRAM is None and not os.environ.get("CI"), reason="ngtcp2-client is not installed"
    ),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


@asynccontextmanager
async def serving(files: Files, **options: Any) -> AsyncIterator[tuple[int, Answerer]]:
    answerer = Answerer()
    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(
            partial(
                serve_quic,
                answerer.handle,
                0,
                host="127.0.0.1",
                alpn=["h3"],
                tls=ServerTLS(Certificate.load(files.chain, files.key)),
                **options,
            )
        )
        yield sockets[0].local_address[1], answerer
        nursery.cancel_scope.cancel()


async def fetch(port: int, folder: Path, sizes: list[int], *options: str) -> str:
    """Fetch as many bytes as asked, check them, and give what the program wrote."""
    assert PROGRAM is not None, "CI must have ngtcp2-client"
    uris = [f"https://localhost:{port}/{size}" for size in sizes]
    command = [PROGRAM, "--exit-on-all-streams-close", "--no-quic-dump", "--no-http-dump"]
    command += ["--sni=localhost", f"--download={folder}", "--timeout=10s", *options]
    with trio.fail_after(25):
        done = await trio.run_process(
            [*command, "127.0.0.1", str(port), *uris],
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, output[-2000:]
    for size in sizes:
        assert (folder / str(size)).read_bytes() == content(size), output[-2000:]
        (folder / str(size)).unlink()
    return output


async def test_handshake_and_transfer(files: Files, tmp_path: Path) -> None:
    async with serving(files) as (port, answerer):
        await fetch(port, tmp_path, [1, 1000, 65536, 3_000_000])
        await fetch(port, tmp_path, [20_000_000])
        assert len(answerer.peers) == 5


async def test_retry(files: Files, tmp_path: Path) -> None:
    async with serving(files, retry="always") as (port, _):
        output = await fetch(port, tmp_path, [100_000])
        assert "Retry" in output


async def test_many_requests(files: Files, tmp_path: Path) -> None:
    async with serving(files, max_streams=10) as (port, answerer):
        await fetch(port, tmp_path, [500 + n for n in range(60)])
        assert len(answerer.peers) == 60


@pytest.mark.parametrize("loss", ["0.05", "0.2"])
async def test_loss_both_ways(files: Files, tmp_path: Path, loss: str) -> None:
    async with serving(files) as (port, _):
        await fetch(port, tmp_path, [300_000], f"--tx-loss={loss}", f"--rx-loss={loss}")


async def test_key_update(files: Files, tmp_path: Path) -> None:
    async with serving(files) as (port, _):
        output = await fetch(port, tmp_path, [20_000_000], "--key-update=10ms")
        assert "Initiate key update" in output


@pytest.mark.parametrize("options", [(), ("--nat-rebinding",)], ids=["migration", "rebinding"])
async def test_another_address(files: Files, tmp_path: Path, options: tuple[str, ...]) -> None:
    # It must have something to send from there: what comes to its old address it ignores.
    upload = tmp_path / "upload"
    upload.write_bytes(content(10_000_000))
    async with serving(files) as (port, _):
        moving = (f"--data={upload}", "--change-local-addr=20ms", *options)
        output = await fetch(port, tmp_path, [1_000_000, 1000], *moving)
        assert "Local address is now" in output


async def test_resumption_and_early_data(files: Files, tmp_path: Path) -> None:
    remembered = f"--session-file={tmp_path / 'session'}", f"--tp-file={tmp_path / 'tp'}"
    async with serving(files, early_data=True) as (port, answerer):
        await fetch(port, tmp_path, [1000], *remembered)
        await fetch(port, tmp_path, [1000], *remembered)
        with trio.fail_after(5):
            while len(answerer.resumed) < 2:
                await trio.sleep(0.01)
        assert answerer.resumed == [False, True]
        assert answerer.early == [False, True]


async def test_resumption_where_early_data_is_not_wanted(files: Files, tmp_path: Path) -> None:
    remembered = f"--session-file={tmp_path / 'session'}", f"--tp-file={tmp_path / 'tp'}"
    async with serving(files) as (port, answerer):
        await fetch(port, tmp_path, [1000], *remembered)
        await fetch(port, tmp_path, [1000], *remembered)
        with trio.fail_after(5):
            while len(answerer.resumed) < 2:
                await trio.sleep(0.01)
        assert answerer.resumed == [False, True]
        assert answerer.early == [False, False]
