"""The size of an aspect: of its shape, and no larger than what a model draws by default."""

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
def test_a_megapixel_comes_in_the_sizes_that_the_models_were_trained_with(
    aspect: tuple[int, int], size: tuple[int, int]
):
    """Multiples of 64."""
    assert aspect_size(*aspect, Card()) == size


@given(sides, sides, st.sampled_from(list(MEGAPIXEL)))
def test_a_size_has_the_aspect_and_no_more_pixels_than_the_default(width: int, height: int, aspect: tuple[int, int]):
    """Whatever the default: sides are multiples of 16 and, but for thumbnails, less than an eighth off its shape."""
    wide, high = aspect_size(*aspect, Card(width=width, height=height))
    assert wide % 16 == high % 16 == 0
    assert 0 < wide * high <= width * height
    if width * height >= 512 * 512:
        assert wide / high == pytest.approx(aspect[0] / aspect[1], rel=1 / 8)
        assert wide * high > 0.75 * width * height


def test_a_small_model_has_small_steps():
    """The embedded model's 128x128 leave no room for multiples of 64."""
    card = Card(width=128, height=128)
    assert [aspect_size(16, 9, card), aspect_size(21, 9, card), aspect_size(2, 3, card)] == [
        (160, 96),
        (192, 80),
        (96, 144),
    ]
