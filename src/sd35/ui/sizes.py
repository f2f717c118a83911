"""The sizes that the page offers for a model: aspect ratios with about as many pixels as its default size."""

import math

from sd35.ui.client import Model

CUSTOM = "Custom"
_ASPECTS = {"Square": 1.0, "Landscape": 3 / 2, "Portrait": 2 / 3, "Wide": 16 / 9, "Tall": 9 / 16}
_LARGE, _LARGE_PX = "Large", 1024  # for a model that enlarges


def presets(model: Model) -> dict[str, tuple[int, int]]:
    """Return the width and height of each preset by its name."""
    area = model.defaults.width * model.defaults.height
    sizes = {
        name: (_side(math.sqrt(area * aspect), model), _side(math.sqrt(area / aspect), model))
        for name, aspect in _ASPECTS.items()
    }
    if model.enlarges and model.ranges.max_pixels >= _LARGE_PX**2:
        sizes[_LARGE] = (_LARGE_PX, _LARGE_PX)
    return sizes


def preset_of(model: Model, width: object, height: object) -> str:
    """Return the name of the preset that has a size, or `CUSTOM`."""
    return next((name for name, size in presets(model).items() if size == (width, height)), CUSTOM)


def allowed_sizes(model: Model) -> str:
    """Describe the allowed widths and heights for the user."""
    ranges = model.ranges
    minimum, maximum = ranges.side_px
    steps = f"multiples of {ranges.size_multiple_px}"
    if model.enlarges:
        return f"Pixels, from {minimum}, in {steps}. Sizes above {maximum} are generated smaller, then enlarged."
    return f"Pixels, {minimum} to {maximum}, in {steps}."


def _side(px: float, model: Model) -> int:
    multiple = model.ranges.size_multiple_px
    minimum, maximum = model.ranges.side_px
    return min(max(multiple * round(px / multiple), minimum), maximum)
