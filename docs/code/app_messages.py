"""Typed messages over WebSockets, streams and datagrams."""

from __future__ import annotations

import msgspec
import trio
from google.protobuf.timestamp_pb2 import Timestamp

import trio_wt
from trio_wt.app import (
    InvalidMessage,
    JsonCodec,
    MessageChannel,
    MessagePackCodec,
    ProtobufCodec,
)


class Join(msgspec.Struct, tag="join"):
    room: str


class Say(msgspec.Struct, tag="say"):
    text: str
    volume: int = 5


CODEC = JsonCodec(Join | Say)


async def chat(ws: trio_wt.WebSocket) -> None:
    channel = MessageChannel(ws, CODEC)
    room = "lobby"
    async for message in channel:
        match message:
            case Join():
                room = message.room
            case Say():
                print(f"{room}: {message.text}, at volume {message.volume}")


async def greet(url: str) -> None:
    async with trio_wt.open_websocket(url) as ws:
        channel = MessageChannel(ws, CODEC)
        await channel.send(Join("tea"))
        await channel.send(Say("hello"))


async def patient_chat(ws: trio_wt.WebSocket) -> list[Join | Say]:
    channel = MessageChannel(ws, CODEC)
    taken = []
    while True:
        try:
            taken.append(await channel.receive())
        except InvalidMessage as exc:
            print(exc)
        except trio.EndOfChannel:
            return taken


async def strict_chat(ws: trio_wt.WebSocket) -> None:
    channel = MessageChannel(ws, CODEC, max_size=65536, invalid="close")
    async for message in channel:
        print(message)


async def follow(session: trio_wt.WebTransportSession) -> None:
    async with await session.incoming_streams.receive() as stream:
        channel = MessageChannel(stream, MessagePackCodec(Join | Say))
        async for message in channel:
            await channel.send(message)


async def tell_the_time(session: trio_wt.WebTransportSession) -> None:
    channel = MessageChannel(session.datagrams, ProtobufCodec(Timestamp))
    while True:
        now = Timestamp()
        now.GetCurrentTime()
        await channel.send(now)
        await trio.sleep(1)


class Celsius:
    """Temperatures, such as "21.5"."""

    def encode(self, message: float, /) -> str:
        return f"{message:.1f}"

    def decode(self, data: bytes | str, /) -> float:
        degrees = float(data)
        if not degrees >= -273.15:
            raise InvalidMessage("it is colder than cold can be", kind="temperature")
        return degrees


async def average(ws: trio_wt.WebSocket, count: int) -> float:
    channel = MessageChannel(ws, Celsius())
    return sum([await channel.receive() for _ in range(count)]) / count
