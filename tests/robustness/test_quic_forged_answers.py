"""Somebody on the way to a server, who answers our client faster than the server does."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from aioquic.buffer import Buffer
from aioquic.quic.packet import (
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)

import trio_wt
from tests.robustness.quic_peer import CID_LENGTH, HOST, PORT, SERVER
from tests.robustness.quic_target import ask, certificate, echo
from tests.robustness.target import bounded_memory, tasks
from trio_wt.testing import Network, NetworkSocket

V1, V2 = 1, 0x6B3343CF


class Interloper:
    """Sees what a client sends, and may say something to it before the server does.

    Attributes:
        network: where they all are.
        answer: gets each datagram of the client's; what it returns is sent to the client at once.
        through: whether the client's datagrams reach the server.
    """

    def __init__(self) -> None:
        self.network = Network()
        self.answer: Callable[[bytes], list[bytes]] = lambda data: []
        self.through = True
        self.client: NetworkSocket = self.network.socket()
        self.network.drop = self._see

    def _see(self, data: bytes, source: Any, destination: Any) -> bool:
        if source == self.client.local_address:
            for number, forged in enumerate(self.answer(data)):
                # Half a millisecond: before anything from the server can arrive.
                due = trio.current_time() + 0.0005
                self.client._put(due, -1 - number, forged, SERVER)
            return self.through
        return True


@asynccontextmanager
async def on_the_way(**options: Any) -> AsyncIterator[Interloper]:
    """A real server of ours, and an interloper."""
    between = Interloper()
    before = tasks()
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[Any]) -> None:
            await trio_wt.serve_quic(
                echo,
                sockets=[between.network.socket(SERVER)],
                alpn=["test"],
                tls=trio_wt.ServerTLS(certificate()),
                task_status=task_status,
                **options,
            )

        await nursery.start(serve)
        with bounded_memory(4):
            yield between
        nursery.cancel_scope.cancel()
    assert tasks() == before


async def connect(between: Interloper, **settings: Any) -> None:
    """Connect, and see whether it works."""
    async with trio_wt.open_quic(
        HOST,
        PORT,
        **{
            "alpn": ["test"],
            "tls": trio_wt.ClientTLS(server_certificate_hashes=[certificate().sha256]),
            "socket": between.client,
            **settings,
        },
    ) as connection:
        await ask(connection, b"hello")
        await trio.sleep(0.1)
        await ask(connection, b"hello")


def header(data: bytes) -> Any:
    return pull_quic_header(Buffer(data=data), host_cid_length=CID_LENGTH)


def negotiation(data: bytes, *versions: int) -> bytes:
    """Version negotiation in answer to a client's packet."""
    its = header(data)
    return encode_quic_version_negotiation(
        source_cid=its.destination_cid,
        destination_cid=its.source_cid,
        supported_versions=list(versions),
    )


def retry(data: bytes, token: bytes, *, cid: bytes = b"retried!", honest: bool = True) -> bytes:
    """A Retry in answer to a client's packet; the key of its tag is known to everybody."""
    its = header(data)
    made = encode_quic_retry(
        version=its.version,
        source_cid=cid,
        destination_cid=its.source_cid,
        original_destination_cid=its.destination_cid,
        retry_token=token,
    )
    return made if honest else made[:-1] + bytes([made[-1] ^ 1])


def is_initial(data: bytes) -> bool:
    return data[0] & 0xF0 == 0xC0 and data[1:5] == bytes((0, 0, 0, 1))


IGNORED: dict[str, Callable[[bytes], list[bytes]]] = {
    "its own version": lambda data: [negotiation(data, V1)],
    "its own version and others": lambda data: [negotiation(data, 0x1A1A1A1A, V1, V2)],
    "no version": lambda data: [negotiation(data, V1)[:-4]] * 0,
    "version negotiation for somebody else": lambda data: [
        encode_quic_version_negotiation(
            source_cid=bytes(8), destination_cid=b"somebody", supported_versions=[0x1A1A1A1A]
        )
    ],
    "version negotiation that is cut off": lambda data: [negotiation(data, V2)[:-3]],
    "a Retry with a wrong tag": lambda data: [retry(data, b"token", honest=False)],
    "a Retry without a token": lambda data: [retry(data, b"")],
    "a Retry that is cut off": lambda data: [retry(data, b"token" * 10)[:-1]],
    "a Retry to the same connection id": lambda data: [
        retry(data, b"token", cid=header(data).destination_cid)
    ],
    "junk": lambda data: [os.urandom(size) for size in (1, 20, 60, 1200)],
    "an empty datagram": lambda data: [b""],
    "its own packet": lambda data: [data],
    "short packets": lambda data: [b"\x40" + header(data).source_cid + os.urandom(40)],
    "something that looks like a stateless reset": lambda data: [b"\x40" + os.urandom(40)],
    "a Handshake packet": lambda data: [
        b"\xe0\0\0\0\1\x08" + header(data).source_cid + b"\x08serverid\x40\x40" + os.urandom(64)
    ],
    "an Initial packet": lambda data: [
        b"\xc0\0\0\0\1\x08" + header(data).source_cid + b"\x08serverid\0\x40\x40" + os.urandom(64)
    ],
}


@pytest.mark.parametrize("kind", IGNORED)
async def test_forged_answers_that_are_ignored(kind: str) -> None:
    async with on_the_way() as between:
        between.answer = lambda data: IGNORED[kind](data) * 3 if is_initial(data) else []
        with trio.fail_after(2):
            await connect(between)


@pytest.mark.parametrize("kind", ["its own version", "a Retry with a wrong tag", "junk"])
async def test_flood_of_forged_answers(kind: str) -> None:
    async with on_the_way() as between:
        between.answer = lambda data: IGNORED[kind](data) * 500 if is_initial(data) else []
        with trio.fail_after(2):
            await connect(between)


async def test_forged_answers_when_it_is_too_late() -> None:
    """Once the server has said something, neither Retry nor version negotiation counts."""
    first: list[bytes] = []

    def late(data: bytes) -> list[bytes]:
        if is_initial(data) and not first:
            first.append(data)
            return []
        return [negotiation(first[0], 0x1A1A1A1A), retry(first[0], b"token")]

    async with on_the_way() as between:
        between.answer = late
        with trio.fail_after(2):
            await connect(between)


async def test_forged_version_negotiation_to_another_version() -> None:
    """It may not keep the two apart for long: they agree in the end, or the client says that it failed."""
    async with on_the_way() as between:
        between.answer = lambda data: [negotiation(data, V2)] if is_initial(data) else []
        with trio.fail_after(11):
            try:
                await connect(between)
            except trio_wt.HandshakeFailed:
                pass


async def test_forged_version_negotiation_to_nothing() -> None:
    """Somebody on the way can always prevent a handshake; the client says so at once."""
    async with on_the_way() as between:
        between.answer = lambda data: [negotiation(data, 0x1A1A1A1A)] if is_initial(data) else []
        with trio.fail_after(1), pytest.raises(trio_wt.HandshakeFailed, match="version"):
            await connect(between)


@pytest.mark.parametrize("policy", ["under-load", "always"])
async def test_forged_retry(policy: Any) -> None:
    """The real server knows that the token is not its own."""
    async with on_the_way(retry=policy) as between:
        between.answer = lambda data: [retry(data, b"token")] if is_initial(data) else []
        with trio.fail_after(11), pytest.raises(trio_wt.HandshakeFailed):
            await connect(between)


@pytest.mark.parametrize("size", [1000, 1100, 1120, 1130, 1140, 1150, 1160, 1170, 2000, 60_000])
async def test_retry_with_a_large_token(size: int) -> None:
    """When it leaves no room for a packet, connecting takes its time, and fails."""
    async with on_the_way() as between:
        between.answer = lambda data: (
            [retry(data, bytes(size))] if is_initial(data) and not header(data).token else []
        )
        between.through = False
        with pytest.raises(trio_wt.HandshakeFailed):
            await connect(between, handshake_timeout=3)
        assert between.network.statistics.sent < 40


async def test_retry_for_ever() -> None:
    """Only the first counts."""
    async with on_the_way() as between:
        between.answer = lambda data: [retry(data, os.urandom(8), cid=os.urandom(8))]
        between.through = False
        with pytest.raises(trio_wt.HandshakeFailed):
            await connect(between, handshake_timeout=3)
        assert between.network.statistics.sent < 20


async def test_silence() -> None:
    """Questions become rarer, and then there is an end."""
    async with on_the_way() as between:
        between.through = False
        start = trio.current_time()
        with pytest.raises(trio_wt.HandshakeFailed, match="10 s"):
            await connect(between)
        assert 9.9 < trio.current_time() - start < 10.5
        assert between.network.statistics.sent < 20
