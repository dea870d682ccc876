"""UDP sockets on loopback: batches and trains, families, errors that are losses, and closing."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Sequence
from itertools import repeat
from typing import Any

import pytest
import trio
import trio.testing

from trio_wt._transport import udp
from trio_wt._transport.udp import UdpSocket, open_udp_socket, open_udp_sockets

pytestmark = pytest.mark.real_clock
linux = pytest.mark.skipif(sys.platform != "linux", reason="a matter of Linux's kernel")


async def receive(sock: UdpSocket, count: int) -> list[tuple[bytes, Any]]:
    """At least so many datagrams."""
    got: list[tuple[bytes, Any]] = []
    with trio.fail_after(5):
        while len(got) < count:
            got += sock.receive()
            if len(got) < count:
                await sock.wait_readable()
    return got


async def pair() -> tuple[UdpSocket, UdpSocket]:
    return await open_udp_socket("127.0.0.1", 0), await open_udp_socket("127.0.0.1", 0)


async def test_a_datagram_arrives_with_its_sender() -> None:
    a, b = await pair()
    assert a.receive() == []
    assert b.send([(b"hello", a.local_address)]) == 1
    assert await receive(a, 1) == [(b"hello", b.local_address)]
    assert a.receive() == []
    a.close()
    b.close()


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize(
    "sizes",
    [
        [1200] * 10,
        [1200] * 10 + [300],
        [300, 1200, 1200, 300, 300, 1, 1, 1200],
        [1200] * 150,
        [1] * 100,
        [8952] * 20,
        [60000, 60000, 60000],
    ],
    ids=lambda sizes: f"{len(sizes)} from {sizes[0]}",
)
async def test_batches_arrive_whole_and_in_order(
    sizes: list[int], offload: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not offload:
        monkeypatch.setattr(udp.sys, "platform", "elsewhere")
    a, b = await pair()
    datagrams = [(bytes([n % 256]) * size, a.local_address) for n, size in enumerate(sizes)]
    assert b.send(datagrams) == len(datagrams)
    got = await receive(a, len(datagrams))
    assert [data for data, _ in got] == [data for data, _ in datagrams]
    assert {sender for _, sender in got} == {b.local_address}
    a.close()
    b.close()


async def test_datagrams_for_several_receivers_go_their_ways() -> None:
    a, b = await pair()
    c = await open_udp_socket("127.0.0.1", 0)
    batch = [(bytes([n]) * 100, (a if n % 3 else b).local_address) for n in range(30)]
    assert c.send(batch) == 30
    got = [data[0] for data, _ in await receive(a, 20)]
    assert got == [n for n in range(30) if n % 3]
    got = [data[0] for data, _ in await receive(b, 10)]
    assert got == [n for n in range(30) if not n % 3]
    for sock in (a, b, c):
        sock.close()


class Calls:
    """A socket that counts the calls that send, and fails where it is told to."""

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner
        self.trains = 0
        self.singles: list[int] = []
        self.fail_trains: int | None = None
        self.fail_singles: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def sendmsg(self, data: Sequence[bytes], *rest: Any) -> int:
        self.trains += 1
        if self.fail_trains is not None:
            raise OSError(self.fail_trains, "no")
        return self._inner.sendmsg(data, *rest)

    def sendto(self, data: bytes, address: Any) -> int:
        self.singles.append(len(data))
        if len(data) in self.fail_singles:
            raise OSError(self.fail_singles[len(data)], "no")
        return self._inner.sendto(data, address)


def counted(sock: UdpSocket) -> Calls:
    calls = Calls(sock._socket)
    sock._socket = calls  # type: ignore[assignment]
    return calls


@linux
async def test_a_run_of_equal_datagrams_is_one_call() -> None:
    a, b = await pair()
    calls = counted(b)
    b.send([(bytes(1200), a.local_address)] * 40 + [(bytes(7), a.local_address)])
    assert (calls.trains, calls.singles) == (1, [])
    b.send([(bytes(1200), a.local_address)] * 65)
    assert (calls.trains, calls.singles) == (3, [])  # 65000 bytes are 54 of them
    b.send([(bytes(500), a.local_address)] * 65)
    assert (calls.trains, calls.singles) == (4, [500])  # 64 in a train
    b.send([(bytes(7), a.local_address), (bytes(8), a.local_address)])
    assert calls.singles[1:] == [7, 8]  # a train does not grow
    a.close()
    b.close()


@linux
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO, errno.ENOPROTOOPT, errno.EOPNOTSUPP])
async def test_a_kernel_without_segmentation_is_not_asked_twice(code: int) -> None:
    a, b = await pair()
    calls = counted(b)
    calls.fail_trains = code
    assert b.send([(bytes(100), a.local_address)] * 5) == 5
    assert b.send([(bytes(100), a.local_address)] * 5) == 5
    assert (calls.trains, len(calls.singles)) == (1, 10)
    assert len(await receive(a, 10)) == 10
    a.close()
    b.close()


@linux
async def test_a_train_that_is_too_large_goes_singly_and_trains_go_on() -> None:
    a, b = await pair()
    calls = counted(b)
    calls.fail_trains = errno.EMSGSIZE
    assert b.send([(bytes(100), a.local_address)] * 5) == 5
    calls.fail_trains = None
    assert b.send([(bytes(100), a.local_address)] * 5) == 5
    assert (calls.trains, len(calls.singles)) == (2, 5)
    a.close()
    b.close()


@pytest.mark.parametrize("code", [errno.EMSGSIZE, errno.EPERM, errno.ENETUNREACH, errno.ENOBUFS])
async def test_what_the_system_will_not_carry_is_lost(code: int) -> None:
    a, b = await pair()
    calls = counted(b)
    calls.fail_singles = {50: code}
    to = a.local_address
    assert b.send([(bytes(40), to), (bytes(50), to), (bytes(60), to)]) == 3
    assert [len(data) for data, _ in await receive(a, 2)] == [40, 60]
    a.close()
    b.close()


async def test_a_full_buffer_ends_a_batch_where_it_stands() -> None:
    a, b = await pair()
    calls = counted(b)
    calls.fail_singles = {50: errno.EAGAIN}
    to = a.local_address
    assert b.send([(bytes(40), to), (bytes(50), to), (bytes(60), to)]) == 1
    calls.fail_trains = errno.EAGAIN
    assert b.send([(bytes(30), to)] * 3) == (0 if sys.platform == "linux" else 3)
    a.close()
    b.close()


async def test_a_datagram_larger_than_any_is_lost() -> None:
    a, b = await pair()
    assert b.send([(bytes(70000), a.local_address), (b"after", a.local_address)]) == 2
    assert [data for data, _ in await receive(a, 1)] == [b"after"]
    a.close()
    b.close()


async def test_a_receiver_that_is_gone_disturbs_nobody() -> None:
    a, b = await pair()
    gone = a.local_address
    a.close()
    c = await open_udp_socket("127.0.0.1", 0)
    for _ in range(3):
        assert b.send([(b"anybody?", gone)]) == 1  # the answer is an error on the socket
        await trio.sleep(0.01)
    c.send([(b"here", b.local_address)])
    assert await receive(b, 1) == [(b"here", c.local_address)]
    b.close()
    c.close()


@pytest.mark.parametrize("waiting", ["wait_readable", "wait_writable"])
async def test_closing_wakes_who_waits(waiting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a = await open_udp_socket("127.0.0.1", 0)
    if waiting == "wait_writable":
        # A UDP socket nearly always is.
        monkeypatch.setattr(trio.lowlevel, "wait_writable", trio.lowlevel.wait_readable)

    async def expect_closed() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await getattr(a, waiting)()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed)
        if waiting == "wait_writable":
            nursery.start_soon(expect_closed)
        await trio.testing.wait_all_tasks_blocked()
        a.close()
    a.close()


async def test_a_closed_socket_says_so() -> None:
    a = await open_udp_socket("127.0.0.1", 0)
    a.close()
    with pytest.raises(trio.ClosedResourceError):
        a.receive()
    with pytest.raises(trio.ClosedResourceError):
        a.send([(b"x", ("127.0.0.1", 9))])
    for wait in (a.wait_readable, a.wait_writable):
        with pytest.raises(trio.ClosedResourceError), trio.testing.assert_checkpoints():
            await wait()
    assert a.local_address[0] == "127.0.0.1"


async def test_waiting_is_a_checkpoint_and_ends_when_something_comes() -> None:
    a, b = await pair()
    with trio.testing.assert_checkpoints():
        await a.wait_writable()
    b.send([(b"x", a.local_address)])
    with trio.testing.assert_checkpoints():
        await a.wait_readable()
    a.close()
    b.close()


# ---- binding


async def test_ipv6() -> None:
    a = await open_udp_socket("::1", 0)
    b = await open_udp_socket("::1", 0, family=socket.AF_INET6)
    assert (a.family, a.local_address[0]) == (socket.AF_INET6, "::1")
    b.send([(bytes(1200), a.local_address)] * 3)
    assert [len(data) for data, _ in await receive(a, 3)] == [1200] * 3
    a.close()
    b.close()


async def test_one_socket_for_both_families() -> None:
    (server,) = await open_udp_sockets(0, None)
    port = server.local_address[1]
    for host in ("127.0.0.1", "::1"):
        client = await open_udp_socket(host, 0)
        client.send([(host.encode(), (host, port))])
        ((data, sender),) = await receive(server, 1)
        assert data == host.encode()
        server.send([(b"answer", sender)])
        assert [data for data, _ in await receive(client, 1)] == [b"answer"]
        client.close()
    server.close()


async def test_a_client_s_socket_for_both_families_and_for_one() -> None:
    both = await open_udp_socket(None, 0)
    one = await open_udp_socket(None, 0, family=socket.AF_INET)
    assert both.family == socket.AF_INET6
    assert (one.family, one.local_address[0]) == (socket.AF_INET, "0.0.0.0")
    both.close()
    one.close()


async def test_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    (server,) = await open_udp_sockets(0, None)
    assert server.family == socket.AF_INET
    server.close()


async def test_all_addresses_of_a_host_get_the_same_port() -> None:
    sockets = await open_udp_sockets(0, "localhost")
    assert len({sock.local_address[1] for sock in sockets}) == 1
    assert {sock.local_address[0] for sock in sockets} <= {"127.0.0.1", "::1"}
    for sock in sockets:
        sock.close()


async def test_a_socket_that_is_broken_for_good_says_so() -> None:
    """What became of a packet is told once; an error that stays must not keep the event loop for itself."""
    a, b = await pair()
    calls = counted(a)
    failures = iter([errno.ECONNREFUSED] * 3)

    def fail(*_: object) -> None:
        raise OSError(next(failures, errno.EAGAIN), "no")

    calls.recvmsg = calls.recvfrom = fail  # type: ignore[attr-defined]
    assert a.receive() == []
    failures = repeat(errno.ENOMEM)
    with pytest.raises(OSError, match="no"):
        a.receive()
    a.close()
    b.close()


async def test_a_port_in_use_is_told_and_nothing_is_left_open() -> None:
    taken = await open_udp_socket("127.0.0.1", 0)
    port = taken.local_address[1]
    with pytest.raises(OSError, match="in use"):
        await open_udp_sockets(port, "localhost")
    with pytest.raises(OSError, match="in use"):
        await open_udp_socket("127.0.0.1", port)
    taken.close()
    for sock in await open_udp_sockets(port, "localhost"):
        sock.close()


@linux
async def test_packets_are_not_cut_into_fragments() -> None:
    """RFC 9000 section 14."""
    a = await open_udp_socket("127.0.0.1", 0)
    assert a._socket.getsockopt(socket.IPPROTO_IP, 10) == 3
    b = await open_udp_socket("::1", 0)
    assert b._socket.getsockopt(socket.IPPROTO_IPV6, 23) == 3
    a.close()
    b.close()
