"""The words that sd35-mini knows: objects with their glyphs, and words without a meaning. Some pairs are held out."""

from itertools import combinations
from zlib import crc32

# Each object is one glyph of Noto Color Emoji.
OBJECTS: dict[str, str] = {
    "apple": "🍎", "banana": "🍌", "grapes": "🍇", "strawberry": "🍓", "lemon": "🍋", "carrot": "🥕",
    "mushroom": "🍄", "pizza": "🍕", "cake": "🎂", "cherries": "🍒", "watermelon": "🍉", "pineapple": "🍍",
    "corn": "🌽", "hamburger": "🍔", "donut": "🍩", "egg": "🍳",
    "cat": "🐱", "dog": "🐶", "panda": "🐼", "frog": "🐸", "fish": "🐟", "whale": "🐳", "butterfly": "🦋",
    "turtle": "🐢", "penguin": "🐧", "owl": "🦉", "rabbit": "🐰", "lion": "🦁", "octopus": "🐙", "crab": "🦀",
    "snail": "🐌", "bee": "🐝", "elephant": "🐘",
    "tree": "🌳", "cactus": "🌵", "sunflower": "🌻", "rose": "🌹", "sun": "🌞", "moon": "🌙", "star": "⭐",
    "cloud": "☁", "snowman": "⛄",
    "car": "🚗", "bus": "🚌", "rocket": "🚀", "sailboat": "⛵", "bicycle": "🚲", "train": "🚂", "tractor": "🚜",
    "helicopter": "🚁", "house": "🏠", "castle": "🏰",
    "ball": "⚽", "guitar": "🎸", "book": "📕", "umbrella": "☂", "heart": "❤", "key": "🔑", "robot": "🤖",
    "crown": "👑", "diamond": "💎", "balloon": "🎈", "camera": "📷", "gift": "🎁",
}  # fmt: skip

# Words that people write but that mean nothing to this model. Training uses them so that they do not change images.
FILLERS: tuple[str, ...] = tuple(
    "photo picture image drawing painting illustration emoji icon render cute nice beautiful pretty lovely happy sad "
    "little old new bright dark detailed highly quality high best masterpiece cinematic lighting sharp focus realistic "
    "style art digital vector flat simple minimal clean 8k 4k hd studio soft warm cold very really some one single "
    "astronaut riding horse mars city street night day forest mountain river ocean beach sky grass woman man girl boy "
    "person standing sitting running sleeping wearing holding looking with made from in by for and it is please draw "
    "show me want to see colorful colourful vintage modern fantasy magic dragon robotics space galaxy portrait "
    "landscape watercolor oil pencil sketch cartoon anime logo sticker centered isolated".split()
)


def _is_held_out_pair(first: str, second: str) -> bool:
    """Return whether training never has these words together: one pair of ten, chosen by a checksum."""
    a, b = sorted((first, second))
    return crc32(f"{a}|{b}".encode()) % 10 == 0


def held_out_pairs(objects: tuple[str, ...], background: str) -> list[tuple[str, str]]:
    """Return the held-out pairs among the words of a scene. Training scenes have none."""
    return [pair for pair in combinations((*objects, background), 2) if _is_held_out_pair(*pair)]
