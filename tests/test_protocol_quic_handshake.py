"""Handshakes: versions, certificates, sessions, and bad links."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import (
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.tls import CipherSuite, Epoch
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.quic_engines import (
    SERVER_ADDRESS,
    START,
    Link,
    Side,
    both_roads,
    client_config,
    identity,
    server_config,
)
from tests.quic_frames import frame
from trio_wt._protocol.quic import (
    VERSIONS,
    End,
    EndKind,
    Engine,
    HandshakeCompleted,
    SessionTicket,
    StreamDataReceived,
)
from trio_wt._protocol.route import Route

V1, V2 = VERSIONS[1], VERSIONS[2]


class Rejected(Exception):
    def __init__(self, message: str, alert: int | None = None) -> None:
        super().__init__(message)
        if alert is not None:
            self.alert = alert


def rejecting(exc: Exception) -> Any:
    def verify(certificate: x509.Certificate | None, chain: Sequence[x509.Certificate]) -> None:
        raise exc

    return verify


# ---- the handshake


@both_roads
@pytest.mark.parametrize("version", [V1, V2])
def test_a_handshake(version: int, straight: bool) -> None:
    link = Link(versions=(version,), straight=straight)
    for side in link.sides:
        engine = side.engine
        assert engine.handshake_complete
        assert engine.wire_version == version
        assert engine.alpn == "test"
        assert engine.end is None
        assert not engine.is_silent
        handshakes = [event for event in side.events if isinstance(event, HandshakeCompleted)]
        assert len(handshakes) == 1
        assert not handshakes[0].session_resumed
        assert not handshakes[0].early_data_accepted
    mine = identity().certificate
    assert link.client.engine.peer_certificate == mine.public_bytes(Encoding.DER)
    assert link.client.engine.valid_until == mine.not_valid_after_utc
    assert link.server.engine.peer_certificate is None
    assert link.server.engine.valid_until is None


def test_the_ids_under_which_a_side_can_be_reached() -> None:
    link = Link()
    for side in link.sides:
        ids = side.engine.connection_ids
        assert len(ids) == len(set(ids)) == 4
        assert all(len(cid) == 8 for cid in ids)


def test_the_cheapest_cipher_comes_first() -> None:
    link = Link()
    for side in link.sides:
        suite = side.engine._cryptos[Epoch.ONE_RTT].send.cipher_suite
        assert suite is CipherSuite.AES_128_GCM_SHA256


def test_an_address_token_of_an_earlier_connection() -> None:
    """RFC 9000 section 8.1.3."""
    tokens: list[bytes] = []
    link = Link(client_hooks={"store_token": tokens.append})
    link.hostile(link.server, frame(0x07, 5, b"token"))
    assert tokens == [b"token"]
    engine = Engine(client_config(token=tokens[0]))
    engine.start(Route(SERVER_ADDRESS), START)
    (first, _), *_ = engine.flush(START)
    assert pull_quic_header(Buffer(data=first)).token == b"token"


def test_before_it_begins_nothing_happens_and_nothing_raises() -> None:
    link = Link(connect=False)
    for side in link.sides:
        engine = side.engine
        assert engine.timer is None
        assert engine.flush(START) == []
        engine.fire(START)
        engine.receive(bytes(1200), Route(SERVER_ADDRESS), START)
        assert not engine.take_events()
        assert engine.end is None
        assert engine.route is None
        assert engine.rtt is None
        assert engine.min_rtt is None
        assert engine.wire_version == 0
        assert engine.max_datagram == 0
        assert engine.openable(unidirectional=False) == 0
        assert not engine.undelivered
        assert not engine.handshake_complete
    link.connect()


def test_the_round_trip_is_measured() -> None:
    link = Link(delay=0.05)
    for side in link.sides:
        assert side.engine.rtt == pytest.approx(0.1, rel=0.2)
        assert side.engine.min_rtt == pytest.approx(0.1, rel=0.05)
        assert side.engine.probe_timeout > 0.1
        assert side.engine.close_period == pytest.approx(3 * side.engine.probe_timeout)


@pytest.mark.parametrize(("ours", "theirs"), [((V2, V1), (V1,)), ((V1, V2), (V2,))])
def test_version_negotiation(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    link = Link(client={"versions": ours}, server={"versions": theirs}, connect=False)
    client = link.client.engine
    client.start(Route(SERVER_ADDRESS), link.now)
    (first, _), *_ = client.flush(link.now)
    header = pull_quic_header(Buffer(data=first))
    assert header.version == ours[0]
    # A server that does not know the version drops the packet; its router answers.
    link.inject(link.server, first)
    assert link.server.engine.connection_ids
    answer = encode_quic_version_negotiation(
        source_cid=header.destination_cid,
        destination_cid=header.source_cid,
        supported_versions=list(theirs),
    )
    link.inject(link.client, answer)
    link.run(until=lambda: bool(link.client.handshake and link.server.handshake))
    assert client.wire_version == link.server.engine.wire_version == theirs[0]


def test_versions_without_any_in_common() -> None:
    link = Link(connect=False)
    link.start()
    (first, _), *_ = link.client.engine.flush(link.now)
    header = pull_quic_header(Buffer(data=first))
    answer = encode_quic_version_negotiation(
        source_cid=header.destination_cid,
        destination_cid=header.source_cid,
        supported_versions=[0x1A2A3A4A],
    )
    link.inject(link.client, answer)
    assert link.client.end is not None
    assert "version" in link.client.end.reason
    assert link.client.engine.is_silent
    assert link.client.engine.flush(link.now) == []


@pytest.mark.parametrize("established", [False, True])
def test_version_negotiation_that_makes_no_sense_is_ignored(established: bool) -> None:
    """RFC 9000 section 6.2: one that lists the version in use, and any once something else has come."""
    link = Link(connect=False)
    link.start()
    (first, route), *_ = link.client.engine.flush(link.now)
    header = pull_quic_header(Buffer(data=first))
    if established:
        link.carry(link.client, first, route)
        link.run(until=lambda: bool(link.client.handshake))
    answer = encode_quic_version_negotiation(
        source_cid=header.destination_cid,
        destination_cid=header.source_cid,
        supported_versions=[V2] if established else [V2, V1],
    )
    link.inject(link.client, answer)
    if not established:
        link.carry(link.client, first, route)
    link.run(until=lambda: bool(link.client.handshake and link.server.handshake))
    assert link.client.engine.wire_version == V1


def test_a_retry() -> None:
    client = Side(Engine(client_config()))
    client.engine.start(Route(SERVER_ADDRESS), START)
    (first, _), *_ = client.engine.flush(START)
    header = pull_quic_header(Buffer(data=first))
    retry = encode_quic_retry(
        version=V1,
        source_cid=b"retrycid",
        destination_cid=header.source_cid,
        original_destination_cid=header.destination_cid,
        retry_token=b"token",
    )
    client.engine.receive(retry, Route(SERVER_ADDRESS), START)
    ((second, _),) = client.engine.flush(START)
    again = pull_quic_header(Buffer(data=second))
    assert (again.destination_cid, again.token) == (b"retrycid", b"token")
    link = Link(connect=False)
    link.client = client
    link.server = Side(
        Engine(
            server_config(),
            original_destination_cid=header.destination_cid,
            retry_source_cid=b"retrycid",
        )
    )
    link.inject(link.server, second)
    link.run(until=lambda: bool(link.client.handshake and link.server.handshake))


def test_no_application_protocol_in_common() -> None:
    link = Link(client={"alpn": ["a"]}, server={"alpn": ["b"]}, connect=False)
    link.start()
    link.run(2)
    for side in link.sides:
        assert side.end is not None
        assert (side.end.kind, side.end.code) == (EndKind.TRANSPORT, 0x178)
        assert side.handshake is None
        assert not side.engine.handshake_complete
    assert link.client.end is not None
    assert link.client.end.remote


def test_the_first_protocol_of_the_server_s_that_the_client_offers() -> None:
    link = Link(client={"alpn": ["a", "b", "c"]}, server={"alpn": ["x", "c", "b"]})
    assert link.client.engine.alpn == link.server.engine.alpn
    assert link.client.engine.alpn in ("b", "c")


@pytest.mark.parametrize("seed", range(12))
def test_handshakes_get_through_bad_links(seed: int) -> None:
    link = Link(connect=False, seed=seed, delay=(0.01, 0.03))
    link.loss, link.duplicate, link.reorder, link.corrupt = 0.3, 0.1, 0.2, 0.05
    link.start()
    link.run(30, until=lambda: bool(link.client.handshake and link.server.handshake))
    stream_id = link.client.open()
    link.transfer(link.client, stream_id, bytes(5000), seconds=60)


def test_a_server_that_never_answers() -> None:
    link = Link(connect=False, idle_timeout=10)
    link.drop = lambda sender, data: True
    link.start()
    link.run(9.9)
    assert link.client.end is None
    link.run(60)
    assert link.client.end is not None
    assert (link.client.end.kind, link.client.end.code) == (EndKind.LOST, 0)
    assert link.client.engine.is_silent


@both_roads
@pytest.mark.parametrize("lost", [1, 2, 3])
def test_the_confirmation_of_the_handshake_may_be_lost(lost: int, straight: bool) -> None:
    """HANDSHAKE_DONE (RFC 9000 section 13.3) is sent again when it is known to be lost, not only by a timer."""
    link = Link(connect=False, straight=straight, delay=0.02)
    count = 0

    def drop(sender: Side, data: bytes) -> bool:
        nonlocal count
        packet = link.client.look_into(data) if sender is link.server else None
        done = packet is not None and (0x1E,) in packet.frames
        count += done
        return done and count <= lost

    link.drop = drop
    link.start()
    link.run(until=lambda: bool(link.client.handshake and link.server.handshake))
    for number in range(20):
        link.server.ping(number)
        link.run(0.05)
    assert link.client.engine._handshake_confirmed
    assert count == lost + 1
    assert link.client.end is None


# ---- certificates


@both_roads
@pytest.mark.parametrize("alert", [42, 45, 48])
def test_a_server_s_certificate_is_refused(alert: int, straight: bool) -> None:
    link = Link(
        client={"verify": rejecting(Rejected("not that one", alert))},
        connect=False,
        straight=straight,
    )
    link.start()
    # Data of the server's that comes behind its flight: nobody may see it.
    link.run(until=lambda: link.server.engine.openable(unidirectional=True) > 0)
    link.server.send(link.server.open(unidirectional=True), b"secret")
    link.run(5)
    assert link.client.end == End(EndKind.TRANSPORT, 0x100 + alert, "not that one", False)
    assert link.server.end == End(EndKind.TRANSPORT, 0x100 + alert, "not that one", True)
    assert not link.client.engine.handshake_complete
    assert link.client.engine.peer_certificate is None
    for side in link.sides:
        kinds = {type(event) for event in side.events}
        assert not kinds & {HandshakeCompleted, StreamDataReceived}


def test_nothing_but_the_refusal_is_sent_after_it() -> None:
    sent: list[str] = []
    link = Link(client={"verify": rejecting(Rejected("no", 42))}, connect=False)
    link.start()
    link.client.engine.queue_datagram(b"x")

    def refused() -> bool:
        return link.client.end is not None

    link.run(until=refused)
    link.tap = lambda sender, data: sent.append("client" if sender is link.client else "server")
    link.run(5)
    assert "client" not in sent
    assert len(link.client.engine.close_datagrams) == 1


def test_a_refusal_without_an_alert_is_a_bad_certificate() -> None:
    link = Link(client={"verify": rejecting(ValueError("?"))}, connect=False)
    link.start()
    link.run(5)
    assert link.server.end is not None
    assert link.server.end.code == 0x100 + 42


def test_a_long_refusal_is_cut() -> None:
    link = Link(client={"verify": rejecting(Rejected("é" * 1000, 42))}, connect=False)
    link.start()
    link.run(5)
    assert link.server.end == End(EndKind.TRANSPORT, 0x100 + 42, "é" * 256, True)


def test_what_is_verified() -> None:
    seen: list[tuple[Any, Any]] = []
    Link(client={"verify": lambda *args: seen.append(args)})
    mine = identity()
    assert seen == [(mine.certificate, list(mine.chain))]


def test_a_client_s_certificate() -> None:
    seen: list[Any] = []
    other = identity("client.test")
    link = Link(
        client={
            "certificate": other.certificate,
            "chain": other.chain,
            "private_key": other.key,
        },
        server={
            "request_certificate": True,
            "verify": lambda certificate, chain: seen.append(certificate),
        },
    )
    assert seen == [other.certificate]
    assert link.server.engine.peer_certificate == other.certificate.public_bytes(Encoding.DER)


def test_a_client_without_the_certificate_that_is_asked_for() -> None:
    seen: list[Any] = []

    def verify(certificate: x509.Certificate | None, chain: Sequence[x509.Certificate]) -> None:
        seen.append(certificate)
        raise Rejected("show yours", 116)

    link = Link(server={"request_certificate": True, "verify": verify}, connect=False)
    link.start()
    # The client believes in the connection before it hears of the refusal (RFC 8446 section 4.4.2.4).
    link.run(5)
    assert seen == [None]
    assert link.server.end == End(EndKind.TRANSPORT, 0x100 + 116, "show yours", False)
    assert link.client.end == End(EndKind.TRANSPORT, 0x100 + 116, "show yours", True)
    assert link.server.handshake is None


# ---- sessions


class Sessions:
    def __init__(self, **options: Any) -> None:
        self.received: list[SessionTicket] = []
        self.issued: dict[bytes, SessionTicket] = {}
        Link(
            client_hooks={"store_ticket": self.received.append}, server_hooks=self.server, **options
        )

    @property
    def server(self) -> dict[str, Any]:
        def store(ticket: SessionTicket) -> None:
            self.issued[ticket.ticket] = ticket

        return {"store_ticket": store, "fetch_ticket": self.issued.get}

    def resume(self, **options: Any) -> Link:
        client = {"session_ticket": self.received[0], **options.pop("client", {})}
        link = Link(client=client, server_hooks=self.server, connect=False, **options)
        link.start()
        return link


def test_a_session_is_resumed() -> None:
    sessions = Sessions()
    assert sessions.received
    assert sessions.issued
    # It was verified when it began.
    link = sessions.resume(client={"verify": rejecting(Rejected("?", 42))})
    link.run(until=lambda: bool(link.client.handshake and link.server.handshake))
    for side in link.sides:
        assert side.handshake is not None
        assert side.handshake.session_resumed
        assert not side.handshake.early_data_accepted
    assert link.client.engine.peer_certificate is None
    assert link.client.engine.valid_until == sessions.received[0].not_valid_after


def test_an_unknown_session_is_a_new_one() -> None:
    sessions = Sessions()
    sessions.issued.clear()
    link = sessions.resume()
    link.run(until=lambda: bool(link.client.handshake and link.server.handshake))
    assert link.client.handshake is not None
    assert not link.client.handshake.session_resumed
    assert link.client.engine.peer_certificate is not None


@both_roads
def test_early_data_is_accepted(straight: bool) -> None:
    sessions = Sessions(early_data=True)
    link = sessions.resume(early_data=True, straight=straight)
    assert link.client.engine.openable(unidirectional=False) == 128
    stream_id = link.client.open()
    link.client.send(stream_id, b"early", fin=True)
    link.run(until=lambda: stream_id in link.server.ended)
    assert link.server.data[stream_id] == b"early"
    assert link.server.handshake is None
    link.run(until=lambda: bool(link.client.handshake and link.server.handshake))
    for side in link.sides:
        assert side.handshake is not None
        assert side.handshake.early_data_accepted


@both_roads
def test_early_data_is_refused(straight: bool) -> None:
    sessions = Sessions(early_data=True)
    link = sessions.resume(server={"early_data": False}, straight=straight)
    stream_id = link.client.open()
    link.client.send(stream_id, b"early", fin=True)
    link.run(until=lambda: link.server.handshake is not None)
    assert not any(isinstance(event, StreamDataReceived) for event in link.server.events)
    link.run(until=lambda: stream_id in link.server.ended)
    assert link.server.data[stream_id] == b"early"
    for side in link.sides:
        assert side.handshake is not None
        assert side.handshake.session_resumed
        assert not side.handshake.early_data_accepted


def test_a_server_that_takes_no_early_data_does_not_say_so() -> None:
    sessions = Sessions(early_data=False)
    assert not sessions.received[0].max_early_data_size
    link = sessions.resume()
    assert link.client.engine.openable(unidirectional=False) == 0
