"""Rate limits of clients: requests, pixels, and concurrent images. Each process counts on its own.

Requests and pixels have token buckets. A client may use its whole limit at once, and the bucket refills evenly. The
implementation is the generic cell rate algorithm (ITU-T I.371). It stores one number per bucket: the time at which the
bucket is full again. The library `limits` has neither token buckets nor refunds. Its moving window stores one object
per used unit, which would be millions of objects for pixels.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from sd35.access.keys import Quota
from sd35.errors import IdempotencyConflict, NotAllowed, NotReady, Overloaded, StoreUnavailable, TooMany

_SWEEP_SIZE = 4096  # with more buckets than this, full ones are deleted
_ROUNDING_S = 1e-6  # tolerance for rounding errors of times
_REFUNDED = (IdempotencyConflict, NotReady, Overloaded, StoreUnavailable)  # errors that mean that no work was done


@dataclass(frozen=True)
class _Bucket:
    """A token bucket: a client may use `limit` units in `period_s` seconds. `unit` is "requests" or "pixels"."""

    client: str
    unit: str
    limit: int
    period_s: float

    def refill_s(self, amount: float) -> float:
        """Return the time, in seconds, in which the bucket refills by an amount."""
        return amount * self.period_s / self.limit


class Charge:
    """The requests and pixels that were counted for a call. Call `refund` if no work was done for it.

    `max_concurrent` is the maximum number of images of the call to generate at the same time.
    """

    def __init__(self, refund: Callable[[], None], max_concurrent: int = 1) -> None:
        self._refund, self.max_concurrent = refund, max_concurrent
        self._is_refunded = False

    def refund(self) -> None:
        """Undo the charge. Further calls do nothing."""
        if not self._is_refunded:
            self._is_refunded = True
            self._refund()


class RateLimiter:
    """Counts how much of its quota each client has used. Refused requests are not counted. Not thread-safe.

    Args:
        defaults: The limits that apply where the quota of a key has None.
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, defaults: Quota, clock: Callable[[], float] = time.monotonic) -> None:
        self._defaults, self._clock = defaults, clock
        self._full_at_s: dict[tuple[str, str], float] = {}  # by client and unit
        self._max_buckets = _SWEEP_SIZE
        self._images: Counter[str] = Counter()  # being generated, by client

    def charge(self, client: str, quota: Quota, pixels: int) -> Charge:
        """Count a request for `pixels`, and return the charge, which can be refunded.

        Raises:
            TooMany: A limit is reached for now.
            NotAllowed: The request alone exceeds the limit of a whole hour. Waiting does not help.
        """
        now_s = self._clock()
        amounts = {"requests": 1, "pixels": pixels}
        buckets = self._buckets(client, quota)
        for bucket in buckets:
            self._check_left(bucket, amounts[bucket.unit], now_s)
        for bucket in buckets:
            self._use(bucket, amounts[bucket.unit], now_s)

        def refund() -> None:
            for bucket in buckets:
                self._use(bucket, -amounts[bucket.unit], now_s)

        return Charge(refund)

    @contextmanager
    def generating(self, client: str, quota: Quota, pixels: int, images: int = 1) -> Iterator[Charge]:
        """Count a request as `charge` does, and its images as concurrent until the `with` block ends.

        If the client may not generate all `images` at the same time, fewer count as concurrent, see
        `Charge.max_concurrent`. Refunds the charge if the block raises an error that means that no work was done, such
        as Overloaded or NotReady. Raises TooMany and NotAllowed like `charge`.
        """
        limit = self._limits(quota).concurrency
        if limit and self._images[client] >= limit:
            raise TooMany(f"this client has reached its limit of concurrent images, which is {limit}", 1.0)
        charge = self.charge(client, quota, pixels)
        charge.max_concurrent = min(images, limit - self._images[client]) if limit else images
        self._images[client] += charge.max_concurrent
        try:
            yield charge
        except _REFUNDED:
            charge.refund()
            raise
        finally:
            self._images[client] -= charge.max_concurrent
            if not self._images[client]:
                del self._images[client]

    def headers(self, client: str, quota: Quota) -> Mapping[str, str]:
        """Return response headers with limits and remaining amounts. Empty if the client has no limits.

        Their format is that of draft-ietf-httpapi-ratelimit-headers-10.
        """
        now_s = self._clock()
        policies, remaining = [], []
        for bucket in self._buckets(client, quota):
            refill_s = max(0.0, self._full_at_s.get((client, bucket.unit), now_s) - now_s)
            amount = math.floor(bucket.limit * (1 - refill_s / bucket.period_s) + _ROUNDING_S)
            policies.append(f'"{bucket.unit}";q={bucket.limit};w={bucket.period_s:.0f}')
            remaining.append(f'"{bucket.unit}";r={amount};t={math.ceil(refill_s)}')
        return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(remaining)} if policies else {}

    def _limits(self, quota: Quota) -> Quota:
        """Return a quota with the default limits in place of None."""
        return replace(self._defaults, **{name: limit for name, limit in asdict(quota).items() if limit is not None})

    def _buckets(self, client: str, quota: Quota) -> list[_Bucket]:
        """Return a client's buckets. An unlimited unit has none."""
        limits = self._limits(quota)
        bounds = (("requests", limits.requests_per_minute, 60.0), ("pixels", limits.pixels_per_hour, 3600.0))
        return [_Bucket(client, unit, limit, period_s) for unit, limit, period_s in bounds if limit]

    def _check_left(self, bucket: _Bucket, amount: int, now_s: float) -> None:
        """Raise TooMany if less than `amount` is left in a bucket, NotAllowed if a full bucket has less."""
        limit = f"{bucket.limit} in {bucket.period_s:.0f} s"
        if amount > bucket.limit:
            raise NotAllowed(
                f"this request takes {amount} {bucket.unit}, but this client may use only {limit}; request fewer or"
                " smaller images"
            )
        full_at_s = max(now_s, self._full_at_s.get((bucket.client, bucket.unit), now_s))
        wait_s = full_at_s + bucket.refill_s(amount) - now_s - bucket.period_s  # until the amount is in the bucket
        if wait_s > _ROUNDING_S:
            raise TooMany(f"this request exceeds what is left of this client's limit ({bucket.unit}: {limit})", wait_s)

    def _use(self, bucket: _Bucket, amount: int, now_s: float) -> None:
        """Take an amount from a bucket; a negative amount returns it. Delete full buckets if there are many."""
        key = (bucket.client, bucket.unit)
        self._full_at_s[key] = max(now_s, self._full_at_s.get(key, now_s)) + bucket.refill_s(amount)
        if len(self._full_at_s) > self._max_buckets:
            self._full_at_s = {other: full_at_s for other, full_at_s in self._full_at_s.items() if full_at_s > now_s}
            self._max_buckets = max(_SWEEP_SIZE, 2 * len(self._full_at_s))
