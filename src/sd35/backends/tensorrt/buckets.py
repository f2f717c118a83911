"""Size buckets: the ranges of image sizes that an engine is optimised for. Needs no tensor library.

An engine cannot compute sizes outside of its buckets. The last bucket therefore always covers all sizes of the
checkpoint.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sd35.checkpoints.card import Card
from sd35.errors import InvalidSetting
from sd35.request import SIZE_MULTIPLE_PX

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""

_SIZE = r"(\d{1,6})x(\d{1,6})"
_BUCKET = re.compile(rf"{_SIZE}(?:\.\.{_SIZE})?")  # one size, or a range of sizes


@dataclass(frozen=True)
class Bucket:
    """A range of image sizes. The engine is optimised for `typical`.

    A size is in the range if its width is between those of `smallest` and `largest`, and its height too.
    """

    smallest: Size
    typical: Size
    largest: Size

    def contains(self, size: Size) -> bool:
        """Return whether a size is in the range."""
        return all(low <= side <= high for low, side, high in zip(self.smallest, size, self.largest, strict=True))

    def __str__(self) -> str:
        """Format the bucket as in `--shapes`: "1024x1024", or for a range "256x256..1440x1440"."""
        ends = dict.fromkeys(f"{width}x{height}" for width, height in (self.smallest, self.largest))
        return "..".join(ends)


def buckets_of(text: str, card: Card) -> list[Bucket]:
    """Parse buckets such as "1024x1024,512x512..1024x1024", and add one for all sizes of the checkpoint.

    An empty text means the checkpoint's default size. A range is optimised for the default size, or for the nearest
    size in the range. Returns the buckets with the smallest images first, each once. Raises InvalidSetting if a size is
    malformed or the checkpoint cannot generate it.
    """
    default = (card.width, card.height)
    named = [_parse_bucket(part.strip(), card) for part in text.split(",") if part.strip()]
    named = named or [Bucket(default, default, default)]
    low, high = card.side_px
    all_sizes = _optimised_for(default, (low, low), (high, high))
    return sorted(dict.fromkeys([*named, all_sizes]), key=_tightest_first)


def text_of(buckets: Sequence[Bucket]) -> str:
    """Format buckets as text that `buckets_of` parses."""
    return ",".join(map(str, buckets))


def bucket_for(buckets: Sequence[Bucket], size: Size) -> int:
    """Return the index of the tightest bucket that contains a size.

    Internal: raises ValueError if there is none. The buckets of `buckets_of` contain all sizes of their checkpoint.
    """
    fitting = [index for index, bucket in enumerate(buckets) if bucket.contains(size)]
    if not fitting:
        raise ValueError(f"size: got {size[0]}x{size[1]}; the engines were built for {text_of(buckets)}")
    return min(fitting, key=lambda index: _tightest_first(buckets[index]))


def _tightest_first(bucket: Bucket) -> tuple[int, int, str]:
    """Return the sort key of a bucket: the area of its largest size, the negated area of its smallest, and its text.

    The largest size counts first, because it determines the memory. If it is equal, the narrower range is first.
    """
    return bucket.largest[0] * bucket.largest[1], -bucket.smallest[0] * bucket.smallest[1], str(bucket)


def _parse_bucket(text: str, card: Card) -> Bucket:
    """Parse a size such as "1024x1024", or a range such as "512x512..1024x1024".

    Raises InvalidSetting if the text is malformed, or the checkpoint cannot generate a size in it.
    """
    low, high = card.side_px
    if match := _BUCKET.fullmatch(text):
        width, height, max_width, max_height = (int(side or 0) for side in match.groups())
        smallest, largest = (width, height), (max_width or width, max_height or height)
        is_ordered = all(small <= large for small, large in zip(smallest, largest, strict=True))
        if is_ordered and all(low <= side <= high and not side % SIZE_MULTIPLE_PX for side in (*smallest, *largest)):
            return _optimised_for((card.width, card.height), smallest, largest)
    raise InvalidSetting(
        f"--shapes: got {text!r}; allowed: sides of {low} to {high} px in multiples of {SIZE_MULTIPLE_PX}, such as"
        f" {high}x{high} or, for a range of sizes from small to large, {low}x{low}..{high}x{high}"
    )


def _optimised_for(typical: Size, smallest: Size, largest: Size) -> Bucket:
    """Return a bucket for a range. Its typical size is `typical`, clipped to the range."""
    width, height = (min(max(side, low), high) for side, low, high in zip(typical, smallest, largest, strict=True))
    return Bucket(smallest, (width, height), largest)
