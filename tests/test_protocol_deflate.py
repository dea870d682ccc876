"""permessage-deflate: payloads, against zlib used by hand and against wsproto."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, Event, TextMessage
from wsproto.extensions import PerMessageDeflate

from tests.deflate_peers import OPEN, Deflater, decode, encode, negotiate, noise
from trio_wt._protocol.deflate import Deflate
from trio_wt._protocol.events import Fragment
from trio_wt._protocol.extensions import (
    ExtensionCodec,
    ExtensionError,
    format_extension,
    parse_extensions,
)
from trio_wt._protocol.websocket import WebSocketProtocol

# ---- what is compressed


def test_short_messages_go_as_they_are_unless_insisted() -> None:
    codec, _ = negotiate(replace(OPEN, threshold=20), OPEN)
    for size, wanted, applied in [
        (19, None, False),
        (20, None, True),
        (19, True, True),
        (0, True, True),
        (20, False, False),
        (20_000, False, False),
    ]:
        data = b"a" * size
        out, is_applied = codec.encode(data, first=True, final=True, wanted=wanted)
        assert is_applied is applied
        assert (out == data) is not applied


def test_all_fragments_of_a_message_are_treated_alike() -> None:
    codec, server = negotiate(replace(OPEN, threshold=20), OPEN)
    # Its length is not known when the first fragment goes, so a short one is compressed too.
    fragments = encode(codec, b"a", b"b" * 100, b"", wanted=None)
    assert decode(server, b"".join(fragments)) == b"a" + b"b" * 100
    for first, final in ((True, False), (False, False), (False, True)):
        data = b"x" * 100
        assert codec.encode(data, first=first, final=final, wanted=False) == (data, False)
    # What went uncompressed between is not in the window.
    assert decode(server, encode(codec, b"b" * 100)[0]) == b"b" * 100


def test_compression_is_worth_it() -> None:
    codec, _ = negotiate(OPEN, OPEN)
    assert len(encode(codec, b"x" * 100_000)[0]) < 500


# ---- what may come in


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (["f248cdc9c90700"], [b"Hello"]),  # 7.2.3.1
        (["f248cdc9c90700", "f248cdc9c90700"], [b"Hello"] * 2),  # 7.2.3.2, not using the window
        (["f248cdc9c90700", "f200110000"], [b"Hello"] * 2),  # 7.2.3.2, using it
        (["000500faff48656c6c6f00"], [b"Hello"]),  # 7.2.3.3
        (["f348cdc9c9070000"], [b"Hello"]),  # 7.2.3.4
        (["f348cdc9c9070000", "f248cdc9c90700"], [b"Hello"] * 2),
        (["f24805000000ffffcac9c90700"], [b"Hello"]),  # 7.2.3.5
        (["00", "00", "f248cdc9c90700"], [b"", b"", b"Hello"]),  # 7.2.3.6
    ],
)
@pytest.mark.parametrize("piece", [1, 2, 100])
@pytest.mark.parametrize("max_length", [None, 5])
def test_the_examples_of_rfc_7692(
    messages: list[str], expected: list[bytes], piece: int, max_length: int | None
) -> None:
    _, server = negotiate(OPEN, OPEN)
    found = [
        decode(server, bytes.fromhex(message), piece=piece, max_length=max_length)
        for message in messages
    ]
    assert found == expected


def test_empty_messages_and_empty_final_fragments() -> None:
    client, server = negotiate(OPEN, OPEN)
    assert encode(client, b"") == [b"\x00"]  # 7.2.3.6
    assert decode(server, b"\x00") == b""
    for fragments in ((b"abc", b""), (b"", b"abc"), (b"", b""), (b"", b"", b"")):
        sent = encode(client, *fragments)
        assert decode(server, b"".join(sent)) == b"".join(fragments)
    assert encode(client, b"") == [b"\x00"]
    assert decode(server, b"\x00") == b""


def finished(data: bytes) -> bytes:
    """A deflate stream that says it is the last."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush(zlib.Z_FINISH)


@pytest.mark.parametrize("piece", [1, 3, 1024])
def test_streams_that_end_inside_a_message(piece: int) -> None:
    _, server = negotiate(OPEN, OPEN)

    parts = [b"one " * 300, b"", b"two " * 300]
    compressed = b"".join(map(finished, parts)) + b"\x00"
    assert decode(server, compressed, piece=piece) == b"".join(parts)
    # Also within a limit, and past it.
    assert decode(server, compressed, piece=piece, max_length=2400) == b"".join(parts)
    assert len(decode(server, compressed, piece=piece, max_length=2399)) == 2400


@pytest.mark.parametrize("garbage", [b"\xff" * 20, b"\x06", b"\xf2\x48\xff\xff\xff\xff"])
def test_garbage_is_an_extension_error(garbage: bytes) -> None:
    _, server = negotiate(OPEN, OPEN)
    with pytest.raises(ExtensionError, match="invalid compressed data"):
        decode(server, garbage + noise(50))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=4), st.integers(1, 20), st.booleans())
def test_no_bytes_raise_anything_else(messages: list[bytes], piece: int, limited: bool) -> None:
    _, server = negotiate(OPEN, OPEN)
    try:
        for message in messages:
            out = decode(server, message, piece=piece, max_length=100 if limited else None)
            assert not limited or len(out) <= 101
            if len(out) > 100:
                return
    except ExtensionError:
        return


# ---- bounded inflation


@pytest.mark.parametrize("size", [1, 63, 64, 1000, 100_000])
@pytest.mark.parametrize("piece", [1, 7, 1024])
def test_the_limit_is_exact(size: int, piece: int) -> None:
    for message in (b"a" * size, noise(min(size, 5000))):
        for slack in (0, 1):
            client, server = negotiate(OPEN, OPEN)
            data = encode(client, message)[0]
            assert decode(server, data, piece=piece, max_length=len(message) + slack) == message
        client, server = negotiate(OPEN, OPEN)
        data = encode(client, message)[0]
        out = decode(server, data, piece=piece, max_length=len(message) - 1)
        assert len(out) == len(message), "one byte more than allowed, and no more than that"


def test_the_limit_is_exact_without_any_room() -> None:
    client, server = negotiate(OPEN, OPEN)
    assert decode(server, encode(client, b"")[0], max_length=0) == b""
    assert decode(server, encode(client, b"x")[0], max_length=0) == b"x"


def test_a_bomb_gives_one_byte_too_many_and_stops() -> None:
    _, server = negotiate(OPEN, OPEN)
    bomb = Deflater(15, takeover=True).message(bytes(10_000_000))
    assert len(bomb) < 10_000
    assert server.decode(bomb, final=True, max_length=1000) == bytes(1001)


@pytest.mark.parametrize("before", [0, 1, 20, 21, 22])
def test_a_bomb_behind_the_end_of_a_stream_is_bounded_too(before: int) -> None:
    _, server = negotiate(OPEN, OPEN)
    data = finished(b"x" * before) + finished(bytes(1_000_000))
    assert server.decode(data, final=True, max_length=20) == (b"x" * before + bytes(21))[:21]


# ---- any message, any cut

MESSAGES = st.lists(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.builds(lambda unit, n: unit * n, st.binary(max_size=5), st.integers(0, 400)),
        ),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=4,
)
CONFIGURATIONS = st.builds(
    Deflate,
    client_max_window_bits=st.integers(9, 15),
    server_max_window_bits=st.integers(9, 15),
    client_no_context_takeover=st.booleans(),
    server_no_context_takeover=st.booleans(),
    threshold=st.just(0),
    level=st.integers(-1, 9),
    memory_level=st.integers(1, 9),
)


@settings(deadline=None)
@given(MESSAGES, CONFIGURATIONS, CONFIGURATIONS, st.integers(1, 300), st.booleans(), st.booleans())
def test_any_fragments_and_any_pieces_give_the_messages_back(
    messages: list[list[bytes]],
    client: Deflate,
    server: Deflate,
    piece: int,
    from_client: bool,
    limited: bool,
) -> None:
    at_client, at_server = negotiate(client, server)
    sender, receiver = (at_client, at_server) if from_client else (at_server, at_client)
    for fragments in messages:
        message = b"".join(fragments)
        data = b"".join(encode(sender, *fragments))
        limit = len(message) if limited else None
        assert decode(receiver, data, piece=piece, max_length=limit) == message


# ---- a second opinion


def wsproto_messages(events: Iterable[Event]) -> list[bytes]:
    messages, parts = [], b""
    for event in events:
        assert isinstance(event, TextMessage | BytesMessage)
        parts += event.data.encode() if isinstance(event, TextMessage) else bytes(event.data)
        if event.message_finished:
            messages.append(parts)
            parts = b""
    return messages


def our_messages(protocol: WebSocketProtocol, data: bytes) -> list[bytes]:
    protocol.receive_data(data)
    messages, parts = [], b""
    for event in protocol.events(10**9, 10**9):
        if isinstance(event, Fragment):
            parts += event.data
            if not event.final:
                continue
            event, parts = parts, b""
        assert isinstance(event, str | bytes)
        messages.append(event.encode() if isinstance(event, str) else event)
    return messages


@settings(deadline=None, max_examples=60)
@given(MESSAGES, CONFIGURATIONS, CONFIGURATIONS, st.booleans())
def test_wsproto_reads_us_and_we_read_wsproto(
    messages: list[list[bytes]], ours: Deflate, theirs: Deflate, we_are_client: bool
) -> None:
    peer = PerMessageDeflate(
        client_no_context_takeover=theirs.client_no_context_takeover,
        client_max_window_bits=theirs.client_max_window_bits,
        server_no_context_takeover=theirs.server_no_context_takeover,
        server_max_window_bits=theirs.server_max_window_bits,
    )
    if we_are_client:
        answer = peer.accept(format_extension(ours.name, ours.offer()[0]))
        ((_, parameters),) = parse_extensions(f"{ours.name}; {answer}")
        codec: ExtensionCodec | None = ours.confirm(parameters)
    else:
        ((_, offer),) = parse_extensions(f"{ours.name}; {peer.offer()}")
        codec = ours.accept(offer)
        assert codec is not None
        peer.finalize(format_extension(codec.name, codec.response))
    assert codec is not None
    protocol = WebSocketProtocol(client=we_are_client, codecs=[codec], max_message_size=None)
    kind = ConnectionType.SERVER if we_are_client else ConnectionType.CLIENT
    connection = Connection(kind, extensions=[peer])

    wire = b""
    for fragments in messages:
        for i, fragment in enumerate(fragments):
            final = i == len(fragments) - 1
            protocol.send_fragment(fragment, text=False, final=final, compress=True)
            wire += connection.send(BytesMessage(fragment, message_finished=final))
    pieces: list[bytes | memoryview] = []
    protocol.take_outgoing(pieces)
    connection.receive_data(b"".join(pieces))
    expected = [b"".join(fragments) for fragments in messages]
    assert wsproto_messages(connection.events()) == expected
    assert our_messages(protocol, wire) == expected
