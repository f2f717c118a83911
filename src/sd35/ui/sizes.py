"""The sizes that the page offers for a model: presets with about as many pixels as its default size."""

import math

from sd35.ui.client import Model

CUSTOM = "Custom"  # the name of all sizes that are not presets
_ASPECTS = {"Square": 1.0, "Landscape": 3 / 2, "Portrait": 2 / 3, "Wide": 16 / 9, "Tall": 9 / 16}  # width / height
_LARGE, _LARGE_PX = "Large", 1024  # an additional square preset for a model that enlarges images


def presets(model: Model) -> dict[str, tuple[int, int]]:
    """Return the width and height in pixels of each preset, by its name."""
    area = model.defaults.width * model.defaults.height
    sizes = {}
    for name, aspect in _ASPECTS.items():
        width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        sizes[name] = (_allowed_side(width, model), _allowed_side(height, model))
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
    multiples = f"multiples of {ranges.size_multiple_px}"
    if model.enlarges:
        return f"Pixels, from {minimum}, in {multiples}. Sizes above {maximum} are generated smaller, then enlarged."
    return f"Pixels, {minimum} to {maximum}, in {multiples}."


def _allowed_side(px: float, model: Model) -> int:
    """Return the width or height nearest to `px` that the model allows."""
    multiple = model.ranges.size_multiple_px
    minimum, maximum = model.ranges.side_px
    return min(max(multiple * round(px / multiple), minimum), maximum)
