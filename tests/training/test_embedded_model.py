"""The embedded checkpoint: its size, its range of images, and the effect of prompt, guidance and seed."""

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


def _generate(backend: Backend, prompt: str = "a cat on a blue background", **fields: Any) -> Array:
    defaults: dict[str, Any] = {
        "negative_prompt": "",
        "width": 128,
        "height": 128,
        "steps": 8,
        "guidance_scale": 4.5,
        "seed": 1,
    }
    request = Request(prompt=prompt, model=EMBEDDED, revision="", profile="", **(defaults | fields))
    return generate_directly(backend, CHECKPOINT, request)


def test_the_checkpoint_takes_at_most_64_mb():
    """Graphs and model card are included."""
    assert sum(file.stat().st_size for file in CHECKPOINT.directory.rglob("*")) <= 64e6


@pytest.mark.parametrize("size", [(64, 64), (64, 256), (256, 64), (176, 96), (80, 208), (256, 256)])
def test_images_are_generated_at_the_ends_and_in_the_middle_of_the_range_of_sizes(
    backend: Backend, size: tuple[int, int]
):
    """Sides are multiples of 16 from 64 to 256 px, including odd numbers of patches."""
    assert _generate(backend, width=size[0], height=size[1], steps=1).shape == (size[1], size[0], 3)


@pytest.mark.parametrize(
    "changed",
    [{"guidance_scale": 1.0}, {"negative_prompt": "a cat"}, {"prompt": "a cat on a red background"}],
)
def test_prompt_and_guidance_change_the_image_visibly(backend: Backend, changed: dict[str, Any]):
    """The largest difference of a pixel is at least 32 levels."""
    difference = np.abs(_generate(backend).astype(int) - _generate(backend, **changed))
    assert difference.max() >= 32


@pytest.mark.parametrize("prompt", ["a cat", "a crown and a frog on a white background"])
def test_a_seed_decides_what_the_prompt_leaves_open(backend: Backend, prompt: str):
    """Two of four seeds give very different images: another background, or another arrangement of the objects."""
    images = [_generate(backend, prompt=prompt, seed=seed, steps=28).astype(int) for seed in range(4)]
    assert max(np.abs(a - b).mean() for a in images for b in images) >= 16


def test_the_background_has_the_colour_of_the_prompt(backend: Backend):
    """The border of an image is blue for a prompt with a blue background."""
    red, green, blue = np.median(_generate(backend, steps=28)[:4].reshape(-1, 3), axis=0)
    assert blue > 1.5 * red
    assert blue > 1.5 * green


@pytest.mark.parametrize("prompt", ["zxqv wrbl", "🐱", "ein Bär im Wald", "cat " * 500, "\x00\n\t", "!"])
def test_any_text_gives_an_image(backend: Backend, prompt: str):
    """The prompts are words outside the vocabulary, long texts, and control characters."""
    assert _generate(backend, prompt, steps=1).shape == (128, 128, 3)
