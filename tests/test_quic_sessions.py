"""Tickets: each serves once, none for longer or for more than it should, and there are never too many."""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from aioquic.tls import CipherSuite, SessionTicket
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_wt._quic.sessions import SessionKey, SessionStore, TicketIssuer

DAY = dt.timedelta(days=1)
SECOND = dt.timedelta(seconds=1)
KEY = SessionKey("example.com", 443, ("h3",))


def ticket(
    name: str = "ticket", *, age: dt.timedelta = SECOND, life: dt.timedelta = DAY, **kwargs: Any
) -> SessionTicket:
    begins = dt.datetime.now(dt.UTC) - age
    values: dict[str, Any] = {
        "age_add": 2**32 - 1,
        "cipher_suite": CipherSuite.AES_256_GCM_SHA384,
        "not_valid_before": begins,
        "not_valid_after": begins + life,
        "resumption_secret": os.urandom(48),
        "server_name": "example.com",
        "ticket": name.encode(),
    }
    return SessionTicket(**{**values, **kwargs})


# ---- clients


def test_a_ticket_serves_once() -> None:
    store = SessionStore()
    first, second = ticket("1"), ticket("2")
    store.put(KEY, first)
    store.put(KEY, second)
    assert len(store) == 2
    # The newest has the longest to live.
    assert store.take(KEY) == second
    assert store.take(KEY) == first
    assert store.take(KEY) is None
    assert len(store) == 0


@pytest.mark.parametrize(
    "other",
    [
        KEY._replace(server_name="www.example.com"),
        KEY._replace(port=444),
        KEY._replace(alpn=("h3", "x")),
        KEY._replace(version=2),
        KEY._replace(trust=b"\1"),
    ],
)
def test_a_ticket_serves_one_purpose(other: SessionKey) -> None:
    store = SessionStore()
    store.put(KEY, ticket())
    assert store.take(other) is None
    assert len(store) == 1


def test_expired_tickets_are_dropped() -> None:
    store = SessionStore()
    store.put(KEY, ticket(age=2 * DAY))
    store.put(KEY, ticket(life=dt.timedelta(0), age=dt.timedelta(0)))
    assert len(store) == 0
    brief = ticket("brief", life=SECOND, age=SECOND - dt.timedelta(milliseconds=20))
    store.put(KEY, ticket("long"))
    store.put(KEY, brief)
    while brief.is_valid:
        pass
    taken = store.take(KEY)
    assert taken is not None
    assert taken.ticket == b"long"
    assert len(store) == 0


def test_only_expired_tickets() -> None:
    store = SessionStore()
    brief = ticket(life=SECOND, age=SECOND - dt.timedelta(milliseconds=20))
    store.put(KEY, brief)
    while brief.is_valid:
        pass
    assert store.take(KEY) is None
    assert len(store) == 0


def test_no_ticket_lives_for_more_than_a_week() -> None:
    """RFC 8446 section 4.6.1."""
    store = SessionStore()
    lasting = ticket(life=49_000 * DAY)
    store.put(KEY, lasting)
    taken = store.take(KEY)
    assert taken is not None
    assert taken.not_valid_after - taken.not_valid_before == 7 * DAY
    store.put(KEY, ticket(life=100 * DAY, age=8 * DAY))
    assert len(store) == 0


def test_a_ticket_does_not_outlive_the_certificate() -> None:
    store = SessionStore()
    ends = dt.datetime.now(dt.UTC) + SECOND * 60
    store.put(KEY, ticket(), valid_until=ends)
    taken = store.take(KEY)
    assert taken is not None
    assert taken.not_valid_after == ends
    store.put(KEY, ticket(), valid_until=ends - DAY)
    assert len(store) == 0
    store.put(KEY, kept := ticket(), valid_until=ends + 30 * DAY)
    assert store.take(KEY) == kept


def test_the_number_of_tickets_is_bounded() -> None:
    store = SessionStore(max_keys=3, max_tickets=2)
    keys = [KEY._replace(port=port) for port in range(1, 5)]
    for key in keys[:3]:
        for number in range(3):
            store.put(key, ticket(str(number)))
    assert len(store) == 6
    used = store.take(keys[0])
    assert used is not None
    assert used.ticket == b"2"
    store.put(keys[3], ticket())
    # The second was used the longest ago.
    assert store.take(keys[1]) is None
    assert [store.take(key) is not None for key in (keys[0], keys[2], keys[3])] == [True] * 3
    assert store.take(keys[0]) is None


def test_the_size_of_tickets_is_bounded() -> None:
    store = SessionStore()
    store.put(KEY, ticket("x" * 16385))
    store.put(KEY, ticket("x" * 10000, other_extensions=[(57, bytes(6385))]))
    assert len(store) == 0
    store.put(KEY, ticket("x" * 10000, other_extensions=[(57, bytes(6384))]))
    assert len(store) == 1


def test_clear() -> None:
    store = SessionStore()
    store.put(KEY, ticket())
    store.clear()
    assert len(store) == 0


def test_bounds_must_be_positive() -> None:
    for arguments in ((0, 4), (1, 0)):
        with pytest.raises(ValueError, match="must be at least 1, and is 0"):
            SessionStore(*arguments)
    with pytest.raises(ValueError, match="max_tickets must be at least 1, and is -1"):
        TicketIssuer(-1)


# ---- files


def test_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "sessions.json"
    store = SessionStore()
    keys = [KEY, KEY._replace(server_name="::1", alpn=(), version=2**31, trust=b"\xff" * 32)]
    kept = [
        ticket("1"),
        ticket("2", max_early_data_size=2**32 - 1, other_extensions=[(57, b"\0\xff"), (16, b"")]),
    ]
    for key in keys:
        for one in kept:
            store.put(key, one)
    store.save(path)
    again = SessionStore()
    again.load(path)
    assert len(again) == 4
    for key in keys:
        assert [again.take(key), again.take(key)] == kept[::-1]
    # They have not gone from the first store.
    assert len(store) == 4


@given(
    st.builds(
        SessionKey,
        st.text(),
        st.integers(0, 65535),
        st.lists(st.text()).map(tuple),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=32),
    ),
    st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=20)), max_size=3),
    st.none() | st.integers(0, 2**32 - 1),
    st.sampled_from(CipherSuite),
)
@settings(deadline=None, max_examples=50)
def test_anything_can_be_saved(
    tmp_path_factory: pytest.TempPathFactory,
    key: SessionKey,
    extensions: list[tuple[int, bytes]],
    early: int | None,
    suite: CipherSuite,
) -> None:
    path = tmp_path_factory.getbasetemp() / "sessions"
    one = ticket(other_extensions=extensions, max_early_data_size=early, cipher_suite=suite)
    store, again = SessionStore(), SessionStore()
    store.put(key, one)
    store.save(path)
    again.load(path)
    assert again.take(key) == one


def test_loading_adds(tmp_path: Path) -> None:
    store, other = SessionStore(), SessionStore(max_tickets=2)
    store.put(KEY, ticket("1"))
    store.save(tmp_path / "a")
    for name in ("2", "3"):
        other.put(KEY, ticket(name))
    other.load(str(tmp_path / "a"))
    assert len(other) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_nobody_else_may_read_them(tmp_path: Path) -> None:
    path = tmp_path / "sessions"
    path.touch(0o666)
    before = os.umask(0)
    try:
        SessionStore().save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_save_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sessions"
    store = SessionStore()
    store.put(KEY, ticket())
    store.save(path)
    before = path.read_bytes()

    def fail(self: Path, target: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no"):
        SessionStore().save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        store.save(tmp_path / "nowhere" / "sessions")


def test_expired_tickets_are_neither_saved_nor_loaded(tmp_path: Path) -> None:
    path = tmp_path / "sessions"
    store = SessionStore()
    store.put(KEY, ticket())
    store.save(path)
    content = json.loads(path.read_text())
    for name, time in (("after", "2020-01-01T00:00:00Z"), ("before", "9999-12-31T00:00:00Z")):
        changed = copy.deepcopy(content)
        changed["sessions"][0]["ticket"][f"not_valid_{name}"] = time
        path.write_text(json.dumps(changed))
        again = SessionStore()
        again.load(path)
        assert len(again) == 0


def change(content: Any, where: list[Any], value: object) -> None:
    for step in where[:-1]:
        content = content[step]
    if value is KeyError:
        del content[where[-1]]
    else:
        content[where[-1]] = value


TICKET = ["sessions", 0, "ticket"]


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (["format"], "another"),
        (["format"], KeyError),
        (["sessions"], KeyError),
        (["sessions"], 5),
        (["sessions", 0], []),
        (["sessions", 0, "key"], None),
        (["sessions", 0, "key", "port"], "443"),
        (["sessions", 0, "key", "alpn"], "h3"),
        (["sessions", 0, "key", "alpn"], [3]),
        (["sessions", 0, "key", "trust"], "zz"),
        ([*TICKET, "ticket"], 5),
        ([*TICKET, "age_add"], 0.5),
        ([*TICKET, "cipher_suite"], 7),
        ([*TICKET, "not_valid_after"], "soon"),
        ([*TICKET, "not_valid_after"], "2100-01-01T00:00:00"),
        ([*TICKET, "not_valid_before"], 5),
        ([*TICKET, "resumption_secret"], KeyError),
        ([*TICKET, "max_early_data_size"], "much"),
        ([*TICKET, "other_extensions"], [["57", ""]]),
        ([*TICKET, "other_extensions"], [[57]]),
        ([*TICKET, "other_extensions"], {}),
    ],
)
def test_a_file_with_a_fault_adds_nothing(where: list[Any], value: object, tmp_path: Path) -> None:
    path = tmp_path / "sessions"
    store = SessionStore()
    for name in ("1", "2"):
        store.put(KEY, ticket(name))
    store.save(path)
    content = json.loads(path.read_text())
    change(content, where, value)
    path.write_text(json.dumps(content))
    again = SessionStore()
    with pytest.raises(ValueError, match="is no file of saved sessions") as info:
        again.load(path)
    assert str(path) in str(info.value)
    assert len(again) == 0


@pytest.mark.parametrize(
    "content", [b"", b"\x80\4K\1.", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 200_000]
)
def test_a_file_of_something_else(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sessions"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no file of saved sessions"):
        SessionStore().load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SessionStore().load(tmp_path / "missing")


# ---- servers


def test_an_issued_ticket_is_found_once() -> None:
    """RFC 8446 section 8.1: a replayed ClientHello finds nothing."""
    issuer = TicketIssuer()
    one = ticket("a")
    issuer.store(one)
    assert issuer.fetch(b"b") is None
    assert issuer.fetch(b"a") is one
    assert issuer.fetch(b"a") is None
    assert len(issuer) == 0


def test_an_issued_ticket_is_for_one_context() -> None:
    issuer = TicketIssuer()
    one = ticket("a")
    issuer.store(one, (1, "h3"))
    assert issuer.fetch(b"a", (1, "h2")) is None
    assert issuer.fetch(b"a", (1, "h3")) is None
    issuer.store(one, (1, "h3"))
    assert issuer.fetch(b"a", (1, "h3")) is one


def test_an_expired_ticket_stands_for_nothing() -> None:
    issuer = TicketIssuer()
    issuer.store(ticket("a", age=2 * DAY))
    assert issuer.fetch(b"a") is None


def test_the_number_of_issued_tickets_is_bounded() -> None:
    issuer = TicketIssuer(3)
    for number in range(5):
        issuer.store(ticket(str(number)))
    assert len(issuer) == 3
    assert [issuer.fetch(b"%d" % n) is not None for n in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_expired_tickets_make_room() -> None:
    issuer = TicketIssuer()
    for number in range(100):
        issuer.store(ticket(str(number), age=2 * DAY))
        assert len(issuer) == 1
    issuer.store(ticket("good"))
    assert len(issuer) == 1
    issuer.store(dataclasses.replace(ticket("good")))
    assert len(issuer) == 1
