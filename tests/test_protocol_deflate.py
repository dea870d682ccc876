"""permessage-deflate, against zlib used by hand and against wsproto."""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace

import wsproto
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.events import BytesMessage, Event, TextMessage
from wsproto.extensions import PerMessageDeflate

import pytest

from trio_wt._protocol.deflate import Deflate
from trio_wt._protocol.events import Fragment
from trio_wt._protocol.extensions import (
    ExtensionCodec,
    ExtensionError,
    Parameters,
    agree_as_client,
    agree_as_server,
    format_extension,
    parse_extensions,
)
from trio_wt._protocol.websocket import WebSocketProtocol

TAIL = b"\x00\x00\xff\xff"
#: no compression limits, nothing left uncompressed for being short
OPEN = Deflate(client_max_window_bits=15, server_max_window_bits=15, threshold=0)


def negotiate(
    client: Deflate, server: Deflate, offer: str | None = None
) -> tuple[ExtensionCodec, ExtensionCodec]:
    """Both sides' codecs, by way of the headers' text."""
    if offer is None:
        offer = ", ".join(format_extension(client.name, parameters) for parameters in client.offer())
    (at_server,) = agree_as_server(offer, [server])
    response = format_extension(at_server.name, at_server.response)
    (at_client,) = agree_as_client(response, [client])
    return at_client, at_server


def encode(codec: ExtensionCodec, *fragments: bytes, wanted: bool | None = True) -> list[bytes]:
    """A message in fragments, as it goes out; checks that it is compressed."""
    found = []
    for i, fragment in enumerate(fragments):
        out, applied = codec.encode(
            fragment, first=i == 0, final=i == len(fragments) - 1, wanted=wanted
        )
        assert applied
        found.append(out)
    return found


def decode(
    codec: ExtensionCodec, data: bytes, *, piece: int = 1024, max_length: int | None = None
) -> bytes:
    """A message as it comes in, cut into pieces."""
    out = b""
    starts = range(0, len(data), piece) if data else [0]
    for at in starts:
        room = None if max_length is None else max_length - len(out)
        out += codec.decode(
            data[at : at + piece], final=at + piece >= len(data), max_length=room
        )
        if max_length is not None and len(out) > max_length:
            break
    return out


class Inflater:
    """A peer that has its window and nothing else: zlib may not look back into what it gave out."""

    def __init__(self, bits: int, *, takeover: bool) -> None:
        self._bits = bits
        self._takeover = takeover
        self._zlib = zlib.decompressobj(-bits)

    def message(self, data: bytes) -> bytes:
        out, data = b"", data + TAIL
        while True:
            part = self._zlib.decompress(data, 32)
            out, data = out + part, self._zlib.unconsumed_tail
            if not part and not data:
                break
        if not self._takeover:
            self._zlib = zlib.decompressobj(-self._bits)
        return out


class Deflater:
    """A peer that uses all of its window."""

    def __init__(self, bits: int, *, takeover: bool) -> None:
        self._make: Callable[[], zlib._Compress] = lambda: zlib.compressobj(
            9, zlib.DEFLATED, -bits, 9
        )
        self._takeover = takeover
        self._zlib = self._make()

    def message(self, data: bytes) -> bytes:
        out = self._zlib.compress(data) + self._zlib.flush(zlib.Z_SYNC_FLUSH)
        if not self._takeover:
            self._zlib = self._make()
        return out.removesuffix(TAIL)


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def far_back(bits: int) -> bytes:
    """Data that a compressor shortens only if its window is larger than ``2**bits`` bytes."""
    block = noise(2**bits)
    return block + block


# ---- negotiation


@pytest.mark.parametrize(
    ("configuration", "offer"),
    [
        (Deflate(), "server_max_window_bits=12; client_max_window_bits=12"),
        (OPEN, "client_max_window_bits"),
        (
            Deflate(
                client_max_window_bits=8,
                server_max_window_bits=15,
                client_no_context_takeover=True,
            ),
            "client_no_context_takeover; client_max_window_bits=8",
        ),
        (
            Deflate(server_no_context_takeover=True, server_max_window_bits=8),
            "server_no_context_takeover; server_max_window_bits=8; client_max_window_bits=12",
        ),
    ],
)
def test_what_a_client_offers(configuration: Deflate, offer: str) -> None:
    texts = [format_extension("x", parameters) for parameters in configuration.offer()]
    assert texts == [f"x; {offer}"]


def accepted(offer: str, server: Deflate) -> str | None:
    codecs = agree_as_server(offer, [server])
    return format_extension(codecs[0].name, codecs[0].response) if codecs else None


@pytest.mark.parametrize(
    ("offer", "server", "response"),
    [
        ("", OPEN, ""),
        ("", Deflate(), "; server_max_window_bits=12"),
        ("; client_max_window_bits", OPEN, ""),
        ("; client_max_window_bits", Deflate(), "; server_max_window_bits=12; client_max_window_bits=12"),
        ("; client_max_window_bits=10", OPEN, "; client_max_window_bits=10"),
        ("; client_max_window_bits=15", replace(OPEN, client_max_window_bits=9), "; client_max_window_bits=9"),
        ("; client_max_window_bits=8", replace(OPEN, client_max_window_bits=9), "; client_max_window_bits=8"),
        ("; server_max_window_bits=9", Deflate(), "; server_max_window_bits=9"),
        ("; server_max_window_bits=8", OPEN, "; server_max_window_bits=8"),
        ("; server_max_window_bits=15", OPEN, ""),
        ("; server_no_context_takeover", OPEN, "; server_no_context_takeover"),
        ("; client_no_context_takeover", OPEN, "; client_no_context_takeover"),
        ("", replace(OPEN, server_no_context_takeover=True), "; server_no_context_takeover"),
        ("", replace(OPEN, client_no_context_takeover=True), "; client_no_context_takeover"),
        ('; server_max_window_bits="10"', OPEN, "; server_max_window_bits=10"),
    ],
)  # fmt: skip
def test_what_a_server_answers(offer: str, server: Deflate, response: str) -> None:
    assert accepted("permessage-deflate" + offer, server) == "permessage-deflate" + response


BAD = [
    "unknown",
    "unknown=1",
    "server_no_context_takeover=1",
    "client_no_context_takeover=true",
    "server_max_window_bits",
    "server_max_window_bits=7",
    "server_max_window_bits=16",
    "server_max_window_bits=08",
    "server_max_window_bits=+9",
    "server_max_window_bits=x",
    "client_max_window_bits=7",
    "client_max_window_bits=16",
    "client_max_window_bits=010",
    "client_max_window_bits=9a",
    "server_no_context_takeover; server_no_context_takeover",
    "client_no_context_takeover; client_no_context_takeover",
    "server_max_window_bits=9; server_max_window_bits=9",
    "client_max_window_bits=9; client_max_window_bits=10",
]


@pytest.mark.parametrize("parameters", [*BAD, "client_max_window_bits; client_max_window_bits"])
def test_a_server_declines_what_it_cannot_accept_and_takes_the_next(parameters: str) -> None:
    offer = f"permessage-deflate; {parameters}"
    assert accepted(offer, OPEN) is None
    assert accepted(f"{offer}, permessage-deflate; client_max_window_bits=9", OPEN) == (
        "permessage-deflate; client_max_window_bits=9"
    )


@pytest.mark.parametrize("parameters", [*BAD, "client_max_window_bits"])
def test_a_client_refuses_the_same_in_a_response(parameters: str) -> None:
    with pytest.raises(ExtensionError, match="parameter"):
        agree_as_client(f"permessage-deflate; {parameters}", [OPEN])


@pytest.mark.parametrize(
    ("client", "response", "why"),
    [
        (Deflate(), "", "larger window"),
        (Deflate(), "; server_max_window_bits=13", "larger window"),
        (
            Deflate(server_no_context_takeover=True),
            "; server_max_window_bits=12",
            "ignores server_no_context_takeover",
        ),
    ],
)
def test_a_response_may_not_loosen_what_was_asked_for(
    client: Deflate, response: str, why: str
) -> None:
    with pytest.raises(ExtensionError, match=why):
        agree_as_client("permessage-deflate" + response, [client])


@pytest.mark.parametrize(
    "response",
    [
        "permessage-deflate",
        "permessage-deflate; server_max_window_bits=8; client_max_window_bits=8",
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    ],
)
def test_a_response_may_tighten_it(response: str) -> None:
    (codec,) = agree_as_client(response, [OPEN])
    assert format_extension(codec.name, codec.response) == response


@pytest.mark.parametrize(
    "wrong",
    [
        {"client_max_window_bits": 7},
        {"client_max_window_bits": 16},
        {"server_max_window_bits": 7},
        {"server_max_window_bits": 16},
        {"level": -2},
        {"level": 10},
        {"memory_level": 0},
        {"memory_level": 10},
        {"threshold": -1},
    ],
)
def test_a_configuration_out_of_range_is_refused(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        Deflate(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", range(-1, 10))
@pytest.mark.parametrize("memory_level", [1, 9])
def test_every_level_works(level: int, memory_level: int) -> None:
    client, server = negotiate(Deflate(level=level, memory_level=memory_level), OPEN)
    data = b"level " * 500
    assert decode(server, b"".join(encode(client, data))) == data


# ---- every pair of configurations


@pytest.mark.parametrize("from_client", [True, False])
def test_every_pair_of_configurations_agrees_on_what_both_can(from_client: bool) -> None:
    side = "client" if from_client else "server"
    values = list(itertools.product(range(8, 16), range(8, 16), [False, True], [False, True]))
    for ours, theirs, forget, insist in values:
        client = replace(OPEN, **{f"{side}_max_window_bits": ours, f"{side}_no_context_takeover": forget})
        server = replace(OPEN, **{f"{side}_max_window_bits": theirs, f"{side}_no_context_takeover": insist})
        at_client, at_server = negotiate(client, server)
        sender, receiver = (at_client, at_server) if from_client else (at_server, at_client)
        bits, takeover = min(ours, theirs), not (forget or insist)
        agreed = dict(at_server.response)
        assert int(agreed.get(f"{side}_max_window_bits") or 15) == bits
        assert (f"{side}_no_context_takeover" not in agreed) is takeover
        message = b"again and again " * 8
        if bits == 8:  # zlib cannot compress with it
            assert sender.encode(message, first=True, final=True, wanted=True) == (message, False)
            continue
        first, second = encode(sender, message)[0], encode(sender, message)[0]
        assert (len(second) < len(first)) is takeover
        if not takeover:
            assert second == first
        peer = Inflater(bits, takeover=takeover)
        assert peer.message(first) == peer.message(second) == message
        assert decode(receiver, first, piece=5) == decode(receiver, second, piece=5) == message


@pytest.mark.parametrize("bits", range(9, 16))
@pytest.mark.parametrize("from_client", [True, False])
def test_the_window_agreed_on_is_kept_by_the_sender(bits: int, from_client: bool) -> None:
    side = "client" if from_client else "server"
    for asking, allowing in ((bits, 15), (15, bits)):
        codecs = negotiate(
            replace(OPEN, **{f"{side}_max_window_bits": asking}),
            replace(OPEN, **{f"{side}_max_window_bits": allowing}),
        )
        sender = codecs[0] if from_client else codecs[1]
        data = far_back(bits)
        assert Inflater(bits, takeover=True).message(encode(sender, data)[0]) == data


@pytest.mark.parametrize("bits", range(9, 16))
@pytest.mark.parametrize("from_client", [True, False])
def test_the_whole_window_may_be_used_by_the_peer(bits: int, from_client: bool) -> None:
    side = "client" if from_client else "server"
    codecs = negotiate(replace(OPEN, **{f"{side}_max_window_bits": bits}), OPEN)
    receiver = codecs[1] if from_client else codecs[0]
    peer = Deflater(bits, takeover=True)
    block = noise(2**bits - 300)
    first, second = peer.message(block), peer.message(block)
    assert len(second) < len(block) / 4, "the peer looks back that far"
    assert decode(receiver, first, piece=200) == block
    assert decode(receiver, second, piece=1) == block


def test_a_server_that_was_not_told_of_a_limit_takes_any_window() -> None:
    # RFC 7692 section 7.1.2.2: without the parameter in the offer none may be in the response.
    (codec,) = agree_as_server("permessage-deflate", [Deflate(client_max_window_bits=9)])
    assert "client_max_window_bits" not in dict(codec.response)
    peer, block = Deflater(15, takeover=True), noise(30_000)
    assert decode(codec, peer.message(block) + b"") == block
    assert decode(codec, peer.message(block), piece=1) == block


def test_a_client_keeps_its_own_limit_whatever_the_server_allows() -> None:
    (codec,) = agree_as_client(
        "permessage-deflate; client_max_window_bits=15",
        [replace(OPEN, client_max_window_bits=9)],
    )
    data = far_back(9)
    assert Inflater(9, takeover=True).message(encode(codec, data)[0]) == data


@pytest.mark.parametrize("takeover", [True, False])
def test_a_peer_without_takeover_is_read_either_way(takeover: bool) -> None:
    configuration = replace(OPEN, client_no_context_takeover=not takeover)
    _, server = negotiate(configuration, OPEN)
    peer = Deflater(15, takeover=takeover)
    for number in range(3):
        message = b"message %d " % number * 30
        assert decode(server, peer.message(message)) == message


def test_a_peer_that_takes_over_its_context_against_the_agreement_is_found_out() -> None:
    _, server = negotiate(replace(OPEN, client_no_context_takeover=True), OPEN)
    peer, message = Deflater(15, takeover=True), noise(200)
    assert decode(server, peer.message(message)) == message
    with pytest.raises(ExtensionError, match="invalid compressed data"):
        decode(server, peer.message(message))


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


@pytest.mark.parametrize("piece", [1, 3, 1024])
def test_streams_that_end_inside_a_message(piece: int) -> None:
    _, server = negotiate(OPEN, OPEN)

    def finished(data: bytes) -> bytes:
        compressor = zlib.compressobj(wbits=-15)
        return compressor.compress(data) + compressor.flush(zlib.Z_FINISH)

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
    kind = wsproto.ConnectionType.SERVER if we_are_client else wsproto.ConnectionType.CLIENT
    connection = wsproto.Connection(kind, extensions=[peer])

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


def test_parameters_that_were_agreed_on_can_be_seen() -> None:
    _, server = negotiate(Deflate(client_max_window_bits=9), Deflate())
    agreed: Parameters = [("server_max_window_bits", "12"), ("client_max_window_bits", "9")]
    assert list(server.response) == agreed
    assert server.name == "permessage-deflate"
    assert server.rsv == 0x40
