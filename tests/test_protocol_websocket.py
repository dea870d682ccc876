"""The pure protocol: bytes in, events out, and back."""

from __future__ import annotations

import pytest
import wsproto
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.events import Pong as WsprotoPong
from wsproto.utilities import RemoteProtocolError

from tests.frames import close_frame, frame, parse_frames
from trio_wt._protocol.deflate import Deflate
from trio_wt._protocol.events import TRANSITIONS, Closed, Event, Fragment, Input, Pong, State
from trio_wt._protocol.extensions import ExtensionCodec
from trio_wt._protocol.websocket import LocalStateError, WebSocketProtocol

PLENTY = 10**9


def codecs(
    client: Deflate | None = None, server: Deflate | None = None
) -> tuple[list[ExtensionCodec], list[ExtensionCodec]]:
    """The two ends of a negotiated permessage-deflate."""
    client, server = client or Deflate(), server or Deflate()
    ours = server.accept(client.offer()[0])
    assert ours is not None
    return [client.confirm(ours.response)], [ours]


def pair(*, compressed: bool = False, **limits: int) -> tuple[WebSocketProtocol, WebSocketProtocol]:
    a, b = codecs() if compressed else ([], [])
    return (
        WebSocketProtocol(client=True, codecs=a, **limits),
        WebSocketProtocol(client=False, codecs=b, **limits),
    )


def sent(protocol: WebSocketProtocol) -> bytes:
    pieces: list[bytes | memoryview] = []
    size = protocol.take_outgoing(pieces)
    assert size == sum(map(len, pieces))
    assert not protocol.has_outgoing
    return b"".join(pieces)


def events(protocol: WebSocketProtocol, data: bytes, chunk: int | None = None) -> list[Event]:
    found: list[Event] = []
    for at in range(0, max(len(data), 1), chunk or len(data) or 1):
        protocol.receive_data(data[at : at + (chunk or len(data))])
        while (more := protocol.events(PLENTY, PLENTY)) or (
            protocol.end_pending and not protocol.closed
        ):
            found += more
    return found


def joined(found: list[Event]) -> list[object]:
    """Events with the fragments of a message joined."""
    result: list[object] = []
    parts: list[bytes] = []
    for event in found:
        if isinstance(event, Fragment):
            assert event.first is (not parts)
            parts.append(event.data)
            if event.final:
                whole = b"".join(parts)
                result.append(whole.decode() if event.text else whole)
                parts = []
        else:
            result.append(event)
    if parts:
        result.append(("unfinished", b"".join(parts)))
    return result


def violation(
    data: bytes, *, client: bool = False, chunk: int | None = None, **limits: int | None
) -> Closed:
    """What a protocol answers to a peer that breaks the rules; checks that the Close frame says the same."""
    protocol = WebSocketProtocol(client=client, **limits)  # type: ignore[arg-type]
    last = events(protocol, data, chunk)[-1]
    assert isinstance(last, Closed)
    assert not last.remote
    (first, payload) = parse_frames(sent(protocol))[-1]
    assert first == 0x88
    assert int.from_bytes(payload[:2], "big") == last.code
    assert protocol.state is State.FAILED
    assert events(protocol, frame(1, b"more", masked=not client)) == []
    return last


# ---- messages


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 200_000])
def test_every_size_of_message_both_ways(size: int, compressed: bool) -> None:
    client, server = pair(compressed=compressed)
    text, data = "é" * (size // 2), bytes(i * 7 & 0xFF for i in range(size))
    for sender, receiver in ((client, server), (server, client)):
        sender.send_message(text.encode(), text=True)
        sender.send_message(data, text=False)
        assert joined(events(receiver, sent(sender))) == [text, data]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=300),
            st.binary(max_size=300),
            st.lists(st.text(max_size=40), min_size=1, max_size=5),
            st.sampled_from(["ping", "pong"]).map(lambda kind: (kind, b"p")),
        ),
        max_size=12,
    ),
    st.integers(1, 400),
    st.booleans(),
    st.booleans(),
)
def test_any_chunking_gives_the_same_messages(
    items: list[object], chunk: int, compressed: bool, from_client: bool
) -> None:
    client, server = pair(compressed=compressed)
    sender, receiver = (client, server) if from_client else (server, client)
    expected: list[object] = []
    for item in items:
        if isinstance(item, str):
            sender.send_message(item.encode(), text=True)
            expected.append(item)
        elif isinstance(item, bytes):
            sender.send_message(item, text=False)
            expected.append(item)
        elif isinstance(item, list):
            for part in item:
                sender.send_fragment(part.encode(), text=True, final=False)
                sender.send_ping(b"between")
            sender.send_fragment(b"", text=True, final=True)
            expected.append("".join(item))
        elif item == ("pong", b"p"):
            sender.send_pong(b"p")
            expected.append(Pong(b"p"))
        else:
            sender.send_ping(b"p")
    sender.send_close(1000, "done")
    expected.append(Closed(1000, "done", remote=True))
    assert joined(events(receiver, sent(sender), chunk)) == expected
    assert receiver.state is State.CLOSED


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 50), st.booleans(), st.booleans())
def test_no_bytes_make_it_raise(data: bytes, chunk: int, client: bool, compressed: bool) -> None:
    a, b = codecs() if compressed else ([], [])
    protocol = WebSocketProtocol(client=client, codecs=a if client else b)
    found = events(protocol, data, chunk)
    protocol.receive_eof()
    found += protocol.events(PLENTY, PLENTY)
    assert isinstance(found[-1], Closed)
    parse_frames(sent(protocol))


FRAMES = st.builds(
    lambda opcode, payload, fin, rsv: frame(opcode, payload, masked=True, fin=fin, rsv=rsv),
    st.sampled_from([0, 0, 1, 1, 2, 2, 8, 9, 10, 3]),
    st.one_of(
        st.binary(max_size=140),
        st.text(max_size=40).map(str.encode),
        st.sampled_from([b"\x03\xe8", b"\x03\xe8bye", b"\x03\xe8\xff", b"\x03", b"\x00\x00"]),
    ),
    st.sampled_from([True, True, True, False]),
    st.sampled_from([0, 0, 0, 0, 0, 0x40]),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(FRAMES, max_size=8), st.integers(1, 300))
def test_wsproto_agrees(frames: list[bytes], chunk: int) -> None:
    """An independent implementation finds the same in the same bytes, up to the end of the connection."""
    data = b"".join(frames)
    protocol = WebSocketProtocol(client=False, max_message_size=None)
    ours = joined(events(protocol, data, chunk))

    oracle = wsproto.Connection(wsproto.ConnectionType.SERVER)
    theirs: list[object] = []
    parts: list[str | bytes] = []
    try:
        oracle.receive_data(data)
        for event in oracle.events():
            if isinstance(event, TextMessage | BytesMessage):
                parts.append(event.data if isinstance(event, TextMessage) else bytes(event.data))
                if event.message_finished:
                    theirs.append(parts[0][:0].join(parts))  # type: ignore[arg-type]
                    parts = []
            elif isinstance(event, WsprotoPong):
                theirs.append(Pong(bytes(event.payload)))
            elif isinstance(event, CloseConnection):
                theirs.append(event.code)
                break
    except RemoteProtocolError:
        theirs.append(1002)
    ours_until_end: list[object] = []
    for item in ours:
        if isinstance(item, Closed):
            ours_until_end.append(item.code)
        elif not (isinstance(item, tuple) and item[0] == "unfinished"):
            ours_until_end.append(item)
    assert ours_until_end == theirs


def test_a_control_frame_inside_a_compressed_message_leaves_it_whole() -> None:
    client, server = pair(compressed=True)
    client.send_fragment(b"hello " * 50, text=True, final=False)
    client.send_ping(b"x")
    client.send_fragment(b"world " * 50, text=True, final=True)
    client.send_message(b"and the next", text=True, compress=True)
    assert joined(events(server, sent(client))) == ["hello " * 50 + "world " * 50, "and the next"]


def test_text_is_checked_as_it_arrives() -> None:
    protocol = WebSocketProtocol(client=False)
    bad = frame(1, b"ok \xce\xba\xff", masked=True, length=1000)
    assert isinstance(events(protocol, bad)[-1], Closed)
    assert protocol.closed is not None
    assert protocol.closed.code == 1007


def test_events_stops_where_its_caller_has_no_room() -> None:
    client, server = pair()
    for number in range(5):
        client.send_message(b"%d" % number * 10, text=False)
    server.receive_data(sent(client))
    assert server.events(2, PLENTY) == [b"0" * 10, b"1" * 10]
    assert server.events(PLENTY, 11) == [b"2" * 10, b"3" * 10]
    assert server.events(0, PLENTY) == []
    assert server.unparsed
    assert server.events(PLENTY, PLENTY) == [b"4" * 10]
    assert not server.unparsed


def test_compressed_messages_are_not_inflated_before_there_is_room() -> None:
    client, server = pair(compressed=True)
    for _ in range(10):
        client.send_message(bytes(100_000), text=False)
    server.receive_data(sent(client))
    assert len(joined(server.events(PLENTY, 1))) == 1


# ---- looking ahead


def test_pings_and_pongs_are_found_behind_messages_that_nobody_takes() -> None:
    client, server = pair()
    for number in range(3):
        client.send_message(b"m%d" % number, text=False)
        client.send_ping(b"ping%d" % number)
        client.send_pong(b"pong%d" % number)
    client.send_close(1000, "")
    server.receive_data(sent(client))
    assert server.events(1, PLENTY) == [b"m0"]
    assert server.look_ahead() == [Pong(b"pong0"), Pong(b"pong1"), Pong(b"pong2")]
    assert parse_frames(sent(server)) == [(0x8A, b"ping%d" % n) for n in range(3)]
    assert server.look_ahead() == []
    assert server.events(PLENTY, PLENTY) == [b"m1", b"m2"]
    assert server.events(PLENTY, PLENTY) == [Closed(1000, "", remote=True)]


@settings(max_examples=200, deadline=None)
@given(st.lists(FRAMES, max_size=10), st.integers(1, 60))
def test_looking_ahead_changes_no_message(frames: list[bytes], chunk: int) -> None:
    data = b"".join(frames)
    plain = WebSocketProtocol(client=False, max_message_size=None)
    expected = [e for e in joined(events(plain, data)) if not isinstance(e, Pong | tuple)]
    looking = WebSocketProtocol(client=False, max_message_size=None)
    found: list[Event] = []
    for at in range(0, len(data), chunk):
        looking.receive_data(data[at : at + chunk])
        looking.look_ahead()
        found += looking.events(1, 7)
        looking.look_ahead()
    found += events(looking, b"")
    assert [e for e in joined(found) if not isinstance(e, Pong | tuple)] == expected


# ---- violations

M = {"masked": True}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(1, b"x", masked=False), 1002),
        (frame(2, b"x", rsv=0x40, **M), 1002),
        (frame(2, b"x", rsv=0x20, **M), 1002),
        (frame(2, b"x", rsv=0x10, **M), 1002),
        (frame(9, b"x", rsv=0x40, **M), 1002),
        (frame(3, b"x", **M), 1002),
        (frame(11, b"x", **M), 1002),
        (frame(9, b"x", fin=False, **M), 1002),
        (frame(9, b"x" * 126, **M), 1002),
        (frame(0, b"x", **M), 1002),
        (frame(1, b"x", fin=False, **M) + frame(1, b"y", **M), 1002),
        (frame(2, b"x" * 10, length_bytes=2, **M), 1002),
        (frame(2, b"x" * 10, length_bytes=8, **M), 1002),
        (frame(2, b"", length=1 << 63, length_bytes=8, **M), 1002),
        (frame(2, b"", length=1 << 62, length_bytes=8, **M), 1009),
        (frame(2, b"", length=2**20 + 1, **M), 1009),
        (frame(1, b"\xff", **M), 1007),
        (frame(1, b"\xc3", **M), 1007),
        (frame(1, b"\xed\xa0\x80", **M), 1007),
        (frame(1, b"\xc3", fin=False, **M) + frame(0, b"\x28", **M), 1007),
        (frame(8, b"\x03", **M), 1002),
        (close_frame(999, **M), 1002),
        (close_frame(1004, **M), 1002),
        (close_frame(1005, **M), 1002),
        (close_frame(1006, **M), 1002),
        (close_frame(1015, **M), 1002),
        (close_frame(2999, **M), 1002),
        (close_frame(5000, **M), 1002),
        (frame(8, b"\x03\xe8\xff", **M), 1007),
    ],
)
@pytest.mark.parametrize("chunk", [None, 1])
def test_violations_get_their_code(data: bytes, code: int, chunk: int | None) -> None:
    assert violation(data, chunk=chunk).code == code


def test_a_client_refuses_masked_frames() -> None:
    assert violation(frame(1, b"x", masked=True), client=True).code == 1002


def test_too_many_fragments_is_1008_and_as_many_as_allowed_is_fine() -> None:
    parts = frame(2, b"a", fin=False, **M) + frame(0, b"b", fin=False, **M) * 8
    assert violation(parts + frame(0, b"c", **M) * 2, max_fragments=9).code == 1008
    protocol = WebSocketProtocol(client=False, max_fragments=10)
    assert joined(events(protocol, parts + frame(0, b"c", **M))) == [b"abbbbbbbbc"]
    protocol = WebSocketProtocol(client=False, max_fragments=9)
    assert joined(events(protocol, parts + frame(0, b"", **M))) == [b"abbbbbbbb"]


def test_a_message_of_many_parts_is_counted_as_a_whole() -> None:
    data = frame(2, b"a" * 600, fin=False, **M) + frame(0, b"b" * 401, **M)
    assert violation(data, max_message_size=1000).code == 1009


@pytest.mark.parametrize("chunk", [None, 7])
def test_a_deflate_bomb_is_1009_and_stays_small(chunk: int | None) -> None:
    ours, theirs = codecs()
    bomber = WebSocketProtocol(client=True, codecs=ours)
    bomber.send_message(bytes(50_000_000), text=False)
    protocol = WebSocketProtocol(client=False, codecs=theirs)
    found = events(protocol, sent(bomber), chunk)
    assert isinstance(found[-1], Closed)
    assert found[-1].code == 1009
    assert sum(len(e.data) for e in found if isinstance(e, Fragment)) <= 2**20 + 1


def test_compressed_garbage_is_1007() -> None:
    _, theirs = codecs()
    protocol = WebSocketProtocol(client=False, codecs=theirs)
    (closed,) = events(protocol, frame(2, b"\xff" * 20, rsv=0x40, **M))
    assert isinstance(closed, Closed)
    assert closed.code == 1007


# ---- states


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("what", list(Input))
def test_every_row_of_the_state_table(state: State, what: Input) -> None:
    """Drive a protocol into each state, apply each input, and compare with the table."""
    protocol = WebSocketProtocol(client=False)
    if state is State.CLOSING:
        protocol.send_close(1000, "")
    elif state is State.CLOSED:
        events(protocol, close_frame(1000, masked=True))
    elif state is State.FAILED:
        protocol.fail(1008, "no")
    elif state is State.LOST:
        protocol.receive_eof()
        protocol.events(1, 1)
    assert protocol.state is state
    if what is Input.LOCAL_CLOSE:
        if (state, what) not in TRANSITIONS:
            with pytest.raises(LocalStateError):
                protocol.send_close(1000, "")
            assert protocol.state is state
            return
        protocol.send_close(1000, "")
    elif what is Input.REMOTE_CLOSE:
        events(protocol, close_frame(1000, masked=True))
    elif what is Input.FAILURE:
        protocol.fail(1002, "")
    else:
        protocol.receive_eof()
        protocol.events(1, 1)
    assert protocol.state is TRANSITIONS.get((state, what), state)


def test_close_is_answered_with_the_same_code_and_reason() -> None:
    protocol = WebSocketProtocol(client=False)
    assert events(protocol, close_frame(4001, "bye", masked=True)) == [
        Closed(4001, "bye", remote=True)
    ]
    assert sent(protocol) == close_frame(4001, "bye", masked=False)


def test_a_close_without_a_code_is_1005_and_answered_without() -> None:
    protocol = WebSocketProtocol(client=False)
    assert events(protocol, frame(8, masked=True)) == [Closed(1005, "", remote=True)]
    assert sent(protocol) == frame(8, masked=False)


def test_who_closes_first_names_the_code() -> None:
    client, server = pair()
    client.send_close(4000, "mine")
    assert events(client, close_frame(4000, "mine", masked=False)) == [
        Closed(4000, "mine", remote=False)
    ]
    assert events(server, sent(client)) == [Closed(4000, "mine", remote=True)]


def test_the_end_of_bytes_without_close_is_1006() -> None:
    protocol = WebSocketProtocol(client=False)
    protocol.receive_data(frame(1, b"cut", masked=True)[:-1])
    protocol.receive_eof()
    assert protocol.events(PLENTY, PLENTY) == [Fragment(b"cu", True, True, False)]
    assert protocol.events(PLENTY, PLENTY) == [Closed(1006, "", remote=True)]


def test_messages_before_the_end_of_bytes_come_first() -> None:
    protocol = WebSocketProtocol(client=False)
    protocol.receive_data(frame(1, b"a", masked=True) + frame(1, b"b", masked=True))
    protocol.receive_eof()
    assert protocol.events(1, PLENTY) == ["a"]
    assert protocol.events(PLENTY, PLENTY) == ["b"]
    assert protocol.events(PLENTY, PLENTY) == [Closed(1006, "", remote=True)]


# ---- sending


def test_every_ping_is_answered_but_only_the_newest_of_those_that_had_to_wait() -> None:
    protocol = WebSocketProtocol(client=False)
    events(protocol, b"".join(frame(9, b"%d" % n, masked=True) for n in range(16)))
    assert parse_frames(sent(protocol)) == [(0x8A, b"%d" % n) for n in range(16)]
    events(protocol, b"".join(frame(9, b"%d" % n, masked=True) for n in range(16)))
    protocol.forget_old_pongs()
    assert sent(protocol) == frame(10, b"15", masked=False)


def test_a_flood_of_pings_gets_one_pong() -> None:
    protocol = WebSocketProtocol(client=False)
    for n in range(1000):
        events(protocol, frame(9, b"%d" % n, masked=True))
    assert sent(protocol) == frame(10, b"999", masked=False)
    events(protocol, frame(9, b"and one more", masked=True))
    assert sent(protocol) == frame(10, b"and one more", masked=False)


@pytest.mark.parametrize("end", [frame(8, b"", masked=True), frame(1, b"\xff", masked=True)])
def test_the_end_waits_for_the_answers_to_the_messages_before_it(end: bytes) -> None:
    protocol = WebSocketProtocol(client=False)
    protocol.receive_data(frame(1, b"question", masked=True) + end + b"garbage")
    assert protocol.events(PLENTY, PLENTY) == ["question"]
    assert protocol.end_pending
    protocol.send_message(b"answer", text=True)
    (closed,) = protocol.events(PLENTY, PLENTY)
    assert isinstance(closed, Closed)
    assert [first for first, _ in parse_frames(sent(protocol))] == [0x81, 0x88]
    assert protocol.events(PLENTY, PLENTY) == []


def test_pongs_go_before_queued_messages_and_not_after_close() -> None:
    protocol = WebSocketProtocol(client=False)
    protocol.send_message(b"m", text=False)
    events(protocol, frame(9, b"p", masked=True))
    assert parse_frames(sent(protocol)) == [(0x8A, b"p"), (0x82, b"m")]
    protocol.send_close(1000, "")
    events(protocol, frame(9, b"late", masked=True))
    assert parse_frames(sent(protocol)) == [(0x88, b"\x03\xe8")]


def test_nothing_goes_out_after_close() -> None:
    protocol = WebSocketProtocol(client=True)
    protocol.send_close(1000, "")
    sent(protocol)
    for call in (
        lambda: protocol.send_message(b"", text=True),
        lambda: protocol.send_fragment(b"", text=True, final=True),
        lambda: protocol.send_ping(b""),
        lambda: protocol.send_pong(b""),
        lambda: protocol.send_close(1000, ""),
    ):
        with pytest.raises(LocalStateError):
            call()
    assert not protocol.has_outgoing


def test_a_message_cannot_begin_inside_another() -> None:
    protocol = WebSocketProtocol(client=True)
    protocol.send_fragment(b"a", text=False, final=False)
    with pytest.raises(LocalStateError):
        protocol.send_message(b"b", text=False)
    with pytest.raises(LocalStateError):
        protocol.send_shared(b"b", text=False, frame=None)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (999, ""),
        (1004, ""),
        (1006, ""),
        (1015, ""),
        (2000, ""),
        (5000, ""),
        (1000, "x" * 124),
        (1005, "x"),
        (1000, "a\r\nb"),
    ],
)
def test_what_cannot_be_sent_as_close_is_refused_and_changes_nothing(
    code: int, reason: str
) -> None:
    protocol = WebSocketProtocol(client=True)
    with pytest.raises(ValueError, match=r"close|code|reason"):
        protocol.send_close(code, reason)
    assert protocol.state is State.OPEN
    assert not protocol.has_outgoing


def test_long_pings_are_refused() -> None:
    protocol = WebSocketProtocol(client=True)
    with pytest.raises(ValueError, match="125"):
        protocol.send_ping(b"x" * 126)
    assert not protocol.has_outgoing


def test_shared_frames_are_made_once_by_servers_and_masked_by_clients() -> None:
    client, server = pair(compressed=True)
    shared = server.send_shared(b"news", text=True, frame=None)
    other = WebSocketProtocol(client=False)
    assert other.send_shared(b"news", text=True, frame=shared) is shared
    assert sent(server) == sent(other) == frame(1, b"news", masked=False)
    assert client.send_shared(b"news", text=True, frame=None) is None
    assert parse_frames(sent(client)) == [(0x81, b"news")]


def test_masks_differ_from_frame_to_frame() -> None:
    client = WebSocketProtocol(client=True)
    for _ in range(200):
        client.send_message(bytes(8), text=False)
    data = sent(client)
    keys = {data[at + 2 : at + 6] for at in range(0, len(data), 14)}
    assert len(keys) > 190
