"""The words of the little world that sd35-mini knows: objects (with their glyphs), grounds, and what is held out."""

from itertools import combinations
from zlib import crc32

from sd35.bench.quality.judge import BACKGROUNDS

GROUNDS = BACKGROUNDS  # the judge knows them too
# Every object is one glyph of Noto Color Emoji.
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

# Words that carry nothing here, but that people write. Seen in training so that they do no harm.
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
    """One pair of words in ten is never seen together in training; a checksum decides, so that no list is kept."""
    a, b = sorted((first, second))
    return crc32(f"{a}|{b}".encode()) % 10 == 0


def held_out_pairs(objects: tuple[str, ...], ground: str) -> list[tuple[str, str]]:
    """The pairs among a scene's words that training never shows together; empty for a training scene."""
    return [pair for pair in combinations((*objects, ground), 2) if _is_held_out_pair(*pair)]
