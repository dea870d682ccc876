"""One line in a log for each request that is done, whatever the client has put into it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeAlias

import trio

from ..._errors import ConnectionClosed, ConnectionLost, TransportClosed
from ..._websocket.websocket import WebSocket
from .._answering import ClientGone, sole
from .._context import Context, Middleware, Session

__all__ = ["access_log", "format_access"]

_Fields: TypeAlias = dict[str, object]

_problems = logging.getLogger("trio_wt.app")

# What needs no quotes: nothing that separates fields, and no quote or escape.
_BARE: Final = re.compile(r"[A-Za-z0-9._~:/@%+,;&()*!$\[\]-]+")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# How much of a text is shown, in characters.
_LIMIT: Final = 200
_LOST: Final = 1006


def access_log(
    logger: str | logging.Logger = "trio_wt.access",
    *,
    level: int = logging.INFO,
    query: bool = False,
    fields: Callable[[Context], Mapping[str, Any]] | None = None,
) -> Middleware:
    """Log a line for each request when it is done: a session when it has ended.

    As the first middleware of the application it sees everything, also what no route takes. A line is fields with their values:

    - ``peer``, ``kind``, ``method``, ``target``, ``http``: who asked for what, over which version of HTTP
    - ``status``: the answer; none if the client was gone, or the request cancelled, before there was one
    - ``seconds``: how long it took, for a session until it was closed
    - ``code``, ``reason``: how a session was closed; ``lost=True`` if it was not, and its connection was lost
    - ``received``, ``sent``, ``messages_received``, ``messages_sent``: bytes and messages of a WebSocket
    - ``error``: the type of the exception that a handler or a middleware has raised

    A field without a value is left out of the line. Each value is one word, or in quotes with everything escaped but printable ASCII, and cut
    after 200 characters: so nothing that a client sends can end a line or look like a field. No header is logged.

    For structured loggers each field is an attribute of the record, too (``extra``): None if it has no value, and neither escaped
    nor cut.

    It never raises. What goes wrong in it is logged on ``trio_wt.app``.

    Args:
        logger: where to, by name or itself.
        level: the line's level; nothing is done if the logger does not want it.
        query: log the query of the target, too. Mind what it holds: tokens, for one.
        fields: further fields, such as the user that another middleware has put into ``context.state``. Names that every record has,
            such as ``name`` and ``message``, cannot be used.

    Raises:
        TypeError: ``logger`` is none.
    """
    log = logging.getLogger(logger) if isinstance(logger, str) else logger
    if not isinstance(log, logging.Logger):
        raise TypeError(f"logger must be a name or a logger, not {logger!r}")

    @asynccontextmanager
    async def surround(context: Context) -> AsyncIterator[None]:
        began = trio.current_time()
        failure: BaseException | None = None
        try:
            yield
        except BaseException as exc:
            failure = exc
            raise
        finally:
            seconds = trio.current_time() - began
            try:
                if log.isEnabledFor(level):
                    found = _fields_of(context, failure, seconds, query=query)
                    if fields is not None:
                        found |= _checked(fields(context))
                    log.log(level, "%s", format_access(found), extra=found)
            except Exception:
                # A filter or a handler of the application's may raise anything, in here as well.
                with suppress(Exception):
                    _problems.exception("a line of the access log was lost")
            finally:
                # It would keep its own frame alive.
                del failure

    return surround


def format_access(fields: Mapping[str, object]) -> str:
    """The line for some fields, as `access_log` writes it: ``status=101 reason="good bye"``.

    Args:
        fields: names, which must be identifiers, and values; None is left out.
    """
    return " ".join(
        f"{name}={_shown(value)}" for name, value in fields.items() if value is not None
    )


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    if len(text) > _LIMIT:
        text = text[:_LIMIT] + "..."
    # JSON's strings are all printable ASCII, with quotes and backslashes escaped.
    return text if _BARE.fullmatch(text) else json.dumps(text)


def _checked(fields: Mapping[str, object]) -> _Fields:
    for name in fields:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a field")
    return dict(fields)


def _fields_of(
    context: Context, failure: BaseException | None, seconds: float, *, query: bool
) -> _Fields:
    request = context.request
    target = request.raw_path
    if query and request.query:
        target += f"?{request.query}"
    found: _Fields = {
        "peer": _address(request.peer),
        "kind": context.kind,
        "method": request.method,
        "target": target,
        "http": request.http_version,
        "status": _status(context, failure),
        "seconds": seconds,
        "code": None,
        "reason": None,
        "lost": None,
        "received": None,
        "sent": None,
        "messages_received": None,
        "messages_sent": None,
        "error": _error(failure),
    }
    if context.session is not None:
        found |= _end_of(context.session)
    return found


def _address(peer: object) -> str | None:
    if isinstance(peer, tuple):
        host, port = peer[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return peer if isinstance(peer, str) and peer else None


def _status(context: Context, failure: BaseException | None) -> int | None:
    """How the request is answered; of a failure before that it is known what the application will say."""
    if context.status is not None:
        return context.status
    failure = _sole(failure)
    is_nobody_there = isinstance(failure, ClientGone)
    is_answered = failure is None or isinstance(failure, Exception)
    return 500 if is_answered and not is_nobody_there else None


def _sole(failure: BaseException | None) -> BaseException | None:
    return None if failure is None else sole(failure)


def _error(failure: BaseException | None) -> str | None:
    failure = _sole(failure)
    if failure is None or isinstance(failure, ConnectionClosed):
        return None
    return type(failure).__name__


def _end_of(session: Session) -> _Fields:
    if isinstance(session, WebSocket):
        figures = session.statistics()
        lost = session.close_code == _LOST
        return {
            "code": session.close_code,
            "reason": session.close_reason or None,
            "lost": lost or None,
            "received": figures.bytes_received,
            "sent": figures.bytes_sent,
            "messages_received": figures.messages_received,
            "messages_sent": figures.messages_sent,
        }
    end = session.closed
    if end is None:
        return {}
    # Their codes are none of the application's.
    lost = isinstance(end, ConnectionLost | TransportClosed)
    return {
        "code": None if lost else end.code,
        "reason": end.reason or None,
        "lost": lost or None,
    }
