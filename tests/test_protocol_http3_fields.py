"""Field sections: QPACK without a dynamic table (RFC 9204), and which messages are well formed (RFC 9114 sections 4.2 and 4.3)."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import pylsqpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trio_wt._protocol.http3_codes import Http3Code, Http3Error
from trio_wt._protocol.http3_fields import (
    DecoderInstructions,
    EncoderInstructions,
    Fields,
    MalformedMessage,
    Qpack,
    RequestHead,
    ResponseHead,
    TooManyFields,
    content_length,
    parse_request,
    parse_response,
    parse_trailers,
)

MAX_SIZE, MAX_FIELDS = 65536, 128
# What precedes the lines of a section that has no use for a dynamic table (RFC 9204 section 4.5.1).
PREFIX = b"\0\0"
GET = b"\xd1"
# Entries of the static table (RFC 9204 appendix A).
STATIC = {
    0: (b":authority", b""),
    1: (b":path", b"/"),
    4: (b"content-length", b"0"),
    15: (b":method", b"CONNECT"),
    17: (b":method", b"GET"),
    23: (b":scheme", b"https"),
    25: (b":status", b"200"),
    62: (b"x-xss-protection", b"1; mode=block"),
    63: (b":status", b"100"),
    72: (b"accept-language", b""),
    98: (b"x-frame-options", b"sameorigin"),
}
# Strings in Huffman's code (RFC 7541 appendix C).
HUFFMAN = {
    b"www.example.com": bytes.fromhex("f1e3c2e5f23a6ba0ab90f4ff"),
    b"no-cache": bytes.fromhex("a8eb10649cbf"),
    b"custom-key": bytes.fromhex("25a849e95ba97d7f"),
    b"custom-value": bytes.fromhex("25a849e95bb8e8b4bf"),
}
EIGHT_A = bytes.fromhex("18c6318c63")


def qpack(max_size: int = MAX_SIZE, max_fields: int = MAX_FIELDS) -> Qpack:
    return Qpack(max_size, max_fields)


def integer(value: int, bits: int, flags: int, padding: int = 0) -> bytes:
    """An integer with a prefix (RFC 7541 section 5.1), perhaps longer than it need be."""
    mask = (1 << bits) - 1
    if value < mask:
        return bytes([flags | value])
    value -= mask
    data = [flags | mask]
    while value >= 0x80 or padding:
        if value < 0x80:
            padding -= 1
        data.append(0x80 | value & 0x7F)
        value >>= 7
    return bytes([*data, value])


def string(value: bytes, bits: int = 7, flags: int = 0, *, huffman: bool = False) -> bytes:
    if huffman:
        value, flags = HUFFMAN[value], flags | 1 << bits
    return integer(len(value), bits, flags) + value


def literal(name: bytes, value: bytes) -> bytes:
    return string(name, 3, 0x20) + string(value)


def refused(section: bytes) -> Http3Code:
    with pytest.raises(Http3Error) as caught:
        qpack().decode(section)
    return caught.value.code


# ---- encoding


def test_what_is_encoded_needs_no_table_but_the_static_one() -> None:
    fields = [(b":method", b"GET"), (b"x-frame-options", b"sameorigin"), (b"a", b"b")]
    section = qpack().encode(fields)
    assert section[:2] == PREFIX
    assert section == PREFIX + GET + b"\xff\x23" + section[5:]
    assert qpack().decode(section) == fields


@given(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from([b":path", b"cookie", b"x"]), st.binary(min_size=1)),
            st.one_of(st.binary(max_size=40), st.sampled_from([b"/", b"0", b"x" * 5000])),
        ),
        max_size=12,
    )
)
@settings(deadline=None)
def test_any_fields_come_back(fields: Fields) -> None:
    section = qpack().encode(fields)
    assert qpack().decode(section) == fields
    if fields:
        # With a decoder of its own, too.
        assert pylsqpack.Decoder(0, 0).feed_header(0, section)[1] == fields


def test_connections_have_nothing_in_common_but_the_coder() -> None:
    """The coder is shared, so nothing of a connection may stay in it."""
    one, other = qpack(), qpack()
    secret = [(b"authorization", b"secret"), (b"x-custom", b"value")]
    before = other.encode(secret)
    for _ in range(100):
        one.encode(secret)
    assert other.encode(secret) == before
    for _ in range(100):
        assert refused(b"\x02\x00\x80") == Http3Code.QPACK_DECOMPRESSION_FAILED
        assert other.decode(before) == secret


# ---- decoding


@pytest.mark.parametrize(("index", "line"), STATIC.items())
def test_the_static_table(index: int, line: tuple[bytes, bytes]) -> None:
    assert qpack().decode(PREFIX + integer(index, 6, 0xC0)) == [line]
    for flags in (0x50, 0x70):  # the N bit means nothing here
        section = PREFIX + integer(index, 4, flags) + string(b"value")
        assert qpack().decode(section) == [(line[0], b"value")]


def test_literals() -> None:
    for flags in (0x20, 0x30):
        section = PREFIX + string(b"custom-key", 3, flags) + string(b"custom-value")
        assert qpack().decode(section) == [(b"custom-key", b"custom-value")]
        section = PREFIX + string(b"custom-key", 3, flags, huffman=True)
        section += string(b"custom-value", huffman=True)
        assert qpack().decode(section) == [(b"custom-key", b"custom-value")]


def test_a_section_without_lines() -> None:
    """It is nothing; whether that makes sense is not QPACK's affair."""
    assert qpack().decode(PREFIX) == []
    assert qpack().decode(b"\x00\x05") == []


@pytest.mark.parametrize(
    "section",
    [
        b"",
        b"\x00",
        # prefixes that are cut off
        b"\xff",
        b"\x00\x7f",
        b"\x00\x7f\x80",
        b"\x00\xff",
        # RFC 9204 section 4.5.1.2: with a Sign bit of 1, Delta Base must be less than the Required Insert Count.
        b"\x00\x80" + GET,
        b"\x00\x85",
        # an index behind the static table
        PREFIX + integer(99, 6, 0xC0),
        PREFIX + integer(2**62 - 1, 6, 0xC0),
        PREFIX + integer(99, 4, 0x50) + string(b"x"),
        # lines that are cut off
        PREFIX + b"\xff",
        PREFIX + b"\xff\x80",
        PREFIX + b"\x51",
        PREFIX + b"\x51\x05abc",
        PREFIX + b"\x23ab",
        PREFIX + b"\x23abc",
        PREFIX + b"\x23abc\x7f",
        PREFIX + GET + b"\x23abc\x01",
        # an integer of more bits than there are
        PREFIX + b"\xff" + b"\xff" * 12 + b"\x01",
        PREFIX + b"\x27" + b"\xff" * 12 + b"\x01",
        # Huffman's code with a padding of more than 7 bits, of zeros, and with the end of the string in it
        PREFIX + b"\x51\x82\xf1\xff",
        PREFIX + b"\x51\x81\x00",
        PREFIX + b"\x51\x84\xff\xff\xff\xff",
    ],
)
def test_sections_that_cannot_be_read(section: bytes) -> None:
    assert refused(section) == Http3Code.QPACK_DECOMPRESSION_FAILED


@pytest.mark.parametrize(
    "section",
    [
        PREFIX + integer(0, 6, 0x80),
        PREFIX + integer(70, 6, 0x80),
        PREFIX + integer(0, 4, 0x40) + string(b"x"),
        PREFIX + integer(0, 4, 0x10),
        PREFIX + integer(0, 3, 0x00) + string(b"x"),
        # with a Required Insert Count, of which the peer might think that we wait for it
        b"\x01\x00" + integer(0, 6, 0x80),
        b"\x02\x00" + integer(0, 6, 0x80),
        b"\x02\x00" + GET,
        b"\x02\x80" + integer(0, 4, 0x10),
        b"\xff\x80\x01\x00" + integer(0, 6, 0x80),
        PREFIX + GET + GET + integer(0, 6, 0x80) + GET,
    ],
)
def test_references_to_a_dynamic_table(section: bytes) -> None:
    """RFC 9204 section 2.2.3: there are no entries, so they are invalid, and nothing waits for them."""
    assert refused(section) == Http3Code.QPACK_DECOMPRESSION_FAILED
    assert qpack().decode(PREFIX + GET) == [STATIC[17]]


# ---- limits


def test_as_many_lines_as_there_may_be() -> None:
    assert qpack().decode(PREFIX + GET * MAX_FIELDS) == [STATIC[17]] * MAX_FIELDS
    with pytest.raises(TooManyFields):
        qpack().decode(PREFIX + GET * (MAX_FIELDS + 1))
    with pytest.raises(TooManyFields):
        qpack(max_fields=1).decode(PREFIX + GET * 2)


@pytest.mark.parametrize(
    "line",
    [
        GET,
        integer(98, 6, 0xC0),
        integer(98, 6, 0xC0, 3),
        integer(1, 4, 0x50) + string(b"x"),
        integer(98, 4, 0x70, 2) + string(b"no-cache", huffman=True),
        literal(b"x", b""),
        literal(b"x" * 300, b"y" * 200),
        string(b"custom-key", 3, 0x30, huffman=True) + string(b"custom-value", huffman=True),
        integer(3, 6, 0x80),
        integer(20, 4, 0x40) + string(b"x" * 130),
        integer(20, 4, 0x10),
        integer(20, 3, 0x08) + string(b"x" * 130),
    ],
)
def test_lines_of_all_kinds_are_counted(line: bytes) -> None:
    target = qpack(2**20, 10)
    with pytest.raises(TooManyFields):
        target.decode(PREFIX + line * 11)
    try:
        assert len(target.decode(PREFIX + line * 10)) == 10
    except Http3Error:
        # Of a dynamic table; counted as lines they were all the same.
        assert line[0] < 0x20 or 0x40 <= line[0] < 0x50 or 0x80 <= line[0] < 0xC0


def test_as_many_bytes_as_there_may_be() -> None:
    """RFC 9114 section 4.2.2: 32 for a line, and what it consists of."""
    section = PREFIX + GET + literal(b"abc", b"12345")
    size = (32 + len(b":method") + len(b"GET")) + (32 + 3 + 5)
    assert len(qpack(size).decode(section)) == 2
    with pytest.raises(TooManyFields):
        qpack(size - 1).decode(section)


def test_values_that_are_long_once_they_are_decoded() -> None:
    # 104,800 bytes of Huffman's code are 167,680 of the letter a.
    for count in (10, 6_000, 8_192, 20_960):
        data = EIGHT_A * count
        section = PREFIX + b"\x51" + integer(len(data), 7, 0x80) + data
        if 8 * count < MAX_SIZE - 100:
            assert qpack().decode(section) == [(b":path", b"a" * 8 * count)]
        else:
            with pytest.raises(TooManyFields):
                qpack().decode(section)


def peak(action: Callable[[], object]) -> int:
    """The most memory that an action has had at once."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "line",
    [GET, integer(62, 6, 0xC0), b"\x51\x00", b"\x20\x00", b"\x80", b"\x10", b"\x00\x00"],
)
def test_a_small_section_of_many_lines_makes_no_objects(line: bytes) -> None:
    """A byte is a line of a hundred bytes in memory, so they are counted before they are made."""
    target = qpack()
    section = PREFIX + line * (65_000 // len(line))

    def take() -> None:
        with pytest.raises(TooManyFields):
            target.decode(section)

    take()
    assert peak(take) < 32768


def seconds(action: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        begun = time.thread_time()
        for _ in range(20):
            action()
        best = min(best, time.thread_time() - begun)
    return best


@pytest.mark.parametrize(
    "make",
    [
        lambda size: b"a" + b" " * size,
        lambda size: b"a" * size + b"\0",
        lambda size: b" a" * (size // 2) + b" ",
        lambda size: b"a" * size,
    ],
)
def test_long_values_are_checked_in_linear_time(make: Callable[[int], bytes]) -> None:
    def check(size: int) -> Callable[[], object]:
        fields = [(b"a", make(size))]

        def run() -> None:
            try:
                parse_trailers(fields)
            except MalformedMessage:
                pass

        return run

    assert seconds(check(64_000)) < 64 * seconds(check(4_000))


# ---- any section


@dataclass
class Line:
    """A line as it goes over the wire.

    Attributes:
        wire: its bytes.
        field: what it is; None if it is not valid.
    """

    wire: bytes
    field: tuple[bytes, bytes] | None


strings = st.one_of(st.binary(max_size=30), st.integers(100, 400).map(lambda size: b"x" * size))
padding = st.integers(0, 3)


@st.composite
def strings_on_the_wire(
    draw: st.DrawFn, bits: int = 7, flags: int = 0, *, least: int = 0
) -> tuple[bytes, bytes]:
    """A string's encoding, and the string."""
    if draw(st.booleans()):
        value = draw(st.sampled_from(list(HUFFMAN)))
        return string(value, bits, flags, huffman=True), value
    value = draw(strings.filter(lambda value: len(value) >= least))
    return integer(len(value), bits, flags, draw(padding)) + value, value


@st.composite
def lines(draw: st.DrawFn) -> Line:
    kind = draw(st.sampled_from(["indexed", "named", "literal", "dynamic"]))
    never_indexed = draw(st.booleans())
    if kind == "indexed":
        index = draw(st.sampled_from([*STATIC, 99, 2**20]))
        return Line(integer(index, 6, 0xC0, draw(padding)), STATIC.get(index))
    if kind == "named":
        index = draw(st.sampled_from([*STATIC, 99]))
        wire, value = draw(strings_on_the_wire())
        head = integer(index, 4, 0x70 if never_indexed else 0x50, draw(padding))
        named = STATIC.get(index)
        return Line(head + wire, named and (named[0], value))
    if kind == "literal":
        name_wire, name = draw(
            strings_on_the_wire(bits=3, flags=0x30 if never_indexed else 0x20, least=1)
        )
        wire, value = draw(strings_on_the_wire())
        return Line(name_wire + wire, (name, value))
    number = draw(st.integers(0, 100))
    wire, value = draw(strings_on_the_wire())
    bits, flags, has_value = draw(
        st.sampled_from([(6, 0x80, False), (4, 0x40, True), (4, 0x10, False), (3, 0x00, True)])
    )
    return Line(integer(number, bits, flags, draw(padding)) + (wire if has_value else b""), None)


@given(
    st.lists(lines(), max_size=10),
    st.integers(1, 10),
    st.one_of(st.just(MAX_SIZE), st.integers(0, 1000)),
)
@settings(deadline=None)
def test_any_lines(sent: list[Line], max_fields: int, max_size: int) -> None:
    target = qpack(max_size, max_fields)
    section = PREFIX + b"".join(line.wire for line in sent)
    fields = [line.field for line in sent if line.field is not None]
    size = sum(32 + len(name) + len(value) for name, value in fields)
    if len(sent) > max_fields:
        with pytest.raises(TooManyFields):
            target.decode(section)
    elif len(fields) < len(sent):
        with pytest.raises(Http3Error) as caught:
            target.decode(section)
        assert caught.value.code == Http3Code.QPACK_DECOMPRESSION_FAILED
    elif size > max_size:
        with pytest.raises(TooManyFields):
            target.decode(section)
    else:
        assert target.decode(section) == fields


@given(st.binary(max_size=80), st.lists(lines(), max_size=3))
@example(b"\x00\xff", [])
@example(b"\xff", [])
@settings(deadline=None)
def test_any_bytes(data: bytes, before: list[Line]) -> None:
    """Also behind lines that make sense: it is read, too much, or an error, and no harm to those who come later."""
    for prefix in (PREFIX, b""):
        section = prefix + b"".join(line.wire for line in before) + data
        try:
            fields = qpack(2000, 20).decode(section)
        except TooManyFields:
            pass
        except Http3Error as exc:
            assert exc.code == Http3Code.QPACK_DECOMPRESSION_FAILED
        else:
            assert len(fields) <= 20
            assert sum(32 + len(name) + len(value) for name, value in fields) <= 2000
    assert qpack().decode(PREFIX + GET) == [STATIC[17]]


# ---- instructions


def test_an_encoder_without_a_table_has_nothing_to_say() -> None:
    """RFC 9204 section 3.2.3; a capacity of 0 is what there is."""
    instructions = EncoderInstructions()
    for data in (b"", b"\x20", b"\x20\x20\x20"):
        instructions.feed(data)


@pytest.mark.parametrize(
    "data",
    [
        integer(1, 5, 0x20),
        integer(4096, 5, 0x20),
        b"\x20" + integer(2**30, 5, 0x20),
        integer(0, 6, 0xC0) + string(b"value"),
        integer(0, 6, 0x80) + string(b"value"),
        string(b"name", 5, 0x40) + string(b"value"),
        integer(0, 5, 0x00),
        b"\x20\x20\x00",
    ],
)
def test_what_an_encoder_must_not_say(data: bytes) -> None:
    with pytest.raises(Http3Error) as caught:
        EncoderInstructions().feed(data)
    assert caught.value.code == Http3Code.QPACK_ENCODER_STREAM_ERROR
    with pytest.raises(Http3Error):
        target = EncoderInstructions()
        for byte in data:
            target.feed(bytes([byte]))


@given(st.binary(max_size=30))
@settings(deadline=None)
def test_any_bytes_of_an_encoder(data: bytes) -> None:
    try:
        EncoderInstructions().feed(data)
    except Http3Error as exc:
        assert exc.code == Http3Code.QPACK_ENCODER_STREAM_ERROR
        assert set(data) - {0x20}
    else:
        assert set(data) <= {0x20}


@pytest.mark.parametrize("stream_id", [0, 4, 62, 63, 64, 190, 191, 2**14, 2**62 - 4])
def test_a_decoder_may_cancel_streams(stream_id: int) -> None:
    """RFC 9204 section 4.4.2: it may do so even if there is no table."""
    data = integer(stream_id, 6, 0x40)
    DecoderInstructions().feed(data * 3)
    target = DecoderInstructions()
    for byte in data * 3:
        target.feed(bytes([byte]))
        target.feed(b"")


@pytest.mark.parametrize(
    "data",
    [
        # of a section, for which no entry was needed (RFC 9204 section 4.4.1)
        integer(0, 7, 0x80),
        integer(2**20, 7, 0x80),
        # of entries that were never sent, or of none (RFC 9204 section 4.4.3)
        integer(0, 6, 0x00),
        integer(1, 6, 0x00),
        integer(2**20, 6, 0x00),
        integer(4, 6, 0x40) + integer(0, 6, 0x00),
        integer(200, 6, 0x40) + integer(1, 7, 0x80),
    ],
)
def test_what_a_decoder_must_not_say(data: bytes) -> None:
    with pytest.raises(Http3Error) as caught:
        DecoderInstructions().feed(data)
    assert caught.value.code == Http3Code.QPACK_DECODER_STREAM_ERROR


@given(st.binary(max_size=30), st.lists(st.integers(0, 30), max_size=6))
@settings(deadline=None)
def test_any_bytes_of_a_decoder_in_any_chunking(data: bytes, cuts: list[int]) -> None:
    def run(pieces: list[bytes]) -> Http3Code | None:
        target = DecoderInstructions()
        try:
            for piece in pieces:
                target.feed(piece)
        except Http3Error as exc:
            return exc.code
        return None

    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in zip(places, places[1:], strict=False)]
    assert run(pieces) == run([data]) in (None, Http3Code.QPACK_DECODER_STREAM_ERROR)


# ---- requests


def request(*more: tuple[bytes, bytes], **pseudo: bytes | None) -> Fields:
    """A request's fields; pseudo-header fields by their names, None for one that is not there."""
    values: dict[str, bytes | None] = {
        "method": b"GET",
        "scheme": b"https",
        "authority": b"example.test",
        "path": b"/",
        **pseudo,
    }
    return [(b":" + k.encode(), v) for k, v in values.items() if v is not None] + list(more)


def connect(*more: tuple[bytes, bytes], **pseudo: bytes | None) -> Fields:
    values: dict[str, bytes | None] = {
        "method": b"CONNECT",
        "protocol": b"webtransport",
        **pseudo,
    }
    return request(*more, **values)


def test_a_request() -> None:
    fields = [(b"accept", b"*/*"), (b"cookie", b"a=b"), (b"cookie", b"c=d")]
    assert parse_request(request(*fields, path=b"/a?b=c")) == RequestHead(
        "GET", "https", "example.test", "/a?b=c", None, fields
    )


def test_a_request_for_a_session() -> None:
    for token in (b"webtransport", b"webtransport-h3", b"websocket"):
        assert parse_request(connect(protocol=token)) == RequestHead(
            "CONNECT", "https", "example.test", "/", token.decode(), []
        )


@pytest.mark.parametrize(
    "fields",
    [
        request(method=b"OPTIONS", path=b"*"),
        request(method=b"M-SEARCH"),
        request(method=b"get"),
        request(scheme=b"http"),
        request(scheme=b"coap+tcp"),
        request(authority=b"[::1]:4433"),
        request(path=b"/%20?a=b&c=/?"),
        request((b"host", b"example.test")),
        request((b"host", b"example.test"), authority=None),
        connect((b"host", b"example.test"), authority=None),
        request((b"te", b"trailers")),
        request((b"x", b"")),
        request((b"x", b"a b\tc")),
        request((b"x", b"\x80\xff")),
        request((b"!#$%&'*+-.^_`|~0", b"x")),
        request((b"content-length", b"5")),
        # CONNECT of old: a host and nothing else
        request(method=b"CONNECT", scheme=None, path=None, authority=b"example.test:443"),
        # in any order
        request()[::-1],
    ],
)
def test_requests_that_are_well_formed(fields: Fields) -> None:
    head = parse_request(fields)
    assert head.fields == [line for line in fields if not line[0].startswith(b":")]
    assert head.authority


@pytest.mark.parametrize(
    "fields",
    [
        [],
        # pseudo-header fields that are missing
        request(method=None),
        request(scheme=None),
        request(path=None),
        request(authority=None),
        connect(scheme=None),
        connect(path=None),
        connect(authority=None),
        # that are empty
        request(method=b""),
        request(scheme=b""),
        request(path=b""),
        request(authority=b""),
        request((b"host", b"example.test"), authority=b""),
        request((b"host", b""), authority=None),
        connect(path=b""),
        connect(scheme=b""),
        connect(protocol=b""),
        # that are there twice
        request() + request(),
        *([line, *request()] for line in request()),
        [*connect(), (b":protocol", b"webtransport")],
        # that are none of a request
        [(b":status", b"200"), *request()],
        [(b":unknown", b"x"), *request()],
        [(b":", b"x"), *request()],
        [(b":Method", b"GET"), *request(method=None)],
        # that come after others
        [(b"a", b"b"), *request()],
        [*request(path=None), (b"a", b"b"), (b":path", b"/")],
        # that make no sense
        request(method=b"G ET"),
        request(method=b"GET\0"),
        request(method=b"GET:"),
        request(method=b"\xc3\xa9"),
        request(scheme=b"ht tp"),
        request(path=b"a"),
        request(path=b"*"),
        request(method=b"options", path=b"*"),
        request(path=b"https://example.test/"),
        request(path=b"/ "),
        request(path=b"/a b"),
        request(path=b"/\r\nx: y"),
        request(path=b"/\xc3\xa9"),
        request(path=b"/\0"),
        request(authority=b"user@example.test"),
        request(authority=b"user:secret@example.test"),
        request((b"host", b"user@example.test"), authority=None),
        request(authority=b"exa mple.test"),
        request(authority=b"example.test\0"),
        request(authority=b"ex\xc3\xa4mple.test"),
        connect(protocol=b"web transport"),
        connect(protocol=b"web\0"),
        # Host, which says the same as :authority, once (RFC 9114 section 4.3.1)
        request((b"host", b"other.test")),
        request((b"host", b"example.test"), (b"host", b"example.test")),
        request((b"host", b"a.test"), (b"host", b"b.test"), authority=None),
        # :protocol of anything but CONNECT (RFC 8441 section 4)
        request(protocol=b"websocket"),
        # CONNECT with more than an authority (RFC 9114 section 4.4)
        request(method=b"CONNECT"),
        request(method=b"CONNECT", scheme=None),
        request(method=b"CONNECT", path=None),
        request(method=b"CONNECT", scheme=None, path=None, authority=None),
        request((b"host", b"a"), method=b"CONNECT", scheme=None, path=None, authority=None),
        request(method=b"CONNECT", scheme=None, path=b""),
        request(method=b"CONNECT", scheme=b"", path=None),
    ],
)
def test_requests_that_are_malformed(fields: Fields) -> None:
    with pytest.raises(MalformedMessage):
        parse_request(fields)


# Lines that no section may have, whichever it is.
BAD_LINES = [
    (b"", b"x"),
    (b"Accept", b"x"),
    (b"aCcept", b"x"),
    (b"a b", b"x"),
    (b"a:", b"x"),
    (b"a\0", b"x"),
    (b"a\r\n", b"x"),
    (b"\xc3\xa9", b"x"),
    (b"a(", b"x"),
    (b"a", b"\0"),
    (b"a", b"b\r"),
    (b"a", b"b\nc: d"),
    (b"a", b"\x7f"),
    (b"a", b"\x01"),
    (b"a", b" b"),
    (b"a", b"b "),
    (b"a", b"\tb"),
    (b"a", b"b\t"),
    (b"a", b" "),
    (b"connection", b"close"),
    (b"keep-alive", b"x"),
    (b"proxy-connection", b"x"),
    (b"transfer-encoding", b"chunked"),
    (b"upgrade", b"websocket"),
    (b"te", b"gzip"),
    (b"te", b"trailers, gzip"),
    (b"te", b""),
]


@pytest.mark.parametrize("line", BAD_LINES)
def test_lines_that_are_malformed_everywhere(line: tuple[bytes, bytes]) -> None:
    for parse, fields in (
        (parse_request, request(line)),
        (parse_request, connect(line)),
        (parse_response, [(b":status", b"200"), line]),
        (parse_trailers, [line]),
    ):
        with pytest.raises(MalformedMessage):
            parse(fields)


def test_values_of_pseudo_header_fields_are_checked_as_well() -> None:
    for name in ("method", "scheme", "authority", "path"):
        for value in (b" x", b"x ", b"x\0", b"x\ny"):
            with pytest.raises(MalformedMessage):
                parse_request(request(**{name: value}))


# ---- responses and trailers


@pytest.mark.parametrize("status", [100, 102, 103, 199, 200, 204, 304, 404, 431, 599])
def test_responses(status: int) -> None:
    fields = [(b":status", b"%d" % status), (b"server", b"x")]
    assert parse_response(fields) == ResponseHead(status, [(b"server", b"x")])


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"server", b"x")],
        [(b"server", b"x"), (b":status", b"200")],
        [(b":status", b"200"), (b":status", b"200")],
        [(b":status", b"200"), (b":path", b"/")],
        [(b":method", b"GET"), (b":status", b"200")],
        # RFC 9114 section 4.5
        [(b":status", b"101")],
        *(
            [(b":status", status)]
            for status in (b"", b"2", b"20", b"099", b"000", b"600", b"999", b"1000", b"2xx")
        ),
        *([(b":status", status)] for status in (b"+20", b"-20", b" 20", b"2 0", b"\xb2\xb3\xb9")),
    ],
)
def test_responses_that_are_malformed(fields: Fields) -> None:
    with pytest.raises(MalformedMessage):
        parse_response(fields)


def test_trailers() -> None:
    fields = [(b"checksum", b"x"), (b"checksum", b"y")]
    assert parse_trailers(fields) == fields
    assert parse_trailers([]) == []
    for name in (b":status", b":method", b":path", b":x"):
        with pytest.raises(MalformedMessage):
            parse_trailers([(name, b"200")])


# ---- Content-Length


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([b"0"], 0),
        ([b"5"], 5),
        ([b"005"], 5),
        ([b"5", b"5"], 5),
        ([b"999999999999999999"], 999999999999999999),
    ],
)
def test_how_long_content_is(values: list[bytes], expected: int | None) -> None:
    fields = [(b"a", b"1"), *((b"content-length", value) for value in values), (b"b", b"2")]
    assert content_length(fields) == expected


@pytest.mark.parametrize(
    "values",
    [
        [b""],
        [b"-1"],
        [b"+5"],
        [b" 5"],
        [b"5 "],
        [b"5;"],
        [b"5.0"],
        [b"0x5"],
        [b"1_000"],
        [b"five"],
        [b"\xb2"],
        [b"5", b"6"],
        [b"5", b"05"],
        [b"5, 6"],
        [b"9" * 5000],
    ],
)
def test_lengths_that_make_no_sense(values: list[bytes]) -> None:
    with pytest.raises(MalformedMessage):
        content_length([(b"content-length", value) for value in values])


# ---- any fields

names = st.one_of(
    st.sampled_from(
        [b":method", b":scheme", b":authority", b":path", b":protocol", b":status", b"host"]
    ),
    st.sampled_from([b"te", b"content-length", b"connection", b"x"]),
    st.binary(max_size=6),
)
values = st.one_of(
    st.sampled_from([b"GET", b"CONNECT", b"OPTIONS", b"https", b"/", b"*", b"a.test", b"200"]),
    st.sampled_from([b"trailers", b"5", b"webtransport", b""]),
    st.binary(max_size=6),
)


@given(st.lists(st.tuples(names, values), max_size=8))
@example(request())
@example(connect())
@example(request(method=b"OPTIONS", path=b"*"))
@example([(b":status", b"200"), (b"x", b"y")])
@settings(deadline=None)
def test_any_fields(fields: Fields) -> None:
    """They make a message that is sound, or they are malformed."""
    others = [line for line in fields if not line[0].startswith(b":")]
    try:
        head = parse_request(fields)
    except MalformedMessage:
        pass
    else:
        assert head.fields == others
        said = [head.method, head.scheme, head.authority, head.path, head.protocol or ""]
        assert all(text.isascii() and (text.isprintable() or not text) for text in said)
        assert not any(" " in text for text in said)
        assert head.method
        assert head.authority
        is_old_connect = head.method == "CONNECT" and head.protocol is None
        assert is_old_connect == (not head.path) == (not head.scheme)
    try:
        response = parse_response(fields)
    except MalformedMessage:
        pass
    else:
        assert 100 <= response.status <= 599
        assert response.fields == others
    try:
        trailers = parse_trailers(fields)
    except MalformedMessage:
        pass
    else:
        assert trailers == fields == others
    try:
        length = content_length(fields)
    except MalformedMessage:
        pass
    else:
        assert length is None or length >= 0
