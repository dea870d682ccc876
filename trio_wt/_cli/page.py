"""The page that `trio-wt serve` has for browsers: a WebTransport session to try by hand."""

from __future__ import annotations

import base64
import json
from typing import Final

from .._headers import Headers
from .._http.request import Request, Response
from .identity import Identity

__all__ = ["Page"]

# What it may do: run its own script, and connect. Nothing that a peer sends is taken for HTML.
_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src https:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = Headers(
    {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": _POLICY,
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
)

_HTML: Final = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<title>trio-wt serve</title>
<style>
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }
  form { display: flex; gap: .5rem; }
  input { flex: 1; }
  input, select, button { font: inherit; padding: .25rem .5rem; }
  #log { white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-monospace, monospace; }
</style>
<h1>WebTransport</h1>
<p id="state">connecting</p>
<form id="form">
  <input id="text" autofocus autocomplete="off" aria-label="what to send">
  <select id="kind" aria-label="how">
    <option value="stream">stream</option>
    <option value="send-stream">send-stream</option>
    <option value="datagram">datagram</option>
  </select>
  <button id="send" disabled>Send</button>
</form>
<div id="log" aria-live="polite"></div>
<script>
"use strict";
const SETTINGS = {settings};
const $ = (id) => document.getElementById(id);
const encoder = new TextEncoder();

function state(text) { $("state").textContent = text; }

function show(kind, text) {
  const line = document.createElement("div");
  line.textContent = `${kind}: ${text}`;
  $("log").prepend(line);
  while ($("log").childElementCount > 1000) $("log").lastChild.remove();
}

async function showStream(kind, readable) {
  try {
    let text = "";
    for (const reader = readable.pipeThrough(new TextDecoderStream()).getReader();;) {
      const { value, done } = await reader.read();
      if (done) break;
      text += value;
    }
    show(kind, text);
  } catch (error) {
    show(`${kind}, reset`, error.message);
  }
}

async function each(readable, use) {
  for (const reader = readable.getReader();;) {
    const { value, done } = await reader.read();
    if (done) return;
    use(value);
  }
}

async function sendAll(writable, text) {
  const writer = writable.getWriter();
  await writer.write(encoder.encode(text));
  await writer.close();
}

async function main() {
  if (SETTINGS.ipv4 && location.hostname === "localhost") {
    // Some browsers try IPv6 only, where nobody listens.
    location.hostname = "127.0.0.1";
    return;
  }
  if (typeof WebTransport === "undefined") {
    state("this browser has no WebTransport, or this page is not one of those that may use it");
    return;
  }
  const options = {};
  if (SETTINGS.hash !== null) {
    const value = Uint8Array.from(atob(SETTINGS.hash), (c) => c.charCodeAt(0));
    options.serverCertificateHashes = [{ algorithm: "sha-256", value }];
  }
  const url = `https://${location.host}/`;
  const session = new WebTransport(url, options);
  session.closed.then(
    ({ closeCode, reason }) => state(`closed with code ${closeCode ?? 0}${reason ? ": " + reason : ""}`),
    (error) => state(`failed: ${error.message}`),
  ).then(() => { $("send").disabled = true; });
  await session.ready;
  state(`connected to ${url}`);
  $("send").disabled = false;
  each(session.incomingBidirectionalStreams, (stream) => {
    stream.writable.close().catch(() => {});
    showStream("stream", stream.readable);
  }).catch(() => {});
  each(session.incomingUnidirectionalStreams, (stream) => showStream("receive-stream", stream)).catch(() => {});
  each(session.datagrams.readable, (data) => show("datagram", new TextDecoder().decode(data))).catch(() => {});
  const outgoing = session.datagrams.createWritable?.() ?? session.datagrams.writable;
  const datagrams = outgoing.getWriter();
  $("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = $("text").value;
    $("text").value = "";
    try {
      if ($("kind").value === "datagram") {
        await datagrams.write(encoder.encode(text));
      } else if ($("kind").value === "stream") {
        const stream = await session.createBidirectionalStream();
        showStream("stream", stream.readable);
        await sendAll(stream.writable, text);
      } else {
        await sendAll(await session.createUnidirectionalStream(), text);
      }
    } catch (error) {
      show("not sent", error.message);
    }
  });
}

$("form").addEventListener("submit", (event) => event.preventDefault());
main().catch((error) => state(`failed: ${error.message}`));
</script>
</html>
"""


class Page:
    """The page, as a handler of plain requests.

    Args:
        identity: what the browser is to know the server by.

    Attributes:
        ipv4_only: whether the server listens on IPv4 alone.
    """

    def __init__(self, identity: Identity) -> None:
        digest = identity.browser_hash
        self._hash = None if digest is None else base64.b64encode(digest).decode()
        self.ipv4_only = False

    def __call__(self, request: Request) -> Response:
        settings = json.dumps({"hash": self._hash, "ipv4": self.ipv4_only})
        return Response(200, _HEADERS, _HTML.replace("{settings}", settings).encode())
