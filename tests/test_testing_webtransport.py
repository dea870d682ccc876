"""`trio_wt.testing.webtransport_pair`: what it promises to tests of applications."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import trio
import trio.testing

from tests.quic_pairs import certificate, client_tls
from trio_wt import (
    CertificateRejected,
    ClientTLS,
    ConnectionClosedError,
    ConnectionClosedOK,
    HandshakeFailed,
    ServerTLS,
    StreamReset,
    WebTransportSession,
)
from trio_wt.testing import Network, webtransport_pair


async def test_two_ends_of_one_session() -> None:
    async with webtransport_pair() as (client, server):
        assert isinstance(client, WebTransportSession)
        assert isinstance(server, WebTransportSession)
        assert client.peer_address == server.local_address
        assert client.request.target == server.request.target == "/"
        async with client.open_stream() as near:
            await near.send_all(b"hello", eof=True)
            async with await server.incoming_streams.receive() as far:
                assert await far.receive_all() == b"hello"
        await server.datagrams.send(b"x")
        assert await client.datagrams.receive() == b"x"
    assert type(client.closed) is type(server.closed) is ConnectionClosedOK
    assert client.closed is not None
    assert server.closed is not None
    assert (client.closed.remote, server.closed.remote) == (False, True)


def test_everything_is_given_by_its_name() -> None:
    kinds = {p.kind for p in inspect.signature(webtransport_pair).parameters.values()}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
    with pytest.raises(TypeError):
        webtransport_pair(Network())  # type: ignore[call-arg]


async def test_paths_and_subprotocols() -> None:
    async with webtransport_pair(path="/room?x=1", subprotocols=["b", "a"]) as (client, server):
        assert server.request.path == "/room"
        assert server.request.query == "x=1"
        assert client.subprotocol == server.subprotocol == "b"


async def test_settings_of_both_sides_and_of_one() -> None:
    async with webtransport_pair(
        session_window=5000,
        max_session_window=5000,
        server_settings={"session_window": 3000},
        client_settings={"max_session_window": 9000},
    ) as (client, server):
        assert client.statistics().send_credit == 3000
        assert server.statistics().send_credit == 5000
        assert client.connection.settings.max_session_window == 9000
        assert server.connection.settings.max_session_window == 5000
    with pytest.raises(TypeError):
        async with webtransport_pair(no_such_setting=5):  # type: ignore[call-arg]
            pytest.fail("there is no such setting")
    for wrong in ({"max_sessions": 0}, {"client_settings": {"early_timeout": 0}}):
        settings: dict[str, Any] = wrong
        with pytest.raises(ValueError):
            async with webtransport_pair(**settings):
                pytest.fail("that is no setting")


async def test_a_network_of_one_s_own() -> None:
    network = Network(seed=1, loss=0.2, delay=0.05)
    async with webtransport_pair(network=network) as (client, server):
        started = trio.current_time()
        await client.connection.ping()
        assert trio.current_time() - started >= 0.1
        network.loss = 0
        async with client.open_send_stream() as stream:
            await stream.send_all(bytes(50_000))
        async with await server.incoming_receive_streams.receive() as receive_stream:
            assert await receive_stream.receive_all() == bytes(50_000)
    assert network.statistics.lost > 0


async def test_no_time_passes_but_the_network_s() -> None:
    async with webtransport_pair(network=Network(delay=0)):
        pass
    assert trio.current_time() < 0.1


async def test_certificates_of_one_s_own() -> None:
    server = ServerTLS(certificate())
    async with webtransport_pair(server_tls=server, client_tls=client_tls()) as (client, _):
        assert client.connection.peer_certificate is not None
    with pytest.raises(CertificateRejected):
        async with webtransport_pair(client_tls=ClientTLS(server_certificate_hashes=[bytes(32)])):
            pytest.fail("the hash is wrong")


async def test_exceptions_come_out_unwrapped() -> None:
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with webtransport_pair() as (_, server):
            raise error
    assert caught.value is error
    assert server.closed is not None
    # The other side has seen a failure.
    assert (server.closed.code, server.closed.remote) == (2, True)
    with trio.move_on_after(1) as scope:
        async with webtransport_pair() as (_, server):
            await trio.sleep_forever()
    # Both sides are cancelled from outside.
    assert scope.cancelled_caught
    assert server.closed is not None
    assert server.closed.code == 1


@pytest.mark.parametrize("by_client", [True, False])
async def test_either_end_may_close_first(by_client: bool) -> None:
    async with webtransport_pair() as pair:
        a, b = pair if by_client else pair[::-1]
        a.close_now(5, "five")
        end = await b.wait_closed()
        assert type(end) is ConnectionClosedError
        assert (end.code, end.reason, end.remote) == (5, "five", True)


async def test_a_lost_network_does_not_hold_up_the_end() -> None:
    network = Network()
    async with webtransport_pair(network=network):
        network.loss = 1
        started = trio.current_time()
    assert trio.current_time() - started < 60


async def test_nothing_is_left_behind() -> None:
    task = trio.lowlevel.current_task()
    for _ in range(3):
        async with webtransport_pair() as (client, server):
            async with client.open_stream() as stream:
                await stream.send_all(b"x")
                far = await server.incoming_streams.receive()
                far.reset(3)
                with pytest.raises(StreamReset):
                    await stream.receive_some()
        assert not task.child_nurseries


async def test_pairs_of_pairs() -> None:
    async with webtransport_pair() as one, webtransport_pair() as two:
        one[0].close_now(1)
        await one[1].wait_closed()
        assert two[0].closed is two[1].closed is None


async def test_a_handshake_that_fails_says_so() -> None:
    network = Network(loss=1)
    with pytest.raises(HandshakeFailed):
        async with webtransport_pair(network=network):
            pytest.fail("nothing gets through")
