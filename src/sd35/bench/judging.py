"""How many images of the embedded model show what was asked, by `judge` and an image of the font's glyphs.

The glyphs are drawn by `python -m training.glyphs` with the font Noto Color Emoji: see NOTICE.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image

from sd35.bench.judge import Judge
from sd35.bench.quality import Picture
from sd35.bench.scenes import Scene

GLYPHS, GLYPH_PX = Path(__file__).with_name("glyphs.webp"), 48
# As `training.vocabulary` has them: a test compares the two.
OBJECTS = (
    "apple", "banana", "grapes", "strawberry", "lemon", "carrot", "mushroom", "pizza", "cake", "cherries", "watermelon",
    "pineapple", "corn", "hamburger", "donut", "egg", "cat", "dog", "panda", "frog", "fish", "whale", "butterfly",
    "turtle", "penguin", "owl", "rabbit", "lion", "octopus", "crab", "snail", "bee", "elephant", "tree", "cactus",
    "sunflower", "rose", "sun", "moon", "star", "cloud", "snowman", "car", "bus", "rocket", "sailboat", "bicycle",
    "train", "tractor", "helicopter", "house", "castle", "ball", "guitar", "book", "umbrella", "heart", "key", "robot",
    "crown", "diamond", "balloon", "camera", "gift",
)  # fmt: skip


def right_share(images: Sequence[Picture], scenes: Sequence[Scene]) -> float:
    """The share of images that show their scenes."""
    judge = _judge()
    verdicts = [
        judge.verdict(image, scene.objects, scene.ground, scene.relation).right
        for image, scene in zip(images, scenes, strict=True)
    ]
    return sum(verdicts) / len(verdicts)


@cache
def _judge() -> Judge:
    with Image.open(GLYPHS) as row:
        marks = [row.crop((left, 0, left + GLYPH_PX, GLYPH_PX)) for left in range(0, row.width, GLYPH_PX)]
    return Judge({name: mark.crop(mark.getbbox()) for name, mark in zip(OBJECTS, marks, strict=True)})
