"""The queue of received messages, against a list."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_wt._protocol.events import Fragment
from trio_wt._websocket.inbox import Assembly, Inbox

MAX_BYTES = 100


def weight(message: str | bytes) -> int:
    if isinstance(message, bytes) or message.isascii():
        return len(message)
    return 4 * len(message)


@dataclass
class Arriving:
    """A message that comes in pieces: all that came, and how far the stream has read."""

    text: bool
    data: bytes = b""
    taken: int = 0
    final: bool = False
    dropped: bool = False

    def whole(self) -> str | bytes:
        return self.data.decode() if self.text else self.data


@dataclass
class Model:
    """What an inbox is, without caring for speed: a list, the last of which may be arriving."""

    queue: list[str | bytes | Arriving] = field(default_factory=list)
    arriving: Arriving | None = None
    streamed: Arriving | None = None

    def size(self) -> int:
        size = sum(weight(message) for message in self.queue if not isinstance(message, Arriving))
        for message in (self.arriving, self.streamed):
            if message is not None and not message.dropped:
                size += len(message.data) - message.taken
            if self.arriving is self.streamed:
                break
        return size


class Machine(RuleBasedStateMachine):
    max_messages = 4

    def __init__(self) -> None:
        super().__init__()
        self.inbox = Inbox(self.max_messages, MAX_BYTES)
        self.model = Model()
        self.stream: Assembly | None = None

    def ready(self) -> bool:
        queue = self.model.queue
        return bool(queue) and not isinstance(queue[0], Arriving)

    @precondition(lambda self: self.model.arriving is None)
    @rule(message=st.one_of(st.binary(max_size=30), st.text("aé€😀", max_size=10)))
    def put_whole(self, message: str | bytes) -> None:
        self.inbox.put(message)
        self.model.queue.append(message)

    @precondition(lambda self: self.model.arriving is None)
    @rule(text=st.booleans(), part=st.text("aé€😀", max_size=8), final=st.booleans())
    def begin(self, text: bool, part: str, final: bool) -> None:
        self.model.arriving = Arriving(text)
        self.model.queue.append(self.model.arriving)
        self._add(part, True, final, None)

    @precondition(lambda self: self.model.arriving is not None)
    @rule(
        part=st.text("aé€😀", max_size=8),
        final=st.booleans(),
        cut=st.none() | st.integers(0, 30),
    )
    def go_on(self, part: str, final: bool, cut: int | None) -> None:
        self._add(part, False, final, cut)

    def _add(self, part: str, first: bool, final: bool, cut: int | None) -> None:
        arriving = self.model.arriving
        assert arriving is not None
        data = part.encode()
        if cut is not None and cut < len(data):
            # Cut in the middle of a character: the rest comes at once, in a piece of its own.
            self.inbox.put(Fragment(data[:cut], arriving.text, first, False))
            self.inbox.put(Fragment(data[cut:], arriving.text, False, final))
        else:
            self.inbox.put(Fragment(data, arriving.text, first, final))
        arriving.data += data
        if final:
            arriving.final = True
            self.model.arriving = None
            if arriving in self.model.queue:
                self.model.queue[-1] = arriving.whole()

    @rule()
    def take(self) -> None:
        expected = self.model.queue.pop(0) if self.ready() else None
        assert self.inbox.take() == expected

    @rule(limit=st.none() | st.integers(0, 5))
    def take_all(self, limit: int | None) -> None:
        expected: list[object] = []
        while self.ready() and (limit is None or len(expected) < limit):
            expected.append(self.model.queue.pop(0))
        assert self.inbox.take_all(limit) == expected

    @precondition(lambda self: self.model.queue and self.model.streamed is None)
    @rule()
    def begin_stream(self) -> None:
        head = self.model.queue.pop(0)
        if not isinstance(head, Arriving):
            text = isinstance(head, str)
            head = Arriving(text, head.encode() if isinstance(head, str) else head, final=True)
        self.model.streamed = head
        self.stream = self.inbox.stream()
        assert self.stream.text is head.text
        assert not self.stream.queued

    @precondition(lambda self: self.model.streamed is not None)
    @rule()
    def read_stream(self) -> None:
        streamed = self.model.streamed
        assert streamed is not None
        assert self.stream is not None
        # In this machine no piece ends inside a character when something is taken.
        new = b"" if streamed.dropped else streamed.data[streamed.taken :]
        assert self.stream.take() == (new.decode() if streamed.text else new)
        streamed.taken = len(streamed.data)
        assert self.stream.final is streamed.final

    @precondition(lambda self: self.model.streamed is not None)
    @rule()
    def release(self) -> None:
        assert self.model.streamed is not None
        self.model.streamed.dropped = True
        self.model.streamed = None
        self.inbox.release()

    @rule()
    def clear(self) -> None:
        self.inbox.clear()
        self.model.queue.clear()
        if self.model.arriving is not None:
            self.model.arriving.dropped = True

    @invariant()
    def agree(self) -> None:
        inbox, model = self.inbox, self.model
        assert inbox.messages == len(model.queue)
        assert inbox.size == model.size()
        assert inbox.ready is self.ready()
        assert inbox.begun is bool(model.queue)
        assert inbox.streaming is (model.streamed is not None)
        messages, size = inbox.room()
        own_place = model.arriving is not None and model.arriving in model.queue
        assert messages == self.max_messages - len(model.queue) + own_place
        assert size == MAX_BYTES - model.size()


class LongMachine(Machine):
    """The same with a queue that may be long, which is kept in another way."""

    max_messages = 1000


for machine in (Machine, LongMachine):
    machine.TestCase.settings = settings(deadline=None, max_examples=50, stateful_step_count=25)
TestInbox = Machine.TestCase
TestLongInbox = LongMachine.TestCase


# ---- what the model does not say


def test_a_text_message_is_split_at_characters_when_streamed() -> None:
    inbox = Inbox(4, 100)
    euro = "€".encode()
    inbox.put(Fragment(b"a" + euro[:1], True, True, False))
    stream = inbox.stream()
    assert stream.take() == "a"
    inbox.put(Fragment(euro[1:2], True, False, False))
    assert stream.take() == ""
    inbox.put(Fragment(euro[2:] + euro, True, False, True))
    assert stream.take() == "€€"
    assert stream.final


def test_a_message_that_is_waited_for_may_exceed_the_limit() -> None:
    inbox = Inbox(4, 100)
    inbox.put(Fragment(bytes(150), False, True, False))
    assert inbox.room()[1] == -50
    inbox.greedy = True
    assert inbox.room() == (4, 65536)
    inbox.put(Fragment(b"", False, False, True))
    assert inbox.room() == (3, -50), "it is whole now"


def test_what_stands_behind_others_is_not_waited_for() -> None:
    inbox = Inbox(4, 100)
    inbox.put(b"first")
    inbox.put(Fragment(bytes(150), False, True, False))
    inbox.greedy = True
    assert inbox.room() == (3, -55)


@pytest.mark.parametrize(("message", "size"), [("abc", 3), ("é", 4), ("aé", 8), (b"\xc3\xa9", 2)])
def test_text_counts_as_much_as_it_can_take(message: str | bytes, size: int) -> None:
    inbox = Inbox(4, 100)
    inbox.put(message)
    assert inbox.size == size
    inbox.take()
    assert inbox.size == 0


def test_a_message_that_was_released_costs_nothing_as_it_goes_on() -> None:
    inbox = Inbox(4, 100)
    inbox.put(Fragment(bytes(50), False, True, False))
    inbox.stream()
    inbox.release()
    for _ in range(10):
        inbox.put(Fragment(bytes(50), False, False, False))
        assert (inbox.size, inbox.messages) == (0, 0)
    inbox.put(Fragment(bytes(50), False, False, True))
    inbox.put(b"next")
    assert inbox.take() == b"next"


def test_pieces_of_every_size_are_joined_in_their_order() -> None:
    sizes = [1, 4096, 2, 3, 5000, 6000, 0, 4095, 7]
    pieces = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    for text in (True, False):
        inbox = Inbox(4, 100)
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            inbox.put(Fragment(piece, text, number == 0, last))
            assert inbox.size == sum(sizes[: number + 1])
        whole = b"".join(pieces)
        assert inbox.take() == (whole.decode() if text else whole)


def test_what_is_taken_does_not_change_any_more() -> None:
    inbox = Inbox(4, 100)
    inbox.put(Fragment(b"a", False, True, False))
    stream = inbox.stream()
    first = stream.take()
    inbox.put(Fragment(b"b", False, False, False))
    assert (first, stream.take()) == (b"a", b"b")


def test_an_assembly_says_how_much_waits() -> None:
    assembly = Assembly(text=False)
    assembly.add(b"abc")
    assert len(assembly) == 3
    assembly.abandon()
    assembly.add(b"def")
    assert len(assembly) == 0
