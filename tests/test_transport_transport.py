"""Any stream as a transport."""

from __future__ import annotations

import ssl

import pytest
import trio
import trio.testing
import trustme
from hypothesis import given
from hypothesis import strategies as st

from trio_wt._transport.transport import CHUNK, Pieces, StreamTransport, take

# ---- pieces


@given(st.lists(st.binary(min_size=1, max_size=8), max_size=6), st.data())
def test_taking_from_pieces_leaves_the_rest(parts: list[bytes], draw: st.DataObject) -> None:
    pieces: Pieces = list(parts)
    whole = b"".join(parts)
    while whole:
        size = draw.draw(st.integers(0, len(whole)))
        take(pieces, size)
        whole = whole[size:]
        assert b"".join(pieces) == whole
        assert all(pieces), "what was sent is gone"
        if not size:
            break


def test_a_piece_is_not_copied_when_part_of_it_is_taken() -> None:
    large = bytes(1000)
    pieces: Pieces = [large, b"next"]
    take(pieces, 1)
    take(pieces, 1)
    first = pieces[0]
    assert isinstance(first, memoryview)
    assert first.obj is large
    assert len(first) == 998
    assert pieces[1] == b"next"


# ---- over streams in memory


class Sends(trio.abc.Stream):
    """A stream that notes what each call sends."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.calls.append(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytearray:
        await trio.lowlevel.checkpoint()
        return bytearray(b"received")

    async def aclose(self) -> None:
        await trio.sleep(5)


async def sent(*parts: bytes) -> list[bytes]:
    stream = Sends()
    transport = StreamTransport(stream)
    pieces: Pieces = list(parts)
    while pieces:
        await transport.send_some(pieces)
    return stream.calls


async def test_small_pieces_go_together_and_large_ones_in_chunks() -> None:
    assert await sent(b"a", b"bc", b"d") == [b"abcd"]
    large = bytes(i & 0xFF for i in range(CHUNK * 2 + 5))
    assert await sent(large) == [large[:CHUNK], large[CHUNK : 2 * CHUNK], large[2 * CHUNK :]]
    assert await sent(b"head", large[:CHUNK], b"tail") == [b"head", large[:CHUNK], b"tail"]
    half = bytes(CHUNK // 2)
    assert await sent(half, half) == [half + half]
    assert await sent(half, half, b"x") == [half + half, b"x"]


async def test_a_stream_sends_nothing_without_waiting_and_is_not_interrupted() -> None:
    stream = Sends()
    transport = StreamTransport(stream)
    assert transport.send_nowait(b"abc") == 0
    assert stream.calls == []
    assert not transport.interruptible
    with pytest.raises(TypeError, match="cannot be interrupted"):
        transport.interrupt()


async def test_what_is_received_is_bytes() -> None:
    data = await StreamTransport(Sends()).receive()
    assert type(data) is bytes
    assert data == b"received"


async def test_a_read_asks_for_64_kib() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(bytes(100_000))
    assert len(await StreamTransport(ours).receive()) == 65536


async def test_the_end_is_said_where_it_can_be() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    transport = StreamTransport(ours)
    await transport.send_eof()
    assert await theirs.receive_some() == b""
    await theirs.send_all(b"still here")
    assert await transport.receive() == b"still here"
    await transport.aclose(graceful=False)
    await transport.send_eof()  # errors are swallowed
    with trio.CancelScope() as scope:
        scope.cancel()
        await StreamTransport(Sends()).send_eof()
    assert scope.cancelled_caught, "a checkpoint where a stream cannot"
    await StreamTransport(Sends()).send_eof()


async def test_a_farewell_takes_a_second_at_most() -> None:
    for graceful, expected in ((True, 1), (False, 0)):
        start = trio.current_time()
        await StreamTransport(Sends()).aclose(graceful=graceful)
        assert trio.current_time() - start == pytest.approx(expected)


async def test_a_closed_stream_is_a_closed_resource() -> None:
    ours, _ = trio.testing.memory_stream_pair()
    transport = StreamTransport(ours)
    await transport.aclose(graceful=False)
    with pytest.raises(trio.ClosedResourceError):
        await transport.receive()
    with pytest.raises(trio.ClosedResourceError):
        await transport.send_some([b"x"])


async def test_addresses_are_what_it_was_told() -> None:
    ours, _ = trio.testing.memory_stream_pair()
    transport = StreamTransport(ours, peer=("192.0.2.1", 5), local="/socket")
    assert (transport.peer, transport.local) == (("192.0.2.1", 5), "/socket")
    assert StreamTransport(ours).peer is None
    assert StreamTransport(ours).local is None
    assert transport.certificate() is None


@pytest.mark.parametrize("shows", [True, False])
async def test_the_peers_certificate(shows: bool) -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    client_context = ssl.create_default_context()
    # In TLS 1.3 the client's certificate comes after its side of the handshake is done.
    server_context.maximum_version = ssl.TLSVersion.TLSv1_2
    authority.issue_cert("server.test").configure_cert(server_context)
    for context in (server_context, client_context):
        authority.configure_trust(context)
    if shows:
        authority.issue_cert("me@client.test").configure_cert(client_context)
    server_context.verify_mode = ssl.CERT_OPTIONAL
    a, b = trio.testing.memory_stream_pair()
    client = trio.SSLStream(a, client_context, server_hostname="server.test")
    server = trio.SSLStream(b, server_context, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        nursery.start_soon(server.do_handshake)
    of_server = StreamTransport(client).certificate()
    assert of_server is not None
    assert b"server.test" in of_server
    of_client = StreamTransport(server).certificate()
    assert (of_client is not None) is shows
    assert not shows or b"client.test" in (of_client or b"")
