"""Which sizes the page offers for a checkpoint: shapes of about as many pixels as its own size has."""

import math

from sd35.ui.client import Model

FREE = "Free"
_SHAPES = {"Square": 1.0, "Landscape": 3 / 2, "Portrait": 2 / 3, "Wide": 16 / 9, "Tall": 9 / 16}
_LARGE, _LARGE_PX = "Large", 1024  # of a checkpoint that enlarges


def presets(model: Model) -> dict[str, tuple[int, int]]:
    """Width and height by name."""
    area = model.defaults.width * model.defaults.height
    found = {
        name: (_side(math.sqrt(area * shape), model), _side(math.sqrt(area / shape), model))
        for name, shape in _SHAPES.items()
    }
    if model.enlarges and model.ranges.max_pixels >= _LARGE_PX**2:
        found[_LARGE] = (_LARGE_PX, _LARGE_PX)
    return found


def name_of(model: Model, width: object, height: object) -> str:
    """The preset of a size; `FREE` where it is none."""
    return next((name for name, size in presets(model).items() if size == (width, height)), FREE)


def allowed(model: Model) -> str:
    """What a side may be, in words."""
    ranges = model.ranges
    least, most = ranges.side_px
    steps = f"steps of {ranges.size_multiple_px}"
    if model.enlarges:
        return f"Pixels, {least} and up, in {steps}; above {most}, it is drawn smaller and enlarged."
    return f"Pixels, {least} to {most}, in {steps}."


def _side(px: float, model: Model) -> int:
    multiple = model.ranges.size_multiple_px
    least, most = model.ranges.side_px
    return min(max(multiple * round(px / multiple), least), most)
