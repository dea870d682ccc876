"""HTTP/3 as a pure object (RFC 9114): streams' bytes in any chunking, every frame in every place, and limits."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_wt._protocol import http3, varint
from trio_wt._protocol.dialects import session_settings
from trio_wt._protocol.http3 import (
    MESSAGE_STEPS,
    Content,
    ContentEnded,
    GoawayReceived,
    Http3Event,
    Http3Protocol,
    InterimResponse,
    MessageFailed,
    Phase,
    PriorityUpdated,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    Step,
    TrailersReceived,
)
from trio_wt._protocol.http3_codes import Http3Code, Http3Error
from trio_wt._protocol.http3_fields import Fields, Qpack, RequestHead, ResponseHead
from trio_wt._protocol.http3_frames import FrameType
from trio_wt._protocol.http3_settings import MAX_SETTINGS, Setting, encode_settings
from trio_wt._protocol.records import encode_record, encode_record_head
from trio_wt._protocol.stream_heads import StreamHeadReader, StreamType

MEBIBYTE = 2**20
MAX_SECTION, MAX_FIELDS = 65536, 128
SETTINGS = session_settings(max_data=1000, max_streams=10, max_receive_streams=20)
GREASE = [0x21, 0x1F * 5 + 0x21, 0x1F * 2**50 + 0x21]
HTTP2 = [0x02, 0x06, 0x08, 0x09]
END = http3._END

# ---- two sides


def protocol(
    client: bool, *, max_field_section: int = MAX_SECTION, max_fields: int = MAX_FIELDS
) -> Http3Protocol:
    return Http3Protocol(
        client=client,
        settings=SETTINGS,
        max_field_section=max_field_section,
        max_fields=max_fields,
    )


def settled(client: bool) -> Http3Protocol:
    """A side that has the peer's SETTINGS."""
    target = protocol(client)
    target.open_critical(3, StreamType.CONTROL)
    control(target, frame(FrameType.SETTINGS, encode_settings(SETTINGS)))
    return target


def control(target: Http3Protocol, *pieces: bytes) -> list[Http3Event]:
    return [
        event
        for piece in pieces
        for event in target.receive_critical(StreamType.CONTROL, piece, fin=False)
    ]


def receive(target: Http3Protocol, *pieces: bytes, fin: bool = False) -> list[Http3Event]:
    events: list[Http3Event] = []
    for n, piece in enumerate(pieces):
        events += target.receive(0, piece, fin=fin and n == len(pieces) - 1)
    return events


def refused(action: Callable[[], object]) -> Http3Code:
    with pytest.raises(Http3Error) as caught:
        action()
    return caught.value.code


def frame(kind: int, payload: bytes = b"") -> bytes:
    return encode_record(kind, payload)


def data(payload: bytes) -> bytes:
    return frame(FrameType.DATA, payload)


def headers(fields: Fields) -> bytes:
    return frame(FrameType.HEADERS, Qpack(2**30, 2**30).encode(fields))


def request(*more: tuple[bytes, bytes], method: bytes = b"GET") -> bytes:
    fields = [(b":scheme", b"https"), (b":authority", b"a.test"), (b":path", b"/")]
    return headers([(b":method", method), *fields, *more])


CONNECT = [
    (b":method", b"CONNECT"),
    (b":scheme", b"https"),
    (b":authority", b"a.test"),
    (b":path", b"/"),
    (b":protocol", b"webtransport"),
]
ANSWER = [(b":status", b"200")]


def connect(*more: tuple[bytes, bytes]) -> bytes:
    return headers([*CONNECT, *more])


def response(*more: tuple[bytes, bytes], status: int = 200) -> bytes:
    return headers([(b":status", b"%d" % status), *more])


def length(count: int) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % count


TRAILERS = headers([(b"checksum", b"1")])
HEAD = {True: response(), False: request()}


def joined(events: Iterable[Http3Event]) -> list[Http3Event]:
    """With the pieces of content that follow each other as one."""
    whole: list[Http3Event] = []
    for event in events:
        last = whole[-1] if whole else None
        if isinstance(event, Content) and isinstance(last, Content):
            whole[-1] = Content(event.stream_id, last.data + event.data)
        else:
            whole.append(event)
    return whole


def split(whole: bytes, cuts: Sequence[int]) -> list[bytes]:
    """Data cut at these offsets, in pieces of any length, none perhaps."""
    places = [0, *sorted(cut % (len(whole) + 1) for cut in cuts), len(whole)]
    return [whole[a:b] for a, b in zip(places, places[1:], strict=False)]


# ---- the control stream


@pytest.mark.parametrize("client", [True, False])
def test_a_control_stream_begins_with_settings(client: bool) -> None:
    opening = protocol(client).opening()
    payload = encode_settings(SETTINGS)
    expected = b"\x00" + frame(FrameType.SETTINGS, payload)
    assert opening.startswith(expected)
    # And something for the peer to skip (RFC 9114 section 7.2.8).
    grease = varint.decode(opening, len(expected))
    assert grease is not None
    assert (grease[0] - 0x21) % 0x1F == 0
    assert opening[grease[1] :] == b"\x00"
    other = protocol(not client)
    other.open_critical(2, StreamType.CONTROL)
    assert control(other, opening[1:]) == [SettingsReceived(SETTINGS)]
    assert other.peer_settings == SETTINGS


def test_settings_byte_by_byte() -> None:
    target = protocol(True)
    whole = protocol(False).opening()[1:]
    events = control(target, *(bytes([byte]) for byte in whole))
    assert events == [SettingsReceived(SETTINGS)]


def test_settings_of_nothing() -> None:
    target = protocol(True)
    assert target.peer_settings is None
    assert control(target, frame(FrameType.SETTINGS)) == [SettingsReceived({})]
    assert target.peer_settings == {}
    assert refused(lambda: control(target, frame(FrameType.SETTINGS))) == 0x105


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("kind", [*(set(FrameType) - {FrameType.SETTINGS}), *HTTP2, *GREASE])
def test_anything_before_settings(client: bool, kind: int) -> None:
    """RFC 9114 section 6.2.1: the first frame is SETTINGS, whatever else the other were."""
    target = protocol(client)
    assert refused(lambda: control(target, frame(kind))) == Http3Code.MISSING_SETTINGS
    target = protocol(client)
    endless = encode_record_head(kind, 2**61)
    assert refused(lambda: control(target, endless)) == Http3Code.MISSING_SETTINGS


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x33\x02", Http3Code.SETTINGS_ERROR),
        (b"\x02\x00", Http3Code.SETTINGS_ERROR),
        (b"\x33\x01\x33\x01", Http3Code.SETTINGS_ERROR),
        (b"\x33", Http3Code.FRAME_ERROR),
    ],
)
def test_settings_that_must_not_be(payload: bytes, code: Http3Code) -> None:
    target = protocol(True)
    assert refused(lambda: control(target, frame(FrameType.SETTINGS, payload))) == code
    assert target.peer_settings is None


@pytest.mark.parametrize("value", [2, 100, 2**62 - 1])
def test_a_server_that_enables_webtransport_with_a_number(value: int) -> None:
    """draft-ietf-webtrans-http3-16 section 3.1: clients treat values greater than 1 as H3_SETTINGS_ERROR."""
    payload = encode_settings({**SETTINGS, Setting.WT_ENABLED: value})
    target = protocol(True)
    code = refused(lambda: control(target, frame(FrameType.SETTINGS, payload)))
    assert code == Http3Code.SETTINGS_ERROR


# What a frame is on the peer's control stream, once SETTINGS have come; None for one that is taken.
NUMBER = varint.encode(8)
ON_CONTROL: list[tuple[int, bytes, Http3Code | None, Http3Code | None]] = [
    # type, payload, to a client, to a server
    (FrameType.DATA, b"", Http3Code.FRAME_UNEXPECTED, Http3Code.FRAME_UNEXPECTED),
    (FrameType.DATA, b"x", Http3Code.FRAME_UNEXPECTED, Http3Code.FRAME_UNEXPECTED),
    (FrameType.HEADERS, b"\0\0\xd1", Http3Code.FRAME_UNEXPECTED, Http3Code.FRAME_UNEXPECTED),
    (FrameType.CANCEL_PUSH, NUMBER, Http3Code.ID_ERROR, Http3Code.ID_ERROR),
    (FrameType.SETTINGS, b"", Http3Code.FRAME_UNEXPECTED, Http3Code.FRAME_UNEXPECTED),
    (FrameType.PUSH_PROMISE, NUMBER, Http3Code.FRAME_UNEXPECTED, Http3Code.FRAME_UNEXPECTED),
    (FrameType.GOAWAY, NUMBER, None, None),
    (FrameType.MAX_PUSH_ID, NUMBER, Http3Code.FRAME_UNEXPECTED, None),
    (FrameType.WT_STREAM, NUMBER, Http3Code.FRAME_ERROR, Http3Code.FRAME_ERROR),
    (FrameType.PRIORITY_UPDATE, NUMBER + b"u=1", Http3Code.FRAME_UNEXPECTED, None),
    # RFC 9218 section 7.2: nothing was promised that could have a priority.
    (
        FrameType.PRIORITY_UPDATE_PUSH,
        NUMBER + b"u=1",
        Http3Code.FRAME_UNEXPECTED,
        Http3Code.ID_ERROR,
    ),
    *((kind, b"", Http3Code.FRAME_UNEXPECTED, Http3Code.FRAME_UNEXPECTED) for kind in HTTP2),
    *((kind, b"\x01\x02\x03", None, None) for kind in GREASE),
    (0x2843, b"", None, None),
]


def test_every_type_of_frame_is_in_the_table() -> None:
    assert {row[0] for row in ON_CONTROL} >= set(FrameType) | set(HTTP2)


@pytest.mark.parametrize(("kind", "payload", "to_client", "to_server"), ON_CONTROL)
def test_frames_on_the_control_stream(
    kind: int, payload: bytes, to_client: Http3Code | None, to_server: Http3Code | None
) -> None:
    for client, code in ((True, to_client), (False, to_server)):
        for pieces in ([frame(kind, payload)], [bytes([b]) for b in frame(kind, payload)]):
            target = settled(client)
            if code is None:
                control(target, *pieces)
            else:
                assert refused(lambda: control(target, *pieces)) == code  # noqa: B023


@pytest.mark.parametrize("client", [True, False])
def test_unknown_frames_between_others(client: bool) -> None:
    target = settled(client)
    unknown = frame(GREASE[1], b"\x01" * 5000)
    goaway = frame(FrameType.GOAWAY, NUMBER)
    events = control(target, unknown + goaway + unknown, unknown)
    assert events == [GoawayReceived(8)]


@pytest.mark.parametrize("kind", [FrameType.GOAWAY, FrameType.MAX_PUSH_ID, FrameType.CANCEL_PUSH])
@pytest.mark.parametrize(
    "payload", [b"", b"\x40", b"\x04\x00", b"\x80\x00\x00\x04\x00", b"\xc0" + bytes(8)]
)
def test_frames_that_are_not_one_number(kind: int, payload: bytes) -> None:
    """RFC 9114 section 7.1: a payload that ends before its fields, or goes on behind them, is H3_FRAME_ERROR."""
    assert refused(lambda: control(settled(False), frame(kind, payload))) == Http3Code.FRAME_ERROR


@pytest.mark.parametrize("kind", [FrameType.PRIORITY_UPDATE, FrameType.PRIORITY_UPDATE_PUSH])
@pytest.mark.parametrize("payload", [b"", b"\x40", b"\xc0\0\0"])
def test_priorities_of_nothing(kind: int, payload: bytes) -> None:
    assert refused(lambda: control(settled(False), frame(kind, payload))) == Http3Code.FRAME_ERROR


# ---- GOAWAY (RFC 9114 section 5.2)


def goaway(*ids: int) -> bytes:
    return b"".join(Http3Protocol.encode_goaway(each) for each in ids)


def test_a_goaway_on_the_wire() -> None:
    assert goaway(0).hex() == "070100"
    assert goaway(2**62 - 4).hex() == "0708fffffffffffffffc"


def test_a_server_goes_away() -> None:
    client = settled(True)
    assert client.peer_goaway is None
    assert control(client, goaway(2**62 - 4)) == [GoawayReceived(2**62 - 4)]
    assert client.peer_goaway == 2**62 - 4
    assert control(client, goaway(8, 8, 4)) == [
        GoawayReceived(8),
        GoawayReceived(8),
        GoawayReceived(4),
    ]
    assert client.peer_goaway == 4
    assert refused(lambda: control(client, goaway(8))) == Http3Code.ID_ERROR
    assert client.peer_goaway == 4


@pytest.mark.parametrize("stream_id", [1, 2, 3, 5, 2**62 - 1])
def test_a_server_s_goaway_names_a_request(stream_id: int) -> None:
    client = settled(True)
    assert refused(lambda: control(client, goaway(stream_id))) == Http3Code.ID_ERROR
    assert client.peer_goaway is None


def test_a_client_s_goaway_names_a_push() -> None:
    server = settled(False)
    assert control(server, goaway(7, 1)) == [GoawayReceived(7), GoawayReceived(1)]
    assert refused(lambda: control(server, goaway(2))) == Http3Code.ID_ERROR


def test_max_push_id_only_grows() -> None:
    """RFC 9114 section 7.2.7."""
    server = settled(False)
    for number in (0, 0, 5, 5, 2**62 - 1):
        assert control(server, frame(FrameType.MAX_PUSH_ID, varint.encode(number))) == []
    less = frame(FrameType.MAX_PUSH_ID, varint.encode(5))
    assert refused(lambda: control(server, less)) == Http3Code.ID_ERROR


# ---- priorities (RFC 9218 section 7.2)


def test_a_priority_is_passed_on() -> None:
    server = settled(False)
    for stream_id, value in ((0, b""), (4, b"u=1, i"), (2**62 - 4, b"\xff" * 1000)):
        update = frame(FrameType.PRIORITY_UPDATE, varint.encode(stream_id) + value)
        assert control(server, update) == [PriorityUpdated(stream_id, value)]


@pytest.mark.parametrize("stream_id", [1, 2, 3, 2**62 - 1])
def test_a_priority_of_no_request(stream_id: int) -> None:
    update = frame(FrameType.PRIORITY_UPDATE, varint.encode(stream_id) + b"u=1")
    assert refused(lambda: control(settled(False), update)) == Http3Code.ID_ERROR


# ---- critical streams

CRITICAL = [StreamType.CONTROL, StreamType.QPACK_ENCODER, StreamType.QPACK_DECODER]


@pytest.mark.parametrize("kind", CRITICAL)
def test_there_is_one_of_each(kind: StreamType) -> None:
    """RFC 9114 section 6.2.1, RFC 9204 section 4.2."""
    target = protocol(True)
    for stream_id, each in enumerate(CRITICAL):
        target.open_critical(4 * stream_id + 3, each)
    code = refused(lambda: target.open_critical(99, kind))
    assert code == Http3Code.STREAM_CREATION_ERROR


@pytest.mark.parametrize("kind", CRITICAL)
def test_they_last_as_long_as_the_connection(kind: StreamType) -> None:
    target = settled(True)
    code = Http3Code.CLOSED_CRITICAL_STREAM
    assert refused(lambda: target.receive_critical(kind, b"", fin=True)) == code
    assert refused(lambda: target.critical_lost(kind)) == code
    # What stands before the end is read first, and may be worse.
    bad = {
        StreamType.CONTROL: frame(FrameType.HEADERS),
        StreamType.QPACK_ENCODER: b"\x3f\x01",
        StreamType.QPACK_DECODER: b"\x80",
    }
    assert refused(lambda: target.receive_critical(kind, bad[kind], fin=True)) != code


def test_the_streams_of_qpack() -> None:
    target = protocol(True)
    assert target.receive_critical(StreamType.QPACK_ENCODER, b"\x20", fin=False) == []
    # The number of a cancelled stream, cut in two.
    assert target.receive_critical(StreamType.QPACK_DECODER, b"\x44\x7f", fin=False) == []
    assert target.receive_critical(StreamType.QPACK_DECODER, b"\x00", fin=False) == []
    for kind, bad, code in (
        (StreamType.QPACK_ENCODER, b"\x3f\xe1\x1f", Http3Code.QPACK_ENCODER_STREAM_ERROR),
        (StreamType.QPACK_ENCODER, b"\xc0\x01x", Http3Code.QPACK_ENCODER_STREAM_ERROR),
        (StreamType.QPACK_DECODER, b"\x00", Http3Code.QPACK_DECODER_STREAM_ERROR),
        (StreamType.QPACK_DECODER, b"\x80", Http3Code.QPACK_DECODER_STREAM_ERROR),
    ):
        code_found = refused(lambda: target.receive_critical(kind, bad, fin=False))  # noqa: B023
        assert code_found == code


# ---- messages, step by step

STEPS = {
    # RFC 9114 section 4.1: HEADERS, DATA, and HEADERS again, in that order
    (Phase.HEAD, FrameType.HEADERS): Step.HEAD,
    (Phase.HEAD, FrameType.DATA): Step.UNEXPECTED,
    (Phase.HEAD, END): Step.INCOMPLETE,
    (Phase.CONTENT, FrameType.HEADERS): Step.TRAILERS,
    (Phase.CONTENT, FrameType.DATA): Step.CONTENT,
    (Phase.CONTENT, END): Step.END,
    # RFC 9114 section 4.4: only DATA
    (Phase.TUNNEL, FrameType.HEADERS): Step.UNEXPECTED,
    (Phase.TUNNEL, FrameType.DATA): Step.CONTENT,
    (Phase.TUNNEL, END): Step.END,
    (Phase.TRAILERS, FrameType.HEADERS): Step.UNEXPECTED,
    (Phase.TRAILERS, FrameType.DATA): Step.UNEXPECTED,
    (Phase.TRAILERS, END): Step.END,
}


def test_the_table_of_steps() -> None:
    assert MESSAGE_STEPS == STEPS
    inputs = (FrameType.HEADERS, FrameType.DATA, END)
    assert set(STEPS) == set(product(set(Phase) - {Phase.ENDED}, inputs))


def in_phase(client: bool, phase: Phase) -> Http3Protocol:
    target = settled(client)
    if phase is Phase.TUNNEL:
        target.encode_head(0, CONNECT if client else ANSWER)
        receive(target, response() if client else connect())
    elif phase is not Phase.HEAD:
        receive(target, HEAD[client] + data(b"some"))
        if phase is Phase.TRAILERS:
            receive(target, TRAILERS)
        elif phase is Phase.ENDED:
            receive(target, b"", fin=True)
    return target


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize(("row", "step"), STEPS.items())
def test_every_step(client: bool, row: tuple[Phase, int], step: Step) -> None:
    phase, kind = row
    target = in_phase(client, phase)
    sent = {
        FrameType.HEADERS: TRAILERS if phase is Phase.CONTENT else HEAD[client],
        FrameType.DATA: data(b"more"),
        END: b"",
    }[kind]
    if step is Step.UNEXPECTED:
        assert refused(lambda: receive(target, sent)) == Http3Code.FRAME_UNEXPECTED
        return
    (event,) = receive(target, sent, fin=kind == END)
    if step is Step.HEAD:
        assert isinstance(event, ResponseReceived if client else RequestReceived)
    elif step is Step.CONTENT:
        assert event == Content(0, b"more")
    elif step is Step.TRAILERS:
        assert event == TrailersReceived(0, [(b"checksum", b"1")])
    elif step is Step.END:
        assert event == ContentEnded(0)
    else:
        assert isinstance(event, MessageFailed)
        assert event.code == Http3Code.REQUEST_INCOMPLETE
        assert event.status == 400
    if step in (Step.END, Step.INCOMPLETE):
        assert receive(target, HEAD[client]) == []


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("phase", [Phase.HEAD, Phase.TRAILERS])
def test_data_of_nothing_is_data(client: bool, phase: Phase) -> None:
    """RFC 9114 section 4.1: a DATA frame where none may be is an invalid sequence, whatever is in it."""
    target = in_phase(client, phase)
    assert refused(lambda: receive(target, data(b""))) == Http3Code.FRAME_UNEXPECTED


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("phase", [Phase.CONTENT, Phase.TUNNEL])
def test_data_of_nothing_may_be_among_content(client: bool, phase: Phase) -> None:
    target = in_phase(client, phase)
    assert receive(target, data(b"") + data(b"x") + data(b"")) == [Content(0, b"x")]
    assert receive(target, data(b""), fin=True) == [ContentEnded(0)]


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("phase", Phase)
def test_unknown_frames_may_be_anywhere(client: bool, phase: Phase) -> None:
    target = in_phase(client, phase)
    for kind in (*GREASE, 0x2843):
        assert receive(target, frame(kind, b"\x01\x02" * 100)) == []
    assert receive(target, frame(GREASE[0])) == []


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.ENDED])
@pytest.mark.parametrize(
    "kind",
    [kind for kind in FrameType if kind not in (0x00, 0x01)] + HTTP2,
)
def test_frames_of_other_streams(client: bool, phase: Phase, kind: int) -> None:
    expected = {Http3Code.FRAME_UNEXPECTED}
    if kind == FrameType.WT_STREAM:
        expected = {Http3Code.FRAME_ERROR}
    elif kind == FrameType.PUSH_PROMISE and client:
        # RFC 9114 section 7.2.5: we have never allowed one.
        expected = {Http3Code.ID_ERROR}
        if phase is Phase.TUNNEL:
            expected.add(Http3Code.FRAME_UNEXPECTED)
    for payload in (b"", b"\x00", b"\x00\x00\x00\xd1" + bytes(300)):
        target = in_phase(client, phase)
        assert refused(lambda: receive(target, frame(kind, payload))) in expected  # noqa: B023
    endless = encode_record_head(kind, 2**40)
    assert refused(lambda: receive(in_phase(client, phase), endless)) in expected


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.ENDED])
@pytest.mark.parametrize(
    "cut", [b"\x01", b"\x01\x40", TRAILERS[:-1], b"\x00\x05", b"\x21\x05abcd", b"\x40"]
)
def test_frames_that_are_cut_off_by_the_end(client: bool, phase: Phase, cut: bytes) -> None:
    """RFC 9114 section 7.1."""
    if cut[0] == FrameType.HEADERS and len(cut) > 2 and phase is Phase.TUNNEL:
        cut = data(b"abc")[:-1]
    target = in_phase(client, phase)
    assert receive(target, cut) in ([], [Content(0, b"ab")])
    assert refused(lambda: receive(target, b"", fin=True)) == Http3Code.FRAME_ERROR


# ---- requests and responses


def test_a_request_and_its_response() -> None:
    server, client = settled(False), settled(True)
    sent = request(length(5), method=b"POST") + data(b"he") + data(b"llo") + TRAILERS
    head, *rest = receive(server, sent, fin=True)
    assert head == RequestReceived(
        0, RequestHead("POST", "https", "a.test", "/", None, [length(5)])
    )
    assert joined(rest) == [
        Content(0, b"hello"),
        TrailersReceived(0, [(b"checksum", b"1")]),
        ContentEnded(0),
    ]
    sent = response(status=103) + response(status=100) + response(length(3)) + data(b"abc")
    assert receive(client, sent, fin=True) == [
        InterimResponse(0, ResponseHead(103, [])),
        InterimResponse(0, ResponseHead(100, [])),
        ResponseReceived(0, ResponseHead(200, [length(3)])),
        Content(0, b"abc"),
        ContentEnded(0),
    ]


def test_streams_have_nothing_to_do_with_each_other() -> None:
    server = settled(False)
    pieces = {stream_id: request() + data(b"%d" % stream_id) for stream_id in (0, 4, 8)}
    found: list[Http3Event] = []
    for at in range(max(map(len, pieces.values()))):
        for stream_id, whole in pieces.items():
            found += server.receive(stream_id, whole[at : at + 1], fin=at == len(whole) - 1)
    for stream_id in pieces:
        mine = [event for event in found if getattr(event, "stream_id", None) == stream_id]
        assert isinstance(mine[0], RequestReceived)
        assert mine[1:] == [Content(stream_id, b"%d" % stream_id), ContentEnded(stream_id)]


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize(
    ("expected", "pieces", "works"),
    [
        (0, [], True),
        (5, [b"hello"], True),
        (5, [b"he", b"", b"llo"], True),
        (5, [], False),
        (5, [b"hell"], False),
        (5, [b"hello", b"!"], False),
        (5, [b"hello!"], False),
        (5, [b"he", b"llo, world"], False),
        (0, [b"x"], False),
        (10**17, [b"hello"], False),
    ],
)
@pytest.mark.parametrize("trailers", [b"", TRAILERS])
def test_content_is_as_long_as_it_says(
    client: bool, expected: int, pieces: list[bytes], works: bool, trailers: bytes
) -> None:
    """RFC 9114 section 4.1.2."""
    head = response(length(expected)) if client else request(length(expected))
    target = settled(client)
    events = receive(target, head, *map(data, pieces), trailers, fin=True)
    content = b"".join(event.data for event in events if isinstance(event, Content))
    # What is there of it is given, however it was cut.
    assert content == b"".join(pieces)[:expected]
    assert isinstance(events[0], ResponseReceived | RequestReceived)
    if works:
        assert events[-1] == ContentEnded(0)
        assert len(content) == expected
    else:
        failed = events[-1]
        assert isinstance(failed, MessageFailed)
        assert (failed.code, failed.status) == (Http3Code.MESSAGE_ERROR, 400)
        assert not any(isinstance(event, ContentEnded) for event in events)
        assert sum(isinstance(event, MessageFailed) for event in events) == 1


def test_responses_that_never_have_content() -> None:
    """RFC 9114 section 4.1.2: they may say how long it were."""
    client = settled(True)
    client.encode_head(0, [(b":method", b"HEAD")], head_request=True)
    client.encode_head(4, [(b":method", b"GET")])
    assert client.receive(0, response(length(5)), fin=True)[-1] == ContentEnded(0)
    assert client.receive(4, response(length(5), status=304), fin=True)[-1] == ContentEnded(4)
    assert isinstance(client.receive(8, response(length(5)), fin=True)[-1], MessageFailed)
    # What was said of a stream is forgotten with it.
    client.forget(0)
    assert isinstance(client.receive(0, response(length(5)), fin=True)[-1], MessageFailed)


def test_a_length_of_an_interim_response_means_nothing() -> None:
    client = settled(True)
    events = receive(client, response(length(5), status=103) + response(), fin=True)
    assert events[-1] == ContentEnded(0)


def connecting() -> Http3Protocol:
    client = settled(True)
    client.encode_head(0, CONNECT)
    return client


@pytest.mark.parametrize("status", [200, 204, 299])
@pytest.mark.parametrize("lines", [[], [length(0)], [length(9)], [(b"content-length", b"x")]])
def test_a_tunnel_has_no_length(status: int, lines: Fields) -> None:
    """RFC 9110 section 9.3.6: a Content-Length in a successful response to CONNECT is ignored."""
    expected = [Content(0, b"hello"), ContentEnded(0)]
    assert receive(settled(False), connect(*lines) + data(b"hello"), fin=True)[1:] == expected
    whole = response(*lines, status=status) + data(b"hello")
    assert receive(connecting(), whole, fin=True)[1:] == expected
    pieces = (bytes([byte]) for byte in whole)
    assert joined(receive(connecting(), *pieces, fin=True))[1:] == expected


def test_a_tunnel_carries_data_only() -> None:
    for whole in (response() + data(b"x") + TRAILERS, response() + response()):
        code = refused(lambda: receive(connecting(), whole))  # noqa: B023
        assert code == Http3Code.FRAME_UNEXPECTED
    code = refused(lambda: receive(settled(False), connect() + TRAILERS))
    assert code == Http3Code.FRAME_UNEXPECTED


def test_interim_responses_before_a_tunnel() -> None:
    events = receive(connecting(), response(status=103) + response() + data(b"x"))
    assert isinstance(events[0], InterimResponse)
    assert events[2:] == [Content(0, b"x")]


def test_a_refusal_of_a_tunnel_is_a_message() -> None:
    events = receive(
        connecting(), response(length(3), status=404) + data(b"abc") + TRAILERS, fin=True
    )
    assert events[1:] == [
        Content(0, b"abc"),
        TrailersReceived(0, [(b"checksum", b"1")]),
        ContentEnded(0),
    ]
    events = receive(connecting(), response(length(3), status=404) + data(b"abcd"), fin=True)
    assert isinstance(events[-1], MessageFailed)


def test_only_what_was_asked_for_with_connect_becomes_a_tunnel() -> None:
    client = connecting()
    client.encode_head(4, [(b":method", b"GET")])
    assert client.receive(4, response() + data(b"x") + TRAILERS, fin=True)[-1] == ContentEnded(4)
    # What was said of a stream is forgotten with it.
    client.forget(0)
    events = client.receive(0, response(length(1)) + data(b"xy"), fin=False)
    assert isinstance(events[-1], MessageFailed)


def test_interim_responses_have_a_limit() -> None:
    client = settled(True)
    events = receive(client, response(status=103) * 32)
    assert len(events) == 32
    (failed,) = receive(client, response(status=103) + response())
    assert isinstance(failed, MessageFailed)
    assert failed.code == Http3Code.MESSAGE_ERROR
    client = settled(True)
    events = receive(client, response(status=103) * 32 + response(), fin=True)
    assert isinstance(events[32], ResponseReceived)


@pytest.mark.parametrize(
    ("client", "sent"),
    [
        (False, headers([(b":method", b"GET")])),
        (False, headers([])),
        (False, response()),
        (False, request((b"a", b"\n"))),
        (False, request((b"content-length", b"x"))),
        (False, request((b"content-length", b"1"), (b"content-length", b"2"))),
        (True, headers([])),
        (True, request()),
        (True, response(status=101)),
        (True, response((b"connection", b"close"))),
        (True, response((b"content-length", b"-1"))),
        (True, response() + response(status=200)),
        (True, response() + response(status=103)),
        (False, request() + headers([(b":status", b"200")])),
    ],
)
def test_malformed_messages(client: bool, sent: bytes) -> None:
    """RFC 9114 section 4.1.2: they cost their stream, not the connection; what follows is not looked at."""
    target = settled(client)
    *_, failed = receive(target, sent)
    assert isinstance(failed, MessageFailed)
    assert (failed.code, failed.status) == (Http3Code.MESSAGE_ERROR, 400)
    assert failed.reason
    assert receive(target, data(b"x") + TRAILERS + b"\x02\x00", b"\xff" * 1000, fin=True) == []
    assert target.held(0) == 0
    # The next one is none the worse.
    assert len(target.receive(4, HEAD[client], fin=True)) == 2


def test_a_message_is_given_no_end_if_it_failed() -> None:
    server = settled(False)
    (failed,) = receive(server, headers([]), fin=True)
    assert isinstance(failed, MessageFailed)


def test_sections_without_lines() -> None:
    """Trailers of nothing are trailers; a message must have its pseudo-header fields."""
    events = receive(settled(False), request() + frame(FrameType.HEADERS, b"\0\0"), fin=True)
    assert events[1:] == [TrailersReceived(0, []), ContentEnded(0)]


@pytest.mark.parametrize(
    "section", [b"", b"\0", b"\0\0\x80", b"\x02\0\xd1", b"\0\0\xff\x24", b"\0\0\x23a"]
)
def test_sections_that_cannot_be_read(section: bytes) -> None:
    for target in (settled(True), settled(False)):
        sent = frame(FrameType.HEADERS, section)
        code = refused(lambda: receive(target, sent))  # noqa: B023
        assert code == Http3Code.QPACK_DECOMPRESSION_FAILED


# ---- limits


def too_much(events: list[Http3Event]) -> bool:
    failed = events[-1]
    return isinstance(failed, MessageFailed) and (failed.code, failed.status) == (
        Http3Code.EXCESSIVE_LOAD,
        431,
    )


@pytest.mark.parametrize("client", [True, False])
def test_as_many_fields_as_there_may_be(client: bool) -> None:
    make = response if client else request
    own = 1 if client else 4
    for trailers in (False, True):
        fields = [(b"a", b"b")] * (MAX_FIELDS if trailers else MAX_FIELDS - own)
        for count in (0, 1):
            more = fields + [(b"c", b"d")] * count
            sent = make() + headers(more) if trailers else make(*more)
            assert too_much(receive(settled(client), sent)) == bool(count)


@pytest.mark.parametrize("client", [True, False])
def test_as_large_a_head_as_there_may_be(client: bool) -> None:
    make = response if client else request
    empty = receive(settled(client), make())[0]
    assert isinstance(empty, ResponseReceived | RequestReceived)
    own = {True: [b":status200"], False: [b":methodGET", b":schemehttps", b":authoritya.test"]}
    size = sum(32 + len(line) for line in own[client]) + (0 if client else 32 + len(b":path/"))
    for over in (0, 1):
        value = b"\x80" * (MAX_SECTION - size - 32 - 1 + over)
        assert too_much(receive(settled(client), make((b"a", value)))) == bool(over)


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("phase", [Phase.HEAD, Phase.CONTENT])
@pytest.mark.parametrize("size", [MAX_SECTION + 1, 2**30, 2**62 - 1])
def test_a_head_that_is_too_long_is_refused_at_once(client: bool, phase: Phase, size: int) -> None:
    target = in_phase(client, phase)
    assert too_much(receive(target, encode_record_head(FrameType.HEADERS, size)))
    assert receive(target, b"x" * 1000) == []


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("phase", [Phase.TUNNEL, Phase.TRAILERS])
def test_a_head_that_is_too_long_where_there_is_none(client: bool, phase: Phase) -> None:
    sent = encode_record_head(FrameType.HEADERS, 2**30)
    code = refused(lambda: receive(in_phase(client, phase), sent))
    assert code == Http3Code.FRAME_UNEXPECTED


def test_the_limits_are_those_that_were_asked_for() -> None:
    assert too_much(receive(protocol(False, max_fields=3), request()))
    assert not too_much(receive(protocol(False, max_fields=4), request()))
    assert too_much(receive(protocol(False, max_field_section=100), request()))
    assert not too_much(receive(protocol(False, max_field_section=2000), request()))


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (FrameType.SETTINGS, 4097),
        (FrameType.SETTINGS, 2**30),
        (FrameType.GOAWAY, 2**30),
        (FrameType.MAX_PUSH_ID, 2**30),
        (FrameType.PRIORITY_UPDATE, 1025),
        (FrameType.PRIORITY_UPDATE, 2**30),
    ],
)
def test_a_control_frame_that_is_too_long_is_refused_at_once(kind: int, size: int) -> None:
    target = protocol(False) if kind == FrameType.SETTINGS else settled(False)
    code = refused(lambda: control(target, encode_record_head(kind, size)))
    assert code in (Http3Code.EXCESSIVE_LOAD, Http3Code.FRAME_ERROR)


def test_settings_as_long_as_they_may_be() -> None:
    payload = b"".join(varint.encode(0x4000 + n) + b"\x00" for n in range(818))
    payload += varint.encode(0x40) + b"\x00" + varint.encode(0x41) + b"\x00"
    assert len(payload) == MAX_SETTINGS
    target = protocol(False)
    (event,) = control(target, frame(FrameType.SETTINGS, payload))
    assert isinstance(event, SettingsReceived)
    assert len(event.settings) == 820


def peak(action: Callable[[], object]) -> int:
    """The most memory that an action has had at once."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("phase", [Phase.HEAD, Phase.CONTENT, Phase.TUNNEL])
@pytest.mark.parametrize("kind", [FrameType.HEADERS, FrameType.DATA, GREASE[1]])
def test_nothing_is_held_of_what_is_endless(phase: Phase, kind: int) -> None:
    if STEPS.get((phase, kind)) is Step.UNEXPECTED:
        return
    target, piece = in_phase(False, phase), bytes(MEBIBYTE)

    def take() -> None:
        receive(target, encode_record_head(kind, 2**30))
        for _ in range(32):
            receive(target, piece)

    assert peak(take) < 65536
    assert target.held(0) == 0


def test_nothing_is_held_of_endless_frames_on_the_control_stream() -> None:
    target, piece = settled(False), bytes(MEBIBYTE)

    def take() -> None:
        control(target, encode_record_head(GREASE[1], 2**40))
        for _ in range(32):
            control(target, piece)

    assert peak(take) < 65536


def test_a_head_is_held_no_longer_than_it_may_be() -> None:
    target, piece = settled(False), bytes(4096)

    def take() -> None:
        receive(target, encode_record_head(FrameType.HEADERS, MAX_SECTION))
        for n in range(15):
            receive(target, piece)
            assert target.held(0) == 4096 * (n + 1)

    assert peak(take) < 2.5 * MAX_SECTION
    target.forget(0)
    assert target.held(0) == 0


def test_a_small_head_of_many_lines() -> None:
    target = settled(False)
    sent = frame(FrameType.HEADERS, b"\0\0" + b"\xd1" * 65_000)
    found: list[Http3Event] = []
    # The frame itself is held, and is one object.
    assert peak(lambda: found.extend(receive(target, sent))) < 4 * len(sent)
    assert too_much(found)


def test_nothing_is_left_of_streams_that_are_forgotten() -> None:
    server = settled(False)

    def serve(first: int) -> None:
        for stream_id in range(first, first + 4000, 4):
            server.receive(stream_id, request(), fin=stream_id % 8 == 0)
            server.receive(stream_id, headers([])[:3], fin=False)
            server.forget(stream_id)
            server.forget(stream_id)

    serve(0)
    tracemalloc.start()
    try:
        serve(4000)
        assert tracemalloc.get_traced_memory()[0] < 16384
    finally:
        tracemalloc.stop()


def seconds(pieces: Sequence[bytes], times: int) -> float:
    best = float("inf")
    for _ in range(times):
        target = protocol(False, max_field_section=2**30, max_fields=10)
        begun = time.thread_time()
        for piece in pieces:
            target.receive(0, piece, fin=False)
        best = min(best, time.thread_time() - begun)
    return best


@pytest.mark.parametrize("kind", [FrameType.HEADERS, FrameType.DATA, GREASE[0]])
def test_a_megabyte_byte_by_byte(kind: int) -> None:
    """16 times the work of a sixteenth of it; if it were quadratic, 256 times."""

    def pieces(size: int) -> list[bytes]:
        before = request() if kind == FrameType.DATA else b""
        return [before + encode_record_head(kind, size), *[b"x"] * (size - 1)]

    assert seconds(pieces(10**6), 1) < 64 * seconds(pieces(10**6 // 16), 3)


# ---- datagrams (RFC 9297 section 2.1)


@pytest.mark.parametrize("stream_id", [0, 4, 252, 256, 2**16, 2**32, 2**62 - 4])
def test_datagrams_name_their_stream(stream_id: int) -> None:
    head = Http3Protocol.encode_datagram_head(stream_id)
    assert head == varint.encode(stream_id // 4)
    assert Http3Protocol.parse_datagram(head + b"data") == (stream_id, len(head))
    assert Http3Protocol.parse_datagram(head) == (stream_id, len(head))


@pytest.mark.parametrize("whole", [b"", b"\x40", b"\xc0" + bytes(6), b"\xd0" + bytes(7)])
def test_datagrams_of_no_stream(whole: bytes) -> None:
    assert refused(lambda: Http3Protocol.parse_datagram(whole)) == Http3Code.DATAGRAM_ERROR
    assert Http3Protocol.parse_datagram(b"\xcf" + b"\xff" * 7)[0] == 2**62 - 4


@given(st.binary(max_size=20))
@settings(deadline=None)
def test_any_datagram(whole: bytes) -> None:
    try:
        stream_id, at = Http3Protocol.parse_datagram(whole)
    except Http3Error as exc:
        assert exc.code == Http3Code.DATAGRAM_ERROR
    else:
        assert stream_id % 4 == 0
        assert 0 <= stream_id < 2**62
        assert 1 <= at <= min(8, len(whole))


# ---- any chunking, any bytes

Outcome = tuple[list[Http3Event], Http3Code | None]


def outcome(
    take: Callable[[bytes, bool], list[Http3Event]], pieces: Sequence[bytes], *, fin: bool
) -> Outcome:
    """What came of it: the events, or the code that the connection is closed with."""
    events: list[Http3Event] = []
    try:
        for n, piece in enumerate(pieces):
            events += take(piece, fin and n == len(pieces) - 1)
    except Http3Error as exc:
        return [], exc.code
    return joined(events), None


small = st.binary(max_size=8)
lines = st.lists(
    st.tuples(
        st.sampled_from(
            [b":status", b":method", b":path", b":scheme", b":authority", b"a", b"content-length"]
        ),
        st.sampled_from([b"200", b"103", b"GET", b"/", b"https", b"a.test", b"5", b"\n"]),
    ),
    max_size=5,
)
frames = st.one_of(
    st.sampled_from(
        [
            request(),
            request(length(5)),
            connect(),
            response(),
            response(length(5)),
            response(status=103),
            TRAILERS,
            data(b"hello"),
            data(b"hello, world"),
            data(b""),
        ]
    ),
    lines.map(headers),
    small.map(data),
    st.builds(frame, st.sampled_from([*FrameType, *GREASE, *HTTP2]), small),
    small,
)
cuts = st.lists(st.integers(0, 2**16), max_size=12)


@given(st.booleans(), st.lists(frames, max_size=6).map(b"".join), cuts, st.booleans())
@settings(deadline=None, max_examples=300)
def test_any_message_in_any_chunking(
    client: bool, whole: bytes, places: list[int], fin: bool
) -> None:
    def run(pieces: Sequence[bytes]) -> Outcome:
        target = protocol(client)

        def take(piece: bytes, last: bool) -> list[Http3Event]:
            found = target.receive(0, piece, fin=last)
            assert target.held(0) <= MAX_SECTION
            return found

        return outcome(take, pieces, fin=fin)

    expected = run([whole])
    assert run(split(whole, places)) == expected
    assert run([*(bytes([byte]) for byte in whole), b""]) == expected
    events, _ = expected
    ends = [event for event in events if isinstance(event, ContentEnded | MessageFailed)]
    assert len(ends) <= 1
    assert not ends or events[-1] == ends[0]


control_frames = st.one_of(
    st.builds(frame, st.sampled_from([*FrameType, *GREASE, *HTTP2]), small),
    st.builds(
        frame,
        st.sampled_from([FrameType.GOAWAY, FrameType.MAX_PUSH_ID, FrameType.PRIORITY_UPDATE]),
        st.integers(0, 2**62 - 1).map(lambda n: varint.encode(n - n % 4)),
    ),
    st.dictionaries(st.integers(6, 2**16), st.integers(0, 1), max_size=5).map(
        lambda found: frame(FrameType.SETTINGS, encode_settings(found))
    ),
    small,
)


@given(st.booleans(), st.booleans(), st.lists(control_frames, max_size=6).map(b"".join), cuts)
@settings(deadline=None, max_examples=200)
def test_any_control_stream_in_any_chunking(
    client: bool, settings_first: bool, whole: bytes, places: list[int]
) -> None:
    if settings_first:
        whole = frame(FrameType.SETTINGS, b"\x33\x01") + whole

    def run(pieces: Sequence[bytes]) -> Outcome:
        target = protocol(client)
        return outcome(
            lambda piece, last: target.receive_critical(StreamType.CONTROL, piece, fin=last),
            pieces,
            fin=False,
        )

    expected = run([whole])
    assert run(split(whole, places)) == expected
    assert run([bytes([byte]) for byte in whole]) == expected


# ---- two sides, back to back


class Wire:
    """What is between a client and a server: streams, whose bytes come in pieces of any size."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sides = {True: protocol(True), False: protocol(False)}
        self.events: dict[bool, list[Http3Event]] = {True: [], False: []}
        self._sizes = list(sizes)
        self._heads: dict[tuple[bool, int], StreamHeadReader] = {}
        self._kinds: dict[tuple[bool, int], StreamType] = {}

    def size(self) -> int:
        if not self._sizes:
            return 2**30
        self._sizes.append(self._sizes.pop(0))
        return self._sizes[-1]

    def send(self, client: bool, stream_id: int, whole: bytes, *, fin: bool = False) -> None:
        """From one side to the other."""
        while True:
            size = self.size()
            piece, whole = whole[:size], whole[size:]
            self._arrive(not client, stream_id, piece, fin=fin and not whole)
            if not whole:
                return

    def _arrive(self, client: bool, stream_id: int, piece: bytes, *, fin: bool) -> None:
        side, key = self.sides[client], (client, stream_id)
        kind = self._kinds.get(key)
        if stream_id % 4 == 0 and client:
            kind = StreamType.REQUEST
        if kind is None:
            reader = self._heads.setdefault(
                key, StreamHeadReader(unidirectional=bool(stream_id & 2))
            )
            head = reader.feed(piece)
            if head is None:
                return
            kind = self._kinds[key] = head.kind
            piece = head.rest
            if kind is not StreamType.REQUEST:
                side.open_critical(stream_id, kind)
        if kind is StreamType.REQUEST:
            self.events[client] += side.receive(stream_id, piece, fin=fin)
        else:
            self.events[client] += side.receive_critical(kind, piece, fin=fin)

    def of(self, client: bool, stream_id: int) -> list[Http3Event]:
        """What has come on a stream."""
        return joined(
            event
            for event in self.events[client]
            if getattr(event, "stream_id", None) == stream_id
            and not isinstance(event, GoawayReceived)
        )


bodies = st.one_of(st.binary(max_size=50), st.integers(0, 40_000).map(bytes))
field_lines = st.lists(
    st.tuples(
        st.from_regex(rb"[a-z][a-z0-9-]{0,10}", fullmatch=True).filter(
            lambda name: name not in (b"connection", b"upgrade", b"te", b"host", b"keep-alive")
        ),
        st.from_regex(rb"([!-~]([ -~]{0,30}[!-~])?)?", fullmatch=True),
    ),
    max_size=5,
)


@st.composite
def messages(draw: st.DrawFn) -> tuple[Fields, bytes, Fields | None]:
    """Fields, content, and trailers."""
    content, fields = draw(bodies), draw(field_lines)
    if draw(st.booleans()):
        fields = [*fields, length(len(content))]
    return fields, content, draw(st.none() | field_lines)


@given(
    st.lists(st.tuples(messages(), messages(), st.integers(0, 3)), min_size=1, max_size=4),
    st.lists(st.integers(1, 3000), max_size=5),
)
@settings(deadline=None, max_examples=50)
def test_two_sides_back_to_back(
    exchanges: list[
        tuple[tuple[Fields, bytes, Fields | None], tuple[Fields, bytes, Fields | None], int]
    ],
    sizes: list[int],
) -> None:
    wire = Wire(sizes)
    for client in (True, False):
        side = wire.sides[client]
        wire.send(client, 2 if client else 3, side.opening())
        wire.send(client, 6 if client else 7, b"\x02\x20")
        wire.send(client, 10 if client else 11, b"\x03")
    for client in (True, False):
        assert wire.events[client] == [SettingsReceived(SETTINGS)]

    def send_message(
        client: bool, stream_id: int, pseudo: Fields, message: tuple[Fields, bytes, Fields | None]
    ) -> None:
        side, (fields, content, trailers) = wire.sides[client], message
        wire.send(client, stream_id, side.encode_head(stream_id, pseudo + fields))
        for piece in (content[:1], content[1:]):
            wire.send(client, stream_id, side.encode_content_head(len(piece)) + piece)
        if trailers is not None:
            wire.send(client, stream_id, side.encode_head(stream_id, trailers))
        wire.send(client, stream_id, b"", fin=True)

    def arrived(stream_id: int, message: tuple[Fields, bytes, Fields | None]) -> list[Http3Event]:
        _, content, trailers = message
        rest: list[Http3Event] = [Content(stream_id, content)] if content else []
        if trailers is not None:
            rest.append(TrailersReceived(stream_id, trailers))
        return [*rest, ContentEnded(stream_id)]

    pseudo = [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":authority", b"a.test:4433"),
        (b":path", b"/x?y"),
    ]
    for number, (asked, answered, interim) in enumerate(exchanges):
        stream_id = 4 * number
        send_message(True, stream_id, pseudo, asked)
        head = RequestHead("POST", "https", "a.test:4433", "/x?y", None, asked[0])
        assert wire.of(False, stream_id) == [
            RequestReceived(stream_id, head),
            *arrived(stream_id, asked),
        ]
        server = wire.sides[False]
        for _ in range(interim):
            wire.send(False, stream_id, server.encode_head(stream_id, [(b":status", b"103")]))
        send_message(False, stream_id, [(b":status", b"200")], answered)
        assert wire.of(True, stream_id) == [
            *[InterimResponse(stream_id, ResponseHead(103, []))] * interim,
            ResponseReceived(stream_id, ResponseHead(200, answered[0])),
            *arrived(stream_id, answered),
        ]
        for side in wire.sides.values():
            side.forget(stream_id)
    wire.send(False, 3, Http3Protocol.encode_goaway(4 * len(exchanges)))
    assert wire.events[True][-1] == GoawayReceived(4 * len(exchanges))


def test_a_session_s_stream_back_to_back() -> None:
    wire = Wire([7, 1, 100])
    client, server = wire.sides[True], wire.sides[False]
    wire.send(True, 0, client.encode_head(0, CONNECT))
    wire.send(True, 0, client.encode_content_head(5) + b"early")
    wire.send(False, 0, server.encode_head(0, ANSWER))
    wire.send(False, 0, server.encode_content_head(4) + b"late", fin=True)
    wire.send(True, 0, b"", fin=True)
    head = RequestHead("CONNECT", "https", "a.test", "/", "webtransport", [])
    assert wire.of(False, 0) == [RequestReceived(0, head), Content(0, b"early"), ContentEnded(0)]
    assert wire.of(True, 0) == [
        ResponseReceived(0, ResponseHead(200, [])),
        Content(0, b"late"),
        ContentEnded(0),
    ]
