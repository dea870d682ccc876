"""What there is at a path: handlers, and the applications that are mounted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from .._protocol.handshake import Origins
from ._context import Context, Kind, Middleware

if TYPE_CHECKING:
    from ._app import App

__all__ = [
    "Candidate",
    "Endpoint",
    "Leaf",
    "Mount",
    "check_manager",
    "checked_middleware",
    "takes_context_of",
]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A handler, and what is particular to its route."""

    app: App
    pattern: str
    handler: Callable[..., Any]
    takes_context: bool
    middleware: tuple[Middleware, ...]
    subprotocols: tuple[str, ...] = ()
    origins: Origins | None = None

    def call(self, context: Context, first: object) -> Any:
        """Call the handler; ``first`` is the session or the request."""
        if self.takes_context:
            return self.handler(first, context=context, **context.params)
        return self.handler(first, **context.params)


@dataclass(slots=True)
class Leaf:
    """What there is at a path."""

    sessions: dict[Kind, Endpoint] = field(default_factory=dict)
    methods: dict[str, Endpoint] = field(default_factory=dict)

    def allowed(self, http_version: str) -> set[str]:
        """The methods that can be used here (RFC 9110 section 10.2.1)."""
        found = {"OPTIONS", *self.methods}
        if "GET" in found:
            found.add("HEAD")
        if http_version == "3":
            if self.sessions:
                found.add("CONNECT")
        elif "websocket" in self.sessions:
            found.add("GET")  # with an upgrade
        return found


@dataclass(frozen=True, slots=True)
class Mount:
    """An application behind a prefix; of that, the decoded segments."""

    prefix: str
    segments: tuple[str, ...]
    app: App

    def rest(self, raw_path: str) -> str | None:
        """A path as the mounted application sees it; None if it is not below the mount."""
        parts = raw_path.split("/")[1:]
        count = len(self.segments)
        if tuple(unquote(part) for part in parts[:count]) != self.segments:
            return None
        return "/" + "/".join(parts[count:])


@dataclass(frozen=True, slots=True)
class Candidate:
    """What there is at a path, and what surrounds it: the mounts' prefixes and their middleware."""

    leaf: Leaf
    params: Mapping[str, Any]
    prefix: str
    middleware: tuple[Middleware, ...]


def checked_middleware(middleware: Sequence[Middleware]) -> tuple[Middleware, ...]:
    """Some middlewares, as far as can be told before they are called.

    Raises:
        TypeError: one is no function that gives an async context manager.
    """
    found = tuple(middleware)
    for one in found:
        check_manager("a middleware", one)
    return found


def check_manager(what: str, function: object) -> None:
    """Check that a function may give an async context manager.

    Raises:
        TypeError: it gives none.
    """
    if not callable(function):
        raise TypeError(f"{what} is a function, not {type(function).__name__}")
    if inspect.isasyncgenfunction(function) or inspect.iscoroutinefunction(function):
        raise TypeError(
            f"{what} gives an async context manager: put @contextlib.asynccontextmanager over "
            f"{getattr(function, '__name__', function)}, and a yield into it"
        )


def takes_context_of(handler: Callable[..., object], names: Sequence[str]) -> bool:
    """Whether a handler has a parameter called ``context``.

    Raises:
        TypeError: it cannot be called with the session or request, and the path's parameters.
    """
    signature = inspect.signature(handler)
    given: dict[str, object] = dict.fromkeys(names)
    takes_context = "context" in signature.parameters
    if takes_context:
        if "context" in names:
            raise TypeError("the name context is taken: the path's parameter needs another one")
        given["context"] = None
    try:
        signature.bind(None, **given)
    except TypeError as exc:
        what = ", ".join(names) or "none"
        raise TypeError(
            f"{getattr(handler, '__name__', handler)} must take the session or request, and the path's parameters by "
            f"name ({what}): {exc}"
        ) from None
    return takes_context
