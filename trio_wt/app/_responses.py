"""What handlers of plain requests return, as a response."""

from __future__ import annotations

import json
from typing import Any, Final

from .._headers import Headers, HeadersLike
from .._http.request import Reject, Response

__all__ = ["html_response", "json_response", "response_of"]

_TEXT: Final = Headers([("Content-Type", "text/plain; charset=utf-8")])
_BYTES: Final = Headers([("Content-Type", "application/octet-stream")])


def html_response(text: str, status: int = 200, headers: HeadersLike = ()) -> Response:
    """A page.

    Args:
        text: the page; sent as UTF-8.
        status: the status.
        headers: further headers.
    """
    return Response(status, _typed(headers, "text/html; charset=utf-8"), text.encode())


def json_response(value: Any, status: int = 200, headers: HeadersLike = ()) -> Response:
    """A value as JSON.

    Args:
        value: what ``json.dumps`` takes.
        status: the status.
        headers: further headers.

    Raises:
        TypeError: it has something that JSON has not.
        ValueError: the same, of numbers: NaN and infinities.
    """
    body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return Response(status, _typed(headers, "application/json"), body)


def _typed(headers: HeadersLike, kind: str) -> Headers:
    checked = Headers(headers)
    if "content-type" not in checked:
        checked += [("Content-Type", kind)]
    return checked


def response_of(result: object) -> Reject:
    """What a handler has returned, to be sent.

    Raises:
        TypeError: it is no response, or its body is not bytes.
        ValueError: its status is none of a final response, or a header is not valid.
    """
    if isinstance(result, Response):
        if not 200 <= result.status <= 599:
            raise ValueError(f"the status of a response is 200 to 599, not {result.status}")
        if not isinstance(result.body, bytes | bytearray | memoryview):
            raise TypeError(f"the body of a Response is bytes, not {type(result.body).__name__}")
        return Reject(result.status, Headers(result.headers), bytes(result.body))
    if result is None:
        return Reject(204, Headers(), b"")
    if isinstance(result, str):
        return Reject(200, _TEXT, result.encode())
    if isinstance(result, bytes):
        return Reject(200, _BYTES, result)
    raise TypeError(
        f"a handler returns a Response, str, bytes or None, not {type(result).__name__}"
    )
