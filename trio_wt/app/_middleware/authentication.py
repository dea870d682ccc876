"""Who is asking: bearer tokens (RFC 6750), and user names with passwords (RFC 7617).

What a client shows goes to a check of the application's and nowhere else: not into a log, an error or a response.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import inspect
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias, TypeVar, cast, overload
from urllib.parse import parse_qsl

from ..._http.request import Request
from .._context import Context, HTTPError, Middleware, StateKey

__all__ = ["basic_auth", "bearer_auth"]

T = TypeVar("T")

#: Whose token it is; None for nobody's.
_TokenCheck: TypeAlias = Callable[[str], Awaitable[T | None] | T | None]
#: The same of a user's name and password.
_PasswordCheck: TypeAlias = Callable[[str, str], Awaitable[T | None] | T | None]

# RFC 6750 section 2.1
_B64TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# How many parameters of a query are looked at.
_MAX_PARAMETERS: Final = 100


def bearer_auth(
    check: _TokenCheck[T] | None = None,
    *,
    key: StateKey[T],
    tokens: Mapping[str, T] | None = None,
    realm: str = "restricted",
    query: str | None = None,
    subprotocol: str | None = None,
) -> Middleware:
    """Let in who shows a token: ``Authorization: Bearer ...`` (RFC 6750).

    ::

        USER = StateKey[str]("user")
        app = App(middleware=[bearer_auth(find_user, key=USER)])

    Without a token, or with one that is nobody's, the answer is 401; malformed, or shown in more than one way, it is 400. Both
    say how to do it right (``WWW-Authenticate``, RFC 6750 section 3).

    Args:
        check: gets the token, and returns whose it is; None, or False, if it is nobody's. It may be async, and may raise
            `HTTPError` for another answer. Anything else that it raises is answered with 500.
        key: what it returns is found in ``context.state`` under this.
        tokens: instead of a check, the tokens that there are, and whose they are. All of them are compared, each in constant time:
            it is meant for a handful.
        realm: what is protected, for people.
        query: look for the token under this name in the query, too: web pages cannot set headers on a WebSocket or a WebTransport session.
            Servers and proxies on the way tend to log queries, so such a token should live for minutes, or be used once.
        subprotocol: look for it in an offered subprotocol that begins with this, too, such as ``"bearer."``: for pages as well, and
            not in any URL. A page's WebSocket needs another subprotocol beside it that the server chooses.

    Raises:
        TypeError: not exactly one of ``check`` and ``tokens`` was given.
        ValueError: one of ``tokens`` can never be shown or is nobody's, or the realm or a name cannot be used.
    """
    if (check is None) == (tokens is None):
        raise TypeError("give a check or tokens, and not both")
    for name, value in (("query", query), ("subprotocol", subprotocol)):
        if value is not None and not (value and value.isascii() and value.isprintable()):
            raise ValueError(f"{name} must be printable ASCII, and not empty: {value!r}")
    scheme = f'Bearer realm="{_quotable(realm)}"'
    finds = check if tokens is None else _finder(tokens)
    assert finds is not None

    @asynccontextmanager
    async def authenticate(context: Context) -> AsyncIterator[None]:
        shown = _bearer_tokens(context.request, scheme, query, subprotocol)
        if not shown:
            # No error is named where nothing was tried (RFC 6750 section 3.1).
            raise _refusal(401, scheme, "a token is needed")
        if len(shown) > 1:
            raise _invalid_request(scheme, "the token is there more than once")
        if not _B64TOKEN.fullmatch(shown[0]):
            raise _invalid_request(scheme, "the token is malformed")
        identity = await _ask(finds, shown[0])
        if _is_nobody(identity):
            because = "the token is not valid"
            raise _refusal(401, f'{scheme}, error="invalid_token"', because, described=True)
        context.state[key] = cast(T, identity)
        if context.kind == "http" and not _credentials(context.request, "bearer"):
            # What a URL with a token has brought is not to be shared (RFC 6750 section 2.3).
            context.headers += [("Cache-Control", "private")]
        yield

    return authenticate


@overload
def basic_auth(
    check: _PasswordCheck[T], *, key: StateKey[T], realm: str = "restricted"
) -> Middleware: ...


@overload
def basic_auth(
    *, key: StateKey[str], passwords: Mapping[str, str], realm: str = "restricted"
) -> Middleware: ...


def basic_auth(
    check: _PasswordCheck[Any] | None = None,
    *,
    key: StateKey[Any],
    passwords: Mapping[str, str] | None = None,
    realm: str = "restricted",
) -> Middleware:
    """Let in who shows a user's name and password: ``Authorization: Basic ...`` (RFC 7617), in UTF-8.

    Anything else is answered with 401 and how to do it right, several Authorization headers with 400. Browsers then ask their user,
    for a page; for a WebSocket they send what they have been told for a page of the same realm.

    Args:
        check: gets name and password, and returns who that is; None, or False, if it is nobody. It may be async: what makes
            passwords slow to guess belongs into a thread. It may raise `HTTPError` for another answer. Anything else that it raises
            is answered with 500.
        key: what it returns is found in ``context.state`` under this.
        passwords: instead of a check, the users' passwords by their names. They are compared in constant time, also for names that
            there are not. The name is what is found in the state.
        realm: what is protected, for people.

    Raises:
        TypeError: not exactly one of ``check`` and ``passwords`` was given.
        ValueError: one of ``passwords`` can never be shown, or the realm cannot be used.
    """
    if (check is None) == (passwords is None):
        raise TypeError("give a check or passwords, and not both")
    scheme = f'Basic realm="{_quotable(realm)}", charset="UTF-8"'
    finds = check if passwords is None else _user_finder(passwords)
    assert finds is not None

    @asynccontextmanager
    async def authenticate(context: Context) -> AsyncIterator[None]:
        shown = _credentials(context.request, "basic")
        if len(context.request.headers.get_all("authorization")) > 1:
            raise _refusal(400, scheme, "Authorization is there more than once")
        pair = _user_and_password(shown[0]) if shown else None
        if pair is None:
            raise _refusal(401, scheme, "a user and a password are needed")
        identity = await _ask(finds, *pair)
        if _is_nobody(identity):
            raise _refusal(401, scheme, "this user has another password, or there is none")
        context.state[key] = identity
        yield

    return authenticate


async def _ask(check: Callable[..., object], *shown: str) -> object:
    result = check(*shown)
    return await result if inspect.isawaitable(result) else result


def _is_nobody(identity: object) -> bool:
    # A check that says yes or no is not to let everybody in.
    return identity is None or identity is False


# ---- what a request shows


def _credentials(request: Request, scheme: str) -> list[str]:
    """What stands behind a scheme in the Authorization headers (RFC 9110 section 11.4)."""
    found = []
    for value in request.headers.get_all("authorization"):
        name, _, credentials = value.partition(" ")
        if name.lower() == scheme:
            found.append(credentials.strip(" "))
    return found


def _bearer_tokens(
    request: Request, scheme: str, query: str | None, subprotocol: str | None
) -> list[str]:
    """All tokens, well-formed or not, wherever they may be.

    Raises:
        HTTPError: there is no telling.
    """
    if len(request.headers.get_all("authorization")) > 1:
        raise _invalid_request(scheme, "Authorization is there more than once")
    found = _credentials(request, "bearer")
    if query is not None:
        try:
            parameters = parse_qsl(
                request.query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS
            )
        except ValueError:
            raise _invalid_request(scheme, "the query has too many parameters") from None
        found += [value for name, value in parameters if name == query]
    if subprotocol is not None:
        found += [
            offered.removeprefix(subprotocol)
            for offered in request.subprotocols
            if offered.startswith(subprotocol)
        ]
    return found


def _user_and_password(credentials: str) -> tuple[str, str] | None:
    """What Basic credentials say (RFC 7617 section 2); None if they are malformed."""
    try:
        text = base64.b64decode(credentials, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    user, colon, password = text.partition(":")
    return (user, password) if colon and not _CONTROLS.search(text) else None


# ---- what is answered


def _quotable(realm: str) -> str:
    if not (realm and realm.isascii() and realm.isprintable()):
        raise ValueError(f"the realm must be printable ASCII, and not empty: {realm!r}")
    return realm.replace("\\", "\\\\").replace('"', '\\"')


def _refusal(status: int, challenge: str, because: str, *, described: bool = False) -> HTTPError:
    if described:
        challenge += f', error_description="{because}"'
    return HTTPError(status, f"{because}\n", [("WWW-Authenticate", challenge)])


def _invalid_request(scheme: str, because: str) -> HTTPError:
    return _refusal(400, f'{scheme}, error="invalid_request"', because, described=True)


# ---- comparing in constant time


def _digester() -> Callable[[str], bytes]:
    """Makes digests of equal length, which say nothing about what they are of."""
    secret = os.urandom(32)
    return lambda text: hashlib.blake2b(text.encode(), key=secret).digest()


def _finder(tokens: Mapping[str, T]) -> Callable[[str], T | None]:
    if any(not _B64TOKEN.fullmatch(token) for token in tokens):
        raise ValueError(
            "one of the tokens can never be shown: they are letters, digits and -._~+/, and = at the end"
        )
    if any(_is_nobody(identity) for identity in tokens.values()):
        raise ValueError("one of the tokens is of None or False, which would let nobody in")
    digest = _digester()
    known = [(digest(token), identity) for token, identity in tokens.items()]

    def find(token: str) -> T | None:
        shown, found = digest(token), None
        for expected, identity in known:
            if hmac.compare_digest(shown, expected):
                found = identity  # and on to the last, so that the time does not tell which it was
        return found

    return find


def _user_finder(passwords: Mapping[str, str]) -> Callable[[str, str], str | None]:
    for user, password in passwords.items():
        if ":" in user or _CONTROLS.search(user + password):
            raise ValueError(
                f"the user {user!r} can never be let in: no colon may be in a name, and no control character in name or password"
            )
    digest = _digester()
    known = {user: digest(password) for user, password in passwords.items()}
    nobody = os.urandom(hashlib.blake2b().digest_size)

    def find(user: str, password: str) -> str | None:
        matches = hmac.compare_digest(digest(password), known.get(user, nobody))
        return user if matches else None

    return find
