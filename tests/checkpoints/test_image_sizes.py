"""The image size of an aspect ratio."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.checkpoints.card import Card
from sd35.checkpoints.image_sizes import aspect_size

MEGAPIXEL = {
    (16, 9): (1344, 768),
    (1, 1): (1024, 1024),
    (21, 9): (1536, 640),
    (2, 3): (832, 1216),
    (3, 2): (1216, 832),
    (4, 5): (896, 1088),
    (5, 4): (1088, 896),
    (9, 16): (768, 1344),
    (9, 21): (640, 1536),
}
sides = st.integers(1, 256).map(lambda multiple: 16 * multiple)


@pytest.mark.parametrize(("aspect", "size"), MEGAPIXEL.items())
def test_at_a_megapixel_aspects_give_the_training_sizes(aspect: tuple[int, int], size: tuple[int, int]):
    """The sides are multiples of 64."""
    assert aspect_size(*aspect, Card()) == size


@given(sides, sides, st.sampled_from(list(MEGAPIXEL)))
def test_a_size_keeps_the_aspect_within_the_default_pixels(width: int, height: int, aspect: tuple[int, int]):
    """Sides are multiples of 16. From 512x512 px on, the aspect ratio differs by less than an eighth."""
    wide, high = aspect_size(*aspect, Card(width=width, height=height))
    assert wide % 16 == high % 16 == 0
    assert 0 < wide * high <= width * height
    if width * height >= 512 * 512:
        assert wide / high == pytest.approx(aspect[0] / aspect[1], rel=1 / 8)
        assert wide * high > 0.75 * width * height


def test_a_small_model_uses_multiples_of_16():
    """At the embedded model's 128x128, multiples of 64 would be too coarse."""
    card = Card(width=128, height=128)
    assert [aspect_size(16, 9, card), aspect_size(21, 9, card), aspect_size(2, 3, card)] == [
        (160, 96),
        (192, 80),
        (96, 144),
    ]
