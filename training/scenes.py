"""Samples scenes of emoji glyphs on plain backgrounds with their captions, and draws them.

Glyphs lie on a grid of 16 px, the size of one transformer patch (8x autoencoder, patch 2). So a glyph looks the same to
the transformer at each position, and a small model can learn it in an hour or two.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sd35.bench.quality.judge import BACKGROUNDS
from training.vocabulary import FILLERS, OBJECTS, held_out_pairs

CELL_PX = 16
MARGIN_PX = 2  # around a glyph, so that it touches neither other glyphs nor the edge of the image
FONT_SIZE_PX = 109  # the only size of the font's bitmaps
FONT_PATHS = (
    Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/noto/NotoColorEmoji.ttf"),
    Path("/Library/Fonts/NotoColorEmoji.ttf"),
)
RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "and": ("and", "next to", "beside"),
}
PLACES: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "at the left"),
    "right": ("on the right", "at the right"),
    "top": ("at the top", "on top"),
    "bottom": ("at the bottom",),
}


@dataclass(frozen=True)
class Item:
    """A glyph: its object, and the square that it fits into, in pixels."""

    name: str
    x_px: int
    y_px: int
    size_px: int


@dataclass(frozen=True)
class Scene:
    """An image to draw, and its caption. `relation` is the position of the first item relative to the second."""

    width_px: int
    height_px: int
    background: str
    shade: int  # levels by which the background is lighter than the colour of its name
    items: tuple[Item, ...]
    relation: str | None
    caption: str


@cache
def find_font() -> Path:
    """Return the file of the emoji font. Raises FileNotFoundError with the package to install."""
    for path in FONT_PATHS:
        if path.is_file():
            return path
    msg = (
        f"Noto Color Emoji is in none of {[str(p) for p in FONT_PATHS]}; on Debian: apt install fonts-noto-color-emoji"
    )
    raise FileNotFoundError(msg)


@cache
def _full_glyph(name: str) -> Image.Image:
    font = ImageFont.truetype(str(find_font()), FONT_SIZE_PX)
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((8, 8), OBJECTS[name], font=font, embedded_color=True)
    return canvas.crop(canvas.getbbox())


@cache
def glyph(name: str, size_px: int) -> Image.Image:
    """Draw an object's glyph in RGBA, in the middle of a square of `size_px` with a margin of `MARGIN_PX`."""
    full = _full_glyph(name)
    scale = (size_px - 2 * MARGIN_PX) / max(full.size)
    width, height = (max(1, round(side * scale)) for side in full.size)
    square = Image.new("RGBA", (size_px, size_px), (0, 0, 0, 0))
    square.paste(
        full.resize((width, height), Image.Resampling.LANCZOS), ((size_px - width) // 2, (size_px - height) // 2)
    )
    return square


def draw(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB image."""
    colour = np.clip(np.array(BACKGROUNDS[scene.background]) + scene.shade, 0, 255)
    image = Image.new("RGB", (scene.width_px, scene.height_px), tuple(int(v) for v in colour))
    for item in scene.items:
        item_glyph = glyph(item.name, item.size_px)
        image.paste(item_glyph, (item.x_px, item.y_px), item_glyph)
    return image


def sample_scene(
    rng: np.random.Generator,
    width_px: int,
    height_px: int,
    kind: str = "any",
    *,
    held_out: bool = False,
    scattered: bool = False,
) -> Scene:
    """Sample a random scene. `kind` is "single", "pair" or "any".

    A training scene (`held_out=False`) contains no held-out pair of words. A held-out single scene has an object on a
    background that training never shows with it. A held-out pair has two objects that training never shows together.
    Glyphs are at the position of the caption, or in the middle if it names none. With `scattered`, they are near it.
    """
    if kind == "any":
        kind = "single" if rng.random() < 0.4 else "pair"
    while True:
        objects = tuple(str(name) for name in rng.choice(list(OBJECTS), 1 if kind == "single" else 2, replace=False))
        background = str(rng.choice(list(BACKGROUNDS)))
        unseen = held_out_pairs(objects, background)
        pair = (*objects, background) if kind == "single" else objects
        if held_out == (pair in unseen) and (held_out or not unseen):
            break
    cells = (width_px // CELL_PX, height_px // CELL_PX)
    make = _single if kind == "single" else _pair
    items, relation, caption = make(rng, objects, background, cells, plain=held_out, scattered=scattered)
    max_shade = 6 if scattered else 20
    shade = int(rng.integers(-max_shade, max_shade + 1))
    return Scene(width_px, height_px, background, shade, items, relation, caption)


def caption_for_training(scene: Scene, rng: np.random.Generator) -> str:
    """Return a caption for training. One in ten is empty, for guidance, and one in ten has stray words."""
    chance = rng.random()
    if chance < 0.1:
        return ""
    if chance > 0.2:
        return scene.caption
    words = scene.caption.split()
    for _ in range(rng.integers(1, 4)):
        stray = str(rng.choice(FILLERS)) if rng.random() < 0.8 else _nonsense(rng)
        words.insert(int(rng.choice([0, len(words)])), stray)
    return " ".join(words)


def _nonsense(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), int(rng.integers(2, 8))))


def _sizes(cells: int) -> dict[str, int]:
    """Return the sizes of a single glyph in cells, by size word. `cells` is the length of the image's shorter side."""
    usual = min(6, max(2, cells // 2))
    sizes = {"": usual, "small": min(4, max(2, 3 * cells // 8)), "big": min(8, 3 * cells // 4)}
    return {word: size for word, size in sizes.items() if word == "" or size != usual}


def _offset(rng: np.random.Generator, room: int, end: int, *, scattered: bool) -> int:
    """Return an offset in cells from 0 to `room`: at its start (`end` -1), middle (0) or end (1).

    With `scattered`, the offset differs from that by at most a quarter of `room`.
    """
    if not scattered:
        return (end + 1) * room // 2
    low, high = -(-room // 4), 3 * room // 4
    if end == 0:
        return int(rng.integers(low, high + 1)) if low <= high else room // 2
    near = int(rng.integers(0, room // 4 + 1))
    return near if end < 0 else room - near


def _single(
    rng: np.random.Generator,
    objects: tuple[str, ...],
    background: str,
    cells: tuple[int, int],
    *,
    plain: bool,
    scattered: bool,
) -> tuple[tuple[Item, ...], str | None, str]:
    sizes = _sizes(min(cells))
    word = "" if plain or rng.random() < 0.5 else str(rng.choice(list(sizes)))
    place = "" if plain or rng.random() < 0.5 else str(rng.choice(list(PLACES)))
    size = sizes[word]
    x = _offset(rng, cells[0] - size, {"left": -1, "right": 1}.get(place, 0), scattered=scattered)
    y = _offset(rng, cells[1] - size, {"top": -1, "bottom": 1}.get(place, 0), scattered=scattered)
    item = Item(objects[0], x * CELL_PX, y * CELL_PX, size * CELL_PX)
    where = f" {rng.choice(PLACES[place])}" if place else ""
    return (item,), None, _with_background(rng, _noun(rng, objects[0], word) + where, background, plain=plain)


def _pair(
    rng: np.random.Generator,
    objects: tuple[str, ...],
    background: str,
    cells: tuple[int, int],
    *,
    plain: bool,
    scattered: bool,
) -> tuple[tuple[Item, ...], str | None, str]:
    relation = str(rng.choice(list(RELATIONS)[:4] if plain else list(RELATIONS)))
    wording = str(rng.choice(RELATIONS[relation]))
    if relation != "and":
        arrangement = relation
    else:  # "and" leaves the arrangement open; "next to" and "beside" mean side by side
        arrangement = str(rng.choice(["left", "right", "above", "below"] if wording == "and" else ["left", "right"]))
    axis = 0 if arrangement in ("left", "right") else 1
    words, sizes = _pair_sizes(rng, cells, axis, plain=plain)
    is_first_before = arrangement in ("left", "above")
    offsets = _offsets(rng, cells[axis], sizes if is_first_before else sizes[::-1], scattered=scattered)
    along = offsets if is_first_before else offsets[::-1]
    items = []
    for name, size, offset in zip(objects, sizes, along, strict=True):
        across = _offset(rng, cells[1 - axis] - size, 0, scattered=scattered)
        x, y = (offset, across) if axis == 0 else (across, offset)
        items.append(Item(name, x * CELL_PX, y * CELL_PX, size * CELL_PX))
    nouns = [_noun(rng, name, word) for name, word in zip(objects, words, strict=True)]
    return tuple(items), arrangement, _with_background(rng, f"{nouns[0]} {wording} {nouns[1]}", background, plain=plain)


def _pair_sizes(
    rng: np.random.Generator, cells: tuple[int, int], axis: int, *, plain: bool
) -> tuple[tuple[str, str], tuple[int, int]]:
    """Choose a size for each of two glyphs that fit along an axis. Return the size words, and the sizes in cells."""
    usual = min(6, max(2, 3 * min(cells) // 8))
    sizes = {"": usual, "big": usual + 1} | ({"small": usual - 1} if usual > 2 else {})
    while True:
        first, second = ("", "") if plain or rng.random() < 0.6 else (str(word) for word in rng.choice(list(sizes), 2))
        if sizes[first] + sizes[second] <= cells[axis]:
            return (first, second), (sizes[first], sizes[second])


def _offsets(rng: np.random.Generator, room: int, sizes: tuple[int, int], *, scattered: bool) -> tuple[int, int]:
    """Return the offsets of two glyphs along an axis of `room` cells, with a gap between them if there is room."""
    free = room - sum(sizes)
    if not scattered:
        return free // 4, room - sizes[1] - free // 4
    gap = min(1, free)
    margin, extra = sorted(rng.integers(0, free - gap + 1, 2))
    return int(margin), int(extra) + gap + sizes[0]


def _noun(rng: np.random.Generator, name: str, size_word: str) -> str:
    size = {"big": ["big", "large"], "small": ["small", "tiny"]}.get(size_word)
    words = f"{rng.choice(size)} {name}" if size else name
    chance = rng.random()
    if chance < 0.1:
        return words
    if chance < 0.2:
        return f"the {words}"
    return f"{_article(words)} {words}"


def _with_background(rng: np.random.Generator, subject: str, background: str, *, plain: bool) -> str:
    if plain:
        return f"{subject} on {_article(background)} {background} background"
    forms = (
        "{s} on {a} {g} background", "{s} on {a} {g} background", "{s} on {a} {g} background", "{s} on {a} {g} ground",
        "{s} on {g}", "{s}, {g} background", "{g} background, {s}", "a picture of {s} on {a} {g} background",
        "{s} in front of {a} {g} background", "{s} with {a} {g} background", "{s}",
    )  # fmt: skip
    return str(rng.choice(forms)).format(s=subject, g=background, a=_article(background))


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
