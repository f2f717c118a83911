"""Judge whether an image of the embedded model shows the objects, the background and the relation of a scene.

The background is the named colour nearest to the median colour of the image's border. "Ink" means the pixels that
differ from the background. For a pair of objects, the ink is split at the widest gap between them. Each part is cropped
and compared with every glyph of the font on that background. Several thresholds for ink are tried, and the best match
counts: a low threshold finds a yellow key on a yellow background, a high threshold ignores soft edges.
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
INK_THRESHOLDS = (20, 36, 60)  # a pixel is ink if any channel (0 to 255) differs from the background by more
_AXIS = {"left": 0, "right": 0, "above": 1, "below": 1}  # for each relation, the `axis` of `find_glyphs`


@dataclass(frozen=True)
class Glyph:
    """A glyph found in an image: its name, and its correlation with the font's glyph."""

    name: str
    correlation: float


@dataclass(frozen=True)
class Verdict:
    """The result of judging an image: whether it shows the scene, and the background and glyphs found in it."""

    is_correct: bool
    background: str
    glyphs: list[Glyph]


class Judge:
    """Recognises the given glyphs: RGBA images by object name, cropped to their ink."""

    def __init__(self, glyphs: Mapping[str, Image.Image]) -> None:
        self._glyphs = glyphs
        self._template = lru_cache(maxsize=1000)(self._draw_template)  # as a decorator, it would keep every judge alive

    def verdict(self, image: np.ndarray, objects: Sequence[str], background: str, relation: str | None) -> Verdict:
        """Compare an image (uint8 `[H, W, 3]`) with a scene of one or two objects.

        `relation` says where the first of two objects is: "left", "right", "above" or "below". None for one object.
        """
        found_background, _ = find_background(image)
        glyphs = self.find_glyphs(image, _AXIS.get(relation or ""))
        # Found glyphs are in the order left to right, or top to bottom.
        expected = list(reversed(objects) if relation in {"right", "below"} else objects)
        is_correct = found_background == background and [glyph.name for glyph in glyphs] == expected
        return Verdict(is_correct, found_background, glyphs)

    def find_glyphs(self, image: np.ndarray, axis: int | None) -> list[Glyph]:
        """Find one glyph (`axis` None), two side by side (axis 0), or two one above the other (axis 1).

        Two glyphs come in the order left to right, or top to bottom. The list is empty if there is no ink, or no gap
        between two glyphs.
        """
        _, colour = find_background(image)
        inks = {threshold: _despeckle(_find_ink(image, colour, threshold)) for threshold in INK_THRESHOLDS}
        if axis is None:
            return self._best_match(image, colour, inks)
        gaps = [_widest_gap(np.asarray(ink.any(axis=axis))) for ink in inks.values()]
        gaps = gaps[1:] + gaps[:1]  # the lowest threshold is the last choice, because it counts soft edges as ink
        cut = next((gap for gap in gaps if gap is not None), None)
        if cut is None:
            return []
        is_before_cut = np.arange(image.shape[1 - axis]) < cut
        first_half = is_before_cut[None, :] if axis == 0 else is_before_cut[:, None]
        glyphs = []
        for half in (first_half, ~first_half):
            glyphs += self._best_match(image, colour, {threshold: ink & half for threshold, ink in inks.items()})
        return glyphs

    def _best_match(self, image: np.ndarray, colour: np.ndarray, inks: dict[int, np.ndarray]) -> list[Glyph]:
        """Return the best match over all thresholds as a list of one glyph, or an empty list if there is no ink.

        `inks` has a mask (bool `[H, W]`) for each threshold.
        """
        matches = [self._match(image, ink, colour, threshold) for threshold, ink in inks.items() if ink.any()]
        return [min(matches, key=lambda match: match[0])[1]] if matches else []

    def _match(self, image: np.ndarray, ink: np.ndarray, colour: np.ndarray, threshold: int) -> tuple[float, Glyph]:
        """Find the glyph nearest to the part of an image with ink. `ink` must not be empty.

        Returns the mean squared difference of their levels (0 to 255), and the glyph.
        """
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
        """Draw a glyph on a background colour, crop it to its ink, and fit it into a square: uint8 `[48, 48, 3]`."""
        glyph = self._glyphs[name]
        image = Image.new("RGB", glyph.size, colour)
        image.paste(glyph, (0, 0), glyph)
        ink = _find_ink(np.asarray(image), np.array(colour), threshold)
        if not ink.any():  # the glyph has the colour of the background
            return _fit(image.crop((0, 0, 1, 1)), np.array(colour))
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        # Cropped by the same rule as an image: the parts of a glyph in the background's colour are not ink in either.
        return _fit(image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)), np.array(colour))


def find_background(image: np.ndarray) -> tuple[str, np.ndarray]:
    """Return the background's name, and the median colour of an image's border as float `[3]`.

    The name is that of the colour of `BACKGROUNDS` nearest to the median. The image is uint8 `[H, W, 3]`.
    """
    border = np.concatenate([image[:4].reshape(-1, 3), image[-4:].reshape(-1, 3)])
    border = np.concatenate([border, image[:, :4].reshape(-1, 3), image[:, -4:].reshape(-1, 3)])
    colour = np.median(border, axis=0)
    return min(BACKGROUNDS, key=lambda name: float(np.square(colour - BACKGROUNDS[name]).sum())), colour


def _find_ink(image: np.ndarray, colour: np.ndarray, threshold: int) -> np.ndarray:
    """Mark the pixels that differ from the background: bool `[H, W]`."""
    return np.asarray((np.abs(image.astype(np.int16) - colour.astype(np.int16)) > threshold).any(axis=2))


def _despeckle(ink: np.ndarray) -> np.ndarray:
    """Return a mask without pixels that have fewer than two inked pixels among their eight neighbours."""
    padded = np.pad(ink, 1).astype(np.uint8)
    height, width = ink.shape
    # The sum of the nine shifted masks counts the inked pixels around each pixel, and the pixel itself.
    inked = sum(padded[y : y + height, x : x + width] for y in range(3) for x in range(3))
    return ink & (inked > 2)


def _widest_gap(profile: np.ndarray) -> int | None:
    """Return the middle of the longest gap between inked positions (bool `[N]`), or None if there is no gap."""
    inked = np.flatnonzero(profile)
    if len(inked) < 2:
        return None
    distances = np.diff(inked)
    widest = int(distances.argmax())
    if distances[widest] < 2:  # all inked positions are next to each other
        return None
    return int((inked[widest] + inked[widest + 1] + 1) // 2)


def _fit(image: Image.Image, colour: np.ndarray) -> np.ndarray:
    """Fit an image into a 48 px square of the background's colour with its aspect ratio: uint8 `[48, 48, 3]`."""
    scale = SIDE_PX / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("RGB", (SIDE_PX, SIDE_PX), tuple(int(value) for value in colour))
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    square.paste(resized, ((SIDE_PX - width) // 2, (SIDE_PX - height) // 2))
    return np.asarray(square)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of two images, from -1 to 1, or 0 if all values of one are equal."""
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    return float((a @ b) / max(1e-6, float(np.sqrt((a @ a) * (b @ b)))))
