"""stub"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Generic, TypeVar

from aioquic.buffer import Buffer
from aioquic.quic.packet import QuicPacketType, pull_quic_header

T = TypeVar("T")


class ResetKey:
    def __init__(self, key=None):
        pass

    def token(self, cid):
        return os.urandom(16)


@dataclass
class Accept:
    original_destination_cid: bytes
    retry_source_cid: bytes | None
    destination_cid: bytes
    version: int


@dataclass
class Reply:
    data: bytes


class PacketRouter(Generic[T]):
    def __init__(self, *, server, versions=(), reset_key=None, retry="never", max_half_open=64):
        self.t = {}
        self.server = server
        self.reset_key = reset_key

    def add(self, cid, c):
        self.t[cid] = c

    def remove(self, cid):
        self.t.pop(cid, None)

    def established(self, c):
        pass

    def retire(self, c, datagrams, until):
        for k in [k for k, v in self.t.items() if v is c]:
            del self.t[k]

    def route(self, data, route, now):
        if data[0] & 0x80 == 0:
            return self.t.get(data[1:9])
        try:
            h = pull_quic_header(Buffer(data=data), 8)
        except ValueError:
            return None
        c = self.t.get(h.destination_cid)
        if c is None and self.server and h.packet_type == QuicPacketType.INITIAL:
            return Accept(h.destination_cid, None, h.destination_cid, h.version)
        return c
