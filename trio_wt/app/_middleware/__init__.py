"""Middlewares that applications commonly need, each in a file of its own subject."""

from .access_log import access_log, format_access
from .authentication import basic_auth, bearer_auth
from .deadline import deadline
from .limits import (
    ConcurrencyLimit,
    ConcurrencyStatistics,
    LimitKey,
    RateLimit,
    RateLimitStatistics,
    by_peer,
    limit_concurrency,
    rate_limit,
)
from .origins import allow_origins

__all__ = [
    "ConcurrencyLimit",
    "ConcurrencyStatistics",
    "LimitKey",
    "RateLimit",
    "RateLimitStatistics",
    "access_log",
    "allow_origins",
    "basic_auth",
    "bearer_auth",
    "by_peer",
    "deadline",
    "format_access",
    "limit_concurrency",
    "rate_limit",
]
