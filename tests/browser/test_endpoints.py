"""Chromium at the interop endpoints of `trio-wt serve`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.browser.chromium import BROWSER, DRIVER, Chromium
from tests.browser.test_pages import go, running

pytestmark = [
    pytest.mark.real_clock,
    pytest.mark.skipif(
        not (BROWSER and DRIVER) and not os.environ.get("CI"),
        reason="chromium and chromium-driver are not installed",
    ),
]

SCRIPT = """
    const page = await (await fetch("/")).text();
    const { hash } = JSON.parse(/^const SETTINGS = (.*);$/m.exec(page)[1]);
    const value = Uint8Array.from(atob(hash), (c) => c.charCodeAt(0));
    const serverCertificateHashes = [{ algorithm: "sha-256", value }];
    const textOf = (stream) => new Response(stream).text();
    const open = async (path) => {
      const session = new WebTransport(`https://${location.host}${path}`, { serverCertificateHashes });
      await session.ready;
      return session;
    };
    const take = async (streams) => (await streams.getReader().read()).value;
    const ask = async (session, text) => {
      const stream = await session.createBidirectionalStream();
      const writer = stream.writable.getWriter();
      await writer.write(new TextEncoder().encode(text));
      await writer.close();
      return await textOf(stream.readable);
    };
    const overWebSocket = (path, text) => new Promise((resolve, reject) => {
      const socket = new WebSocket(`ws://${location.host}${path}`);
      socket.onopen = () => { if (text) socket.send(text); };
      socket.onmessage = ({ data }) => { socket.close(); resolve(data); };
      socket.onerror = () => reject(new Error("the WebSocket failed"));
    });

    const echo = await open("/echo");
    const stats = await open("/stats");
    const sending = (await echo.createUnidirectionalStream()).getWriter();
    await sending.write(new TextEncoder().encode("one way"));
    await sending.close();
    return {
      stream: await ask(echo, "both ways"),
      oneWay: await textOf(await take(echo.incomingUnidirectionalStreams)),
      message: await overWebSocket("/echo", "message"),
      told: [await textOf(await take(stats.incomingUnidirectionalStreams)), await ask(stats, "")],
      toldWebSocket: await overWebSocket("/stats"),
      toldPlain: await (await fetch("/stats")).text(),
      status: await (await fetch("/status")).text(),
    };
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    chromium = Chromium()
    yield chromium
    chromium.close()


def test_echo_and_stats(browser: Chromium) -> None:
    command = ("-m", "trio_wt", "serve", "--port", "0")
    with running(command, r"page for browsers: (\S+)") as (url, _):
        # The page itself may use no WebSockets.
        go(browser, f"{url}health")
        script = f"return (async () => {{ {SCRIPT} }})()"
        seen = browser.call("POST", "/execute/sync", {"script": script, "args": []})
    assert (seen["stream"], seen["oneWay"], seen["message"]) == ("both ways", "one way", "message")
    for told in map(json.loads, seen["told"]):
        assert (told["kind"], told["http_version"], told["alpn"]) == ("webtransport", "3", "h3")
        assert told["origin"] == url.rstrip("/")
        assert told["peer_settings"]["H3_DATAGRAM"] == 1
        assert told["rtt"] > 0
    told = json.loads(seen["toldWebSocket"])
    assert (told["kind"], told["extensions"]) == ("websocket", ["permessage-deflate"])
    assert json.loads(seen["toldPlain"])["kind"] == "http"
    assert json.loads(seen["status"])["totals"]["webtransport_sessions"] >= 2
