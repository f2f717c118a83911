"""Size buckets: parsing, and the choice of the tightest bucket for a size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.backends.tensorrt.buckets import Bucket, Size, bucket_for, buckets_of, text_of
from sd35.checkpoints.card import Card
from sd35.errors import InvalidSetting

CARD = Card(side_px=(256, 1440))
_SIDES = st.integers(256 // 16, 1440 // 16).map(lambda number: 16 * number)
_SIZES = st.tuples(_SIDES, _SIDES)


@st.composite
def _texts(draw: st.DrawFn) -> str:
    """Draw a bucket as text: a size or a range."""
    one, other = draw(_SIZES), draw(_SIZES)
    if draw(st.booleans()):
        return f"{one[0]}x{one[1]}"
    return f"{min(one[0], other[0])}x{min(one[1], other[1])}..{max(one[0], other[0])}x{max(one[1], other[1])}"


@given(st.lists(_texts(), max_size=4), _SIZES)
def test_every_size_has_the_tightest_bucket(texts: list[str], size: Size) -> None:
    """The chosen bucket contains the size. No other bucket that contains it has a smaller maximum."""
    buckets = buckets_of(",".join(texts), CARD)
    chosen = buckets[bucket_for(buckets, size)]
    assert chosen.contains(size)
    assert all(
        chosen.largest[0] * chosen.largest[1] <= bucket.largest[0] * bucket.largest[1]
        for bucket in buckets
        if bucket.contains(size)
    )


@given(st.lists(_texts(), max_size=4))
def test_formatted_buckets_can_be_parsed(texts: list[str]) -> None:
    """Their order in the text does not matter."""
    buckets = buckets_of(",".join(texts), CARD)
    assert buckets_of(text_of(buckets), CARD) == buckets
    if texts:
        assert buckets_of(",".join(reversed(texts)), CARD) == buckets
    for bucket in buckets:
        assert bucket.contains(bucket.typical)


def test_by_default_there_are_buckets_for_the_default_size_and_for_all_sizes() -> None:
    """A bucket of exactly one size is preferred to a range that ends at this size."""
    native, whole = buckets_of("", CARD)
    assert native == Bucket((1024, 1024), (1024, 1024), (1024, 1024))
    assert whole == Bucket((256, 256), (1024, 1024), (1440, 1440))
    both = buckets_of("512x512..1024x1024,1024x1024", CARD)
    assert both[bucket_for(both, (1024, 1024))] == native
    with pytest.raises(ValueError, match="size: got 1456x1024; the engines were built for 1024x1024,256x256"):
        bucket_for([native, whole], (1456, 1024))


@pytest.mark.parametrize("text", ["big", "1024", "1000x1024", "128x128", "1024x2048", "1024x1024..512x512", "8x8..9x9"])
def test_an_invalid_bucket_is_refused(text: str) -> None:
    """The error has the text and the allowed sizes."""
    with pytest.raises(InvalidSetting, match=f"--shapes: got '{text}'; allowed: sides of 256 to 1440 px"):
        buckets_of(text, CARD)
