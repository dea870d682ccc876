"""Applications: routes, middleware, typed messages, rooms, and clients that stay up."""

from .._http.request import Request, Response
from ._app import App, Lifespan
from ._breaker import CircuitBreaker, CircuitOpen, CircuitState, CircuitStatistics, Permit
from ._certificates import ReloadingTLS
from ._codecs import Codec, JsonCodec, MessagePackCodec, ProtobufCodec
from ._context import Context, HTTPError, Kind, Middleware, Session, State, StateKey
from ._figures import AppStatistics
from ._message_errors import IncompleteMessage, InvalidMessage, MessageTooLarge, MissingExtra
from ._messages import MessageChannel, MessageStatistics
from ._middleware import (
    ConcurrencyLimit,
    ConcurrencyStatistics,
    LimitKey,
    RateLimit,
    RateLimitStatistics,
    access_log,
    allow_origins,
    basic_auth,
    bearer_auth,
    by_peer,
    deadline,
    format_access,
    limit_concurrency,
    rate_limit,
)
from ._pool import EndpointStatistics, NoEndpoint, PoolStatistics, SessionPool
from ._pool_kinds import PoolSession
from ._reconnect import Attempt, Previous, Reconnect, reconnect
from ._responses import html_response, json_response
from ._routing import Converter
from ._serving import Serving
from ._subscription import Subscription, TooSlow
from ._topic import Encoder, Rooms, Topic, TopicStatistics
from ._transient import is_transient

__all__ = [
    "App",
    "AppStatistics",
    "Attempt",
    "CircuitBreaker",
    "CircuitOpen",
    "CircuitState",
    "CircuitStatistics",
    "Codec",
    "ConcurrencyLimit",
    "ConcurrencyStatistics",
    "Context",
    "Converter",
    "Encoder",
    "EndpointStatistics",
    "HTTPError",
    "IncompleteMessage",
    "InvalidMessage",
    "JsonCodec",
    "Kind",
    "Lifespan",
    "LimitKey",
    "MessageChannel",
    "MessagePackCodec",
    "MessageStatistics",
    "MessageTooLarge",
    "Middleware",
    "MissingExtra",
    "NoEndpoint",
    "Permit",
    "PoolSession",
    "PoolStatistics",
    "Previous",
    "ProtobufCodec",
    "RateLimit",
    "RateLimitStatistics",
    "Reconnect",
    "ReloadingTLS",
    "Request",
    "Response",
    "Rooms",
    "Serving",
    "Session",
    "SessionPool",
    "State",
    "StateKey",
    "Subscription",
    "TooSlow",
    "Topic",
    "TopicStatistics",
    "access_log",
    "allow_origins",
    "basic_auth",
    "bearer_auth",
    "by_peer",
    "deadline",
    "format_access",
    "html_response",
    "is_transient",
    "json_response",
    "limit_concurrency",
    "rate_limit",
    "reconnect",
]
