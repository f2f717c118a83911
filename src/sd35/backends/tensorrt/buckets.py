"""Size buckets: the ranges of image sizes that an engine is optimised for. Knows no tensor library.

An engine computes nothing outside of its buckets. So the last one is always all that a checkpoint draws, and every
size that may be asked for has a bucket.
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
_FORM = re.compile(rf"{_SIZE}(?:\.\.{_SIZE})?")


@dataclass(frozen=True)
class Bucket:
    """Sizes from `least` to `most`, each side by itself; the engine is fastest at `usual`, which is one of them."""

    least: Size
    usual: Size
    most: Size

    def holds(self, size: Size) -> bool:
        """Whether it serves this size."""
        return all(low <= side <= high for low, side, high in zip(self.least, size, self.most, strict=True))

    def __str__(self) -> str:
        """As it is written in `--shapes`: `1024x1024`, or a range, `256x256..1440x1440`."""
        ends = dict.fromkeys(f"{width}x{height}" for width, height in (self.least, self.most))
        return "..".join(ends)


def buckets_of(text: str, card: Card) -> list[Bucket]:
    """Those of a text as `1024x1024,512x512..1024x1024`, of none those of the native size, and of all that it draws.

    A range is fastest at the checkpoint's native size, or what of the range is nearest to it. Raises InvalidSetting
    where a size is none, or beyond what the checkpoint draws.
    """
    native = (card.width, card.height)
    named = [_bucket(part.strip(), card) for part in text.split(",") if part.strip()] or [Bucket(*[native] * 3)]
    least, most = card.side_px
    whole = _fastest_at(native, (least, least), (most, most))
    return sorted(dict.fromkeys([*named, whole]), key=_looseness)


def text_of(buckets: Sequence[Bucket]) -> str:
    """What `buckets_of` makes them from again."""
    return ",".join(map(str, buckets))


def bucket_for(buckets: Sequence[Bucket], size: Size) -> int:
    """Which of them serves a size: the tightest, by its index. Raises ValueError where none does."""
    fitting = [index for index, bucket in enumerate(buckets) if bucket.holds(size)]
    if not fitting:
        raise ValueError(f"size: got {size[0]}x{size[1]}; the engines were built for {text_of(buckets)}")
    return min(fitting, key=lambda index: _looseness(buckets[index]))


def _looseness(bucket: Bucket) -> tuple[int, int, str]:
    """A bucket's memory follows from its largest size; of two as large, the one that reaches less far down."""
    return bucket.most[0] * bucket.most[1], -bucket.least[0] * bucket.least[1], str(bucket)


def _bucket(text: str, card: Card) -> Bucket:
    found = _FORM.fullmatch(text)
    low, high = card.side_px
    allowed = f"sides of {low} to {high} px in multiples of {SIZE_MULTIPLE_PX}, as 1024x1024 or 512x512..1024x1024"
    if not found:
        raise InvalidSetting(f"shapes: got {text!r}; allowed: {allowed}")
    width, height, most_width, most_height = (int(side or 0) for side in found.groups())
    least, most = (width, height), (most_width or width, most_height or height)
    is_range = all(one <= other for one, other in zip(least, most, strict=True))
    if not is_range or any(not low <= side <= high or side % SIZE_MULTIPLE_PX for side in (*least, *most)):
        raise InvalidSetting(f"shapes: got {text!r}; allowed: {allowed}")
    return _fastest_at((card.width, card.height), least, most)


def _fastest_at(native: Size, least: Size, most: Size) -> Bucket:
    width, height = (min(max(side, low), high) for side, low, high in zip(native, least, most, strict=True))
    return Bucket(least, (width, height), most)
