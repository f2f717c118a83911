"""What a client may use: never more than its share, refused with the time to wait, and no refusal costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.access.keys import Quota
from sd35.access.rate_limits import RateLimiter
from sd35.errors import GenerationFailed, NotAllowed, Overloaded, TooMany
from tests.support.fake_backend import Clock

NONE = Quota()


def limits(clock: Clock, requests: int = 0, concurrency: int = 0, pixels: int = 0) -> RateLimiter:
    """Limits for whoever has no allowance of its own."""
    return RateLimiter(Quota(requests, concurrency, pixels), clock)


def test_a_share_can_be_used_at_once_and_comes_back_evenly():
    """Of 6 requests a minute, 6 at once, the seventh after the 10 s that the refusal names."""
    clock = Clock()
    limited = limits(clock, requests=6)
    for _ in range(6):
        limited.charge("a", NONE, 1)
    with pytest.raises(TooMany, match="6 requests in 60 s, and has; try again in 10 s") as refused:
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


def test_a_refused_request_is_not_charged():
    """A request refused for its pixels leaves the requests as they were, and the other way round."""
    clock = Clock()
    limited = limits(clock, requests=2, pixels=1000)
    limited.charge("a", NONE, 900)
    before = limited.headers("a", NONE)
    with pytest.raises(TooMany, match="1000 pixels in 3600 s"):
        limited.charge("a", NONE, 200)
    assert limited.headers("a", NONE) == before
    limited.charge("a", NONE, 100)
    with pytest.raises(TooMany, match="2 requests in 60 s"):
        limited.charge("a", NONE, 0)


def test_a_request_above_the_whole_limit_gets_no_retry_time():
    """No time is named after which it would be granted, for there is none."""
    with pytest.raises(NotAllowed, match="1000 pixels in 3600 s, and this request alone takes 1001"):
        limits(Clock(), pixels=1000).charge("a", NONE, 1001)


def test_a_keys_quota_overrides_the_settings():
    """More, less, or, as 0, without bound; what it leaves open is the settings'."""
    limited = limits(Clock(), requests=1, pixels=10)
    own = Quota(requests_per_minute=0)
    for _ in range(10):
        limited.charge("a", own, 1)
    with pytest.raises(TooMany, match="10 pixels"):
        limited.charge("a", own, 1)


def test_a_running_image_takes_a_place_until_it_ends():
    """Places are given back however an image ends, and a refused one takes none."""
    limited = limits(Clock(), concurrency=1)
    with limited.making("a", NONE, 1), limited.making("b", NONE, 1):
        for _ in range(2):
            with pytest.raises(TooMany, match="1 of at most 1 images at once"), limited.making("a", NONE, 1):
                pass
    with pytest.raises(KeyboardInterrupt), limited.making("a", NONE, 1):
        raise KeyboardInterrupt
    with limited.making("a", NONE, 1):
        pass


@pytest.mark.parametrize(("error", "left"), [(Overloaded("full", 1), 5), (GenerationFailed("broke"), 4)])
def test_an_image_refused_by_the_service_is_refunded(error: Exception, left: int):
    """Where there is no room for it, the client gets its share back; where it was begun, not."""
    limited = limits(Clock(), requests=5)
    with pytest.raises(type(error)), limited.making("a", NONE, 1):
        raise error
    assert f"r={left};" in limited.headers("a", NONE)["RateLimit"]


def test_a_refund_is_given_once():
    """Twice refunded is not twice given."""
    limited = limits(Clock(), requests=5)
    limited.charge("a", NONE, 1)
    charge = limited.charge("a", NONE, 1)
    charge.refund()
    charge.refund()
    assert limited.headers("a", NONE)["RateLimit"] == '"requests";r=4;t=12'


def test_headers_tell_what_may_be_used_and_what_is_left():
    """As the IETF's draft writes it; nothing where nothing is limited."""
    limited = limits(Clock(), requests=60, pixels=7200)
    limited.charge("a", NONE, 3600)
    assert limited.headers("a", NONE) == {
        "RateLimit-Policy": '"requests";q=60;w=60, "pixels";q=7200;w=3600',
        "RateLimit": '"requests";r=59;t=1, "pixels";r=3600;t=1800',
    }
    assert limits(Clock()).headers("a", NONE) == {}


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 40)), max_size=60), st.integers(1, 100))
def test_grants_never_exceed_the_limit_and_what_was_regained(asked: list[tuple[float, int]], most: int):
    """Of any requests at any times: a share at once, and what came back since; to wait as told is enough."""
    clock = Clock()
    limited = limits(clock, pixels=most)
    granted, began_s = 0, clock.now_s
    for passed_s, pixels in asked:
        clock.now_s += passed_s
        try:
            limited.charge("a", NONE, pixels)
            granted += pixels
        except NotAllowed:
            assert pixels > most
        except TooMany as refused:
            clock.now_s += refused.retry_after_s
            limited.charge("a", NONE, pixels)
            granted += pixels
        assert granted <= most * (1 + (clock.now_s - began_s) / 3600) + 1e-3


def test_clients_with_an_unused_quota_are_removed_from_memory():
    """Memory follows those who used something lately, not all who ever came."""
    clock = Clock()
    limited = limits(clock, requests=60)
    for number in range(20_000):
        limited.charge(f"10.0.{number}", NONE, 1)
        clock.now_s += 0.01
    assert len(limited._full_at_s) < 5000  # noqa: SLF001  no other way to see it


def test_the_images_of_a_call_use_the_remaining_places():
    """Of three at once, a call for four has three, or two where another has one; then none is left."""
    limited = limits(Clock(), concurrency=3)
    with limited.making("a", NONE, 4, images=4) as charge:
        assert charge.at_once == 3
    with limited.making("a", NONE, 1), limited.making("a", NONE, 4, images=4) as charge:
        assert charge.at_once == 2
        with pytest.raises(TooMany), limited.making("a", NONE, 1):
            pass
    with limits(Clock()).making("a", NONE, 4, images=4) as charge:
        assert charge.at_once == 4
