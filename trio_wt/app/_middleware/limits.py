"""How often clients may come, and how many may be there at a time."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final, TypeAlias

import trio

from .._context import Context, HTTPError

__all__ = [
    "ConcurrencyLimit",
    "ConcurrencyStatistics",
    "LimitKey",
    "RateLimit",
    "RateLimitStatistics",
    "by_peer",
    "limit_concurrency",
    "rate_limit",
]

#: Whom a request counts for; None for nobody.
LimitKey: TypeAlias = Callable[[Context], Hashable | None]

# Sums of floats are not exact: so much too early is not too early.
_ROUNDING: Final = 1e-9


def by_peer(context: Context) -> str:
    """A key for limits: the client's address, of which IPv6 counts up to its network of 64 bits, as one client has all of that.

    It is the address that the connection comes from. Behind a proxy that is the proxy's, for everybody: write a key that reads the header in which
    your proxy, and nobody else, puts the address. Clients without an address, as over Unix sockets, count as one.
    """
    peer = context.request.peer
    if not isinstance(peer, tuple):
        return "unknown"
    try:
        address = ip_address(peer[0].partition("%")[0])
    except ValueError:
        return peer[0]
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return f"{IPv6Address(int(address) >> 64 << 64)}/64"
    return str(address)


# ---- how often


@dataclass(frozen=True, slots=True)
class RateLimitStatistics:
    """Figures of a `RateLimit`.

    Attributes:
        keys: keys that are remembered now.
        admitted: requests that were let through.
        refused: requests that were answered with 429.
        forgotten: keys that were forgotten before their bucket was full again, because there were too many.
    """

    keys: int
    admitted: int
    refused: int
    forgotten: int


class RateLimit:
    """The middleware that `rate_limit` makes. Used in several places, it counts all of them together."""

    def __init__(self, rate: float, burst: float, key: LimitKey, max_keys: int) -> None:
        self._interval = 1 / rate
        # How far ahead of now a bucket's refilling may reach for one more request.
        self._tolerance = (burst - 1) / rate + _ROUNDING
        self._key = key
        self._max_keys = max_keys
        # When each bucket will be full again, the key that came last at the end. One that is full is as good as none.
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()
        self._admitted = self._refused = self._forgotten = 0

    def __call__(self, context: Context) -> AbstractAsyncContextManager[object]:
        """Surround a request."""
        return self._surround(context)

    @asynccontextmanager
    async def _surround(self, context: Context) -> AsyncIterator[None]:
        key = self._key(context)
        seconds = 0.0 if key is None else self._take(key)
        if seconds:
            self._refused += 1
            raise HTTPError(429, "too many requests\n", [_retry_after(seconds)])
        self._admitted += 1
        yield

    def _take(self, key: Hashable) -> float:
        """Take a token from a key's bucket: 0, or the seconds until there is one."""
        now = trio.current_time()
        full_at = self._full_at
        at = max(full_at.pop(key, now), now)
        missing = at - now - self._tolerance
        if missing <= 0:
            at += self._interval
        full_at[key] = at
        while full_at:
            oldest = next(iter(full_at))
            if full_at[oldest] > now:
                if len(full_at) <= self._max_keys:
                    break
                self._forgotten += 1
            del full_at[oldest]
        return max(missing, 0.0)

    def statistics(self) -> RateLimitStatistics:
        """The figures at this moment."""
        return RateLimitStatistics(
            len(self._full_at), self._admitted, self._refused, self._forgotten
        )


def rate_limit(
    rate: float, burst: int, *, key: LimitKey = by_peer, max_keys: int = 10_000
) -> RateLimit:
    """Let requests in at a rate, for each client: a token bucket. What goes beyond is answered with 429 and a Retry-After.

    Each client has a bucket of ``burst`` tokens, which fills with ``rate`` of them a second. A request takes one; one that is refused
    takes none.

    Args:
        rate: requests a second, in the long run; 0.1 is six a minute.
        burst: how many may come at once.
        key: whose bucket it is; a function of the `Context` that returns anything that can be a key of a dict, or None for a request
            that is not limited.
        max_keys: how many keys are remembered, at about 200 bytes each. Beyond, the one that has not come for longest is forgotten, and
            has a full bucket when it comes again.

    Returns:
        a middleware, with figures in ``statistics()``.

    Raises:
        TypeError: ``key`` is no function.
        ValueError: a number is out of its range.
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"rate must be greater than 0 and finite, and is {rate}")
    if not 1 <= burst < math.inf:
        raise ValueError(f"burst must be 1 or more, and is {burst}")
    if max_keys < 1:
        raise ValueError(f"max_keys must be 1 or more, and is {max_keys}")
    _check_key(key)
    return RateLimit(rate, burst, key, max_keys)


# ---- how many at a time


@dataclass(frozen=True, slots=True)
class ConcurrencyStatistics:
    """Figures of a `ConcurrencyLimit`.

    Attributes:
        active: requests that are let in now.
        waiting: requests that wait to be.
        keys: keys that these have.
        admitted: requests that were let in, ever.
        refused: requests that were answered with 503 or 429.
    """

    active: int
    waiting: int
    keys: int
    admitted: int
    refused: int


class _Slots:
    """The places of one key, and how many requests have or want one."""

    __slots__ = ("places", "requests")

    def __init__(self, limit: int) -> None:
        self.places = trio.Semaphore(limit)
        self.requests = 0


class ConcurrencyLimit:
    """The middleware that `limit_concurrency` makes. Used in several places, it counts all of them together."""

    def __init__(
        self,
        limit: int,
        key: LimitKey | None,
        wait: float | None,
        max_waiting: int,
        retry_after: float,
    ) -> None:
        self._limit = limit
        self._key = key
        self._wait = wait
        self._max_waiting = max_waiting
        self._retry_after = retry_after
        # Only of those who are here: it needs no bound of its own.
        self._slots: dict[Hashable, _Slots] = {}
        self._active = self._waiting = self._admitted = self._refused = 0

    def __call__(self, context: Context) -> AbstractAsyncContextManager[object]:
        """Surround a request."""
        return self._surround(context)

    @asynccontextmanager
    async def _surround(self, context: Context) -> AsyncIterator[None]:
        key = None if self._key is None else self._key(context)
        if self._key is not None and key is None:
            yield
            return
        slots = self._slots.get(key)
        if slots is None:
            slots = self._slots[key] = _Slots(self._limit)
        slots.requests += 1
        try:
            await self._enter(slots.places)
            self._active += 1
            self._admitted += 1
            try:
                yield
            finally:
                self._active -= 1
                slots.places.release()
        finally:
            slots.requests -= 1
            if not slots.requests:
                del self._slots[key]

    async def _enter(self, places: trio.Semaphore) -> None:
        """Take a place, at once or in order.

        Raises:
            HTTPError: there is none.
        """
        try:
            places.acquire_nowait()
        except trio.WouldBlock:
            if self._wait is not None and self._waiting < self._max_waiting:
                self._waiting += 1
                try:
                    # Whoever is given a place here cannot be cancelled any more before it is his to give back.
                    with trio.move_on_after(self._wait):
                        await places.acquire()
                        return
                finally:
                    self._waiting -= 1
        else:
            return
        self._refused += 1
        status, whose = (503, "") if self._key is None else (429, " of yours")
        raise HTTPError(
            status, f"too many sessions{whose} at a time\n", [_retry_after(self._retry_after)]
        )

    def statistics(self) -> ConcurrencyStatistics:
        """The figures at this moment."""
        return ConcurrencyStatistics(
            active=self._active,
            waiting=self._waiting,
            keys=len(self._slots),
            admitted=self._admitted,
            refused=self._refused,
        )


def limit_concurrency(
    limit: int,
    *,
    key: LimitKey | None = None,
    wait: float | None = None,
    max_waiting: int = 100,
    retry_after: float = 1,
) -> ConcurrencyLimit:
    """Let in so many sessions at a time. What goes beyond is answered with 503, or 429 for one key, and a Retry-After.

    A place is held from here until the session is closed, its closing handshake included. Plain requests count as well, where it surrounds
    them.

    Args:
        limit: how many at a time, over all or for each key.
        key: such as `by_peer`: a function of the `Context` that returns anything that can be a key of a dict, or None for a
            request that is not limited. Without one there is one limit for all.
        wait: seconds to wait for a place, in the order of coming. None answers at once.
        max_waiting: how many may wait, of all keys together; who comes then is answered at once.
        retry_after: after how many seconds clients are told to come again, rounded up.

    Returns:
        a middleware, with figures in ``statistics()``.

    Raises:
        TypeError: ``limit`` is no int, or ``key`` no function.
        ValueError: a number is out of its range.

    Cancelled while it waits, a request gives up its turn.
    """
    if not isinstance(limit, int):
        raise TypeError(f"limit must be an int, and is {limit!r}")
    if limit < 1:
        raise ValueError(f"limit must be 1 or more, and is {limit}")
    if wait is not None and not wait > 0:
        raise ValueError(f"wait must be greater than 0, or None, and is {wait}")
    if max_waiting < 1:
        raise ValueError(f"max_waiting must be 1 or more, and is {max_waiting}")
    if not 0 < retry_after < math.inf:
        raise ValueError(f"retry_after must be greater than 0 and finite, and is {retry_after}")
    if key is not None:
        _check_key(key)
    return ConcurrencyLimit(limit, key, wait, max_waiting, retry_after)


def _check_key(key: object) -> None:
    if not callable(key):
        raise TypeError(f"key must be a function of the context, such as by_peer, not {key!r}")


def _retry_after(seconds: float) -> tuple[str, str]:
    """The header (RFC 9110 section 10.2.3)."""
    return "Retry-After", str(max(1, math.ceil(seconds - _ROUNDING)))
