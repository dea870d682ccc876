"""The tables about QUIC say what is so: limits, endings and errors are compared with the package."""

from __future__ import annotations

import datetime as dt
import inspect
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import fields
from typing import Any

import trio
import trio.testing
from aioquic.quic import connection as aioquic_connection
from aioquic.quic import recovery, retry
from aioquic.quic.configuration import QuicConfiguration

import trio_wt
from tests.test_docs import list_table, written
from trio_wt import Connection, QuicSettings, SessionStore, Stream
from trio_wt._protocol import packet_router, path_mtu
from trio_wt._protocol.quic import EngineConfig, engine, qlog
from trio_wt._quic import client, datagrams, sessions, verification
from trio_wt.testing import Network, quic_pair
from trio_wt.testing import _quic as quic

# ---- the table of limits

_DAY = dt.timedelta(days=1)
_CIDS = aioquic_connection.QuicConnection(
    configuration=QuicConfiguration()
)._local_active_connection_id_limit
_CONFIG = {field.name: field.default for field in fields(EngineConfig)}

# What the rows without a parameter are about.
FIXED = {
    "Pause before the next address of a host is tried, too": client._ATTEMPT_DELAY,
    "Handshakes under way in all, as a multiple of that": packet_router._MAX_HALF_OPEN_FACTOR,
    "Of that number, one in so many may be of one network once it is reached": (
        packet_router._ADDRESS_SHARE
    ),
    "Bytes of datagrams that wait to be received": datagrams._MAX_RECEIVED_BYTES,
    "Age of the token in a Retry": int(retry.TOKEN_LIFETIME),
    "Bytes of the TLS handshake that are held": _CONFIG["max_crypto"],
    "Certificates that a peer sends with its own": verification._MAX_CHAIN,
    "Life of a certificate that is known by its hash": (
        f"{verification.MAX_HASHED_VALIDITY // _DAY} days"
    ),
    "Answers to packets of no connection, in a second": int(packet_router._REPLY_RATE),
    "Connection ids of connections that have ended, whose late packets are answered": (
        packet_router._MAX_CLOSING
    ),
    "Gaps in what has arrived of a stream": _CONFIG["max_gaps"],
    "Lost probes of one size": path_mtu._MAX_PROBES,
    "Reason of a close that is sent, in bytes": engine._MAX_REASON,
    "Connection ids of the peer's": _CIDS,
    "Connection ids that were given back, and that the peer does not know of yet": min(
        4 * _CIDS, aioquic_connection.MAX_PENDING_RETIRES
    ),
    "Addresses of the peer's that are looked at": aioquic_connection.MAX_NETWORK_PATHS,
    "Challenges of one path to be answered": aioquic_connection.MAX_REMOTE_CHALLENGES,
    "Ranges of received packets that are remembered": recovery.MAX_ACK_RANGES,
    "Bytes of a ticket": sessions.MAX_TICKET,
    "Life of a ticket": f"{sessions.MAX_LIFETIME // _DAY} days",
    "Tickets that a server has given out": (
        inspect.signature(sessions.TicketIssuer).parameters["max_tickets"].default
    ),
    "Events in a qlog file": qlog._MAX_EVENTS,
}


def default_of(where: str) -> object:
    """What the code has for a cell of the column "Parameter"."""
    owner, _, name = where.replace("`", "").rpartition(": ")
    if not owner:
        return getattr(QuicSettings(), name)
    function: Any = trio_wt
    for part in owner.split("."):
        function = getattr(function, part)
    return inspect.signature(function).parameters[name].default


def test_the_table_of_limits_has_the_defaults() -> None:
    seen = set()
    for what, parameter, default, past, source in list_table("limits.rst", "quic-limits-table"):
        if what.startswith("**"):
            continue
        value = FIXED[what] if parameter == "fixed" else default_of(parameter)
        assert default in written(value), f"{what}: {default} is {value} in the code"
        assert past
        known = ("choice", "W3C WebTransport")
        assert source in known or re.fullmatch(r"RFC \d+, [\d.]+", source), what
        seen.add(what if parameter == "fixed" else parameter.replace("`", ""))
    assert set(FIXED) <= seen
    limits = {field.name for field in fields(QuicSettings)} - {
        "cancel_on_close",
        "cancelled_code",
        "congestion_control",
        "datagrams",
        "failed_code",
        "qlog_dir",
        "versions",
    }
    assert limits <= seen
    bounds = {
        f"{function.__name__}: {name}"
        for function in (trio_wt.open_quic, trio_wt.serve_quic, SessionStore)
        for name, parameter in inspect.signature(function).parameters.items()
        if type(parameter.default) in (int, float)
    }
    assert bounds <= seen


def test_packet_sizes_on_the_page_about_paths_are_those_that_are_tried() -> None:
    text = " ".join((list_table.__globals__["DOCS"] / "quic/paths.rst").read_text().split())
    *first, last = path_mtu._CANDIDATES
    assert f"probes, of {', '.join(map(str, first))} and {last} bytes" in text
    assert f"Packets are {path_mtu.BASE_SIZE} bytes at first" in text


# ---- the table of how streams end


async def _normal(stream: Stream, outer: trio.CancelScope) -> None:
    pass


async def _raises(stream: Stream, outer: trio.CancelScope) -> None:
    raise ZeroDivisionError


async def _own_scope(stream: Stream, outer: trio.CancelScope) -> None:
    stream.cancel_scope.cancel()
    await trio.sleep_forever()


async def _outer_scope(stream: Stream, outer: trio.CancelScope) -> None:
    outer.cancel()
    await trio.sleep_forever()


async def _aborts(stream: Stream, outer: trio.CancelScope) -> None:
    raise trio_wt.StreamAbort(77)


async def _resets(stream: Stream, outer: trio.CancelScope) -> None:
    stream.reset(77)
    await trio.sleep(10)


async def _stops(stream: Stream, outer: trio.CancelScope) -> None:
    stream.stop(77)
    await trio.sleep(10)


STREAM_ENDINGS: dict[str, list[Callable[[Stream, trio.CancelScope], Awaitable[None]]]] = {
    "ends normally": [_normal],
    "raises an exception": [_raises],
    "is cancelled": [_own_scope, _outer_scope],
    "raises ``StreamAbort(77)``": [_aborts],
    "calls ``stream.reset(77)``": [_resets],
    "calls ``stream.stop(77)``": [_stops],
}


async def seen_by_receiving(stream: Stream) -> str:
    received = b""
    try:
        with trio.move_on_after(1) as patience:
            while data := await stream.receive_some():
                received += data
    except trio_wt.StreamReset as exc:
        return f"`StreamReset`, code {exc.code}"
    assert received == b"some"
    return r"\-" if patience.cancelled_caught else 'all that was sent, then ``b""``'


async def seen_by_sending(stream: Stream) -> str:
    try:
        await stream.send_all(b"x")
    except trio_wt.StreamReset as exc:
        return f"`StreamReset`, code {exc.code}"
    return r"\-"


async def test_the_table_of_how_streams_end() -> None:
    rows = list_table("quic/endings.rst", "quic-stream-endings-table")
    assert len(rows) == len(STREAM_ENDINGS)
    for what, receiving, sending in rows:
        (blocks,) = (found for start, found in STREAM_ENDINGS.items() if what.startswith(start))
        for block in blocks:
            async with quic_pair() as (ours, peer), trio.open_nursery() as nursery:

                async def run(block: Any = block, ours: Connection = ours) -> None:
                    with trio.CancelScope() as outer, suppress(ZeroDivisionError):
                        async with ours.open_stream() as stream:
                            await stream.send_all(b"some")
                            await block(stream, outer)

                nursery.start_soon(run)
                async with await peer.incoming_streams.receive() as stream:
                    await trio.sleep(1)
                    seen = await seen_by_receiving(stream), await seen_by_sending(stream)
                    assert seen == (receiving, sending), what


# ---- the table of how connections end


async def _connection_normal(connection: Connection, outer: trio.CancelScope) -> None:
    pass


async def _connection_raises(connection: Connection, outer: trio.CancelScope) -> None:
    raise ZeroDivisionError


async def _connection_own_scope(connection: Connection, outer: trio.CancelScope) -> None:
    connection.cancel_scope.cancel()
    await trio.sleep_forever()


async def _connection_outer_scope(connection: Connection, outer: trio.CancelScope) -> None:
    outer.cancel()
    await trio.sleep_forever()


async def _acloses(connection: Connection, outer: trio.CancelScope) -> None:
    await connection.aclose(42)


async def _closes_now(connection: Connection, outer: trio.CancelScope) -> None:
    connection.close_now(42)


async def _stays(connection: Connection, outer: trio.CancelScope) -> None:
    with suppress(trio_wt.ConnectionClosed):
        await connection.ping()
    await trio.sleep_forever()


ENDINGS: dict[str, list[Any]] = {
    "ends normally": [_connection_normal],
    "raises an exception": [_connection_raises],
    "is cancelled": [_connection_own_scope, _connection_outer_scope],
    "calls ``connection.aclose(42)``": [_acloses, _closes_now],
    "runs on a server that shuts down": [_stays],
    "never gets to run": [_stays],
}


async def how_it_looks_to_the_peer(
    block: Any,
    *,
    act: Callable[[Network, trio.Event, trio.CancelScope], None] | None = None,
) -> tuple[str, str]:
    """Run a block as a client, or let ``act`` do something to a server whose handler it is; the code and the error."""
    network, shutdown, server = Network(), trio.Event(), trio.CancelScope()
    certificate = quic.pair_certificate()
    ends: list[trio_wt.ConnectionClosed] = []

    async def handle(connection: Connection) -> None:
        if act is None:
            ends.append(await connection.wait_closed())
        else:
            await block(connection, server)

    async def serve(task_status: Any) -> None:
        with server:
            await trio_wt.serve_quic(
                handle,
                sockets=[network.socket(("server.test", 1))],
                alpn=["x"],
                tls=trio_wt.ServerTLS(certificate),
                shutdown=shutdown,
                task_status=task_status,
            )

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        with trio.CancelScope() as outer, suppress(ZeroDivisionError):
            async with trio_wt.open_quic(
                "server.test",
                1,
                alpn=["x"],
                tls=trio_wt.ClientTLS(server_certificate_hashes=[certificate.sha256]),
                socket=network.socket(),
            ) as connection:
                await connection.ping()
                if act is None:
                    await block(connection, outer)
                else:
                    act(network, shutdown, server)
                    ends.append(await connection.wait_closed())
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    (end,) = ends
    return str(end.code), f"`{type(end).__name__}`"


async def test_the_table_of_how_connections_end() -> None:
    rows = list_table("quic/endings.rst", "quic-endings-table")
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

    def cancel(network: Network, shutdown: trio.Event, server: trio.CancelScope) -> None:
        server.cancel()

    assert await how_it_looks_to_the_peer(_stays, act=cancel) == ("1", "`ConnectionClosedError`")


# ---- the table of errors


def _peer_closes(ours: Connection, peer: Connection, network: Network) -> None:
    peer.close_now(0)


def _peer_fails(ours: Connection, peer: Connection, network: Network) -> None:
    peer.close_now(7)


def _quic_ends_it(ours: Connection, peer: Connection, network: Network) -> None:
    peer._driver.shut(0x0A, "", transport=True)


def _quic_ends_it_here(ours: Connection, peer: Connection, network: Network) -> None:
    ours._driver.shut(0x0A, "", transport=True)


def _is_lost(ours: Connection, peer: Connection, network: Network) -> None:
    network.loss = 1


def _we_close(ours: Connection, peer: Connection, network: Network) -> None:
    ours.close_now()


ERRORS = {
    "was closed by the peer with 0": [_peer_closes],
    "was closed by the peer with another code": [_peer_fails],
    "was ended by QUIC itself, on either side": [_quic_ends_it, _quic_ends_it_here],
    "was lost": [_is_lost],
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

    rows = list_table("errors.rst", "quic-errors-table")
    assert [row[0] for row in rows] == list(ERRORS)
    for what, channels, receiving, sending in rows:
        for end in ERRORS[what]:
            network = Network()
            async with (
                quic_pair(network=network) as (ours, peer),
                ours.open_stream() as stream,
            ):
                end(ours, peer, network)
                await ours.wait_closed()
                for call in (ours.incoming_streams.receive, ours.datagrams.receive):
                    assert await kind(call) == channels, what
                assert await kind(stream.receive_some) == receiving, what
                assert await kind(stream.send_all, b"x") == sending, what
                assert await kind(ours.datagrams.send, b"x") == sending, what
                assert await kind(ours.ping) == sending, what
                assert await kind(ours.open_stream().__aenter__) == sending, what
