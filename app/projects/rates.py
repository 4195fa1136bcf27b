"""How many requests a project may send in a minute, to each process of the API.

The window moves: a request counts for sixty seconds, whenever it came. It is on the way of every request, so it is
counted in this process's memory, and a project without the limit is not counted at all.
"""

import math
import time
from functools import cache, cached_property
from typing import NamedTuple

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from app.auth.schemas import Tenant
from app.errors import RateLimitError

SCOPE_KEY = "unforgotten.rate"
"""Where a request's rate is kept for whoever writes the answer's headers."""


class Rate(NamedTuple):
    """Where a project stands after a request."""

    limit: int
    remaining: int
    reset_seconds: float
    """Until the oldest request that counts no longer does."""
    is_over: bool

    def headers(self) -> dict[str, str]:
        """As OpenAI's."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": _duration(self.reset_seconds),
        }

    def refusal(self) -> RateLimitError:
        """The error for a request that was one too many."""
        return RateLimitError(
            f"Rate limit reached: the project may send {self.limit} requests a minute. "
            f"Try again in {_duration(self.reset_seconds)}.",
            retry_seconds=self.reset_seconds,
        )


class RequestRates:
    """Counts requests; for one thread."""

    def count(self, tenant: Tenant) -> Rate | None:
        """Counts a request, unless it is one too many; None where the project has no limit."""
        most = tenant.limits.requests_per_minute
        if most is None:
            return None
        item = _per_minute(most)
        is_over = not self._limiter.hit(item, tenant.project_id)
        reset_at, remaining = self._limiter.get_window_stats(item, tenant.project_id)
        return Rate(most, remaining, max(0.0, reset_at - time.time()), is_over)

    @cached_property
    def _limiter(self) -> MovingWindowRateLimiter:
        # Its store has a thread, which is not needed where nobody has a limit.
        return MovingWindowRateLimiter(MemoryStorage())


@cache
def _per_minute(num_requests: int) -> RateLimitItem:
    return RateLimitItemPerMinute(num_requests)


def _duration(seconds: float) -> str:
    """`120ms`, `7s`, `1m0s`, rounded up: who waits so long has waited long enough."""
    if seconds < 1.0:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
