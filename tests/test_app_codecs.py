"""Codecs: what goes in comes out, and whatever else comes is one clear error."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
import traceback
from typing import Annotated, Any

import msgspec
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.shown_code import ROOT
from trio_wt import TrioWTError
from trio_wt.app._codecs import Codec, JsonCodec, MessagePackCodec, ProtobufCodec
from trio_wt.app._message_errors import InvalidMessage, MissingExtra


class User(msgspec.Struct):
    name: str
    age: Annotated[int, msgspec.Meta(ge=0)]
    tags: dict[str, int] = {}


class Join(msgspec.Struct, tag=True):
    user: User


class Leave(msgspec.Struct, tag=True, forbid_unknown_fields=True):
    users: list[str]


class Even(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError("it is odd")


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


def protobuf_classes() -> tuple[Any, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="chat.proto", package="chat", syntax="proto2")
    user = file.message_type.add(name="User")
    user.field.add(name="age", number=1, type=5, label=2)
    user.field.add(name="name", number=2, type=9, label=1)
    room = file.message_type.add(name="Room")
    room.field.add(name="owner", number=1, type=11, type_name=".chat.User", label=2)
    room.field.add(name="users", number=2, type=11, type_name=".chat.User", label=3)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    names = ("chat.User", "chat.Room")
    one, two = (message_factory.GetMessageClass(pool.FindMessageTypeByName(n)) for n in names)
    return one, two


PbUser, PbRoom = protobuf_classes()

JSON: Codec[Join | Leave] = JsonCodec(Join | Leave)
MESSAGEPACK: Codec[Join | Leave] = MessagePackCodec(Join | Leave)
ROOMS: Codec[Any] = ProtobufCodec(PbRoom)
STRUCTS: Codec[struct_pb2.Struct] = ProtobufCodec(struct_pb2.Struct)


def error_of(codec: Codec[Any], data: bytes | str) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        codec.decode(data)
    return caught.value


# ---- round trips

users = st.builds(
    User,
    name=st.text(),
    age=st.integers(0, 2**63 - 1),
    tags=st.dictionaries(st.text(), st.integers(-(2**63), 2**63 - 1), max_size=3),
)
messages = st.one_of(
    st.builds(Join, user=users), st.builds(Leave, users=st.lists(st.text(), max_size=5))
)


@given(messages)
@settings(deadline=None)
def test_what_goes_in_comes_out(message: Join | Leave) -> None:
    text = JSON.encode(message)
    assert isinstance(text, str)
    assert JSON.decode(text) == JSON.decode(text.encode()) == message
    packed = MESSAGEPACK.encode(message)
    assert isinstance(packed, bytes)
    assert MESSAGEPACK.decode(packed) == message


@given(
    st.lists(st.builds(PbUser, age=st.integers(-(2**31), 2**31 - 1), name=st.text()), min_size=1)
)
@settings(deadline=None)
def test_protobuf_goes_in_and_comes_out(users: list[Any]) -> None:
    room = PbRoom(owner=users[0], users=users[1:])
    assert ROOMS.decode(ROOMS.encode(room)) == room


def test_types_that_are_no_structs() -> None:
    numbers = JsonCodec(list[int])
    assert numbers.decode(numbers.encode([1, 2])) == [1, 2]
    points = MessagePackCodec(Point)
    assert points.decode(points.encode(Point(1, 2))) == Point(1, 2)


# ---- what comes from the peer


@pytest.mark.parametrize(
    "codec", [JSON, MESSAGEPACK, JsonCodec(Any), MessagePackCodec(Any), ROOMS, STRUCTS]
)
@given(data=st.one_of(st.binary(), st.text()))
@example(data=b"[" * 200_000)
@example(data=b'{"type":"Join","user":' * 50_000)
@example(data=b"\x91" * 200_000)
@example(data=b"\x81\xa4type\xa4Join" + b"\xff")
@example(data=b"\x0a\xff\xff\xff\xff\x0f")
@example(data=b"\x0b" * 10_000)
@example(data="\ud800")
@example(data=b'{"type": "\xff"}')
@example(data=b"")
@settings(deadline=None)
def test_any_data_is_a_message_or_the_error(codec: Codec[Any], data: bytes | str) -> None:
    try:
        codec.decode(data)
    except InvalidMessage as exc:
        assert exc.reason
        assert len(str(exc)) < 500
        assert str(exc).isprintable()


@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode])
@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ({"type": "Join", "user": {"name": "ann", "age": "9"}}, "$.user.age", "`str`"),
        ({"type": "Join", "user": {"name": "ann", "age": -1}}, "$.user.age", ">= 0"),
        ({"type": "Join", "user": {"name": "ann"}}, "$.user", "`age`"),
        ({"type": "Leave", "users": ["ann", 7]}, "$.users[1]", "`int`"),
        ({"type": "Leave", "users": [], "x": 1}, "", "unknown field `x`"),
        (
            {"type": "Join", "user": {"name": "", "age": 1, "tags": {"a": ""}}},
            "$.user.tags[...]",
            "`str`",
        ),
        ({"type": "Kick"}, "$.type", "Kick"),
        ({"users": []}, "", "`type`"),
        ([], "", "`array`"),
    ],
)
def test_the_field_that_is_wrong_is_named(encode: Any, value: Any, path: str, reason: str) -> None:
    codec, name = (JSON, "JSON") if encode is msgspec.json.encode else (MESSAGEPACK, "MessagePack")
    error = error_of(codec, encode(value))
    assert error.path == path
    assert reason in error.reason
    assert str(error).startswith(f"this is no valid {name} message of Join | Leave: {error.reason}")
    assert str(error).endswith(f", at {path}" if path else error.reason)


def test_a_key_that_is_wrong() -> None:
    error = error_of(MessagePackCodec(dict[str, int]), msgspec.msgpack.encode({1: 2}))
    assert (error.path, error.kind) == ("$", "MessagePack message of dict[str, int]")
    assert error.reason.endswith("as a key")


@pytest.mark.parametrize(
    ("codec", "data", "reason"),
    [
        (JSON, b'{"type"', "truncated"),
        (JSON, b"hello", "malformed"),
        (JSON, b'{"type":"Leave","users":["\xff"]}', "utf-8"),
        (MESSAGEPACK, b"\xc1", "malformed"),
        (MESSAGEPACK, "text", "it is text, and should be binary"),
        (ROOMS, "text", "it is text, and should be binary"),
        (ROOMS, b"\xff", ""),
    ],
)
def test_what_is_not_of_the_format(codec: Codec[Any], data: Any, reason: str) -> None:
    error = error_of(codec, data)
    assert error.path == ""
    assert error.reason and reason in error.reason


def test_protobuf_says_which_message_it_wanted() -> None:
    for data in (b"\xff", b"\x0a\x05a"):
        error = error_of(ROOMS, data)
        assert error.kind == "Protobuf message chat.Room"
        assert "chat.Room" not in error.reason
        assert error.__cause__ is not None


@pytest.mark.parametrize(
    ("data", "path", "missing"),
    [
        (b"", "$.owner", "owner"),
        (b"\x0a\x00", "$.owner.age", "owner.age"),
        (b"\x0a\x02\x08\x01\x12\x00", "$.users[0].age", "users[0].age"),
        (b"\x0a\x00\x12\x00", "$.owner.age", "owner.age, users[0].age"),
    ],
)
def test_required_fields_of_protobuf(data: bytes, path: str, missing: str) -> None:
    error = error_of(ROOMS, data)
    assert error.path == path
    assert error.reason == f"required fields are missing: {missing}"


def test_a_types_own_check_is_the_cause() -> None:
    error = error_of(JsonCodec(list[Even]), b'[{"number": 1}]')
    assert (error.path, error.reason) == ("$[0]", "it is odd")
    assert isinstance(error.__cause__, ValueError)
    assert error.__cause__.__traceback__ is not None


def test_no_more_of_a_message_than_a_line_gets_into_a_log() -> None:
    hostile = "\x1b[2J\n" + "secret" * 10_000
    error = error_of(JSON, msgspec.json.encode({"type": hostile}))
    text = "".join(traceback.format_exception(error))
    assert len(text) < 2000
    assert "\x1b" not in text
    assert "\\x1b[2J\\n" in error.reason
    assert error.path == "$.type" or error.path == ""


def test_the_error_can_be_copied() -> None:
    error = error_of(JSON, b'{"type":"Join","user":{"name":1}}')
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert str(other) == str(error)
        assert (other.path, other.reason, other.kind) == ("$.user.name", error.reason, error.kind)
    assert isinstance(error, TrioWTError) and isinstance(error, ValueError)


# ---- what goes to the peer


@pytest.mark.parametrize("kind", [JsonCodec, MessagePackCodec])
@pytest.mark.parametrize("message", [object(), "\ud800"])
def test_what_cannot_be_encoded(kind: Any, message: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        kind(Any).encode(message)


def test_what_cannot_be_protobuf() -> None:
    with pytest.raises(TypeError, match="this channel is for chat.Room, not User"):
        ROOMS.encode(PbUser(age=1))
    with pytest.raises(ValueError, match="chat.Room lacks required fields: owner.age, users"):
        ROOMS.encode(PbRoom(owner=PbUser(), users=[PbUser()]))


# ---- making them


def test_types_that_make_no_codec() -> None:
    with pytest.raises(TypeError, match="tagged"):
        JsonCodec(Join | User)
    with pytest.raises(
        TypeError, match="a class of Protobuf messages is needed, not <class 'int'>"
    ):
        ProtobufCodec(int)
    with pytest.raises(TypeError, match="a class of Protobuf messages"):
        ProtobufCodec(PbUser())


@pytest.mark.parametrize(
    ("kind", "argument", "package", "extra"),
    [
        (JsonCodec, int, "msgspec", "msgspec"),
        (MessagePackCodec, int, "msgspec", "msgspec"),
        (ProtobufCodec, PbUser, "google.protobuf.message", "protobuf"),
    ],
)
def test_without_the_package(
    kind: Any, argument: Any, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra) as missing:
        kind(argument)
    assert str(missing.value) == (
        f'{kind.__name__} needs a package that is missing: pip install "trio-wt[{extra}]"'
    )
    assert isinstance(missing.value, ImportError) and isinstance(missing.value, TrioWTError)


def test_packages_are_not_imported_before_they_are_needed() -> None:
    code = (
        "import sys, trio_wt.app, trio_wt.app._messages;"
        "print({'msgspec', 'google.protobuf'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
