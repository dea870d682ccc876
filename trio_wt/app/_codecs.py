"""What turns messages into bytes or text, and back."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from ._message_errors import InvalidMessage, MissingExtra

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from typing_extensions import TypeForm

__all__ = ["Codec", "JsonCodec", "MessagePackCodec", "ProtobufCodec", "told"]

T = TypeVar("T")
MessageT = TypeVar("MessageT", bound="Message")


class Codec(Protocol[T]):
    """What `MessageChannel` needs to know of messages of a type; `JsonCodec`, `MessagePackCodec` and `ProtobufCodec` are some."""

    def encode(self, message: T, /) -> bytes | str:
        """A message as it is to be sent: `str` goes as text on a WebSocket, and as UTF-8 elsewhere.

        What it raises comes out of `MessageChannel.send`, and nothing is sent.
        """
        ...

    def decode(self, data: bytes | str, /) -> T:
        """The message that has come.

        Args:
            data: a WebSocket's text message as `str`, all else as `bytes`. It comes from the peer, so it may be anything.

        Raises:
            ValueError: it cannot be read; an `InvalidMessage` can name the field that is wrong.
        """
        ...


# ---- msgspec


def check_codec(codec: object, *methods: str) -> None:
    """Make sure that something is a codec.

    Raises:
        TypeError: it is not; the message says what to give.
    """
    if isinstance(codec, str | bytes | type) or not all(
        callable(getattr(codec, method, None)) for method in methods
    ):
        given = codec.__name__ if isinstance(codec, type) else repr(codec)[:40]
        raise TypeError(
            f"{given} is no codec: give an object with {' and '.join(methods)}, such as JsonCodec(dict)"
        )


class JsonCodec(Generic[T]):
    """Messages as JSON (RFC 8259), by msgspec: ``pip install "trio-wt[msgspec]"``.

    What comes is validated; what is sent is for a type checker to look at. JSON goes as text on a WebSocket, and both text and
    binary messages are read.

    Args:
        message_type: what the messages are: any type that msgspec supports, such as a ``msgspec.Struct``, a dataclass, or a union of
            Structs with tags, ``Chat | Join``.

    Raises:
        MissingExtra: msgspec is not installed.
        TypeError: msgspec does not support the type.
    """

    __slots__ = ("_decode", "_encode", "_kind")

    def __init__(self, message_type: TypeForm[T]) -> None:
        try:
            import msgspec
        except ImportError as exc:
            raise MissingExtra("JsonCodec", "msgspec") from exc
        self._kind = f"JSON message of {_name_of(message_type)}"
        self._encode: Callable[[T], bytes] = msgspec.json.Encoder().encode
        self._decode: Callable[[bytes | str], T] = msgspec.json.Decoder[Any](message_type).decode

    def encode(self, message: T, /) -> str:
        """JSON.

        Raises:
            TypeError: something in the message is not of a type that msgspec supports.
            ValueError: some text in it cannot be UTF-8.
        """
        return self._encode(message).decode()

    def decode(self, data: bytes | str, /) -> T:
        """The message.

        Raises:
            InvalidMessage: the data is not JSON, or not of the type.
        """
        return _decode_with_msgspec(self._decode, data, self._kind)


class MessagePackCodec(Generic[T]):
    """Messages as MessagePack, by msgspec: ``pip install "trio-wt[msgspec]"``.

    What comes is validated; what is sent is for a type checker to look at.

    Args:
        message_type: what the messages are, as for `JsonCodec`.

    Raises:
        MissingExtra: msgspec is not installed.
        TypeError: msgspec does not support the type.
    """

    __slots__ = ("_decode", "_encode", "_kind")

    def __init__(self, message_type: TypeForm[T]) -> None:
        try:
            import msgspec
        except ImportError as exc:
            raise MissingExtra("MessagePackCodec", "msgspec") from exc
        self._kind = f"MessagePack message of {_name_of(message_type)}"
        self._encode: Callable[[T], bytes] = msgspec.msgpack.Encoder().encode
        self._decode: Callable[[bytes], T] = msgspec.msgpack.Decoder[Any](message_type).decode

    def encode(self, message: T, /) -> bytes:
        """MessagePack.

        Raises:
            TypeError: something in the message is not of a type that msgspec supports.
            ValueError: some text in it cannot be UTF-8.
            OverflowError: a whole number in it does not fit 64 bits.
        """
        return self._encode(message)

    def decode(self, data: bytes | str, /) -> T:
        """The message.

        Raises:
            InvalidMessage: the data is text, or not MessagePack, or not of the type.
        """
        return _decode_with_msgspec(self._decode, _binary(data, self._kind), self._kind)


DataT = TypeVar("DataT", bound="bytes | str")


def _decode_with_msgspec(decode: Callable[[DataT], T], data: DataT, kind: str) -> T:
    import msgspec

    try:
        return decode(data)
    except msgspec.DecodeError as exc:
        reason, path = _split(str(exc))
        # Its text may hold all that the peer sent, as it came. But what a type's own checks raised is worth a look.
        raise InvalidMessage(reason, path, kind) from exc.__cause__
    except Exception as exc:  # such as RecursionError, or text that is not UTF-8
        raise InvalidMessage(told(exc), "", kind) from exc


# "Expected `int`, got `str` - at `$.user.age`", and "- at `key` in `$.users`" for the key of a mapping.
_AT: Final = re.compile(r" - at (`key` in )?`(\$[^`]*)`\Z")


def _split(text: str) -> tuple[str, str]:
    """What msgspec says is wrong, and where."""
    found = _AT.search(text)
    if found is None:
        return text, ""
    key, path = found.groups()
    return text[: found.start()] + (" as a key" if key else ""), path


# ---- Protobuf


class ProtobufCodec(Generic[MessageT]):
    """Messages of one class as Protobuf, by the official package: ``pip install "trio-wt[protobuf]"``.

    A Protobuf message does not say its type: for several of them take one that has a ``oneof``.

    Args:
        message_class: the class that ``protoc`` has made.

    Raises:
        MissingExtra: protobuf is not installed.
        TypeError: it is not such a class.
    """

    __slots__ = ("_class", "_kind", "_name")

    def __init__(self, message_class: type[MessageT]) -> None:
        try:
            from google.protobuf.message import Message
        except ImportError as exc:
            raise MissingExtra("ProtobufCodec", "protobuf") from exc
        if not (isinstance(message_class, type) and issubclass(message_class, Message)):
            raise TypeError(f"a class of Protobuf messages is needed, not {message_class!r}")
        self._class: type[MessageT] = message_class
        self._name: str = message_class.DESCRIPTOR.full_name
        self._kind = f"Protobuf message {self._name}"

    def encode(self, message: MessageT, /) -> bytes:
        """The message in its binary format.

        Raises:
            TypeError: it is a message of another class.
            ValueError: required fields are missing.
        """
        if not isinstance(message, self._class):
            raise TypeError(f"this channel is for {self._name}, not {type(message).__qualname__}")
        missing = _missing(message)
        if missing:
            raise ValueError(f"the {self._kind} lacks required fields: {', '.join(missing)}")
        return message.SerializeToString()

    def decode(self, data: bytes | str, /) -> MessageT:
        """The message.

        Raises:
            InvalidMessage: the data is text, or not Protobuf, or required fields are missing.
        """
        binary = _binary(data, self._kind)
        message = self._class()
        try:
            message.ParseFromString(binary)
        except Exception as exc:
            # One implementation names the message, which the error does anyway.
            reason = str(exc).removeprefix(f"Error parsing message with type '{self._name}': ")
            raise InvalidMessage(reason, "", self._kind) from exc
        missing = _missing(message)
        if missing:
            reason = f"required fields are missing: {', '.join(missing)}"
            raise InvalidMessage(reason, f"$.{missing[0]}", self._kind)
        return message


def _missing(message: Any) -> list[str]:
    """The paths of required fields that are missing, such as "user.age"; Any because the stubs do not know the method."""
    found: list[str] = message.FindInitializationErrors()
    return found


# ---- for all of them


def _name_of(type_: Any) -> str:
    """A type as people write it."""
    if get_origin(type_) in (Union, UnionType):
        return " | ".join(_name_of(part) for part in get_args(type_))
    if isinstance(type_, type) and get_origin(type_) is None:
        return type_.__qualname__
    return repr(type_)


def _binary(data: bytes | str, kind: str) -> bytes:
    if isinstance(data, str):
        raise InvalidMessage("it is text, and should be binary", "", kind)
    return data


def told(exc: Exception) -> str:
    """What an exception that a codec did not mean for people says."""
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
