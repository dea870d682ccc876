"""Where datagrams go, and that answers to strangers cost little and say no more than they were asked."""

from __future__ import annotations

import os
from typing import Any

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import QuicErrorCode, QuicPacketType, pull_quic_header
from hypothesis import given
from hypothesis import strategies as st

from trio_wt._protocol.packet_router import Accept, PacketRouter, Reply, ResetKey
from trio_wt._protocol.route import Route

V1, V2 = 0x00000001, 0x6B3343CF
HERE = Route(("192.0.2.1", 4321))
ELSEWHERE = Route(("192.0.2.2", 4321))


def make_router(**options: Any) -> PacketRouter[str]:
    return PacketRouter(**{"server": True, "versions": [V1, V2], **options})


def make_client(version: int = V1) -> QuicConnection:
    config = QuicConfiguration(
        alpn_protocols=["test"],
        server_name="server.test",
        supported_versions=[version],
        verify_mode=0,
    )
    client = QuicConnection(configuration=config)
    client.connect(("198.51.100.1", 443), now=0.0)
    return client


def first_packet(client: QuicConnection | None = None, now: float = 0.0) -> bytes:
    datagrams = (client or make_client()).datagrams_to_send(now=now)
    return b"".join(data for data, _ in datagrams[:1])


def header_of(data: bytes) -> Any:
    return pull_quic_header(Buffer(data=data), host_cid_length=8)


def short(cid: bytes, size: int = 60) -> bytes:
    return bytes((0x41,)) + cid + os.urandom(size - 1 - len(cid))


CID = b"12345678"


# ---- the table


def test_a_connection_is_found_by_each_of_its_ids() -> None:
    router = make_router()
    router.add(CID, "one")
    router.add(b"abcdefgh", "one")
    assert router.route(short(CID), HERE, 0) == "one"
    assert router.route(short(b"abcdefgh"), ELSEWHERE, 0) == "one"
    router.remove(b"abcdefgh")
    assert router.route(short(b"abcdefgh"), HERE, 0) != "one"
    assert router.route(short(CID), HERE, 0) == "one"


def test_an_id_that_nobody_has_may_be_removed() -> None:
    make_router().remove(CID)


def test_a_client_s_first_packet_is_accepted_and_its_repetition_goes_to_the_connection() -> None:
    router, data = make_router(), first_packet()
    accepted = router.route(data, HERE, 0)
    cid = header_of(data).destination_cid
    assert accepted == Accept(cid, None, cid, V1)
    router.add(cid, "new")
    assert router.route(data, HERE, 0) == "new"


def test_a_client_s_router_accepts_nothing_and_answers_nothing() -> None:
    router: PacketRouter[str] = PacketRouter(server=False)
    router.add(CID, "ours")
    assert router.route(short(CID), HERE, 0) == "ours"
    assert router.route(first_packet(), HERE, 0) is None
    assert router.route(short(b"stranger"), HERE, 0) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\x40",
        b"\x41" + CID[:3],
        b"\xc0",
        b"\x01" + CID + bytes(60),  # without the fixed bit
        b"\xff" * 1199,
    ],
)
def test_junk_is_dropped(data: bytes) -> None:
    assert make_router().route(data, HERE, 0) is None


def test_a_first_packet_in_a_short_datagram_is_dropped() -> None:
    """RFC 9000 section 14.1."""
    data = first_packet()
    assert len(data) == 1200
    assert header_of(data).packet_length < 1199  # what is cut off is padding
    assert make_router().route(data[:-1], HERE, 0) is None


def test_a_first_choice_of_less_than_eight_bytes_is_dropped() -> None:
    """RFC 9000 section 7.2."""
    data = first_packet()
    assert data[5] == 8
    shorter = data[:5] + b"\x07" + data[7:] + b"\x00"
    assert header_of(shorter).packet_type is QuicPacketType.INITIAL
    assert make_router().route(shorter, HERE, 0) is None


# ---- versions (RFC 9000 section 6)


def test_an_unknown_version_is_told_the_known_ones() -> None:
    data = bytearray(first_packet())
    data[1:5] = b"\x1a\x2a\x3a\x4a"
    reply = make_router().route(bytes(data), HERE, 0)
    assert isinstance(reply, Reply)
    answer = header_of(reply.data)
    assert answer.packet_type is QuicPacketType.VERSION_NEGOTIATION
    assert answer.supported_versions == [V1, V2]
    assert answer.destination_cid == header_of(bytes(data)).source_cid
    assert answer.source_cid == header_of(bytes(data)).destination_cid
    assert len(reply.data) < len(data)


def test_version_negotiation_is_not_answered_nor_is_an_unknown_version_in_a_short_datagram() -> (
    None
):
    data = bytearray(first_packet())
    data[1:5] = bytes(4)
    assert make_router().route(bytes(data), HERE, 0) is None
    data[1:5] = b"\x1a\x2a\x3a\x4a"
    assert make_router().route(bytes(data[:1199]), HERE, 0) is None


def test_answers_are_limited_to_a_thousand_a_second() -> None:
    router, data = make_router(), bytearray(first_packet())
    data[1:5] = b"\x1a\x2a\x3a\x4a"
    answers = [router.route(bytes(data), HERE, 5.0) for _ in range(1500)]
    assert sum(isinstance(answer, Reply) for answer in answers) == 1000
    answers = [router.route(bytes(data), HERE, 5.1) for _ in range(1500)]
    assert sum(isinstance(answer, Reply) for answer in answers) == pytest.approx(100, abs=1)


# ---- Retry (RFC 9000 section 8.1.2)


def fill(router: PacketRouter[str], count: int, *, host: str | None = None) -> None:
    for number in range(router.half_open, count):
        name = f"half open {number}"
        router.opened(name, Route((host or f"203.0.113.{number}", 1)))
        router.add(number.to_bytes(8), name)


def test_retry_begins_when_too_many_handshakes_are_under_way() -> None:
    router = make_router(retry="under-load", max_half_open=3)
    fill(router, 2)
    assert isinstance(router.route(first_packet(), HERE, 0), Accept)
    fill(router, 3)
    assert router.half_open == 3
    assert isinstance(router.route(first_packet(), HERE, 0), Reply)
    router.established("half open 1")
    assert router.half_open == 2
    assert isinstance(router.route(first_packet(), HERE, 0), Accept)


@pytest.mark.parametrize(("retry", "kind"), [("always", Reply), ("never", Accept)])
def test_retry_always_or_never(retry: str, kind: type) -> None:
    router = make_router(retry=retry, max_half_open=2)
    fill(router, 5)
    assert isinstance(router.route(first_packet(), HERE, 0), kind)


def test_beyond_four_times_as_many_no_handshake_begins() -> None:
    router = make_router(retry="never", max_half_open=2)
    fill(router, 7)
    assert isinstance(router.route(first_packet(), HERE, 0), Accept)
    fill(router, 8)
    assert router.route(first_packet(), HERE, 0) is None


@pytest.mark.parametrize(
    ("crowd", "here"),
    [("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::2"), ("::ffff:192.0.2.1", "192.0.2.1")],
)
def test_under_load_one_network_cannot_keep_the_others_out(crowd: str, here: str) -> None:
    router = make_router(retry="under-load", max_half_open=16)
    fill(router, 14)
    fill(router, 16, host=crowd)
    for host, taken in ((here, False), ("198.51.100.7", True), ("2001:db8:0:1::1", True)):
        client, route = make_client(), Route((host, 4321))
        reply = router.route(first_packet(client), route, 0)
        assert isinstance(reply, Reply)
        client.receive_datagram(reply.data, ("198.51.100.1", 443), now=0.1)
        answer = router.route(first_packet(client, 0.1), route, 0.2)
        assert isinstance(answer, Accept) is taken
    router.established("half open 15")
    router.established("half open 15")
    assert router.half_open == 15


def retried(router: PacketRouter[str], version: int = V1) -> tuple[QuicConnection, bytes, bytes]:
    """A client that was sent a Retry, its second packet, and the id that it chose first."""
    client = make_client(version)
    data = first_packet(client)
    reply = router.route(data, HERE, 0.0)
    assert isinstance(reply, Reply)
    assert len(reply.data) < len(data)
    client.receive_datagram(reply.data, ("198.51.100.1", 443), now=0.1)
    return client, first_packet(client, 0.1), header_of(data).destination_cid


@pytest.mark.parametrize("version", [V1, V2])
def test_a_client_with_a_token_is_accepted(version: int) -> None:
    router = make_router(retry="always")
    _, data, original = retried(router, version)
    accepted = router.route(data, HERE, 0.2)
    cid = header_of(data).destination_cid
    assert accepted == Accept(original, cid, cid, version)
    assert cid != original


@pytest.mark.parametrize(
    ("route", "now"),
    [
        pytest.param(ELSEWHERE, 0.2, id="from another address"),
        pytest.param(Route(("192.0.2.1", 9999)), 0.2, id="from another port"),
        pytest.param(HERE, 30.2, id="too late"),
    ],
)
def test_a_token_of_no_value_ends_the_attempt(route: Route, now: float) -> None:
    """RFC 9000 section 8.1.3."""
    router = make_router(retry="always")
    client, data, _ = retried(router)
    reply = router.route(data, route, now)
    assert isinstance(reply, Reply)
    client.receive_datagram(reply.data, ("198.51.100.1", 443), now=now)
    client.handle_timer(now=now + 100)
    ends = []
    while (event := client.next_event()) is not None:
        ends.append(event)
    assert isinstance(ends[-1], ConnectionTerminated)
    assert ends[-1].error_code == QuicErrorCode.INVALID_TOKEN


def test_a_token_of_another_router_is_refused() -> None:
    _, data, _ = retried(make_router(retry="always"))
    assert isinstance(make_router(retry="always").route(data, HERE, 0.2), Reply)


def test_addresses_that_are_no_ip_addresses_get_tokens_too() -> None:
    router = make_router(retry="always")
    client, there = make_client(), Route(("client.test", 1))
    reply = router.route(first_packet(client), there, 0)
    assert isinstance(reply, Reply)
    client.receive_datagram(reply.data, ("198.51.100.1", 443), now=0.1)
    assert isinstance(router.route(first_packet(client, 0.1), there, 0.2), Accept)


# ---- stateless resets (RFC 9000 section 10.3)


def test_a_packet_of_an_unknown_connection_is_answered_by_a_reset() -> None:
    key = ResetKey(b"secret")
    reply = make_router(reset_key=key).route(short(CID, 100), HERE, 0)
    assert isinstance(reply, Reply)
    assert reply.data[-16:] == key.token(CID)
    assert reply.data[0] & 0xC0 == 0x40
    assert 21 <= len(reply.data) <= 42


@pytest.mark.parametrize("size", range(9, 60))
def test_a_reset_is_shorter_than_what_it_answers(size: int) -> None:
    reply = make_router().route(short(CID, size), HERE, 0)
    if size < 22:
        assert reply is None
    else:
        assert isinstance(reply, Reply)
        assert 21 <= len(reply.data) < size


def test_the_same_key_gives_the_same_tokens_and_another_gives_others() -> None:
    assert ResetKey(b"a").token(CID) == ResetKey(b"a").token(CID) != ResetKey(b"b").token(CID)
    assert ResetKey().token(CID) != ResetKey().token(CID)
    assert len(ResetKey().token(CID)) == 16
    assert ResetKey(b"a").token(CID) != ResetKey(b"a").token(b"87654321")


# ---- after the end (RFC 9000 section 10.2.1)


def test_late_packets_get_the_last_word_less_and_less_often() -> None:
    router = make_router()
    router.add(CID, "ended")
    router.retire("ended", [b"closed", b"not the first"], until=10.0)
    answers = [router.route(short(CID), HERE, 1.0) for _ in range(20)]
    answered = [number for number, answer in enumerate(answers, 1) if answer == Reply(b"closed")]
    assert answered == [1, 2, 4, 8, 16]
    assert answers.count(None) == 15
    router.route(short(CID), HERE, 10.1)
    reply = router.route(short(CID), HERE, 10.2)
    assert isinstance(reply, Reply)
    assert reply.data != b"closed"  # a stranger by now


def test_a_first_packet_that_comes_late_begins_nothing() -> None:
    router, data = make_router(), first_packet()
    router.add(header_of(data).destination_cid, "ended")
    router.retire("ended", [b"closed"], until=10.0)
    assert router.route(data, HERE, 1.0) == Reply(b"closed")


def test_a_last_word_is_at_most_three_times_as_long_as_what_it_answers() -> None:
    """RFC 9000 section 10.2.1."""
    router = make_router()
    router.add(CID, "ended")
    router.retire("ended", [bytes(90)], until=10.0)
    assert router.route(short(CID, 29), HERE, 1.0) is None
    assert router.route(short(CID, 30), HERE, 1.0) == Reply(bytes(90))


def test_a_connection_that_ended_in_silence_stays_silent() -> None:
    router = make_router()
    router.add(CID, "lost")
    router.opened("lost", HERE)
    router.retire("lost", [], until=10.0)
    assert router.route(short(CID), HERE, 1.0) is None
    assert router.half_open == 0


def test_no_more_than_4096_ended_connections_are_remembered() -> None:
    router = make_router()
    for number in range(5000):
        name = f"connection {number}"
        router.add(number.to_bytes(8), name)
        router.retire(name, [b"closed"], until=1e9)
    assert router.route(short((4999).to_bytes(8)), HERE, 0) == Reply(b"closed")
    assert router.route(short((904).to_bytes(8)), HERE, 0) == Reply(b"closed")
    assert router.route(short((903).to_bytes(8)), HERE, 0) != Reply(b"closed")


def test_a_client_too_answers_late_packets_but_never_resets() -> None:
    router: PacketRouter[str] = PacketRouter(server=False)
    router.add(CID, "ours")
    router.retire("ours", [b"closed"], until=10.0)
    assert router.route(short(CID), HERE, 9.0) == Reply(b"closed")
    assert router.route(short(CID), HERE, 11.0) is None


# ---- whatever comes


@given(st.binary(max_size=1500), st.sampled_from(["under-load", "always", "never"]))
def test_nothing_raises_and_no_answer_is_larger_than_the_question(data: bytes, retry: str) -> None:
    router = make_router(retry=retry)
    answer = router.route(data, HERE, 1.0)
    assert answer is None or isinstance(answer, Accept | Reply)
    if isinstance(answer, Reply):
        assert len(answer.data) <= len(data)


@given(
    st.lists(st.tuples(st.integers(0, 1199), st.integers(0, 255)), max_size=20),
    st.integers(0, 300),
    st.booleans(),
)
def test_damaged_first_packets(changes: list[tuple[int, int]], extra: int, token: bool) -> None:
    router = make_router(retry="always" if token else "under-load")
    data = bytearray(retried(router)[1] if token else first_packet())
    for position, value in changes:
        data[position % len(data)] = value
    data += bytes(extra)
    answer = router.route(bytes(data), HERE, 1.0)
    assert answer is None or isinstance(answer, Accept | Reply)
    if isinstance(answer, Reply):
        assert len(answer.data) <= len(data)
