"""TLS sessions to resume: tickets that clients hold and servers issue. Each serves once."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import tempfile
from collections import OrderedDict, deque
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from aioquic.tls import CipherSuite, SessionTicket

__all__ = ["SessionKey", "SessionStore", "TicketIssuer"]

#: RFC 8446 section 4.6.1.
MAX_LIFETIME: Final = dt.timedelta(days=7)
#: Bytes of a ticket and its extensions; with the bounds on their number this bounds what peers can make us hold.
MAX_TICKET: Final = 16384

_T = TypeVar("_T")

_FORMAT: Final = "trio-wt sessions 1"


class SessionKey(NamedTuple):
    """What must be the same for a session to be resumed.

    Attributes:
        server_name: the name that the certificate was checked for.
        port: the server's UDP port.
        alpn: the protocols that are offered.
        version: the QUIC version; a ticket is good for the version it came by (RFC 9369 section 5).
        trust: by what the server's certificate was judged, and as whom the client showed itself: a resumed session has no
            certificates, so a ticket must not serve a connection that is stricter than the one it came by. See
            `ClientTLS.trust`.
    """

    server_name: str
    port: int
    alpn: tuple[str, ...]
    version: int = 1
    trust: bytes = b""


class SessionStore:
    """The tickets that a client holds, in memory.

    One store may serve any number of connections. Give it to `open_quic` to resume sessions: the next connection to
    the same server saves the certificates, and may send early data.

    Args:
        max_keys: how many servers to hold tickets for; past it those used the longest ago go.
        max_tickets: how many tickets to hold for each; past it the oldest go.

    Raises:
        ValueError: a bound is less than 1.
    """

    def __init__(self, max_keys: int = 1024, max_tickets: int = 4) -> None:
        for name, value in (("max_keys", max_keys), ("max_tickets", max_tickets)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, and is {value}")
        self._max_keys = max_keys
        self._max_tickets = max_tickets
        self._tickets: OrderedDict[SessionKey, deque[SessionTicket]] = OrderedDict()

    def __len__(self) -> int:
        """How many tickets there are."""
        return sum(map(len, self._tickets.values()))

    def put(
        self, key: SessionKey, ticket: SessionTicket, *, valid_until: dt.datetime | None = None
    ) -> None:
        """Keep a ticket, if it is of use.

        Args:
            key: what it may be used for.
            ticket: what the server issued.
            valid_until: a time, with its zone, when it loses its worth: when the server's certificate expires, or on
                a resumed session when the ticket for that did, so that resuming cannot go on for ever.
        """
        if not ticket.is_valid:
            return
        ends = min(ticket.not_valid_after, ticket.not_valid_before + MAX_LIFETIME)
        if valid_until is not None:
            ends = min(ends, valid_until)
        size = len(ticket.ticket) + sum(len(data) for _, data in ticket.other_extensions)
        ticket = dataclasses.replace(ticket, not_valid_after=ends)
        if size > MAX_TICKET or not ticket.is_valid or ends == ticket.not_valid_before:
            return
        tickets = self._tickets.get(key)
        if tickets is None:
            tickets = self._tickets[key] = deque(maxlen=self._max_tickets)
            if len(self._tickets) > self._max_keys:
                self._tickets.popitem(last=False)
        self._tickets.move_to_end(key)
        tickets.append(ticket)

    def take(self, key: SessionKey) -> SessionTicket | None:
        """The newest ticket for a connection, which is gone from here then (RFC 8446 appendix C.4); None if there is none."""
        tickets = self._tickets.get(key)
        if tickets is None:
            return None
        self._tickets.move_to_end(key)
        taken = None
        while tickets and taken is None:
            ticket = tickets.pop()
            if ticket.is_valid:
                taken = ticket
        if not tickets:
            del self._tickets[key]
        return taken

    def clear(self) -> None:
        """Forget all tickets."""
        self._tickets.clear()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what is still valid to a file, for this user only: it holds secrets. It takes the file's place at once.

        Raises:
            OSError: it cannot be written.
        """
        entries = [
            {"key": _key_to_json(key), "ticket": _ticket_to_json(ticket)}
            for key, tickets in self._tickets.items()
            for ticket in tickets
            if ticket.is_valid
        ]
        text = json.dumps({"format": _FORMAT, "sessions": entries}, indent=1)
        target = Path(path)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def load(self, path: str | os.PathLike[str]) -> None:
        """Add what `save` wrote; what has expired since is left out.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not such a file; then nothing is added.
        """
        try:
            content = json.loads(Path(path).read_bytes())
            if not isinstance(content, dict) or content.get("format") != _FORMAT:
                raise ValueError("its format is another")
            loaded = [
                (_key_from_json(entry["key"]), _ticket_from_json(entry["ticket"]))
                for entry in content["sessions"]
            ]
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise ValueError(f"{os.fspath(path)} is no file of saved sessions: {exc}") from exc
        for key, ticket in loaded:
            self.put(key, ticket)


class TicketIssuer:
    """The tickets that a server has issued, in memory.

    A ticket is a number to look up what is here, and is gone with the first try: an attacker who replays a
    ClientHello with early data finds nothing (RFC 8446 section 8.1).

    Args:
        max_tickets: how many to keep; past it the oldest go, and their holders do a full handshake.

    Raises:
        ValueError: a bound is less than 1.
    """

    def __init__(self, max_tickets: int = 10_000) -> None:
        if max_tickets < 1:
            raise ValueError(f"max_tickets must be at least 1, and is {max_tickets}")
        self._max_tickets = max_tickets
        self._tickets: OrderedDict[bytes, tuple[Hashable, SessionTicket]] = OrderedDict()

    def __len__(self) -> int:
        """How many tickets are kept."""
        return len(self._tickets)

    def store(self, ticket: SessionTicket, context: Hashable = None) -> None:
        """Keep a ticket that is being issued.

        Args:
            ticket: what it stands for.
            context: what must be the same when it is used, such as the QUIC version and the protocol (RFC 8446
                section 4.2.10 asks for that where early data is taken).
        """
        # They all live equally long, so the first to expire are in front.
        while self._tickets:
            _, oldest = next(iter(self._tickets.values()))
            if oldest.is_valid and len(self._tickets) < self._max_tickets:
                break
            self._tickets.popitem(last=False)
        self._tickets[ticket.ticket] = (context, ticket)

    def fetch(self, ticket_id: bytes, context: Hashable = None) -> SessionTicket | None:
        """What a ticket stands for, once; None if it is unknown, has expired, or is for something else."""
        its_context, ticket = self._tickets.pop(ticket_id, (None, None))
        if ticket is None or not ticket.is_valid or its_context != context:
            return None
        return ticket


def _key_to_json(key: SessionKey) -> dict[str, object]:
    return {
        "server_name": key.server_name,
        "port": key.port,
        "alpn": key.alpn,
        "version": key.version,
        "trust": key.trust.hex(),
    }


def _key_from_json(content: dict[str, Any]) -> SessionKey:
    return SessionKey(
        server_name=_typed(content["server_name"], str),
        port=_typed(content["port"], int),
        alpn=tuple(_typed(name, str) for name in _typed(content["alpn"], list)),
        version=_typed(content["version"], int),
        trust=bytes.fromhex(content["trust"]),
    )


def _ticket_to_json(ticket: SessionTicket) -> dict[str, object]:
    return {
        "age_add": ticket.age_add,
        "cipher_suite": int(ticket.cipher_suite),
        "not_valid_after": ticket.not_valid_after.isoformat(),
        "not_valid_before": ticket.not_valid_before.isoformat(),
        "resumption_secret": ticket.resumption_secret.hex(),
        "server_name": ticket.server_name,
        "ticket": ticket.ticket.hex(),
        "max_early_data_size": ticket.max_early_data_size,
        "other_extensions": [[number, data.hex()] for number, data in ticket.other_extensions],
    }


def _ticket_from_json(content: dict[str, Any]) -> SessionTicket:
    early = content["max_early_data_size"]
    return SessionTicket(
        age_add=_typed(content["age_add"], int),
        cipher_suite=CipherSuite(content["cipher_suite"]),
        not_valid_after=_time(content["not_valid_after"]),
        not_valid_before=_time(content["not_valid_before"]),
        resumption_secret=bytes.fromhex(content["resumption_secret"]),
        server_name=_typed(content["server_name"], str),
        ticket=bytes.fromhex(content["ticket"]),
        max_early_data_size=None if early is None else _typed(early, int),
        other_extensions=[
            (_typed(number, int), bytes.fromhex(data))
            for number, data in _typed(content["other_extensions"], list)
        ],
    )


def _time(text: str) -> dt.datetime:
    time = dt.datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("a time has no zone")
    return time


def _typed(value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} expected, not {type(value).__name__}")
    return value
