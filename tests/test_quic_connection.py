"""A connection as its two users see it: endings, signs of life, keys, versions and figures."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import pickle
import signal
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing

from tests.quic_pairs import ask, echo, one_way_pair, serving, settle, stream_pair, visit
from trio_wt import (
    Connection,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ConnectionLost,
    HandshakeFailed,
    QuicSettings,
    Stream,
    StreamReset,
    TransportClosed,
)
from trio_wt._quic.driver import Driver
from trio_wt.testing import Network, quic_pair

CANCELLED, FAILED = 71, 72
SETTINGS = {"cancelled_code": CANCELLED, "failed_code": FAILED}


# ---- what it is


async def test_what_both_sides_know_of_each_other() -> None:
    async with quic_pair(alpn=["b", "a"]) as (client, server):
        assert client.alpn == server.alpn == "b"
        assert client.version == server.version == 1
        assert client.peer_address == server.local_address == ("server.test", 4433)
        assert server.peer_address == client.local_address
        assert client.peer_certificate is not None
        assert server.peer_certificate is None
        assert client.handshake_complete
        assert server.handshake_complete
        assert not client.session_resumed
        assert not client.early_data_accepted
        assert client.closed is None
        assert repr(client) == "<Connection open, peer ('server.test', 4433)>"
        await client.wait_handshake()
        await server.wait_handshake()
        await client.aclose()
        assert repr(client).startswith("<Connection closed, peer ")


# ---- endings


async def test_a_graceful_end_sees_out_what_was_ended() -> None:
    network = Network(seed=2, loss=0.2, delay=0.02)
    async with quic_pair(network=network, close_timeout=60) as (client, server):
        got: list[bytes] = []

        async def receive() -> None:
            # The last packet may be lost too: the idle timeout ends it then.
            with contextlib.suppress(ConnectionLost):
                async for stream in server.incoming_receive_streams:
                    async with stream:
                        got.append(await stream.receive_all())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            for _ in range(3):
                async with client.open_send_stream() as stream:
                    await stream.send_all(bytes(100_000))
            await client.aclose()
            assert got == [bytes(100_000)] * 3


async def test_a_graceful_end_waits_for_a_reader_but_not_for_streams_that_were_not_ended() -> None:
    async with quic_pair(stream_window=1000, close_timeout=60) as (client, server):
        async with client.open_send_stream() as open_one, client.open_send_stream() as ended:
            await open_one.send_all(bytes(10_000))
            await ended.send_all(bytes(10_000), eof=True)

            async def read_slowly() -> None:
                streams = [await server.incoming_receive_streams.receive() for _ in range(2)]
                await trio.sleep(20)
                assert len(await streams[1].receive_all()) == 10_000

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_slowly)
                await client.aclose()
                assert trio.current_time() == pytest.approx(20, abs=0.5)


async def test_a_graceful_end_is_bounded() -> None:
    async with quic_pair(stream_window=1000, close_timeout=7) as (client, server):
        async with client.open_send_stream() as stream:
            await stream.send_all(bytes(10_000), eof=True)
            started = trio.current_time()
            await client.aclose(3, "no more")
            assert trio.current_time() - started == pytest.approx(7, abs=0.1)
            assert (await server.wait_closed()).code == 3


async def test_an_immediate_end_does_not_see_it_out() -> None:
    for graceful in (True, False):
        async with quic_pair(stream_window=1000) as (client, server):
            async with client.open_send_stream() as stream, trio.open_nursery() as nursery:
                await stream.send_all(bytes(10_000), eof=True)

                async def receive() -> None:
                    received = await server.incoming_receive_streams.receive()
                    if graceful:
                        assert len(await received.receive_all()) == 10_000
                    else:
                        with pytest.raises(ConnectionClosedError):
                            await received.receive_all()

                nursery.start_soon(receive)
                await client.aclose(graceful=graceful)


@pytest.mark.parametrize("by_client", [True, False])
@pytest.mark.parametrize(("code", "reason"), [(0, ""), (0, "fine"), (7, "gründe"), (2**62 - 1, "")])
async def test_code_and_reason_reach_the_other_side(
    code: int, reason: str, by_client: bool
) -> None:
    async with quic_pair() as (client, server):
        a, b = (client, server) if by_client else (server, client)
        await a.aclose(code, reason)
        theirs = await b.wait_closed()
        ours = await a.wait_closed()
        assert a.closed is ours
        assert b.closed is theirs
        kind = ConnectionClosedError if code else ConnectionClosedOK
        for end, remote in ((ours, False), (theirs, True)):
            assert type(end) is kind
            assert (end.code, end.reason, end.remote) == (code, reason, remote)
            assert pickle.loads(pickle.dumps(end)).args == end.args


async def test_a_long_reason_is_cut() -> None:
    async with quic_pair() as (client, server):
        client.close_now(1, "é" * 1000)
        assert (await server.wait_closed()).reason == "é" * 256


@pytest.mark.parametrize("code", [-1, 2**62])
async def test_codes_have_a_range(code: int) -> None:
    async with quic_pair() as (client, server):
        with pytest.raises(ValueError, match=r"2\^62"):
            client.close_now(code)
        with pytest.raises(ValueError, match=r"2\^62"):
            await client.aclose(code)
        assert client.closed is None
        assert await client.ping() > 0


async def test_closing_twice_and_after_the_peer_changes_nothing() -> None:
    async with quic_pair() as (client, server):
        await client.aclose(1)
        await client.aclose(2)
        client.close_now(3)
        await settle()
        await server.aclose(4)
        server.close_now(5)
        assert client.closed is not None
        assert server.closed is not None
        assert client.closed.code == server.closed.code == 1


async def test_both_may_close_at_once() -> None:
    async with quic_pair() as (client, server):
        client.close_now(1)
        server.close_now(2)
        await settle()
        assert ((await client.wait_closed()).code, (await server.wait_closed()).code) == (1, 2)


async def test_a_close_packet_that_is_lost_is_sent_again_on_what_the_peer_sends() -> None:
    network = Network()
    async with quic_pair(network=network, idle_timeout=300) as (client, server):
        await client.ping()
        network.loss = 1
        server.close_now(9, "lost at first")
        await trio.sleep(0.01)
        network.loss = 0
        assert client.closed is None
        with trio.fail_after(1):
            with pytest.raises(ConnectionClosedError):
                await client.ping()
        assert (await client.wait_closed()).code == 9


# ---- leaving the block


class Ends:
    """A handler that keeps how its connections ended."""

    def __init__(self) -> None:
        self.ends: list[ConnectionClosed] = []

    async def __call__(self, connection: Connection) -> None:
        self.ends.append(await connection.wait_closed())


async def end_of_the_server(end: str) -> ConnectionClosed:
    """How the server's side ends when the client's block does so."""
    network, handler = Network(), Ends()
    async with serving(handler, network):
        try:
            with trio.CancelScope() as outer:
                async with visit(network, **SETTINGS) as client:
                    await client.ping()
                    if end == "raise":
                        raise ZeroDivisionError
                    if end == "raise in a nursery":
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(trio.sleep_forever)
                            raise ZeroDivisionError
                    if end == "outer":
                        outer.cancel()
                        await trio.sleep_forever()
                    if end == "inner":
                        client.cancel_scope.cancel()
                        await trio.sleep_forever()
                    if end == "deadline":
                        client.cancel_scope.deadline = trio.current_time() + 3
                        await trio.sleep_forever()
        except* ZeroDivisionError:
            assert "raise" in end
        await settle()
    (closed,) = handler.ends
    return closed


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("return", 0),
        ("raise", FAILED),
        ("raise in a nursery", FAILED),
        ("outer", CANCELLED),
        ("inner", CANCELLED),
        ("deadline", CANCELLED),
    ],
)
async def test_leaving_the_block_says_how(end: str, code: int) -> None:
    closed = await end_of_the_server(end)
    assert (closed.code, closed.reason, closed.remote) == (code, "", True)


async def test_the_block_s_exception_comes_out_as_it_was() -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with quic_pair():
            try:
                raise KeyError
            except KeyError:
                raise error
    assert caught.value is error
    assert isinstance(error.__context__, KeyError)
    assert error.__cause__ is None


async def test_a_group_comes_out_as_it_was() -> None:
    group = ExceptionGroup("mine", [ValueError(1), KeyError(2)])
    with pytest.raises(ExceptionGroup) as caught:
        async with quic_pair():
            raise group
    assert caught.value is group


async def test_the_end_of_the_connection_is_an_exception_like_others() -> None:
    with pytest.raises(ConnectionClosedError) as caught:
        async with quic_pair() as (client, server):
            server.close_now(5)
            async for _ in client.incoming_streams:
                pass
    assert caught.value.code == 5


async def test_what_is_under_way_is_seen_out_at_the_end_of_the_block() -> None:
    network = Network(seed=2, loss=0.2, delay=0.02)
    got: list[bytes] = []

    async def receive(connection: Connection) -> None:
        async for stream in connection.incoming_receive_streams:
            got.append(await stream.receive_all())

    async with serving(receive, network):
        async with visit(network, close_timeout=60) as client:
            async with client.open_send_stream() as stream:
                await stream.send_all(bytes(100_000))
        assert got == [bytes(100_000)]


async def test_a_block_that_fails_does_not_wait_for_that() -> None:
    network = Network()
    with pytest.raises(ZeroDivisionError):
        async with quic_pair(network=network) as (client, _):
            async with client.open_send_stream() as stream:
                await stream.send_all(bytes(10_000), eof=True)
                network.loss = 1
                started = trio.current_time()
                raise ZeroDivisionError
    assert trio.current_time() - started < 1


async def test_nothing_is_left_behind() -> None:
    async with quic_pair() as (client, server):
        await client.datagrams.send(b"x")
        assert await server.datagrams.receive() == b"x"
    task = trio.lowlevel.current_task()
    assert len(task.child_nurseries) == 0
    assert task.parent_nursery is not None
    assert task.parent_nursery.child_tasks == {task}
    gc.collect()


@pytest.mark.parametrize("in_a_stream", [False, True])
def test_a_keyboard_interrupt_reaches_the_block(in_a_stream: bool) -> None:
    handler = Ends()

    async def use() -> None:
        async with visit(network, **SETTINGS) as client:
            await client.ping()
            if in_a_stream:
                async with client.open_stream() as stream:
                    await stream.send_all(b"x")
                    signal.raise_signal(signal.SIGINT)
                    await trio.sleep_forever()
            signal.raise_signal(signal.SIGINT)
            await trio.sleep_forever()

    async def main() -> None:
        nonlocal network
        network = Network()
        async with serving(handler, network):
            with pytest.raises(KeyboardInterrupt):
                await use()
            await settle()

    network = Network()
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert [end.code for end in handler.ends] == [FAILED]


def test_a_keyboard_interrupt_is_no_business_of_the_services() -> None:
    """It comes while a reader or a writer runs, and is raised in the user's code all the same."""

    class Interrupt(trio.abc.Instrument):
        def __init__(self, at: int) -> None:
            self.left = at

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            if task.name in ("trio_wt QUIC reader", "trio_wt QUIC writer"):
                self.left -= 1
                if self.left == 0:
                    signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        async with quic_pair() as (client, _):
            for _ in range(100):
                await client.ping()

    for at in range(1, 60, 7):
        with pytest.raises(KeyboardInterrupt):
            trio.run(
                main,
                clock=trio.testing.MockClock(autojump_threshold=0),
                instruments=[Interrupt(at)],
            )


# ---- the end wakes everybody


Operation = Callable[[Connection, Stream], Awaitable[object]]


async def open_a_stream(connection: Connection, _: Stream) -> None:
    async with connection.open_stream():
        pytest.fail("the limit is reached")


async def open_a_send_stream(connection: Connection, _: Stream) -> None:
    async with connection.open_send_stream():
        pytest.fail("the limit is reached")


WAITING: dict[str, Operation] = {
    "open_stream": open_a_stream,
    "open_send_stream": open_a_send_stream,
    "incoming_streams": lambda c, _: c.incoming_streams.receive(),
    "incoming_receive_streams": lambda c, _: c.incoming_receive_streams.receive(),
    "datagrams": lambda c, _: c.datagrams.receive(),
    "ping": lambda c, _: c.ping(),
    "send_all": lambda _, s: s.send_all(bytes(10_000)),
    "receive_some": lambda _, s: s.receive_some(),
}
# The clean end of what one iterates over; anything else is cut off by it.
ITERATIONS = {"incoming_streams", "incoming_receive_streams", "datagrams"}


@pytest.mark.parametrize("how", ["close_now", "aclose", "clean", "theirs", "theirs, clean", "lost"])
async def test_the_end_wakes_everybody_at_once(how: str) -> None:
    limits = {
        "stream_window": 1000,
        "send_buffer": 1000,
        "max_streams": 1,
        "max_receive_streams": 0,
    }
    network = Network()
    async with quic_pair(network=network, **limits) as (client, server):  # type: ignore[arg-type]
        async with stream_pair(client, server) as (stream, _), trio.open_nursery() as nursery:
            outcomes: dict[str, BaseException] = {}
            times: set[float] = set()

            async def use(name: str) -> None:
                with pytest.raises((ConnectionClosed, trio.ClosedResourceError)) as caught:
                    await WAITING[name](client, stream)
                outcomes[name] = caught.value
                times.add(trio.current_time())

            # Nothing from the peer any more, so that the ping has no answer.
            ours = client.local_address
            network.drop = lambda data, source, to: source == ours or "theirs" in how
            for name in WAITING:
                if name == "ping" and "theirs" in how:
                    continue
                nursery.start_soon(use, name)
            with trio.fail_after(60):
                await trio.testing.wait_all_tasks_blocked()
                if how == "close_now":
                    client.close_now(3)
                elif how == "aclose":
                    await client.aclose(3)
                elif how == "clean":
                    await client.aclose()
                elif how == "theirs":
                    server.close_now(3, "bye")
                elif how == "theirs, clean":
                    server.close_now()
                end = await client.wait_closed()
                await trio.testing.wait_all_tasks_blocked()
            assert not nursery.child_tasks
            assert len(outcomes) == len(WAITING) - ("theirs" in how)
            assert len(times) == 1
            for name, error in outcomes.items():
                assert error is not end
                if how == "lost":
                    assert isinstance(error, ConnectionLost)
                elif "theirs" not in how:
                    assert type(error) is trio.ClosedResourceError
                elif how == "theirs, clean" and name in ITERATIONS:
                    assert type(error) is ConnectionClosedOK
                else:
                    assert type(error) is ConnectionClosedError
                    assert error.code == end.code
                    assert error.reason == end.reason


async def test_operations_after_the_end() -> None:
    for ours in (True, False):
        async with quic_pair() as (client, server), stream_pair(client, server) as (stream, _):
            (client if ours else server).close_now(3)
            await settle()
            kind = trio.ClosedResourceError if ours else ConnectionClosedError
            for operation in WAITING.values():
                with trio.testing.assert_checkpoints(), pytest.raises(kind):
                    await operation(client, stream)
            for use in (client.wait_closed, client.aclose, client.wait_handshake):
                with trio.testing.assert_checkpoints():
                    await use()
            client.update_keys()
            client.statistics()
            with pytest.raises((RuntimeError, trio.ClosedResourceError, ConnectionClosedError)):
                await client.migrate(socket=Network().socket())


async def test_a_failure_is_pickled_and_explained() -> None:
    async with quic_pair() as (client, server):
        server.close_now(5, "bad\nluck")
        with pytest.raises(ConnectionClosedError) as caught:
            await client.ping()
            await client.ping()
        assert str(caught.value) == "the peer closed the connection with code 5: bad\\nluck"


# ---- life and silence


@pytest.mark.parametrize(("ours", "theirs"), [(30, 10), (10, 30), (10, 10)])
async def test_a_connection_that_is_idle_is_lost(ours: float, theirs: float) -> None:
    async with quic_pair(
        client_settings={"idle_timeout": ours}, server_settings={"idle_timeout": theirs}
    ) as (client, server):
        await settle()
        started = trio.current_time()
        for side in (client, server):
            end = await side.wait_closed()
            assert type(end) is ConnectionLost
            assert (end.code, end.remote, str(end)) == (
                0,
                True,
                "the connection was lost: idle timeout",
            )
        assert trio.current_time() - started == pytest.approx(10, abs=0.3)
        with pytest.raises(ConnectionLost):
            await client.ping()


async def test_traffic_of_either_side_keeps_it_alive() -> None:
    async with quic_pair(idle_timeout=10) as (client, server):
        for number in range(10):
            await trio.sleep(8)
            await (client if number % 2 else server).datagrams.send(b"x")
        await trio.sleep(8)
        assert client.closed is server.closed is None


@pytest.mark.parametrize("by_client", [True, False])
async def test_keep_alive_keeps_it_alive(by_client: bool) -> None:
    sides = ({"keep_alive": 4.0}, {})
    async with quic_pair(
        idle_timeout=10,
        client_settings=sides[not by_client],  # type: ignore[arg-type]
        server_settings=sides[by_client],  # type: ignore[arg-type]
    ) as (client, server):
        await settle()
        a, b = (client, server) if by_client else (server, client)
        before = a.statistics().packets_sent
        await trio.sleep(400)
        assert client.closed is server.closed is None
        assert 95 <= a.statistics().packets_sent - before <= 102
        assert trio.current_time() - b.statistics().last_heard <= 4.1


async def test_keep_alive_says_nothing_while_others_speak() -> None:
    async with quic_pair(client_settings={"keep_alive": 4}) as (client, server):
        await server.datagrams.send(b"x")
        await settle()
        before = client.statistics().packets_sent
        for _ in range(20):
            await trio.sleep(3)
            await server.datagrams.send(b"x")
        # Acknowledgements only.
        assert client.statistics().packets_sent - before <= 21


@pytest.mark.parametrize("keep_alive", [None, 3])
async def test_a_peer_that_vanishes_is_noticed(keep_alive: float | None) -> None:
    network = Network()
    async with quic_pair(network=network, idle_timeout=10, keep_alive=keep_alive) as (
        client,
        server,
    ):
        async with stream_pair(client, server) as (a, _):
            network.loss = 1
            started = trio.current_time()
            await a.send_all(b"x")
            with pytest.raises(ConnectionLost):
                await a.receive_some()
            assert trio.current_time() - started == pytest.approx(10, abs=1)
            assert isinstance(await server.wait_closed(), ConnectionLost)


async def test_a_pause_of_the_network_is_survived() -> None:
    network = Network()
    async with quic_pair(network=network, idle_timeout=30) as (client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, server)
            assert await ask(client, b"before") == b"before"
            network.blackhole(12)
            assert await ask(client, bytes(50_000)) == bytes(50_000)
            assert 12 < trio.current_time() < 25
            nursery.cancel_scope.cancel()


async def test_ping_measures_the_way() -> None:
    async with quic_pair(network=Network(delay=0.2)) as (client, server):
        for side in (client, server):
            assert await side.ping() == pytest.approx(0.4, abs=0.03)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(client.ping)


async def test_a_ping_that_is_lost_is_sent_again() -> None:
    network = Network(delay=0.05)
    async with quic_pair(network=network) as (client, _):
        await client.ping()
        network.blackhole(1)
        assert 1 < await client.ping() < 4


# ---- cancel_on_close


@pytest.mark.parametrize("how", ["aclose", "close_now", "lost"])
async def test_cancel_on_close_ends_the_block(how: str) -> None:
    network = Network()
    with trio.fail_after(60):
        async with quic_pair(network=network, client_settings={"cancel_on_close": True}) as (
            client,
            server,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                if how == "aclose":
                    await server.aclose()
                elif how == "close_now":
                    server.close_now(4)
                else:
                    network.loss = 1
                await trio.sleep_forever()
    assert client.cancel_scope.cancel_called
    assert client.closed is not None


async def test_cancel_on_close_is_not_for_our_own_end() -> None:
    async with quic_pair(cancel_on_close=True) as (client, server):
        await client.aclose()
        await trio.sleep(1)
        assert not client.cancel_scope.cancel_called
        assert server.cancel_scope.cancel_called


async def test_without_it_the_block_goes_on() -> None:
    async with quic_pair() as (client, server):
        server.close_now(4)
        await trio.sleep(1)
        assert not client.cancel_scope.cancel_called


# ---- keys


async def test_keys_may_be_changed_at_any_time() -> None:
    async with quic_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(echo, server)
        for number in range(12):
            (client, server)[number % 2].update_keys()
            if number % 3 == 0:
                client.update_keys()
                server.update_keys()
            assert await ask(client, b"%d" % number) == b"%d" % number
        nursery.cancel_scope.cancel()


async def test_keys_are_changed_after_so_many_packets() -> None:
    network = Network(seed=4, loss=0.05, reorder=0.1)
    async with quic_pair(network=network, key_update_packets=20, max_packet_size=1200) as (
        client,
        server,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, server)
            for _ in range(3):
                assert await ask(client, bytes(100_000)) == bytes(100_000)
            nursery.cancel_scope.cancel()
        assert client.statistics().packets_sent > 250


# ---- versions, congestion control


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [
        ([1], [1, 2], 1),
        ([2], [1, 2], 2),
        ([2, 1], [1, 2], 2),
        ([1, 2], [2, 1], 1),
        ([2, 1], [1], 1),
        ([1, 2], [2], 2),
        ([2], [2], 2),
    ],
)
async def test_the_client_s_best_that_the_server_speaks_is_taken(
    ours: list[int], theirs: list[int], agreed: int
) -> None:
    async with quic_pair(
        client_settings={"versions": ours},  # type: ignore[typeddict-item]
        server_settings={"versions": theirs},  # type: ignore[typeddict-item]
    ) as (client, server):
        assert client.version == server.version == agreed
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, server)
            assert await ask(client, b"x") == b"x"
            client.update_keys()
            assert await ask(client, b"y") == b"y"
            nursery.cancel_scope.cancel()


async def test_no_common_version() -> None:
    with pytest.raises(HandshakeFailed) as caught:
        async with quic_pair(client_settings={"versions": [2]}, server_settings={"versions": [1]}):
            pytest.fail("they have none in common")
    assert trio.current_time() < 1
    assert "version" in str(caught.value)


@pytest.mark.parametrize("algorithm", ["cubic", "reno"])
async def test_congestion_control_keeps_to_a_bottleneck(algorithm: str) -> None:
    network = Network(rate=500_000, delay=0.02, queue=30_000)
    async with quic_pair(
        network=network,
        congestion_control=algorithm,  # type: ignore[arg-type]
        max_packet_size=1200,
    ) as (client, server):
        async with one_way_pair(client, server) as (a, b), trio.open_nursery() as nursery:
            started = trio.current_time()
            nursery.start_soon(partial(a.send_all, bytes(10**6), eof=True))
            assert len(await b.receive_all()) == 10**6
            rate = 10**6 / (trio.current_time() - started)
        assert 250_000 < rate < 500_000
        assert 0 < client.statistics().packets_lost < 150


# ---- figures


async def test_statistics() -> None:
    async with quic_pair(network=Network(delay=0.05), stream_window=5000) as (client, server):
        await trio.sleep(1)
        quiet = client.statistics()
        assert quiet.rtt == pytest.approx(0.1, abs=0.02)
        assert quiet.min_rtt == pytest.approx(0.1, abs=0.01)
        assert quiet.packet_size == 1200
        assert quiet.packets_lost == quiet.bytes_in_flight == quiet.open_streams == 0
        async with stream_pair(client, server) as (a, _):
            await a.send_all(bytes(20_000))
            await client.datagrams.send(b"x")
            assert client.statistics().bytes_in_flight > 0
            await trio.sleep(1)
            ours, theirs = client.statistics(), server.statistics()
            assert ours.bytes_sent == theirs.bytes_received > quiet.bytes_sent + 5000
            assert ours.bytes_received == theirs.bytes_sent
            assert ours.packet_size == 8952
            assert ours.packets_sent == theirs.packets_received > quiet.packets_sent
            assert ours.unsent_bytes == 15_001
            assert theirs.unread_bytes == 4999
            assert ours.open_streams == theirs.open_streams == 1
            assert (ours.datagrams_unsent, theirs.datagrams_unread) == (0, 1)
            assert theirs.unaccepted_streams == 0
            # The last thing was the search for larger packets.
            assert trio.current_time() - 1 < theirs.last_heard < trio.current_time() - 0.5
        with pytest.raises(dataclasses.FrozenInstanceError):
            ours.rtt = 0  # type: ignore[misc]


async def test_losses_are_counted() -> None:
    network = Network(seed=9, loss=0.1)
    async with quic_pair(network=network) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(echo, server)
        assert await ask(client, bytes(500_000)) == bytes(500_000)
        assert client.statistics().packets_lost > 5
        nursery.cancel_scope.cancel()


# ---- settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_streams": -1},
        {"max_streams": 2**60 + 1},
        {"max_receive_streams": -1},
        {"stream_window": 0},
        {"max_stream_window": 1},
        {"connection_window": 0},
        {"max_connection_window": 1},
        {"send_buffer": 0},
        {"max_datagram_queue": 0},
        {"idle_timeout": 0},
        {"idle_timeout": float("inf")},
        {"idle_timeout": float("nan")},
        {"keep_alive": 0},
        {"close_timeout": -1},
        {"max_packet_size": 1199},
        {"max_packet_size": 65_536},
        {"congestion_control": "bbr"},
        {"versions": []},
        {"versions": [3]},
        {"key_update_packets": 0},
        {"qlog_dir": "/no such folder"},
        {"cancelled_code": -1},
        {"failed_code": 2**62},
    ],
    ids=str,
)
async def test_settings_out_of_range(wrong: dict[str, object]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        QuicSettings(**wrong)  # type: ignore[arg-type]


async def test_the_smallest_settings_work() -> None:
    async with quic_pair(
        max_streams=1,
        max_receive_streams=1,
        stream_window=1,
        max_stream_window=1,
        connection_window=1,
        max_connection_window=1,
        send_buffer=1,
        max_datagram_queue=1,
        max_packet_size=1200,
    ) as (client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, server)
            assert await ask(client, b"one byte at a time") == b"one byte at a time"
            nursery.cancel_scope.cancel()


async def test_long_times_work() -> None:
    year = 365 * 86400
    times = {"idle_timeout": year, "close_timeout": year, "keep_alive": year}
    async with quic_pair(**times) as (client, server):  # type: ignore[arg-type]
        await trio.sleep(5000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, server)
            assert await ask(client, b"x") == b"x"
            nursery.cancel_scope.cancel()


# ---- odd sockets, errors of the transport


async def test_a_transport_error_has_a_kind_of_its_own() -> None:
    async with quic_pair() as (client, server):
        client._driver.shut(0x0A, "made up", transport=True)
        end = await server.wait_closed()
        assert type(end) is TransportClosed
        assert "PROTOCOL_VIOLATION" in str(end)
        ours = await client.wait_closed()
        assert type(ours) is TransportClosed
        assert not ours.remote
        for side in (client, server):
            with pytest.raises(TransportClosed) as caught:
                await side.ping()
            assert caught.value.code == 0x0A
            with pytest.raises(TransportClosed):
                await side.datagrams.receive()


async def test_every_async_method_is_a_checkpoint() -> None:
    async with quic_pair() as (client, server):
        with trio.testing.assert_checkpoints():
            await client.ping()
        with trio.testing.assert_checkpoints():
            await client.wait_handshake()
        with trio.testing.assert_checkpoints(), pytest.raises(RuntimeError):
            await server.migrate()
        with trio.testing.assert_checkpoints():
            await client.aclose()
        with trio.testing.assert_checkpoints():
            await client.aclose()
        with trio.testing.assert_checkpoints():
            await server.wait_closed()
        with trio.testing.assert_checkpoints():
            await server.aclose()


async def test_a_stream_of_a_closed_connection_leaves_its_block_in_peace() -> None:
    async with quic_pair() as (client, server):
        async with client.open_stream() as a, client.open_send_stream() as b:
            await a.send_all(b"x")
            await b.send_all(b"x")
            server.close_now(4)
            await settle()
        with pytest.raises(ConnectionClosedError):
            async with client.open_stream():
                pass
        assert not isinstance(client.closed, StreamReset)


async def test_an_acknowledgement_that_went_with_data_wakes_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of what is to be sent later, it is the most frequent, and seldom goes by itself where there are answers."""
    runs = 0
    write = Driver._write

    async def counting(driver: Driver, scope: trio.CancelScope) -> None:
        nonlocal runs
        runs += 1  # once more each time that the deadline passes
        await write(driver, scope)

    async with (
        quic_pair(network=Network(delay=0.0002)) as (client, server),
        stream_pair(client, server) as (mine, theirs),
    ):
        await trio.sleep(1)
        monkeypatch.setattr(Driver, "_write", counting)
        started = trio.current_time()
        for _ in range(500):
            await mine.send_all(b"there")
            await theirs.send_all(await theirs.receive_some())
            await mine.receive_some()
        assert 0.1 < trio.current_time() - started < 0.5
        assert runs < 20
