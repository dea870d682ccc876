"""Paths: moving to others, connection ids, and peers that have forgotten everything."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quic_engines import CLIENT_HOST, SERVER_ADDRESS, Link, Side, both_roads, client_config
from tests.quic_frames import frame
from trio_wt._protocol.quic import ConnectionIdIssued, ConnectionIdRetired, EndKind, Engine
from trio_wt._protocol.route import Route, Sockaddr

DATA = bytes(range(251)) * 1000  # 251,000 bytes


# ---- a client behind another address


@both_roads
@pytest.mark.parametrize("host", [CLIENT_HOST, "203.0.113.7"])
def test_a_rebinding(host: str, straight: bool) -> None:
    """A NAT gives the client another address: the server follows (RFC 9000 section 9.3)."""
    link = Link(straight=straight, delay=0.01)
    stream_id = link.client.open()
    link.transfer(link.client, stream_id, DATA)
    address = link.rebind(host=host)
    link.client.ping(1)
    link.run(1)
    assert link.client.pings == [1]
    assert link.server.paths == [Route(address)]
    assert link.server.engine.route == Route(address)
    assert link.client.paths == []
    link.transfer(link.server, stream_id, DATA)
    # The search for the packet size began anew, and is done.
    assert link.server.engine.mtu.size == 8952


@both_roads
def test_what_is_common_after_a_move_is_common_again(straight: bool) -> None:
    """Neither side has something to do for paths that nobody is on any more."""
    link = Link(straight=straight)
    link.rebind()
    link.client.ping(1)
    link.run(1)
    assert link.client.engine.probe_path(link.add_socket())
    link.client.touched = True
    link.run(1)
    link.client.ping(2)
    link.run(1)
    assert link.client.pings == [1, 2]
    for side in link.sides:
        assert side.engine.route is not None
        assert not side.engine.flush(link.now)
        assert side.engine.has_work is not straight


@both_roads
def test_many_rebindings_in_a_transfer(straight: bool) -> None:
    link = Link(straight=straight, delay=0.005, loss=0.01)
    up, down = link.client.open(), link.server.open()
    link.client.send(up, DATA * 2, fin=True)
    link.server.send(down, DATA * 2, fin=True)
    for _ in range(8):
        link.run(0.05)
        link.rebind()
        link.client.ping(0)
    link.run(until=lambda: up in link.server.ended and down in link.client.ended)
    assert link.server.data[up] == DATA * 2
    assert link.client.data[down] == DATA * 2
    link.run(1)
    assert link.server.engine.route == Route(link.addresses[0])


@both_roads
def test_the_rate_is_kept_by_a_rebinding_and_learnt_anew_elsewhere(straight: bool) -> None:
    for host, kept in ((CLIENT_HOST, True), ("203.0.113.7", False)):
        link = Link(straight=straight, delay=0.02)
        link.transfer(link.server, link.server.open(unidirectional=True), DATA * 2)
        window = link.server.engine.congestion_window
        assert window > 20_000
        link.rebind(host=host)
        link.hostile(link.client, frame(0x01))
        assert (link.server.engine.congestion_window == window) is kept
        assert (link.server.engine.rtt is not None) is kept
        if not kept:
            assert link.server.engine.congestion_window == 12_000


def spoof(link: Link, address: Sockaddr) -> tuple[int, Counter[Sockaddr]]:
    """One packet of the client's comes from elsewhere; its size, and what the server sends where from then on."""
    toward: Counter[Sockaddr] = Counter()
    carry = link.carry

    def count(sender: Side, data: bytes, route: Route) -> None:
        if sender is link.server:
            toward[route.remote] += len(data)
        carry(sender, data, route)

    link.carry = count  # type: ignore[method-assign]
    data = link.client.packet(frame(0x01))
    link.server.engine.receive(data, Route(address), link.now)
    link.server.take()
    link.flush(link.server)
    return len(data), toward


@both_roads
def test_an_address_that_is_not_validated_gets_little(straight: bool) -> None:
    """Three times what came from there, at most (RFC 9000 section 8.1)."""
    link = Link(straight=straight)
    stream_id = link.server.open(unidirectional=True)
    elsewhere = ("203.0.113.9", 9)
    came, toward = spoof(link, elsewhere)
    assert link.server.engine.route == Route(elsewhere)
    link.server.send(stream_id, DATA, fin=True)
    for _ in range(5):
        link.flush(link.server)
        link.run(0.05)
    assert 0 < toward[elsewhere] <= 3 * came


@both_roads
def test_an_address_that_does_not_answer_is_left_again(straight: bool) -> None:
    link = Link(straight=straight)
    stream_id = link.server.open(unidirectional=True)
    elsewhere = ("203.0.113.9", 9)
    came, toward = spoof(link, elsewhere)
    link.server.send(stream_id, DATA, fin=True)
    link.run(until=lambda: stream_id in link.client.ended)
    assert link.client.data[stream_id] == DATA
    assert link.server.engine.route == Route(link.addresses[0])
    assert link.server.paths == [Route(elsewhere), Route(link.addresses[0])]
    assert toward[elsewhere] <= 3 * came
    link.run(1)
    assert link.server.engine.mtu.size == 8952


@both_roads
def test_a_client_takes_packets_from_its_server_only(straight: bool) -> None:
    """RFC 9000 section 9."""
    link = Link(straight=straight)
    link.client.engine.receive(
        link.server.packet(frame(0x30, b"x")), Route(("203.0.113.9", 443)), link.now
    )
    link.client.take()
    assert link.client.datagrams == []
    assert link.client.paths == []
    link.client.ping(1)
    link.run(0.1)
    assert link.client.pings == [1]


# ---- a client that moves


@both_roads
def test_a_migration(straight: bool) -> None:
    link = Link(straight=straight, delay=0.01)
    client = link.client.engine
    stream_id = link.client.open()
    link.transfer(link.client, stream_id, DATA)
    old, used = client.route, client._peer_cid.cid
    route = link.add_socket()
    assert client.probe_path(route)
    assert client.route == old
    link.client.touched = True
    link.run(0.5)
    assert client.route == route
    assert link.client.paths == [route]
    link.client.ping(1)
    link.run(0.5)
    assert link.client.pings == [1]
    assert link.server.paths == [Route(link.addresses[1])]
    # RFC 9000 section 9.5: no connection id is used from two addresses.
    assert client._peer_cid.cid != used
    link.addresses[0] = ("nobody", 1)
    link.transfer(link.server, stream_id, DATA)
    assert client.mtu.size == 8952
    link.run(1)
    retired = [event for event in link.server.events if isinstance(event, ConnectionIdRetired)]
    assert used in [event.connection_id for event in retired]


@both_roads
def test_while_a_path_is_probed_the_connection_stays_on_the_old_one(straight: bool) -> None:
    link = Link(straight=straight)
    client = link.client.engine
    old = client.route
    route = link.add_socket()
    toward: Counter[int] = Counter()
    carry = link.carry

    def count(sender: Side, data: bytes, way: Route) -> None:
        if sender is link.client:
            toward[way.local] += 1
            if way.local == 1:
                return
        carry(sender, data, way)

    link.carry = count  # type: ignore[method-assign]
    for _ in range(3):
        assert client.probe_path(route)
        link.client.touched = True
        link.run(0.1)
    assert toward[1] == 3
    link.transfer(link.client, link.client.open(), DATA)
    assert client.route == old
    assert toward[1] == 3
    client.abandon_path(route)
    link.client.touched = True
    link.transfer(link.client, link.client.open(), DATA)
    assert client.route == old
    assert link.client.paths == []
    assert len(client._network_paths) == 1


@both_roads
def test_a_question_that_was_lost_is_asked_again(straight: bool) -> None:
    link = Link(straight=straight)
    client = link.client.engine
    route = link.add_socket()
    link.drop = lambda sender, data: True
    client.probe_path(route)
    link.flush(link.client)
    link.drop = lambda sender, data: False
    link.run(1)
    assert client.route != route
    spare = len(client._peer_cid_available)
    assert client.probe_path(route)
    assert len(client._peer_cid_available) == spare
    link.client.touched = True
    link.run(1)
    assert client.route == route


@both_roads
def test_paths_need_connection_ids(straight: bool) -> None:
    link = Link(straight=straight)
    client = link.client.engine
    routes = [link.add_socket() for _ in range(10)]
    spare = len(client._peer_cid_available)
    assert spare == 3
    assert [client.probe_path(route) for route in routes[:3]] == [True] * 3
    assert not client.probe_path(routes[3])
    for route in routes[:3]:
        client.abandon_path(route)
    link.client.touched = True
    link.run(1)
    # The peer has given out others for those that were used up.
    assert len(client._peer_cid_available) == 3
    assert client.probe_path(routes[3])
    link.client.touched = True
    link.run(1)
    assert client.route == routes[3]


def test_abandoning_an_unknown_path_does_nothing() -> None:
    link = Link()
    link.client.engine.abandon_path(Route(SERVER_ADDRESS, 3))
    route = link.client.engine.route
    assert route is not None
    link.client.engine.abandon_path(route)
    assert link.client.engine.route == route


@both_roads
def test_there_and_back_again(straight: bool) -> None:
    link = Link(straight=straight)
    client = link.client.engine
    routes = [client.route, link.add_socket(), link.add_socket()]
    for number in (1, 2, 0, 1, 0):
        route = routes[number]
        assert route is not None
        for _ in range(5):
            if client.route != route:
                assert client.probe_path(route)
                link.client.touched = True
                link.run(0.2)
        assert client.route == route
        link.client.ping(number)
        link.run(0.2)
        assert link.server.engine.route == Route(link.addresses[number])
    link.transfer(link.client, link.client.open(), DATA)


# ---- connection ids


def test_ids_are_told_of() -> None:
    link = Link()
    for side in link.sides:
        issued = {
            event.connection_id for event in side.events if isinstance(event, ConnectionIdIssued)
        }
        assert issued == set(side.engine.connection_ids[1:])


@both_roads
def test_a_retired_id_is_replaced(straight: bool) -> None:
    link = Link(straight=straight)
    server = link.server.engine
    before = server.connection_ids
    link.hostile(link.client, frame(0x19, 3))
    retired = [event for event in link.server.events if isinstance(event, ConnectionIdRetired)]
    assert [event.connection_id for event in retired] == [before[3]]
    link.run(1)
    after = server.connection_ids
    assert len(after) == 4
    assert set(before) - set(after) == {before[3]}
    issued = {
        event.connection_id for event in link.server.events if isinstance(event, ConnectionIdIssued)
    }
    assert set(after) <= issued | {before[0]}


@both_roads
def test_packets_to_any_id_are_taken(straight: bool) -> None:
    link = Link(straight=straight)
    for number, cid in enumerate(link.server.engine.connection_ids):
        link.client.engine._peer_cid.cid = cid
        link.hostile(link.client, frame(0x30, b"%d" % number))
    assert link.server.datagrams == [b"%d" % number for number in range(4)]


# ---- stateless resets


def token(cid: bytes) -> bytes:
    return b"tok" + cid + b"token"


def test_a_stateless_reset() -> None:
    """RFC 9000 section 10.3: it ends with the token of the id that packets go to."""
    link = Link(server={"reset_token": token})
    client = link.client.engine
    used, *unused = link.server.engine.connection_ids
    assert client.is_stateless_reset(bytes(5) + token(used))
    assert client.is_stateless_reset(bytes(100) + token(used))
    assert not client.is_stateless_reset(bytes(4) + token(used))
    assert not client.is_stateless_reset(bytes(5) + token(used) + b"x")
    assert not client.is_stateless_reset(token(used) + bytes(5))
    for cid in unused:  # RFC 9000 section 10.3.1
        assert not client.is_stateless_reset(bytes(5) + token(cid))
    client.change_connection_id()
    assert client.is_stateless_reset(bytes(5) + token(unused[0]))
    assert not client.is_stateless_reset(bytes(5) + token(b"notissue"))


def test_the_token_of_the_first_id_comes_with_the_handshake() -> None:
    link = Link(server={"reset_token": token}, connect=False)
    link.start()
    link.run(until=lambda: link.client.handshake is not None)
    first = link.server.engine.connection_ids[0]
    assert link.client.engine.is_stateless_reset(bytes(5) + token(first))


def test_ids_given_out_later_have_tokens_too() -> None:
    link = Link(server={"reset_token": token})
    for number in range(3):
        link.hostile(link.client, frame(0x19, 2 + number))
        link.run(0.1)
    for cid in link.server.engine.connection_ids:
        for known in link.client.engine._peer_cid_available:
            if known.cid == cid:
                assert known.stateless_reset_token == token(cid)
    newest = link.server.engine.connection_ids[-1]
    client = link.client.engine
    while client._peer_cid.cid != newest:
        client.change_connection_id()
    assert client.is_stateless_reset(bytes(5) + token(newest))


@pytest.mark.parametrize("data", [b"", b"x", bytes(16), bytes(20), bytes(21), bytes(1200)])
def test_no_stateless_reset(data: bytes) -> None:
    link = Link()
    fresh = Engine(client_config())
    for engine in (link.client.engine, link.server.engine, fresh):
        assert not engine.is_stateless_reset(data)


def test_a_server_knows_its_client_s_tokens() -> None:
    """Those of all ids but the first, which has none (RFC 9000 section 18.2)."""
    link = Link(client={"reset_token": token})
    first, *others = link.client.engine.connection_ids
    assert not link.server.engine.is_stateless_reset(bytes(30) + token(first))
    for cid in others:
        link.server.engine.change_connection_id()
        assert link.server.engine.is_stateless_reset(bytes(30) + token(cid))


# ---- any links


@both_roads
@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1200, 1300, 1472, 5000, 65507]),
    st.sampled_from([0.001, 0.02, 0.1]),
    st.lists(st.sampled_from(["rebind", "shrink", "dark", "wait"]), max_size=4),
)
def test_bytes_arrive_whatever_happens_to_the_path(
    straight: bool, seed: int, mtu: int, delay: float, happenings: list[Any]
) -> None:
    link = Link(
        seed=seed,
        loss=0.02,
        reorder=0.05,
        duplicate=0.02,
        corrupt=0.01,
        mtu=mtu,
        delay=delay,
        straight=straight,
    )
    up, down = link.client.open(), link.server.open()
    link.client.send(up, DATA[:100_000], fin=True)
    link.server.send(down, DATA[:100_000], fin=True)
    for happening in happenings:
        link.run(0.05)
        if happening == "rebind":
            link.rebind()
            link.client.ping(0)
        elif happening == "shrink":
            link.mtu = max(1200, link.mtu - 400)
        elif happening == "dark":
            link.blackhole(2)
    for _ in range(100):
        if up in link.server.ended and down in link.client.ended:
            break
        # A keep-alive: after a rebinding in the dark only the client's packets tell the server where it is.
        link.client.ping(0)
        link.run(1)
    assert link.server.data[up] == link.client.data[down] == DATA[:100_000]


def test_a_path_that_is_gone_ends_the_connection() -> None:
    link = Link(idle_timeout=10)
    link.addresses[0] = ("nobody", 1)
    link.client.ping(1)
    link.run(40)
    for side in link.sides:
        assert side.end is not None
        assert side.end.kind is EndKind.LOST
