"""The share of the embedded model's images that show the scenes of their prompts.

`glyphs.webp` has the glyphs of all objects side by side. `python -m training.glyphs` draws them with the font Noto
Color Emoji: see NOTICE.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image

from sd35.bench.quality.comparison import Pixels
from sd35.bench.quality.judge import Judge
from sd35.bench.scenes import Scene

GLYPHS, GLYPH_PX = Path(__file__).with_name("glyphs.webp"), 48
# In the order of the glyphs in the file, which is that of `training.vocabulary`. A test compares the two.
OBJECTS = (
    "apple", "banana", "grapes", "strawberry", "lemon", "carrot", "mushroom", "pizza", "cake", "cherries", "watermelon",
    "pineapple", "corn", "hamburger", "donut", "egg", "cat", "dog", "panda", "frog", "fish", "whale", "butterfly",
    "turtle", "penguin", "owl", "rabbit", "lion", "octopus", "crab", "snail", "bee", "elephant", "tree", "cactus",
    "sunflower", "rose", "sun", "moon", "star", "cloud", "snowman", "car", "bus", "rocket", "sailboat", "bicycle",
    "train", "tractor", "helicopter", "house", "castle", "ball", "guitar", "book", "umbrella", "heart", "key", "robot",
    "crown", "diamond", "balloon", "camera", "gift",
)  # fmt: skip


def correct_share(images: Sequence[Pixels], scenes: Sequence[Scene]) -> float:
    """Return the share (0 to 1) of images that show their scenes. Images and scenes are in the same order."""
    judge = _load_judge()
    verdicts = [
        judge.verdict(image, scene.objects, scene.background, scene.relation).is_correct
        for image, scene in zip(images, scenes, strict=True)
    ]
    return sum(verdicts) / len(verdicts)


@cache
def _load_judge() -> Judge:
    """Load the glyphs, and return a judge that recognises them."""
    with Image.open(GLYPHS) as row:
        glyphs = [row.crop((left, 0, left + GLYPH_PX, GLYPH_PX)) for left in range(0, row.width, GLYPH_PX)]
    return Judge({name: glyph.crop(glyph.getbbox()) for name, glyph in zip(OBJECTS, glyphs, strict=True)})
