"""Rate limits: no client exceeds its limits, and a refused request costs nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.access.keys import Quota
from sd35.access.rate_limits import RateLimiter
from sd35.errors import GenerationFailed, NotAllowed, Overloaded, TooMany
from tests.support.fake_backend import Clock

NONE = Quota()


def limits(clock: Clock, requests: int = 0, concurrency: int = 0, pixels: int = 0) -> RateLimiter:
    """Return a rate limiter with default limits."""
    return RateLimiter(Quota(requests, concurrency, pixels), clock)


def test_a_bucket_can_be_used_at_once_and_refills_evenly():
    """With 6 requests a minute, the seventh at once is refused, and accepted after 10 s."""
    clock = Clock()
    limited = limits(clock, requests=6)
    for _ in range(6):
        limited.charge("a", NONE, 1)
    with pytest.raises(TooMany, match=r"limit \(requests: 6 in 60 s\); try again in 10 s") as refused:
        limited.charge("a", NONE, 1)
    assert refused.value.retry_after_s == pytest.approx(10)
    limited.charge("b", NONE, 1)
    clock.now_s += 9.99
    with pytest.raises(TooMany):
        limited.charge("a", NONE, 1)
    clock.now_s += 0.01
    limited.charge("a", NONE, 1)
    with pytest.raises(TooMany):
        limited.charge("a", NONE, 1)


def test_refused_requests_are_not_counted():
    """A request refused for its pixels does not count as a request, and vice versa."""
    clock = Clock()
    limited = limits(clock, requests=2, pixels=1000)
    limited.charge("a", NONE, 900)
    before = limited.headers("a", NONE)
    with pytest.raises(TooMany, match="pixels: 1000 in 3600 s"):
        limited.charge("a", NONE, 200)
    assert limited.headers("a", NONE) == before
    limited.charge("a", NONE, 100)
    with pytest.raises(TooMany, match="requests: 2 in 60 s"):
        limited.charge("a", NONE, 0)


def test_a_request_larger_than_the_bucket_is_refused_for_good():
    """The error has no time to try again."""
    with pytest.raises(NotAllowed, match="takes 1001 pixels, but this client may use only 1000 in 3600 s"):
        limits(Clock(), pixels=1000).charge("a", NONE, 1001)


def test_the_quota_of_a_key_overrides_the_settings():
    """0 is unlimited. The settings apply to limits that the quota does not set."""
    limited = limits(Clock(), requests=1, pixels=10)
    own = Quota(requests_per_minute=0)
    for _ in range(10):
        limited.charge("a", own, 1)
    with pytest.raises(TooMany, match="pixels: 10 in"):
        limited.charge("a", own, 1)


def test_an_image_counts_as_concurrent_until_it_ends():
    """However it ends. A refused image does not count."""
    limited = limits(Clock(), concurrency=1)
    with limited.generating("a", NONE, 1), limited.generating("b", NONE, 1):
        for _ in range(2):
            with (
                pytest.raises(TooMany, match="limit of concurrent images, which is 1"),
                limited.generating("a", NONE, 1),
            ):
                pass
    with pytest.raises(KeyboardInterrupt), limited.generating("a", NONE, 1):
        raise KeyboardInterrupt
    with limited.generating("a", NONE, 1):
        pass


@pytest.mark.parametrize(("error", "left"), [(Overloaded("full", 1), 5), (GenerationFailed("broke"), 4)])
def test_an_image_that_the_service_refuses_is_refunded(error: Exception, left: int):
    """A failed image is not."""
    limited = limits(Clock(), requests=5)
    with pytest.raises(type(error)), limited.generating("a", NONE, 1):
        raise error
    assert f"r={left};" in limited.headers("a", NONE)["RateLimit"]


def test_a_refund_is_given_once():
    limited = limits(Clock(), requests=5)
    limited.charge("a", NONE, 1)
    charge = limited.charge("a", NONE, 1)
    charge.refund()
    charge.refund()
    assert limited.headers("a", NONE)["RateLimit"] == '"requests";r=4;t=12'


def test_headers_show_limits_and_remaining_amounts():
    """Without limits, there are no headers."""
    limited = limits(Clock(), requests=60, pixels=7200)
    limited.charge("a", NONE, 3600)
    assert limited.headers("a", NONE) == {
        "RateLimit-Policy": '"requests";q=60;w=60, "pixels";q=7200;w=3600',
        "RateLimit": '"requests";r=59;t=1, "pixels";r=3600;t=1800',
    }
    assert limits(Clock()).headers("a", NONE) == {}


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 40)), max_size=60), st.integers(1, 100))
def test_no_more_is_granted_than_a_bucket_and_its_refill(requests: list[tuple[float, int]], limit: int):
    """A client that waits as long as the error says is accepted."""
    clock = Clock()
    limited = limits(clock, pixels=limit)
    granted, began_s = 0, clock.now_s
    for passed_s, pixels in requests:
        clock.now_s += passed_s
        try:
            limited.charge("a", NONE, pixels)
            granted += pixels
        except NotAllowed:
            assert pixels > limit
        except TooMany as refused:
            clock.now_s += refused.retry_after_s
            limited.charge("a", NONE, pixels)
            granted += pixels
        assert granted <= limit * (1 + (clock.now_s - began_s) / 3600) + 1e-3


def test_full_buckets_are_deleted():
    """Memory is used only for clients that were active recently."""
    clock = Clock()
    limited = limits(clock, requests=60)
    for number in range(20_000):
        limited.charge(f"10.0.{number}", NONE, 1)
        clock.now_s += 0.01
    assert len(limited._full_at_s) < 5000  # noqa: SLF001  there is no other way to check it


def test_a_call_runs_as_many_images_at_once_as_the_limit_leaves():
    limited = limits(Clock(), concurrency=3)
    with limited.generating("a", NONE, 4, images=4) as charge:
        assert charge.max_concurrent == 3
    with limited.generating("a", NONE, 1), limited.generating("a", NONE, 4, images=4) as charge:
        assert charge.max_concurrent == 2
        with pytest.raises(TooMany), limited.generating("a", NONE, 1):
            pass
    with limits(Clock()).generating("a", NONE, 4, images=4) as charge:
        assert charge.max_concurrent == 4
