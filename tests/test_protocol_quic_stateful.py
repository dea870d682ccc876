"""Two engines, and all that can happen to them, in any order."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from tests.quic_engines import Link, Side

STREAMS = 4
QUEUE = 5

sides = st.booleans()
picks = st.integers(0, 2**16)
codes = st.integers(0, 2**62 - 1)
amounts = st.one_of(st.integers(0, 50), st.integers(0, 5000), st.integers(0, 40_000))


class Half:
    """One direction of a stream, as it should be.

    Attributes:
        data: what was sent.
        ended: whether its end was sent.
        reset: the code that it was reset with, and how many bytes are to arrive all the same.
        stop: the codes with which the receiver gave it up.
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = False
        self.reset: tuple[int, int] | None = None
        self.stops: set[int] = set()


class Engines(RuleBasedStateMachine):
    """A client and a server, their applications, and the network."""

    def __init__(self) -> None:
        super().__init__()
        self.halves: dict[tuple[bool, int], Half] = {}
        self.datagrams: dict[bool, list[bytes]] = {True: [], False: []}
        self.pings: dict[bool, list[int]] = {True: [], False: []}
        self.count = 0

    @initialize(
        straight=st.booleans(),
        seed=picks,
        window=st.sampled_from([1000, 20_000]),
        growth=st.sampled_from([1, 4]),
        max_packet_size=st.sampled_from([1200, 8952]),
        delay=st.sampled_from([0.001, 0.02, 0.15]),
        keys=st.sampled_from([30, 2**22]),
        version=st.sampled_from([1, 0x6B3343CF]),
    )
    def begin(self, window: int, growth: int, keys: int, version: int, **options: Any) -> None:
        self.link = Link(
            stream_window=window,
            max_stream_window=window * growth,
            connection_window=2 * window,
            max_connection_window=2 * window * growth,
            max_streams=STREAMS,
            max_receive_streams=STREAMS,
            max_datagram_queue=QUEUE,
            key_update_packets=keys,
            versions=[version],
            idle_timeout=10**6,
            **options,
        )
        self.max_window = window * growth
        for side in self.link.sides:
            side.reading = False
            for unidirectional in (False, True):
                self.send(side.is_client, 0, 10, False, True, unidirectional, 0)

    def side(self, of_client: bool) -> Side:
        return self.link.client if of_client else self.link.server

    def pick(
        self, of_client: bool, number: int, *, receiving: bool = False
    ) -> tuple[int, Half] | None:
        """One of the streams that a side sends on, or receives on; None if there is none."""
        engine = self.side(of_client).engine
        sender = of_client != receiving
        known = [
            stream_id
            for client, stream_id in self.halves
            if client is sender and stream_id in engine._streams
        ]
        if not known:
            return None
        stream_id = known[number % len(known)]
        return stream_id, self.halves[sender, stream_id]

    # ---- what applications do

    @rule(
        of_client=sides,
        number=picks,
        size=amounts,
        fin=st.booleans(),
        new=st.booleans(),
        unidirectional=st.booleans(),
        priority=st.integers(-1, 1),
    )
    def send(
        self,
        of_client: bool,
        number: int,
        size: int,
        fin: bool,
        new: bool,
        unidirectional: bool,
        priority: int,
    ) -> None:
        """On a stream that is open, or on a new one."""
        side = self.side(of_client)
        picked = None if new else self.pick(of_client, number)
        if picked is None:
            if side.engine.openable(unidirectional=unidirectional) == 0:
                return
            stream_id = side.open(unidirectional=unidirectional)
            side.engine.prioritise(stream_id, priority)
            half = self.halves[of_client, stream_id] = Half()
            if not unidirectional:
                self.halves[not of_client, stream_id] = Half()
        else:
            stream_id, half = picked
        if side.engine.is_sendable(stream_id):
            self.count += 1
            data = bytes((self.count + n) & 0xFF for n in range(size))
            half.data += data
            half.ended = fin
            side.send(stream_id, data, fin=fin)

    @rule(of_client=sides, number=picks, code=codes, reliable=st.one_of(st.just(0), amounts))
    def reset(self, of_client: bool, number: int, code: int, reliable: int) -> None:
        side = self.side(of_client)
        picked = self.pick(of_client, number)
        if picked is not None:
            stream_id, half = picked
            side.reset(stream_id, code, reliable)
            if half.reset is None and stream_id not in side.stops:
                half.reset = code, min(reliable, len(half.data))

    @rule(of_client=sides, number=picks, code=codes)
    def stop(self, of_client: bool, number: int, code: int) -> None:
        picked = self.pick(of_client, number, receiving=True)
        if picked is not None:
            stream_id, half = picked
            self.side(of_client).stop(stream_id, code)
            half.stops.add(code)

    @rule(of_client=sides, number=picks, share=st.integers(1, 4), all_of_them=st.booleans())
    def read(self, of_client: bool, number: int, share: int, all_of_them: bool) -> None:
        side = self.side(of_client)
        unread = [stream_id for stream_id, count in side.unread.items() if count]
        chosen = unread if all_of_them else unread[number % len(unread) :][:1] if unread else []
        for stream_id in chosen:
            side.read(stream_id, -(-side.unread[stream_id] // share))

    @rule(
        of_client=sides,
        what=st.sampled_from(["datagram", "datagram", "ping", "keys"]),
        size=st.integers(0, 1170),
    )
    def say(self, of_client: bool, what: str, size: int) -> None:
        side = self.side(of_client)
        self.count += 1
        data = self.count.to_bytes(4) + bytes(size)
        if what == "keys":
            side.engine.update_keys()
        elif what == "ping":
            self.pings[of_client].append(self.count)
            side.ping(self.count)
        elif len(data) <= side.engine.max_datagram:
            self.datagrams[of_client].append(data)
            side.datagram(data)

    # ---- what the network does

    @rule(seconds=st.sampled_from([0, 0.0005, 0.003, 0.01, 0.05, 0.3, 1, 40]))
    def wait(self, seconds: float) -> None:
        self.link.run(seconds)

    @rule(
        loss=st.sampled_from([0, 0.05, 0.3]),
        reorder=st.sampled_from([0, 0.3]),
        duplicate=st.sampled_from([0, 0.2]),
        corrupt=st.sampled_from([0, 0.1]),
    )
    def weather(self, loss: float, reorder: float, duplicate: float, corrupt: float) -> None:
        link = self.link
        link.loss, link.reorder, link.duplicate, link.corrupt = loss, reorder, duplicate, corrupt

    @rule(
        what=st.sampled_from(["lose", "lose", "dark", "mtu", "rebind", "migrate"]),
        of_client=sides,
        count=st.integers(1, 5),
        seconds=st.sampled_from([0.01, 0.5, 5]),
        mtu=st.sampled_from([1200, 1460, 65507]),
    )
    def trouble(self, what: str, of_client: bool, count: int, seconds: float, mtu: int) -> None:
        link = self.link
        if what == "lose":
            link.drop = self.next_packets(self.side(of_client), count)
        elif what == "dark":
            link.blackhole(seconds)
        elif what == "mtu":
            link.mtu = mtu
        elif what == "rebind":
            route = link.client.engine.route
            assert route is not None
            link.rebind(route.local)
        elif len(link.addresses) < 4:
            link.client.engine.probe_path(link.add_socket())
            link.client.touched = True

    def next_packets(self, chosen: Side, count: int) -> Callable[[Side, bytes], bool]:
        left = count

        def drop(sender: Side, data: bytes) -> bool:
            nonlocal left
            left -= sender is chosen
            return sender is chosen and left >= 0

        return drop

    # ---- what must hold

    @invariant()
    def nothing_has_ended(self) -> None:
        for side in self.link.sides:
            assert side.end is None

    @invariant()
    def bytes_are_those_that_were_sent(self) -> None:
        for (of_client, stream_id), half in self.halves.items():
            receiver = self.side(not of_client)
            data = receiver.data.get(stream_id, b"")
            assert half.data.startswith(data)
            if stream_id in receiver.ended:
                assert half.ended
                assert data == half.data
            if stream_id in receiver.resets:
                code = receiver.resets[stream_id]
                assert code in half.stops or (half.reset is not None and code == half.reset[0])
                if not half.stops and half.reset is not None:
                    assert len(data) >= half.reset[1]
        for of_client, sent in self.datagrams.items():
            assert set(self.side(not of_client).datagrams) <= set(sent)

    @invariant()
    def nothing_passes_its_bound(self) -> None:
        for side in self.link.sides:
            engine = side.engine
            window = engine._window
            assert window.size <= 2 * self.max_window
            assert engine._local_max_data.used <= window.limit
            assert engine._local_max_data.used - window.consumed <= window.size
            assert sum(side.unread.values()) <= window.size
            assert all(count <= self.max_window for count in side.unread.values())
            assert engine.datagrams_queued <= QUEUE
            assert len(engine._active) <= len(engine._streams)
            assert engine._streams.dirty <= set(engine._streams)
            assert set(engine._reliable_resets) <= set(engine._streams)
            assert set(engine._resets.awaited) <= set(engine._streams)
            assert set(engine._active.priorities) <= set(engine._streams)
            assert len(engine._network_paths) <= 8
            assert engine.bytes_in_flight >= 0
            for unidirectional in (False, True):
                assert engine.openable(unidirectional=unidirectional) <= STREAMS
            for stream_id in engine._streams:
                assert engine.unsent(stream_id) >= 0

    # ---- the end of it

    def teardown(self) -> None:
        if hasattr(self, "link"):
            self.finish()

    def finish(self) -> None:
        """The network is well again, all is read and ended: then all must have arrived, and nothing may be left."""
        link = self.link
        self.weather(0, 0, 0, 0)
        link.mtu = 65507
        link.drop = lambda sender, data: False
        link.blackhole(0)
        for side in link.sides:
            side.reading = True
            self.read(side.is_client, 0, 1, True)
        for _ in range(30):
            for (of_client, stream_id), half in self.halves.items():
                side = self.side(of_client)
                if side.engine.is_sendable(stream_id):
                    half.ended = True
                    side.send(stream_id, fin=True)
            self.say(True, "ping", 0)
            link.run(1000)
            self.nothing_has_ended()
            if self.is_over():
                break
        assert self.is_over(), (link.client.engine._streams, link.server.engine._streams)
        self.bytes_are_those_that_were_sent()
        self.nothing_passes_its_bound()
        for (of_client, stream_id), half in self.halves.items():
            receiver = self.side(not of_client)
            assert (stream_id in receiver.ended) != (stream_id in receiver.resets)
            if half.reset is None and not half.stops:
                assert stream_id in receiver.ended
        for side in link.sides:
            engine = side.engine
            assert sorted(side.pings) == self.pings[side.is_client]
            assert engine._window.consumed == engine._local_max_data.used
            assert not engine.undelivered
            assert not engine._windows
            assert not len(engine._active)
            assert not engine._resets.awaited
            assert not engine._reliable_resets
            assert engine.datagrams_queued == 0
            assert engine.bytes_in_flight == 0
            for unidirectional in (False, True):
                assert engine.openable(unidirectional=unidirectional) >= STREAMS / 2

    def is_over(self) -> bool:
        return all(
            not side.engine._streams and len(side.pings) == len(self.pings[side.is_client])
            for side in self.link.sides
        )


TestEngines = Engines.TestCase
TestEngines.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    derandomize="CI" in os.environ,
)
