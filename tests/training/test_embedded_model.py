"""The checkpoint that ships: what it must be, and that what one asks of it matters."""

from typing import Any

import numpy as np
import pytest

from sd35.backends.base import Backend
from sd35.backends.options import Options
from sd35.backends.registry import open_backend
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.request import Request
from sd35.tensors import Array
from tests.support.direct_generation import generate_directly

CHECKPOINT = open_checkpoint(EMBEDDED)


@pytest.fixture(scope="module")
def backend() -> Backend:
    """The default backend with the embedded checkpoint."""
    return open_backend("onnx", CHECKPOINT, Options())


def _draw(backend: Backend, prompt: str = "a cat on a blue background", **fields: Any) -> Array:
    wanted: dict[str, Any] = {
        "negative_prompt": "",
        "width": 128,
        "height": 128,
        "steps": 8,
        "guidance_scale": 4.5,
        "seed": 1,
    }
    request = Request(prompt=prompt, model=EMBEDDED, revision="", profile="", **(wanted | fields))
    return generate_directly(backend, CHECKPOINT, request)


def test_it_fits_in_64_mb():
    """All of it, graphs and card included."""
    assert sum(file.stat().st_size for file in CHECKPOINT.directory.rglob("*")) <= 64e6


@pytest.mark.parametrize("size", [(64, 64), (64, 256), (256, 64), (176, 96), (80, 208), (256, 256)])
def test_it_draws_at_the_ends_and_in_the_middle_of_its_range(backend: Backend, size: tuple[int, int]):
    """Every multiple of 16 from 64 to 256 px, odd numbers of patches included."""
    assert _draw(backend, width=size[0], height=size[1], steps=1).shape == (size[1], size[0], 3)


@pytest.mark.parametrize(
    "changed",
    [{"guidance_scale": 1.0}, {"negative_prompt": "a cat"}, {"prompt": "a cat on a red background"}],
)
def test_what_is_asked_visibly_matters(backend: Backend, changed: dict[str, Any]):
    """Another guidance, negative prompt or prompt gives another image: somewhere by 32 levels or more."""
    difference = np.abs(_draw(backend).astype(int) - _draw(backend, **changed))
    assert difference.max() >= 32


@pytest.mark.parametrize("prompt", ["a cat", "a crown and a frog on a white background"])
def test_a_seed_decides_what_the_prompt_leaves_open(backend: Backend, prompt: str):
    """Of four seeds, two give images that are far apart: another ground, or another arrangement of the two."""
    images = [_draw(backend, prompt=prompt, seed=seed, steps=28).astype(int) for seed in range(4)]
    assert max(np.abs(a - b).mean() for a in images for b in images) >= 16


def test_the_ground_is_what_was_asked(backend: Backend):
    """The image's border is blue where blue was asked for."""
    red, green, blue = np.median(_draw(backend, steps=28)[:4].reshape(-1, 3), axis=0)
    assert blue > 1.5 * red
    assert blue > 1.5 * green


@pytest.mark.parametrize("prompt", ["zxqv wrbl", "🐱", "ein Bär im Wald", "cat " * 500, "\x00\n\t", "!"])
def test_words_outside_the_vocabulary_do_no_harm(backend: Backend, prompt: str):
    """Any text gives an image."""
    assert _draw(backend, prompt, steps=1).shape == (128, 128, 3)
