"""With which settings an image is made again: those that its numeric profile names."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from sd35.cli.replay import replay
from sd35.images.png import write_png
from sd35.images.record import Maker, Record
from sd35.request import Request
from sd35.settings import Settings


@pytest.mark.parametrize(
    ("suffix", "compiled", "tiled"),
    [("", "off", "off"), ("/compiled", "on", "off"), ("/tiled", "off", "on"), ("/compiled/tiled", "on", "on")],
)
def test_a_profile_says_how_it_was_computed(tmp_path: Path, suffix: str, compiled: str, tiled: str) -> None:
    """What was compiled, or decoded in tiles, is so again; what was not, is not."""
    request = Request("a cat", "", 16, 16, 1, 0.0, 1, "model", "revision", f"diffusers/bfloat16{suffix}")
    maker = Maker("revision", "diffusers", "bfloat16", {}, 16, 16, [])
    file = tmp_path / "cat.png"
    file.write_bytes(write_png(np.zeros((16, 16, 3), np.uint8), Record(request, maker).to_text()))
    asked: dict[str, str] = {}

    def settings_with(otherwise: Mapping[str, str]) -> Settings:
        asked.update(otherwise)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        replay(file, settings_with, as_json=True)
    expected = {"backend": "diffusers", "precision": "bfloat16", "tiled_decode": tiled, "torch_compile": compiled}
    assert asked == expected
