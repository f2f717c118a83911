"""Judges whether an image of the embedded model shows the objects, the background and the relation of a scene.

The background is the named colour nearest to the median of the border. Ink is what differs from it. For a pair of
objects, the ink is split at the widest gap along the axis of their relation. Each part is cropped and compared with
every glyph of the font on that background. Several thresholds for ink are tried and the best match counts: a low
threshold finds a yellow key on a yellow background, a high one ignores soft edges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

# RGB. Chosen so that every glyph stands out: the red heart is lighter than the red background, and so on.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
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
INK_THRESHOLDS = (20, 36, 60)  # levels in any channel by which ink differs from the background
_AXIS = {"left": 0, "right": 0, "above": 1, "below": 1}


@dataclass(frozen=True)
class Glyph:
    """A glyph found in an image: its name, and its correlation with the font's glyph."""

    name: str
    correlation: float


@dataclass(frozen=True)
class Verdict:
    """The result of judging an image: whether it shows the scene, and what was found in it."""

    is_correct: bool
    background: str
    glyphs: list[Glyph]


class Judge:
    """Recognises the given glyphs: RGBA images by object name, cropped to their ink."""

    def __init__(self, glyphs: Mapping[str, Image.Image]) -> None:
        self._glyphs = glyphs
        self._template = lru_cache(maxsize=1000)(self._draw_template)

    def verdict(self, image: np.ndarray, objects: Sequence[str], background: str, relation: str | None) -> Verdict:
        """Compare an image (uint8 `[H, W, 3]`) with a scene: the first object is `relation` of the second."""
        found_background, _ = find_background(image)
        glyphs = self.find_glyphs(image, _AXIS.get(relation or ""))
        expected = list(reversed(objects) if relation in {"right", "below"} else objects)
        is_correct = found_background == background and [glyph.name for glyph in glyphs] == expected
        return Verdict(is_correct, found_background, glyphs)

    def find_glyphs(self, image: np.ndarray, axis: int | None) -> list[Glyph]:
        """Find one glyph (`axis` None), or two side by side (axis 0) or one above the other (axis 1).

        The list is empty if there is no ink, or no gap between two glyphs.
        """
        _, colour = find_background(image)
        inks = {threshold: _despeckle(_find_ink(image, colour, threshold)) for threshold in INK_THRESHOLDS}
        if axis is None:
            return self._best_match(image, colour, inks)
        cuts = [_widest_gap(np.asarray(ink.any(axis=axis))) for ink in inks.values()]
        cut = next((cut for cut in cuts[1:] + cuts[:1] if cut is not None), None)
        if cut is None:
            return []
        along = np.arange(image.shape[1 - axis]) < cut
        first = along[None, :] if axis == 0 else along[:, None]
        glyphs = []
        for side in (first, ~first):
            glyphs += self._best_match(image, colour, {threshold: ink & side for threshold, ink in inks.items()})
        return glyphs

    def _best_match(self, image: np.ndarray, colour: np.ndarray, inks: dict[int, np.ndarray]) -> list[Glyph]:
        """Return the best match over all thresholds, or an empty list if there is no ink."""
        matches = [self._match(image, ink, colour, threshold) for threshold, ink in inks.items() if ink.any()]
        return [min(matches, key=lambda match: match[0])[1]] if matches else []

    def _match(self, image: np.ndarray, ink: np.ndarray, colour: np.ndarray, threshold: int) -> tuple[float, Glyph]:
        """Return the mean squared distance to the nearest glyph, and that glyph. `ink` must not be empty."""
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        crop = _fit(Image.fromarray(image[top:bottom, left:right]), colour).astype(np.float32)
        names = list(self._glyphs)
        rgb = tuple(int(value) for value in colour)
        templates = np.stack([self._template(name, rgb, threshold) for name in names]).astype(np.float32)
        distances = np.square(templates - crop).mean(axis=(1, 2, 3))
        best = int(distances.argmin())
        return float(distances[best]), Glyph(names[best], _correlation(templates[best], crop))

    def _draw_template(self, name: str, colour: tuple[int, ...], threshold: int) -> np.ndarray:
        glyph = self._glyphs[name]
        image = Image.new("RGB", glyph.size, colour)
        image.paste(glyph, (0, 0), glyph)
        ink = _find_ink(np.asarray(image), np.array(colour), threshold)
        if not ink.any():
            return _fit(image.crop((0, 0, 1, 1)), np.array(colour))
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        # Cropped by the same rule as the image, because neither shows ink close to the background's colour.
        return _fit(image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)), np.array(colour))


def find_background(image: np.ndarray) -> tuple[str, np.ndarray]:
    """Return the background's name and its colour in an image (uint8 `[H, W, 3]`)."""
    border = np.concatenate([image[:4].reshape(-1, 3), image[-4:].reshape(-1, 3)])
    border = np.concatenate([border, image[:, :4].reshape(-1, 3), image[:, -4:].reshape(-1, 3)])
    colour = np.median(border, axis=0)
    return min(BACKGROUNDS, key=lambda name: float(np.square(colour - BACKGROUNDS[name]).sum())), colour


def _find_ink(image: np.ndarray, colour: np.ndarray, threshold: int) -> np.ndarray:
    """Mark the pixels that differ from the background: bool `[H, W]`."""
    return np.asarray((np.abs(image.astype(np.int16) - colour.astype(np.int16)) > threshold).any(axis=2))


def _despeckle(ink: np.ndarray) -> np.ndarray:
    """Drop pixels with fewer than two inked pixels among their eight neighbours."""
    padded = np.pad(ink, 1).astype(np.uint8)
    height, width = ink.shape
    neighbours = sum(padded[y : y + height, x : x + width] for y in range(3) for x in range(3))
    return ink & (neighbours > 2)


def _widest_gap(profile: np.ndarray) -> int | None:
    """Return the middle of the longest gap between the first and the last ink, or None if there is no gap."""
    inked = np.flatnonzero(profile)
    if len(inked) < 2:
        return None
    gaps = np.diff(inked)
    widest = int(gaps.argmax())
    return None if gaps[widest] < 2 else int((inked[widest] + inked[widest + 1] + 1) // 2)


def _fit(image: Image.Image, colour: np.ndarray) -> np.ndarray:
    """Fit an image into a 48 px square of the background's colour with its aspect ratio: uint8 `[48, 48, 3]`."""
    scale = SIDE_PX / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("RGB", (SIDE_PX, SIDE_PX), tuple(int(value) for value in colour))
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    square.paste(resized, ((SIDE_PX - width) // 2, (SIDE_PX - height) // 2))
    return np.asarray(square)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    return float((a @ b) / max(1e-6, float(np.sqrt((a @ a) * (b @ b)))))
