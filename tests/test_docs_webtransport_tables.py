"""The tables about WebTransport say what is so: limits, endings, errors, drafts and peers are compared with the package."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import version
from typing import Any

import pytest
import trio
import trio.testing

import trio_wt
from tests.shown_code import ROOT
from tests.test_docs import list_table, written
from tests.test_docs_quic_tables import STREAM_ENDINGS, seen_by_receiving, seen_by_sending
from trio_wt import QuicSettings, WebTransportSession, WebTransportSettings
from trio_wt._protocol import capsules, http3, http3_settings
from trio_wt._protocol.dialects import DIALECTS
from trio_wt._webtransport import connection as wt_connection
from trio_wt._webtransport import server as wt_server
from trio_wt.testing import Network, webtransport_pair
from trio_wt.testing._pair import pair_certificate

# ---- the table of limits

# What the rows without a parameter are about.
FIXED = {
    "Body of a response that is kept": wt_connection._MAX_BODY,
    "Interim responses to a request": http3._MAX_INTERIM,
    "SETTINGS, in bytes": http3_settings.MAX_SETTINGS,
    "A PRIORITY_UPDATE, in bytes": http3._MAX_PRIORITY,
    "Reason of a close, in bytes": capsules.MAX_REASON,
    "A datagram that comes as a capsule, in bytes": capsules._MAX_DATAGRAM,
    "A connection after its only session, if its client can have no other": (
        f"{wt_server._LINGER:g} s"
    ),
}
# Those of QUIC that mean something else, or more, here.
SHARED = {"max_streams", "max_receive_streams"}


def default_of(where: str) -> object:
    """What the code has for a cell of the column "Parameter"."""
    owner, _, name = where.replace("`", "").rpartition(": ")
    if not owner:
        return getattr(WebTransportSettings(), name)
    function: Any = trio_wt
    for part in owner.split("."):
        function = getattr(function, part)
    return inspect.signature(function).parameters[name].default


def test_the_table_of_limits_has_the_defaults() -> None:
    seen = set()
    rows = list_table("limits.rst", "webtransport-limits-table")
    for what, parameter, default, past, source in rows:
        if what.startswith("**"):
            continue
        value = FIXED[what] if parameter == "fixed" else default_of(parameter)
        assert default in written(value), f"{what}: {default} is {value} in the code"
        assert past
        assert source == "choice" or re.fullmatch(r"(RFC \d+|draft-16), [\d.]+", source), what
        seen.add(what if parameter == "fixed" else parameter.replace("`", ""))
    assert set(FIXED) <= seen
    of_quic = {field.name for field in fields(QuicSettings)}
    limits = {field.name for field in fields(WebTransportSettings)} - of_quic
    assert limits | SHARED == {name for name in seen if name in limits | of_quic}
    bounds = {
        f"{name}: {parameter.name}"
        for name, function in {
            "open_webtransport": trio_wt.open_webtransport,
            "open_webtransport_connection": trio_wt.open_webtransport_connection,
            "serve_webtransport": trio_wt.serve_webtransport,
            "WebTransportConnection.open_session": trio_wt.WebTransportConnection.open_session,
            "WebTransportConnection.open_websocket": trio_wt.WebTransportConnection.open_websocket,
        }.items()
        for parameter in inspect.signature(function).parameters.values()
        if type(parameter.default) in (int, float)
    }
    assert bounds <= seen


# ---- the table of how streams end


async def test_the_table_of_how_streams_end() -> None:
    rows = list_table("webtransport/endings.rst", "webtransport-stream-endings-table")
    assert len(rows) == len(STREAM_ENDINGS)
    for what, receiving, sending in rows:
        (blocks,) = (found for start, found in STREAM_ENDINGS.items() if what.startswith(start))
        for block in blocks:
            async with webtransport_pair() as (ours, peer), trio.open_nursery() as nursery:

                async def run(block: Any = block, ours: WebTransportSession = ours) -> None:
                    with trio.CancelScope() as outer, suppress(ZeroDivisionError):
                        async with ours.open_stream() as stream:
                            await stream.send_all(b"some")
                            await block(stream, outer)

                nursery.start_soon(run)
                async with await peer.incoming_streams.receive() as stream:
                    await trio.sleep(1)
                    seen = await seen_by_receiving(stream), await seen_by_sending(stream)
                    assert seen == (receiving, sending), what


# ---- the table of how sessions end


async def _normal(session: WebTransportSession, outer: trio.CancelScope) -> None:
    pass


async def _raises(session: WebTransportSession, outer: trio.CancelScope) -> None:
    raise ZeroDivisionError


async def _own_scope(session: WebTransportSession, outer: trio.CancelScope) -> None:
    session.cancel_scope.cancel()
    await trio.sleep_forever()


async def _outer_scope(session: WebTransportSession, outer: trio.CancelScope) -> None:
    outer.cancel()
    await trio.sleep_forever()


async def _acloses(session: WebTransportSession, outer: trio.CancelScope) -> None:
    await session.aclose(42)


async def _closes_now(session: WebTransportSession, outer: trio.CancelScope) -> None:
    session.close_now(42)


async def _stays(session: WebTransportSession, outer: trio.CancelScope) -> None:
    await trio.sleep_forever()


ENDINGS: dict[str, list[Any]] = {
    "ends normally": [_normal],
    "raises an exception": [_raises],
    "is cancelled": [_own_scope, _outer_scope],
    "calls ``session.aclose(42)``": [_acloses, _closes_now],
    "runs on a server that shuts down": [_stays],
    "never gets to run": [_stays],
}
#: What becomes of a page's promise: it is rejected where nobody has closed the session.
IN_A_PAGE = {"ConnectionLost": "is rejected"}


async def how_it_looks_to_the_peer(
    block: Any,
    *,
    act: Callable[[Network, trio.Event, trio.CancelScope], None] | None = None,
) -> tuple[str, str, str]:
    """Run a block as a client, or let ``act`` do something to a server whose handler it is; the code and the error."""
    network, shutdown, server = Network(), trio.Event(), trio.CancelScope()
    certificate = pair_certificate()
    ends: list[trio_wt.ConnectionClosed] = []

    async def handle(session: WebTransportSession) -> None:
        if act is None:
            ends.append(await session.wait_closed())
        else:
            await block(session, server)

    async def serve(task_status: Any) -> None:
        with server:
            await trio_wt.serve_webtransport(
                handle,
                sockets=[network.socket(("server.test", 1))],
                tls=trio_wt.ServerTLS(certificate),
                shutdown=shutdown,
                task_status=task_status,
            )

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        with trio.CancelScope() as outer, suppress(ZeroDivisionError):
            async with trio_wt.open_webtransport(
                "https://server.test:1/",
                tls=trio_wt.ClientTLS(server_certificate_hashes=[certificate.sha256]),
                socket=network.socket(),
            ) as session:
                await session.connection.ping()
                if act is None:
                    await block(session, outer)
                else:
                    act(network, shutdown, server)
                    ends.append(await session.wait_closed())
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    (end,) = ends
    kind = type(end).__name__
    return str(end.code), f"`{kind}`", IN_A_PAGE.get(kind, "is fulfilled")


async def test_the_table_of_how_sessions_end(caplog: pytest.LogCaptureFixture) -> None:
    rows = list_table("webtransport/endings.rst", "webtransport-endings-table")
    assert len(rows) == len(ENDINGS)
    acts: dict[str, Any] = {
        "runs on": lambda network, shutdown, server: shutdown.set(),
        "never gets": lambda network, shutdown, server: setattr(network, "loss", 1),
    }
    for what, *expected in rows:
        (blocks,) = (found for start, found in ENDINGS.items() if what.startswith(start))
        act = next((found for start, found in acts.items() if what.startswith(start)), None)
        for block in blocks:
            assert await how_it_looks_to_the_peer(block, act=act) == tuple(expected), what

    def nothing(network: Network, shutdown: trio.Event, server: trio.CancelScope) -> None:
        pass

    def cancel(network: Network, shutdown: trio.Event, server: trio.CancelScope) -> None:
        server.cancel()

    # Handlers end as blocks do.
    for block, act, expected_code in (
        (_normal, nothing, "0"),
        (_raises, nothing, "2"),
        (_stays, cancel, "1"),
    ):
        assert (await how_it_looks_to_the_peer(block, act=act))[0] == expected_code


# ---- the table of errors


def _peer_closes(ours: WebTransportSession, peer: WebTransportSession, network: Network) -> None:
    peer.close_now(0)


def _peer_fails(ours: WebTransportSession, peer: WebTransportSession, network: Network) -> None:
    peer.close_now(7)


def _http3_ends_it(ours: WebTransportSession, peer: WebTransportSession, network: Network) -> None:
    peer.connection._driver.shut(0x101, "")


def _quic_ends_it(ours: WebTransportSession, peer: WebTransportSession, network: Network) -> None:
    peer.connection._driver.shut(0x0A, "", transport=True)


def _quic_ends_it_here(
    ours: WebTransportSession, peer: WebTransportSession, network: Network
) -> None:
    ours.connection._driver.shut(0x0A, "", transport=True)


def _peer_breaks_the_rules(
    ours: WebTransportSession, peer: WebTransportSession, network: Network
) -> None:
    ours._carrier._violated()


def _is_lost(ours: WebTransportSession, peer: WebTransportSession, network: Network) -> None:
    network.loss = 1


def _we_close(ours: WebTransportSession, peer: WebTransportSession, network: Network) -> None:
    ours.close_now()


ERRORS = {
    "was closed by the peer with 0": [_peer_closes],
    "was closed by the peer with another code": [_peer_fails],
    "was ended by HTTP/3 or QUIC, or its connection was closed by the peer": [
        _http3_ends_it,
        _quic_ends_it,
        _quic_ends_it_here,
        _peer_breaks_the_rules,
    ],
    "was lost with its connection": [_is_lost],
    "was closed by our ``aclose()`` or ``close_now()``": [_we_close],
}


async def test_the_table_of_errors() -> None:
    async def kind(call: Callable[..., Awaitable[object]], *args: object) -> str:
        try:
            await call(*args)
        except trio_wt.TrioWTError as exc:
            return f"`{type(exc).__name__}`"
        except trio.ClosedResourceError:
            return "``ClosedResourceError``"
        return "nothing"

    rows = list_table("errors.rst", "webtransport-errors-table")
    assert [row[0] for row in rows] == list(ERRORS)
    for what, channels, receiving, sending in rows:
        for end in ERRORS[what]:
            network = Network()
            async with (
                webtransport_pair(network=network) as (ours, peer),
                ours.open_stream() as stream,
            ):
                end(ours, peer, network)
                await ours.wait_closed()
                for call in (ours.incoming_streams.receive, ours.datagrams.receive):
                    assert await kind(call) == channels, (what, end)
                assert await kind(stream.receive_some) == receiving, (what, end)
                assert await kind(stream.send_all, b"x") == sending, (what, end)
                assert await kind(ours.datagrams.send, b"x") == sending, (what, end)
                assert await kind(ours.open_stream().__aenter__) == sending, (what, end)


# ---- the tables of drafts and of peers


def test_the_table_of_drafts() -> None:
    rows = list_table("webtransport/peers.rst", "webtransport-drafts-table")
    told = [(drafts, setting, token) for drafts, setting, token, _ in rows]
    assert told == [
        (dialect.drafts, f"{dialect.enabled_by.value:#x}", f"``{dialect.token}``")
        for dialect in DIALECTS
    ]


def test_the_table_of_peers_says_what_is_run() -> None:
    rows = {row[0]: row for row in list_table("webtransport/peers.rst", "webtransport-peers-table")}
    for name, (_, _, _, tested, _) in rows.items():
        assert (tested == "not run") == (not name.startswith("**")), name
        if tested != "not run":
            peer = name.strip("*").split()[0].lower()
            sources = (ROOT / tested.strip("`")).glob("*.py")
            assert any(peer in path.read_text().lower() for path in sources), name
    for name in ("pywebtransport", "aiopquic"):
        told = rows[f"**{name}**"][1]
        installed = pytest.importorskip(name) and version(name)
        assert installed.startswith(f"{told}."), f"{name} {installed} is run, and not {told}"
