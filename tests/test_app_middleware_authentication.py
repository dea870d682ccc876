"""Who is let in, and what the others are told."""

from __future__ import annotations

import base64
import logging
from typing import Any, cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.app_exchange import MemoryExchange, ask, logged, request_of
from tests.app_servers import serving_in_memory
from trio_wt import Headers, Rejected, WebSocket
from trio_wt.app import App, Context, HTTPError, Request, StateKey
from trio_wt.app._middleware.authentication import basic_auth, bearer_auth

USER = StateKey[str]("user")
TOKENS = {"s3cret": "ann", "other-one==": "bob"}
KINDS = ("websocket 1.1", "websocket 3", "webtransport")


def app_with(*middleware: Any) -> App:
    app = App(middleware=middleware)

    @app.http("/", methods=["GET", "POST"])
    def who(request: Request, context: Context) -> str:
        return context.state[USER]

    @app.session("/session")
    async def session(session: Any, context: Context) -> None:
        if isinstance(session, WebSocket):
            await session.send(context.state[USER])
        else:
            await session.datagrams.send(context.state[USER].encode())
            await trio.sleep(0.1)

    return app


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# ---- bearer


BEARER = 'Bearer realm="restricted"'


@pytest.mark.parametrize("value", ["Bearer s3cret", "bearer s3cret", "BEARER   s3cret"])
async def test_a_token_lets_in(value: str) -> None:
    response = await ask(
        app_with(bearer_auth(key=USER, tokens=TOKENS)), headers={"Authorization": value}
    )
    assert (response.status, response.body) == (200, b"ann")
    assert "cache-control" not in response.headers


@pytest.mark.parametrize("value", [None, "Basic YTpi", "Digest x=y", "s3cret", "Bearers3cret"])
async def test_without_a_token_no_error_is_named(value: str | None) -> None:
    """RFC 6750 section 3.1: nothing but the challenge."""
    headers = {} if value is None else {"Authorization": value}
    response = await ask(app_with(bearer_auth(key=USER, tokens=TOKENS)), headers=headers)
    assert response.status == 401
    assert response.headers.get_all("www-authenticate") == [BEARER]


@pytest.mark.parametrize("token", ["wrong", "s3cre", "s3crett", "other-one", "other-one==="])
async def test_a_token_of_nobodys(token: str) -> None:
    response = await ask(
        app_with(bearer_auth(key=USER, tokens=TOKENS)),
        headers={"Authorization": f"Bearer {token}"},
    )
    assert response.status == 401
    assert response.headers["www-authenticate"] == (
        f'{BEARER}, error="invalid_token", error_description="the token is not valid"'
    )
    assert token.encode() not in response.body


@pytest.mark.parametrize(
    "values",
    [
        ["Bearer"],
        ["Bearer s3 cret"],
        ["Bearer s3cret, Bearer s3cret"],
        ["Bearer =s3cret"],
        ["Bearer s3cret=x"],
        ['Bearer "s3cret"'],
        ["Bearer \xe9"],
        ["Bearer s3cret", "Bearer s3cret"],
        ["Bearer s3cret", "Basic YTpi"],
    ],
)
async def test_malformed_is_a_bad_request(values: list[str]) -> None:
    response = await ask(
        app_with(bearer_auth(key=USER, tokens=TOKENS)),
        headers=[("Authorization", value) for value in values],
    )
    assert response.status == 400
    assert 'error="invalid_request"' in response.headers["www-authenticate"]


async def test_the_check_may_wait_or_not() -> None:
    seen = []

    async def slowly(token: str) -> str | None:
        await trio.sleep(3)
        seen.append(token)
        return "ann" if token == "x" else None

    def at_once(token: str) -> str | None:
        return {"y": "bob"}.get(token)

    for check, token, user in ((slowly, "x", b"ann"), (at_once, "y", b"bob")):
        app = app_with(bearer_auth(check, key=USER))
        assert (await ask(app, headers={"Authorization": f"Bearer {token}"})).body == user
        assert (await ask(app, headers={"Authorization": "Bearer z"})).status == 401
    assert seen == ["x", "z"] and trio.current_time() == 6


async def test_identities_are_typed_and_may_be_falsy() -> None:
    number = StateKey[int]("number")
    app = App(middleware=[bearer_auth(key=number, tokens={"x": 0})])

    @app.http("/")
    def page(request: Request, context: Context) -> str:
        return repr(context.state[number])

    assert (await ask(app, headers={"Authorization": "Bearer x"})).body == b"0"


@pytest.mark.parametrize("nobody", [None, False])
async def test_a_check_that_only_says_no_lets_nobody_in(nobody: Any) -> None:
    app = app_with(
        bearer_auth(lambda token: nobody, key=USER),
    )
    assert (await ask(app, headers={"Authorization": "Bearer x"})).status == 401
    app = app_with(basic_auth(lambda user, password: nobody, key=USER))
    assert (await ask(app, headers={"Authorization": basic("a", "b")})).status == 401


async def test_the_check_may_answer_otherwise() -> None:
    def check(token: str) -> str:
        raise HTTPError(403, "not you")

    response = await ask(
        app_with(bearer_auth(check, key=USER)), headers={"Authorization": "Bearer x"}
    )
    assert (response.status, response.body) == (403, b"not you")


def everything(records: list[logging.LogRecord]) -> str:
    lines = logging.Formatter("%(message)s")
    return "\n".join(map(lines.format, records))


async def test_a_check_that_fails_is_logged_without_what_it_got() -> None:
    def check(token: str) -> str:
        raise RuntimeError("the database is away")

    with logged("trio_wt") as records:
        app = app_with(bearer_auth(check, key=USER))
        response = await ask(app, headers={"Authorization": "Bearer s3cret"})
    assert response.status == 500 and b"database" not in response.body
    assert "the database is away" in everything(records)
    assert "s3cret" not in everything(records)


async def test_a_check_that_fails_is_logged_without_the_query() -> None:
    def check(token: str) -> str:
        raise RuntimeError("the database is away")

    with logged("trio_wt") as records:
        app = app_with(bearer_auth(check, key=USER, query="token"))
        assert (await ask(app, "/?token=s3cret")).status == 500
    assert "s3cret" not in everything(records)


async def test_cancelled_while_it_checks() -> None:
    async def check(token: str) -> str:
        await trio.sleep_forever()
        raise AssertionError

    exchange = MemoryExchange(request_of(headers={"Authorization": "Bearer x"}))
    with trio.move_on_after(1):
        app = app_with(bearer_auth(check, key=USER))
        await app._answer(exchange, Headers(), raise_errors=False)
    assert not exchange.answered


@given(st.text(st.characters(max_codepoint=0xFF), max_size=30))
def test_whatever_comes_gets_an_answer(text: str) -> None:
    async def main() -> None:
        for value in (text, f"Bearer {text}", f"Basic {text}"):
            try:
                headers = Headers({"Authorization": value})
            except ValueError:
                continue
            for middleware in (
                bearer_auth(key=USER, tokens=TOKENS, query="t", subprotocol="b."),
                basic_auth(key=USER, passwords={"ann": "pw"}),
            ):
                target = "/?t=" + text.encode("ascii", "ignore").decode()
                exchange = MemoryExchange(request_of(target, headers))
                await app_with(middleware)._answer(exchange, Headers(), raise_errors=True)
                assert exchange.response is not None
                assert exchange.response.status in (400, 401)

    trio.run(main)


# ---- where browsers can put it


@pytest.mark.parametrize("kind", KINDS)
async def test_the_query(kind: Any) -> None:
    app = app_with(bearer_auth(key=USER, tokens=TOKENS, query="token"))
    async with serving_in_memory(app) as served:
        async with served.session(kind, "/session?x=1&token=other-one%3D%3D") as session:
            assert "cache-control" not in session.response_headers
            if isinstance(session, WebSocket):
                assert await session.receive() == "bob"
            else:
                assert await session.datagrams.receive() == b"bob"
        for query, status in (("", 401), ("?token=wrong", 401), ("?token=", 400)):
            with pytest.raises(Rejected) as caught:
                async with served.session(kind, f"/session{query}"):
                    pass
            assert caught.value.status == status


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("token=s3cret", {}, 200),
        ("token=s3cret", {"Authorization": "Basic YTpi"}, 200),
        ("token=s3cret", {"Authorization": "Bearer s3cret"}, 400),
        ("token=s3cret&token=s3cret", {}, 400),
        ("token", {}, 400),
        ("token=%00", {}, 400),
        ("token=%FF", {}, 400),
        ("token=s3+cret", {}, 400),
        ("&" * 200, {}, 400),
        ("Token=s3cret", {}, 401),
    ],
)
async def test_the_query_of_plain_requests(
    query: str, headers: dict[str, str], status: int
) -> None:
    app = app_with(bearer_auth(key=USER, tokens=TOKENS, query="token"))
    response = await ask(app, f"/?{query}", headers)
    assert response.status == status
    # RFC 6750 section 2.3
    assert response.headers.get("cache-control") == ("private" if status == 200 else None)


async def test_the_query_is_not_looked_at_unasked() -> None:
    app = app_with(bearer_auth(key=USER, tokens=TOKENS))
    assert (await ask(app, "/?token=s3cret&access_token=s3cret")).status == 401


@pytest.mark.parametrize("kind", KINDS)
async def test_a_subprotocol(kind: Any) -> None:
    app = App(middleware=[bearer_auth(key=USER, tokens=TOKENS, subprotocol="bearer.")])

    @app.session("/", subprotocols=["chat"])
    async def session(session: Any, context: Context) -> None:
        assert context.state[USER] == "ann"
        if isinstance(session, WebSocket):
            await session.send("in")

    async with serving_in_memory(app) as served:
        offered = ["bearer.s3cret", "chat"]
        async with served.session(kind, "/", subprotocols=offered) as opened:
            assert opened.subprotocol == "chat"
        for names, status in (
            (["chat"], 401),
            (["chat", "bearer.no"], 401),
            (["bearer.s3cret", "bearer.no"], 400),
        ):
            with pytest.raises(Rejected) as caught:
                async with served.session(kind, "/", subprotocols=names):
                    pass
            assert caught.value.status == status


# ---- basic

BASIC = 'Basic realm="restricted", charset="UTF-8"'


@pytest.mark.parametrize(
    ("user", "password"),
    [("ann", "s3cret"), ("bob", "with:colon"), ("zoë", "pässword ☃"), ("", "")],
)
async def test_a_password_lets_in(user: str, password: str) -> None:
    passwords = {"ann": "s3cret", "bob": "with:colon", "zoë": "pässword ☃", "": ""}
    app = app_with(basic_auth(key=USER, passwords=passwords))
    response = await ask(app, headers={"Authorization": basic(user, password)})
    assert (response.status, response.body.decode()) == (200, user)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "Bearer s3cret",
        "Basic",
        "Basic !!!!",
        "Basic YW5u",  # no colon
        "Basic YW5uOnMzY3JldA",  # no padding
        "Basic YW5uOnMzY3JldA== x",
        "Basic " + base64.b64encode(b"ann:\xff\xfe").decode(),
        basic("ann", "s3cret\n"),
        basic("ann", "wrong"),
        basic("ann", ""),
        basic("ANN", "s3cret"),
        basic("nobody", "s3cret"),
        basic("", ""),
    ],
)
async def test_anything_else_does_not(value: str | None) -> None:
    app = app_with(basic_auth(key=USER, passwords={"ann": "s3cret"}))
    response = await ask(app, headers={} if value is None else {"Authorization": value})
    assert response.status == 401
    assert response.headers.get_all("www-authenticate") == [BASIC]


@pytest.mark.parametrize("control", ["\0", "\n", "\x7f", "\x85"])
async def test_no_check_gets_control_characters(control: str) -> None:
    """RFC 7617 section 2"""
    app = app_with(basic_auth(lambda user, password: "anybody", key=USER))
    for pair in (("a", control), (control, "b")):
        assert (await ask(app, headers={"Authorization": basic(*pair)})).status == 401
    assert (await ask(app, headers={"Authorization": basic("a", "b")})).status == 200


async def test_several_credentials_are_a_bad_request() -> None:
    app = app_with(basic_auth(key=USER, passwords={"ann": "s3cret"}))
    headers = [("Authorization", basic("ann", "s3cret"))] * 2
    assert (await ask(app, headers=headers)).status == 400


async def test_a_check_gets_user_and_password() -> None:
    async def check(user: str, password: str) -> str | None:
        await trio.sleep(1)
        return f"{user} with {password}"

    app = app_with(basic_auth(check, key=USER))
    response = await ask(app, headers={"Authorization": basic("ann", "a:b")})
    assert response.body == b"ann with a:b"


@pytest.mark.parametrize("kind", KINDS)
async def test_sessions_with_passwords(kind: Any) -> None:
    app = app_with(basic_auth(key=USER, passwords={"ann": "s3cret"}, realm='a "b" \\ c'))
    async with serving_in_memory(app) as served:
        headers = [("Authorization", basic("ann", "s3cret"))]
        async with served.session(kind, "/session", headers=headers) as session:
            if isinstance(session, WebSocket):
                assert await session.receive() == "ann"
            else:
                assert await session.datagrams.receive() == b"ann"
        with pytest.raises(Rejected) as caught:
            async with served.session(kind, "/session"):
                pass
        assert caught.value.status == 401
        assert caught.value.headers["www-authenticate"] == (
            'Basic realm="a \\"b\\" \\\\ c", charset="UTF-8"'
        )


# ---- mistakes


def find(*shown: str) -> str | None:
    return None


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda: bearer_auth(key=USER), TypeError, "a check or tokens"),
        (lambda: bearer_auth(find, key=USER, tokens={}), TypeError, "not both"),
        (lambda: bearer_auth(key=USER, tokens={"sp ace": "ann"}), ValueError, "never be shown"),
        (lambda: bearer_auth(key=USER, tokens={"": "ann"}), ValueError, "never be shown"),
        (lambda: bearer_auth(key=USER, tokens={"x": cast(Any, None)}), ValueError, "nobody in"),
        (lambda: bearer_auth(find, key=USER, realm="a\r\nb"), ValueError, "realm"),
        (lambda: bearer_auth(find, key=USER, realm=""), ValueError, "realm"),
        (lambda: bearer_auth(find, key=USER, query=""), ValueError, "query"),
        (lambda: bearer_auth(find, key=USER, subprotocol="a\n"), ValueError, "subprotocol"),
        (lambda: basic_auth(key=USER), TypeError, "a check or passwords"),  # type: ignore[call-overload]
        (lambda: basic_auth(find, key=USER, passwords={}), TypeError, "not both"),  # type: ignore[call-overload]
        (lambda: basic_auth(key=USER, passwords={"a:b": "x"}), ValueError, "never be let in"),
        (lambda: basic_auth(key=USER, passwords={"a": "\0"}), ValueError, "never be let in"),
        (lambda: basic_auth(find, key=USER, realm="é"), ValueError, "realm"),
    ],
)
def test_mistakes_are_told_at_once(make: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        make()


def test_secrets_are_not_in_what_is_told() -> None:
    with pytest.raises(ValueError) as caught:
        bearer_auth(key=USER, tokens={"sp ace": "ann"})
    assert "sp ace" not in str(caught.value)
    with pytest.raises(ValueError) as caught:
        basic_auth(key=USER, passwords={"ann": "s3cret\n"})
    assert "s3cret" not in str(caught.value)
