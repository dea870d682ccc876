"""The Sec-WebSocket-Extensions header, negotiation, and an extension from outside."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.frames import parse_frames
from trio_wt import (
    ConnectionClosedError,
    Deflate,
    Extension,
    ExtensionCodec,
    ExtensionError,
    HandshakeFailed,
    Rejected,
)
from trio_wt._protocol.extensions import (
    Parameters,
    agree_as_client,
    agree_as_server,
    format_extension,
    parse_extensions,
)
from trio_wt._protocol.websocket import WebSocketProtocol
from trio_wt.testing import websocket_pair

# ---- the header


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", []),
        (" ,\t, ", []),
        ("foo", [("foo", [])]),
        ("foo, bar", [("foo", []), ("bar", [])]),
        ("foo,bar,,baz,", [("foo", []), ("bar", []), ("baz", [])]),
        (' foo ; a ; b = 2\t; c="3" ,', [("foo", [("a", None), ("b", "2"), ("c", "3")])]),
        ('foo; a="\\1\\2"', [("foo", [("a", "12")])]),
        ("foo; a=1; a=2; a", [("foo", [("a", "1"), ("a", "2"), ("a", None)])]),
        ("foo; a=1, foo; a=2", [("foo", [("a", "1")]), ("foo", [("a", "2")])]),
        ("x!#$%&'*+-.^_`|~9", [("x!#$%&'*+-.^_`|~9", [])]),
    ],
)  # fmt: skip
def test_parse(value: str, expected: list[tuple[str, Parameters]]) -> None:
    assert parse_extensions(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        "foo bar",
        "foo; ",
        "foo;",
        "foo; a b",
        "foo; a=",
        "foo; a=;b",
        "foo; =1",
        "; a",
        "foo; a=1 2",
        'foo; a="1',
        'foo; a="1\\"',
        'foo; a="1"2',
        'foo; a=""',
        'foo; a="1,2"',
        'foo; a="1 2"',
        'foo; a="\\ "',
        "foo=1",
        "foo/bar",
        "föö",
        "foo, ;",
        '"foo"',
    ],
)
def test_parse_refuses(value: str) -> None:
    with pytest.raises(ValueError, match="malformed"):
        parse_extensions(value)


@settings(deadline=None)
@given(st.one_of(st.text(max_size=40), st.text('ab9;,="\\ \t-\n\0é', max_size=30)))
def test_any_text_is_parsed_or_a_value_error(value: str) -> None:
    try:
        found = parse_extensions(value)
    except ValueError:
        return
    # What was understood says the same when written down again.
    again = ", ".join(format_extension(name, parameters) for name, parameters in found)
    assert parse_extensions(again) == found


TOKENS = st.text("abcxyz0189!#$%&'*+-.^_`|~", min_size=1, max_size=8)
PARAMETERS = st.lists(st.tuples(TOKENS, st.none() | TOKENS), max_size=4)


@settings(deadline=None)
@given(st.lists(st.tuples(TOKENS, PARAMETERS), max_size=4), st.sampled_from([", ", ",", " ,\t,"]))
def test_what_is_formatted_is_parsed_as_it_was(
    extensions: list[tuple[str, Parameters]], comma: str
) -> None:
    value = comma.join(format_extension(name, parameters) for name, parameters in extensions)
    assert parse_extensions(value) == extensions


def test_format() -> None:
    assert format_extension("foo", []) == "foo"
    assert format_extension("foo", [("a", None), ("b", "2")]) == "foo; a; b=2"


def test_parsing_takes_linear_time() -> None:
    with pytest.raises(ValueError, match="malformed"):
        parse_extensions("a" + "; b=1" * 50_000 + "\0")
    with pytest.raises(ValueError, match="malformed"):
        parse_extensions('a; b="' + "\\" * 100_001)


# ---- an extension as an application writes it


class Caesar(Extension):
    """Adds a number to every byte; the number is the client's parameter."""

    name: ClassVar[str] = "caesar"
    codec: ClassVar[type[CaesarCodec]]

    def __init__(self, by: int = 3, *, lies: bool = False) -> None:
        self.by = by
        self.lies = lies
        self.codecs: list[CaesarCodec] = []

    def _make(self, by: str) -> CaesarCodec:
        made = self.codec(int(by))
        self.codecs.append(made)
        return made

    def offer(self) -> Sequence[Parameters]:
        return [[("by", str(self.by))]]

    def confirm(self, response: Parameters) -> ExtensionCodec:
        by = dict(response).get("by")
        if by != str(self.by) or self.lies:
            raise ExtensionError("the number is another one")
        return self._make(by)

    def accept(self, offer: Parameters) -> ExtensionCodec | None:
        by = dict(offer).get("by")
        return None if by is None or int(by) > 255 else self._make(by)


class CaesarCodec(ExtensionCodec):
    name = "caesar"
    rsv = 0x20

    def __init__(self, by: int) -> None:
        self.response = [("by", str(by))]
        self.by = by
        self.encoded: list[tuple[bytes, bool, bool, bool | None]] = []
        self.decoded: list[tuple[int, bool, int | None]] = []

    def encode(
        self, data: bytes, *, first: bool, final: bool, wanted: bool | None
    ) -> tuple[bytes, bool]:
        self.encoded.append((data, first, final, wanted))
        if wanted is False:
            return data, False
        return bytes((byte + self.by) & 0xFF for byte in data), True

    def decode(self, data: bytes, *, final: bool, max_length: int | None) -> bytes:
        self.decoded.append((len(data), final, max_length))
        if b"\0" in data:
            raise ExtensionError("zero is never sent")
        return bytes((byte - self.by) & 0xFF for byte in data)


Caesar.codec = CaesarCodec


class Third(Caesar):
    name = "third"

    class Codec(CaesarCodec):
        name = "third"
        rsv = 0x10

    codec = Codec


class Rival(Caesar):
    """Another name on the same reserved bit."""

    name = "rival"

    class Codec(CaesarCodec):
        name = "rival"

    codec = Codec


# ---- negotiation


def server_chooses(offers: str, *supported: Extension) -> list[str]:
    return [
        format_extension(codec.name, codec.response) for codec in agree_as_server(offers, supported)
    ]


def test_a_server_takes_the_first_offer_it_can_of_each() -> None:
    offers = "caesar; by=300, unknown, caesar, caesar; by=5, caesar; by=6, third; by=1"
    assert server_chooses(offers, Caesar(), Third()) == ["caesar; by=5", "third; by=1"]


def test_a_servers_preference_is_the_order() -> None:
    offers = "caesar; by=1, third; by=2"
    assert server_chooses(offers, Third(), Caesar()) == ["third; by=2", "caesar; by=1"]


def test_a_server_declines_everything_it_does_not_know() -> None:
    assert server_chooses("x-webkit-deflate-frame, foo; a=1", Caesar()) == []
    assert server_chooses("", Caesar()) == []
    assert server_chooses("caesar; by=1") == []


def test_a_server_uses_no_reserved_bit_twice() -> None:
    offers = "rival; by=1, caesar; by=2, third; by=3"
    assert server_chooses(offers, Caesar(), Rival(), Third()) == ["caesar; by=2", "third; by=3"]
    assert server_chooses(offers, Rival(), Caesar(), Third()) == ["rival; by=1", "third; by=3"]


def test_an_extension_without_a_reserved_bit_is_chosen_once_too() -> None:
    class Bare(Caesar):
        name = "bare"

        class Codec(CaesarCodec):
            name = "bare"
            rsv = 0

        codec = Codec

    assert server_chooses("bare; by=1, bare; by=2", Bare(), Caesar()) == ["bare; by=1"]


def test_a_server_refuses_a_malformed_list() -> None:
    with pytest.raises(ValueError, match="malformed"):
        agree_as_server("caesar; by=1, foo bar", [Caesar()])


def test_a_client_takes_the_servers_order() -> None:
    codecs = agree_as_client("third; by=3, caesar; by=3", [Caesar(), Third()])
    assert [codec.name for codec in codecs] == ["third", "caesar"]
    assert agree_as_client("", [Caesar()]) == []


@pytest.mark.parametrize(
    ("response", "why"),
    [
        ("foo", "foo, which was not offered"),
        ("caesar; by=3, caesar; by=3", "not offered or is repeated"),
        ("caesar; by=4", "another one"),
        ("caesar", "another one"),
        ("caesar; by=3, rival; by=3", "rival, whose reserved bit is taken"),
    ],
)
def test_a_client_refuses_what_does_not_fit_its_offer(response: str, why: str) -> None:
    with pytest.raises(ExtensionError, match=why):
        agree_as_client(response, [Caesar(), Rival(), Third()])


def test_a_client_refuses_a_malformed_list() -> None:
    with pytest.raises(ValueError, match="malformed"):
        agree_as_client("caesar; by=", [Caesar()])


def test_names_are_found_whatever_their_case() -> None:
    class Upper(Caesar):
        name = "X-Caesar"

        class Codec(CaesarCodec):
            name = "X-Caesar"

        codec = Codec

    assert server_chooses("x-caesar; by=1", Upper()) == ["X-Caesar; by=1"]
    assert server_chooses("X-Caesar; By=1", Upper()) == ["X-Caesar; by=1"]
    assert [c.name for c in agree_as_client("X-Caesar; by=3", [Upper()])] == ["X-Caesar"]


# ---- on the wire


def wire(protocol: WebSocketProtocol) -> list[tuple[int, bytes]]:
    pieces: list[bytes | memoryview] = []
    protocol.take_outgoing(pieces)
    return parse_frames(b"".join(pieces))


def test_the_reserved_bit_is_in_the_first_frame_only() -> None:
    protocol = WebSocketProtocol(client=False, codecs=[CaesarCodec(1)])
    protocol.send_fragment(b"a", text=True, final=False)
    protocol.send_ping(b"a")
    protocol.send_fragment(b"b", text=True, final=True)
    protocol.send_message(b"c", text=False)
    protocol.send_message(b"d", text=False, compress=False)
    assert wire(protocol) == [
        (0x21, b"b"),
        (0x89, b"a"),
        (0x80, b"c"),
        (0xA2, b"d"),
        (0x82, b"d"),
    ]


def test_two_extensions_work_in_the_order_of_the_response() -> None:
    (deflate,) = agree_as_server("permessage-deflate", [Deflate(threshold=0)])
    server = WebSocketProtocol(client=False, codecs=[deflate, CaesarCodec(1)])
    server.send_message(b"a" * 100, text=False)
    ((first, payload),) = wire(server)
    assert first == 0x82 | 0x40 | 0x20
    (deflate,) = agree_as_server("permessage-deflate", [Deflate()])
    undone = CaesarCodec(1).decode(payload, final=True, max_length=None)
    assert deflate.decode(undone, final=True, max_length=None) == b"a" * 100


async def test_an_extension_end_to_end() -> None:
    ours, theirs = Caesar(7), Caesar()
    async with websocket_pair(
        extensions=[ours], server_settings={"extensions": [theirs]}, compression=None
    ) as (client, server):
        assert client.extensions == server.extensions == ["caesar"]
        assert server.response_headers["Sec-WebSocket-Extensions"] == "caesar; by=7"
        messages: list[str | bytes] = ["text é", "", b"", bytes(range(249)) * 300]
        for sender, receiver in ((client, server), (server, client)):
            for message in messages:
                await sender.send(message)
                assert await receiver.receive() == message
            await sender.send("plain", compress=False)
            assert await receiver.receive() == "plain"
    for codec in (*ours.codecs, *theirs.codecs):
        # In pieces, of whole messages; what went plain is not decoded.
        assert sum(size for size, _, _ in codec.decoded) == 249 * 300 + 7
        assert max(size for size, _, _ in codec.decoded) == 1024
        assert len([final for _, final, _ in codec.decoded if final]) == len(messages)
        assert codec.encoded[0] == ("text é".encode(), True, True, None)
        assert codec.encoded[-1] == (b"plain", True, True, False)


async def test_fragments_are_told_apart() -> None:
    extension = Caesar()
    async with websocket_pair(extensions=[extension], compression=None) as (client, server):
        await client.send(["a", "b"], compress=True)
        assert await server.receive() == "ab"
        codec = next(codec for codec in extension.codecs if codec.encoded)
        assert codec.encoded == [
            (b"a", True, False, True),
            (b"b", False, False, True),
            (b"", False, True, True),
        ]


async def test_one_side_alone_does_without() -> None:
    for client_has in (True, False):
        mine: Sequence[Extension] = [Caesar()] if client_has else []
        theirs: Sequence[Extension] = [] if client_has else [Caesar()]
        async with websocket_pair(
            extensions=mine, server_settings={"extensions": theirs}, compression=None
        ) as (client, server):
            assert client.extensions == server.extensions == []
            await client.send("as it is")
            assert await server.receive() == "as it is"


async def test_what_a_codec_refuses_is_1007() -> None:
    async with websocket_pair(extensions=[Caesar(1)], compression=None) as (client, server):
        await client.send(b"\xff")
        with pytest.raises(ConnectionClosedError, match="zero is never sent") as caught:
            await server.receive()
        assert (caught.value.code, caught.value.remote) == (1007, False)
        await client.wait_closed()
        assert client.close_code == 1007


class Growing(Caesar):
    """Ten bytes come out of each."""

    name = "growing"

    class Codec(CaesarCodec):
        name = "growing"

        def decode(self, data: bytes, *, final: bool, max_length: int | None) -> bytes:
            self.decoded.append((len(data), final, max_length))
            return data * 10

    codec = Codec


async def test_the_message_limit_holds_for_what_comes_out() -> None:
    extension = Growing()
    async with websocket_pair(
        extensions=[extension], compression=None, max_message_size=20_000
    ) as (client, server):
        await client.send(bytes(2000))
        assert len(await server.receive()) == 20_000
        codec = next(codec for codec in extension.codecs if codec.decoded)
        assert codec.decoded == [(1024, False, 20_000), (976, True, 9760)]
        await client.send(bytes(2001))
        with pytest.raises(ConnectionClosedError):
            await server.receive()
        assert server.close_code == 1009


class Plain(Caesar):
    """Changes nothing but its reserved bit."""

    name = "plain"

    class Codec(CaesarCodec):
        name = "plain"

        def encode(
            self, data: bytes, *, first: bool, final: bool, wanted: bool | None
        ) -> tuple[bytes, bool]:
            return data, True

        def decode(self, data: bytes, *, final: bool, max_length: int | None) -> bytes:
            return data

    codec = Codec


async def test_the_limit_is_for_the_message_not_for_what_passes_between_two_extensions() -> None:
    # Uncompressed deflate blocks are a few bytes longer than what they hold.
    message = bytes(range(250))
    compression = Deflate(threshold=0, level=0)
    async with websocket_pair(
        extensions=[Plain()], compression=compression, max_message_size=len(message)
    ) as (client, server):
        assert client.extensions == ["permessage-deflate", "plain"]
        await client.send(message)
        assert await server.receive() == message


async def test_both_together_end_to_end() -> None:
    async with websocket_pair(extensions=[Plain()], compression=Deflate(threshold=0)) as (
        client,
        server,
    ):
        for message in ("text é" * 1000, "", b"", bytes(range(256)) * 300):
            await client.send(message)
            assert await server.receive() == message
            await server.send([message, message[:0], message])
            assert await client.receive() == message + message  # type: ignore[operator]


async def test_a_response_that_the_client_refuses_fails_the_handshake() -> None:
    with pytest.raises(HandshakeFailed, match="the number is another one") as caught:
        async with websocket_pair(
            extensions=[Caesar(lies=True)], server_settings={"extensions": [Caesar()]}
        ):
            pytest.fail("nothing is open")
    assert not isinstance(caught.value, Rejected)


async def test_an_extension_that_fails_in_the_handshake_is_logged_and_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Caesar):
        def accept(self, offer: Parameters) -> ExtensionCodec | None:
            raise ZeroDivisionError

    with pytest.raises(Rejected) as caught:
        async with websocket_pair(
            extensions=[Caesar()], server_settings={"extensions": [Broken()]}
        ):
            pytest.fail("nothing is open")
    assert caught.value.status == 500
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
