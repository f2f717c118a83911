"""What a client may use in a time: requests, pixels, and images at once. Known to this process alone.

Requests and pixels are token buckets, as the generic cell rate algorithm (ITU-T I.371) keeps them: one number each, the
time at which the bucket is full again. A client may use a minute's or an hour's share at once, and gets it back evenly.
(The library `limits` keeps an object for each unit that was used, and for pixels these are millions.)
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields

from sd35.access.keys import Quota
from sd35.errors import IdempotencyConflict, NotAllowed, NotReady, Overloaded, StoreUnavailable, TooMany

_SWEPT = 4096  # clients, at which those with nothing used are forgotten
_ROUNDING_S = 1e-6
_REFUSALS = (IdempotencyConflict, NotReady, Overloaded, StoreUnavailable)  # after which nothing was used


@dataclass(frozen=True)
class _Bucket:
    """What a client may use: `most` in `period_s`."""

    client: str
    unit: str
    most: int
    period_s: float

    def seconds(self, amount: float) -> float:
        """How long an amount takes to come back."""
        return amount * self.period_s / self.most


class Charge:
    """What a request was counted as. `refund` it where nothing came of the request.

    `at_once`: how many of its images may be in the making at once.
    """

    def __init__(self, refund: Callable[[], None], at_once: int = 1) -> None:
        self._refund, self.at_once = refund, at_once
        self._is_refunded = False

    def refund(self) -> None:
        """Give it back; the second time, nothing."""
        if not self._is_refunded:
            self._is_refunded = True
            self._refund()


class RateLimiter:
    """How much each client has used of what it may. For the event loop only.

    `otherwise` holds for what an allowance leaves open. Only what was granted is kept, until it has come back.
    """

    def __init__(self, otherwise: Quota, clock: Callable[[], float] = time.monotonic) -> None:
        self._otherwise, self._clock = otherwise, clock
        self._full_at_s: dict[tuple[str, str], float] = {}
        self._swept_at = _SWEPT
        self._images: Counter[str] = Counter()

    def charge(self, client: str, quota: Quota, pixels: int) -> Charge:
        """Count a request for `pixels`.

        Raises TooMany, and NotAllowed for what is more than an hour's share; what is refused is not counted.
        """
        now_s = self._clock()
        amounts = {"requests": 1, "pixels": pixels}
        buckets = self._buckets(client, quota)
        for bucket in buckets:
            self._check(bucket, amounts[bucket.unit], now_s)
        for bucket in buckets:
            self._use(bucket, amounts[bucket.unit], now_s)

        def refund() -> None:
            for bucket in buckets:
                self._use(bucket, -amounts[bucket.unit], now_s)

        return Charge(refund)

    @contextmanager
    def making(self, client: str, quota: Quota, pixels: int, images: int = 1) -> Iterator[Charge]:
        """Count a request as `charge` does, and until the block ends as images in the making.

        Those are `images`, or as many as the client may still have made at once. Where the block is refused what it
        asks for (Overloaded, NotReady, ...), the charge is refunded.
        """
        most = self._allowed(quota).concurrency
        if most and self._images[client] >= most:
            raise TooMany(f"{self._images[client]} of at most {most} images at once are this client's", 1.0)
        charge = self.charge(client, quota, pixels)
        charge.at_once = min(images, most - self._images[client]) if most else images
        self._images[client] += charge.at_once
        try:
            yield charge
        except _REFUSALS:
            charge.refund()
            raise
        finally:
            self._images[client] -= charge.at_once
            if not self._images[client]:
                del self._images[client]

    def headers(self, client: str, quota: Quota) -> Mapping[str, str]:
        """What a client may use and what is left of it, as of draft-ietf-httpapi-ratelimit-headers-10."""
        now_s = self._clock()
        policies, left = [], []
        for bucket in self._buckets(client, quota):
            used_s = max(0.0, self._full_at_s.get((client, bucket.unit), now_s) - now_s)
            remaining = math.floor(bucket.most * (1 - used_s / bucket.period_s) + _ROUNDING_S)
            policies.append(f'"{bucket.unit}";q={bucket.most};w={bucket.period_s:.0f}')
            left.append(f'"{bucket.unit}";r={remaining};t={math.ceil(used_s)}')
        return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(left)} if left else {}

    def _allowed(self, own: Quota) -> Quota:
        named = {field.name: getattr(own, field.name) for field in fields(own)}
        otherwise = self._otherwise
        return Quota(**{name: getattr(otherwise, name) if most is None else most for name, most in named.items()})

    def _buckets(self, client: str, quota: Quota) -> list[_Bucket]:
        allowed = self._allowed(quota)
        bounds = (("requests", allowed.requests_per_minute, 60.0), ("pixels", allowed.pixels_per_hour, 3600.0))
        return [_Bucket(client, unit, most, period_s) for unit, most, period_s in bounds if most]

    def _check(self, bucket: _Bucket, amount: int, now_s: float) -> None:
        limit = f"{bucket.most} {bucket.unit} in {bucket.period_s:.0f} s"
        if amount > bucket.most:
            raise NotAllowed(f"this client may use {limit}, and this request alone takes {amount}")
        full_at_s = max(now_s, self._full_at_s.get((bucket.client, bucket.unit), now_s))
        wait_s = full_at_s + bucket.seconds(amount) - now_s - bucket.period_s
        if wait_s > _ROUNDING_S:
            raise TooMany(f"this client may use {limit}, and has", wait_s)

    def _use(self, bucket: _Bucket, amount: int, now_s: float) -> None:
        key = (bucket.client, bucket.unit)
        self._full_at_s[key] = max(now_s, self._full_at_s.get(key, now_s)) + bucket.seconds(amount)
        if len(self._full_at_s) > self._swept_at:
            self._full_at_s = {each: full_at_s for each, full_at_s in self._full_at_s.items() if full_at_s > now_s}
            self._swept_at = max(_SWEPT, 2 * len(self._full_at_s))
