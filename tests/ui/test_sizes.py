"""The sizes that the page offers for a model."""

from typing import Any

import pytest

from sd35.ui.client import Model
from sd35.ui.sizes import CUSTOM, preset_of, presets


def model(size_px: int, side_px: tuple[int, int], max_pixels: int = 2**21, **more: Any) -> Model:
    """Return a model as `/v1/models` describes it."""
    ranges = {"side_px": side_px, "size_multiple_px": 16, "max_pixels": max_pixels, "steps": (1, 150)}
    given: dict[str, Any] = {
        "id": "model",
        "defaults": {"width": size_px, "height": size_px, "steps": 28, "guidance_scale": 4.5},
        "ranges": {**ranges, "guidance_scale": (0.0, 30.0)},
        "enlarges": False,
        "substitute_reason": None,
    }
    return Model.model_validate({**given, **more})


@pytest.mark.parametrize("size_px", [128, 512, 1024])
def test_presets_have_about_the_pixels_of_the_models_default_size(size_px: int):
    """Within a tenth, and with sides that are multiples of 16."""
    found = model(size_px, (64, 2048))
    for width, height in presets(found).values():
        assert width % 16 == height % 16 == 0
        assert 0.9 < width * height / size_px**2 < 1.1
    assert presets(found)["Square"] == (size_px, size_px)


def test_a_side_is_never_outside_the_models_range():
    """The preset Wide is less wide if the range requires it."""
    assert presets(model(256, (192, 288)))["Wide"] == (288, 192)


def test_a_megapixel_is_offered_if_the_model_enlarges():
    """And if the service allows that many pixels."""
    assert presets(model(128, (64, 256), enlarges=True))["Large"] == (1024, 1024)
    assert "Large" not in presets(model(128, (64, 256)))
    assert "Large" not in presets(model(128, (64, 256), 2**19, enlarges=True))


def test_a_size_has_a_preset_or_is_custom():
    """A missing side is custom, too."""
    found = model(128, (64, 256))
    assert preset_of(found, 128, 128) == "Square"
    assert preset_of(found, 128, None) == preset_of(found, 144, 144) == CUSTOM
