"""Judges images without a person: which glyphs, on which ground, in which relation, and how crisply.

Ground: the median of the border, nearest by colour. Glyphs: what differs from the ground, cut in two at the widest gap
along the relation's axis, each part boxed and compared with every glyph of the font drawn on that ground. How much has
to differ is tried at several values, and what fits best counts: a yellow key on a yellow ground shows at a low one, a
soft edge is left out at a high one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

# RGB. Chosen so that no glyph melts into its ground: the red heart is lighter than the red ground, and so on.
GROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (249, 249, 249),
    "black": (6, 6, 6),
    "red": (196, 26, 44),
    "blue": (44, 84, 204),
    "green": (42, 148, 74),
    "yellow": (248, 216, 64),
    "pink": (248, 164, 196),
    "purple": (122, 62, 176),
    "orange": (240, 140, 40),
    "gray": (132, 132, 138),
}
SIDE_PX = 48
DIFFERENCES = (20, 36, 60)  # levels, in any channel, by which a pixel differs from the ground to count as ink
_AXIS = {"left": 0, "right": 0, "above": 1, "below": 1}


@dataclass(frozen=True)
class Found:
    """One glyph that was found: its name, its centre in pixels, and its correlation with the font's glyph."""

    name: str
    x_px: float
    y_px: float
    correlation: float


@dataclass(frozen=True)
class Verdict:
    """Whether an image shows what was asked, and what was found in it."""

    right: bool
    ground: str
    found: list[Found]


class Judge:
    """Knows the font's `glyphs`, RGBA images by object, cropped to their ink, and nothing else."""

    def __init__(self, glyphs: Mapping[str, Image.Image]) -> None:
        self._glyphs = glyphs
        self._template = lru_cache(maxsize=1000)(self._on_ground)

    def verdict(self, image: np.ndarray, objects: Sequence[str], ground: str, relation: str | None) -> Verdict:
        """Compares an image, uint8 `[H, W, 3]`, with what was asked: the first object stands so to the second."""
        seen, _ = judge_ground(image)
        found = self.find_glyphs(image, _AXIS.get(relation or ""))
        wanted = list(objects)
        if relation in {"right", "below"}:
            wanted.reverse()
        return Verdict(seen == ground and [item.name for item in found] == wanted, seen, found)

    def find_glyphs(self, image: np.ndarray, axis: int | None) -> list[Found]:
        """The one glyph of an image (`axis` None), or its two along `axis` (0 across, 1 down); fewer if not there."""
        _, colour = judge_ground(image)
        inks = {difference: _despeckle(_ink(image, colour, difference)) for difference in DIFFERENCES}
        if axis is None:
            return self._best(image, colour, inks)
        cuts = [_widest_gap(np.asarray(ink.any(axis=axis))) for ink in inks.values()]
        cut = next((cut for cut in cuts[1:] + cuts[:1] if cut is not None), None)
        if cut is None:
            return []
        along = np.arange(image.shape[1 - axis]) < cut
        first = along[None, :] if axis == 0 else along[:, None]
        sides = (first, ~first)
        return [one for side in sides for one in self._best(image, colour, {d: ink & side for d, ink in inks.items()})]

    def _best(self, image: np.ndarray, colour: np.ndarray, inks: dict[int, np.ndarray]) -> list[Found]:
        """What fits best, of what each ink shows; nothing where there is no ink."""
        found = [self._identify(image, ink, colour, difference) for difference, ink in inks.items() if ink.any()]
        return [min(found, key=lambda one: one[0])[1]] if found else []

    def _identify(self, image: np.ndarray, ink: np.ndarray, colour: np.ndarray, difference: int) -> tuple[float, Found]:
        """The nearest glyph, and how far it is: the mean squared distance."""
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        box = Image.fromarray(image[top:bottom, left:right])
        seen = _fit(box, colour).astype(np.float32)
        names = list(self._glyphs)
        ground = tuple(int(v) for v in colour)
        templates = np.stack([self._template(name, ground, difference) for name in names]).astype(np.float32)
        distances = np.square(templates - seen).mean(axis=(1, 2, 3))
        best = int(distances.argmin())
        found = Found(names[best], (left + right) / 2, (top + bottom) / 2, _correlation(templates[best], seen))
        return float(distances[best]), found

    def _on_ground(self, name: str, colour: tuple[int, ...], difference: int) -> np.ndarray:
        mark = self._glyphs[name]
        image = Image.new("RGB", mark.size, colour)
        image.paste(mark, (0, 0), mark)
        ink = _ink(np.asarray(image), np.array(colour), difference)
        if not ink.any():
            return _fit(image.crop((0, 0, 1, 1)), np.array(colour))
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        # the template is boxed by the same rule as the image: ink close to the ground's colour is seen in neither
        return _fit(image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)), np.array(colour))


def judge_ground(image: np.ndarray) -> tuple[str, np.ndarray]:
    """The ground's name and its colour in the image (uint8 `[H, W, 3]`)."""
    border = np.concatenate([image[:4].reshape(-1, 3), image[-4:].reshape(-1, 3)])
    border = np.concatenate([border, image[:, :4].reshape(-1, 3), image[:, -4:].reshape(-1, 3)])
    colour = np.median(border, axis=0)
    return min(GROUNDS, key=lambda name: float(np.square(colour - GROUNDS[name]).sum())), colour


def _ink(image: np.ndarray, colour: np.ndarray, difference: int) -> np.ndarray:
    """Where an image differs from its ground: bool `[H, W]`."""
    return np.asarray((np.abs(image.astype(np.int16) - colour.astype(np.int16)) > difference).any(axis=2))


def _despeckle(ink: np.ndarray) -> np.ndarray:
    """Drops pixels with fewer than two of their eight neighbours inked."""
    padded = np.pad(ink, 1).astype(np.uint8)
    height, width = ink.shape
    around = sum(padded[y : y + height, x : x + width] for y in range(3) for x in range(3))
    return ink & (around > 2)


def _widest_gap(profile: np.ndarray) -> int | None:
    """The middle of the longest run without ink between the first and the last ink; None where there is none."""
    inked = np.flatnonzero(profile)
    if len(inked) < 2:
        return None
    gaps = np.diff(inked)
    widest = int(gaps.argmax())
    return None if gaps[widest] < 2 else int((inked[widest] + inked[widest + 1] + 1) // 2)


def _fit(box: Image.Image, colour: np.ndarray) -> np.ndarray:
    """The box fitted into a 48 px square of the ground's colour, its aspect kept: uint8 `[48, 48, 3]`."""
    scale = SIDE_PX / max(box.size)
    width, height = (max(1, round(side * scale)) for side in box.size)
    square = Image.new("RGB", (SIDE_PX, SIDE_PX), tuple(int(v) for v in colour))
    resized = box.resize((width, height), Image.Resampling.LANCZOS)
    square.paste(resized, ((SIDE_PX - width) // 2, (SIDE_PX - height) // 2))
    return np.asarray(square)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    return float((a @ b) / max(1e-6, float(np.sqrt((a @ a) * (b @ b)))))
