"""What is known of a request on its way through an application."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, cast, overload

from .._errors import TrioWTError
from .._headers import Headers, HeadersLike
from .._http.request import Request
from .._websocket.websocket import WebSocket
from .._webtransport.session import WebTransportSession

if TYPE_CHECKING:
    from ._app import App

__all__ = ["Context", "HTTPError", "Kind", "Middleware", "Session", "State", "StateKey"]

T = TypeVar("T")
D = TypeVar("D")

#: What a handler for both kinds gets.
Session: TypeAlias = WebSocket | WebTransportSession
#: What a request is for.
Kind: TypeAlias = Literal["websocket", "webtransport", "http"]


class HTTPError(TrioWTError):
    """Answer the request with this status: raised by a middleware before its ``yield``, or by a handler of plain requests.

    Args:
        status: 400 to 599, or 300 to 399 for a redirect.
        body: text or bytes; by default a line with the status.
        headers: further response headers.

    Raises:
        ValueError: the status is another one, or a header is not valid.
    """

    def __init__(
        self, status: int, body: str | bytes | None = None, headers: HeadersLike = ()
    ) -> None:
        if not 300 <= status <= 599:
            raise ValueError(f"the status of an error is 300 to 599, not {status}")
        super().__init__(status, body)
        self.status = status
        self.body = body
        self.headers: Headers = Headers(headers)

    def __str__(self) -> str:
        return f"answered with status {self.status}"


class StateKey(Generic[T]):
    """Names a value in a `State`, and its type: ``USER = StateKey[User]("user")``.

    Two keys are never the same, whatever their names.

    Args:
        name: for people.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name: str = name

    def __repr__(self) -> str:
        return f"<StateKey {self.name}>"


class State:
    """Values by typed keys: what the lifespan has made for the application, and middlewares for a session."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[StateKey[Any], Any] = {}

    def __getitem__(self, key: StateKey[T]) -> T:
        try:
            return cast(T, self._values[key])
        except KeyError:
            raise KeyError(
                f"there is no {key.name} here; whatever sets it must come before whatever asks for it"
            ) from None

    def __setitem__(self, key: StateKey[T], value: T) -> None:
        self._values[key] = value

    def __contains__(self, key: StateKey[Any]) -> bool:
        return key in self._values

    @overload
    def get(self, key: StateKey[T]) -> T | None: ...
    @overload
    def get(self, key: StateKey[T], default: D) -> T | D: ...
    def get(self, key: StateKey[T], default: object = None) -> object:
        """The value, or the default if there is none."""
        return self._values.get(key, default)


class Context:
    """A request, from when it is routed until its handler is done.

    A handler that has a parameter called ``context`` gets it; so does every middleware.

    Attributes:
        request: the request.
        kind: what it is for; of a request that no route takes, what it would have been for.
        app: the application whose route it is.
        route: the pattern of that route, mounts included; None if there is none.
        params: the path's parameters, converted.
        state: for what middlewares find out.
        headers: headers to add to the answer, until that is sent.
        status: how it was answered: 101 or 200 for a session; None before.
        session: the session, once it is open; None for plain requests.
    """

    __slots__ = (
        "_headers",
        "app",
        "kind",
        "params",
        "request",
        "route",
        "session",
        "state",
        "status",
    )

    def __init__(
        self,
        request: Request,
        kind: Kind,
        app: App,
        route: str | None,
        params: Mapping[str, Any],
    ) -> None:
        self.request: Request = request
        self.kind: Kind = kind
        self.app: App = app
        self.route: str | None = route
        self.params: Mapping[str, Any] = params
        self.state: State = State()
        self._headers: Headers = Headers()
        self.status: int | None = None
        self.session: Session | None = None

    @property
    def headers(self) -> Headers:
        """Headers to add to the answer; ``context.headers += {"X-Robots-Tag": "none"}``."""
        return self._headers

    @headers.setter
    def headers(self, headers: HeadersLike) -> None:
        # Told where it is set, rather than when the answer is to be sent.
        self._headers = Headers(headers)

    def __repr__(self) -> str:
        return f"<Context {self.kind} {self.route or 'without a route'}, status {self.status}>"


#: Surrounds a request: what it does before its ``yield`` comes before the answer, and may raise `HTTPError`; the rest comes
#: when the handler is done. Written with `contextlib.asynccontextmanager`.
Middleware: TypeAlias = Callable[[Context], AbstractAsyncContextManager[object]]
