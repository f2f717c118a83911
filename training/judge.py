"""Judges pictures without a person: which glyphs, on which ground, in which relation, and how crisply.

Ground: the median of the border, nearest by colour. Glyphs: what differs from the ground, cut in two at the widest gap
along the relation's axis, each part boxed and compared with every glyph of the font drawn on that ground.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from training.scenes import glyph
from training.vocabulary import GROUNDS, OBJECTS

SIDE_PX = 48
DIFFERENCE = 36  # levels, in any channel, by which a pixel differs from the ground to count as ink


@dataclass(frozen=True)
class Found:
    """One glyph that was found: its name, its centre in pixels, and its correlation with the font's glyph."""

    name: str
    x_px: float
    y_px: float
    correlation: float


def judge_ground(picture: np.ndarray) -> tuple[str, np.ndarray]:
    """The ground's name and its colour in the picture (uint8 `[H, W, 3]`)."""
    border = np.concatenate([picture[:4].reshape(-1, 3), picture[-4:].reshape(-1, 3)])
    border = np.concatenate([border, picture[:, :4].reshape(-1, 3), picture[:, -4:].reshape(-1, 3)])
    colour = np.median(border, axis=0)
    return min(GROUNDS, key=lambda name: float(np.square(colour - GROUNDS[name]).sum())), colour


def find_glyphs(picture: np.ndarray, axis: int | None) -> list[Found]:
    """The one glyph of a picture (`axis` None), or its two along `axis` (0 across, 1 down); fewer if not there."""
    _, colour = judge_ground(picture)
    ink = _despeckle(_ink(picture, colour))
    if axis is None:
        parts = [ink]
    else:
        cut = _widest_gap(np.asarray(ink.any(axis=axis)))
        if cut is None:
            return []
        parts = [ink.copy(), ink.copy()]
        if axis == 0:
            parts[0][:, cut:], parts[1][:, :cut] = False, False
        else:
            parts[0][cut:], parts[1][:cut] = False, False
    return [_identify(picture, part, colour) for part in parts if part.any()]


def _ink(picture: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Where a picture differs from its ground: bool `[H, W]`."""
    return np.asarray((np.abs(picture.astype(np.int16) - colour.astype(np.int16)) > DIFFERENCE).any(axis=2))


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


def _identify(picture: np.ndarray, part: np.ndarray, colour: np.ndarray) -> Found:
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    box = Image.fromarray(picture[top:bottom, left:right])
    seen = _fit(box, colour).astype(np.float32)
    names = list(OBJECTS)
    templates = np.stack([_on_ground(name, tuple(int(v) for v in colour)) for name in names]).astype(np.float32)
    best = int(np.square(templates - seen).mean(axis=(1, 2, 3)).argmin())
    return Found(names[best], (left + right) / 2, (top + bottom) / 2, _correlation(templates[best], seen))


@cache
def _ink_box(name: str) -> Image.Image:
    mark = glyph(name, 96)
    return mark.crop(mark.getbbox())


def _on_ground(name: str, colour: tuple[int, ...]) -> np.ndarray:
    mark = _ink_box(name)
    picture = Image.new("RGB", mark.size, colour)
    picture.paste(mark, (0, 0), mark)
    ink = _ink(np.asarray(picture), np.array(colour))
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    # the template is boxed by the same rule as the picture: ink close to the ground's colour is seen in neither
    return _fit(picture.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)), np.array(colour))


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
