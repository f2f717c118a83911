"""Progress and previews of the local engine."""

from typing import Any
from unittest.mock import Mock

import pytest

from sd35.engine.base import Handle, Progress
from sd35.engine.local.preview import PreviewMap
from sd35.generation.model_pool import ModelPool
from sd35.generation.params import GenerationParams
from tests.support.fake_backend import WAIT_S


def submit(pool: ModelPool, prompt: str, on_progress: Any = None, *, previews: bool = False, **params: Any) -> Handle:
    """Submit a request for an image."""
    request = pool.resolve(GenerationParams(prompt, **{"seed": 1, **params}))
    return pool.submit(request, on_progress, previews=previews)


def test_progress_is_reported_after_each_step(pool: ModelPool):
    """In order, and before the image is delivered."""
    received: list[Progress] = []
    submit(pool, "a cat", received.append, steps=5).future.result(WAIT_S)
    assert [(progress.step, progress.steps) for progress in received] == [(done, 5) for done in range(1, 6)]


def test_a_preview_resembles_the_image(pool: ModelPool):
    """After a few images, a preview has one pixel for each 8x8 pixels of the image, of their colour."""
    for seed in range(4):
        submit(pool, "a cat", seed=seed).future.result(WAIT_S)
    previews: list[Any] = []
    image = submit(pool, "a dog", lambda progress: previews.append(progress.preview), previews=True).future.result(
        WAIT_S
    )
    small = image.pixels[::8, ::8].astype(int)
    assert previews[-1].shape == small.shape == (16, 16, 3)
    inside = (small > 0) & (small < 255)
    assert abs(previews[-1] - small)[inside].mean() < 8


def test_progress_goes_on_if_a_preview_cannot_be_computed(pool: ModelPool, monkeypatch: pytest.MonkeyPatch):
    """A device may lack the memory for it. The steps are reported without previews, and the image is generated."""
    monkeypatch.setattr(PreviewMap, "to_rgb", Mock(side_effect=MemoryError))
    reported: list[Progress] = []
    submit(pool, "a cat", reported.append, previews=True, steps=3).future.result(WAIT_S)
    assert reported == [Progress(step, 3) for step in (1, 2, 3)]


def test_an_image_is_delivered_even_if_the_preview_map_cannot_learn_from_it(
    pool: ModelPool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(PreviewMap, "learn", Mock(side_effect=ValueError))
    for seed in (1, 2):
        assert submit(pool, "a cat", seed=seed).future.result(WAIT_S).pixels.shape == (128, 128, 3)


def test_an_exception_of_a_progress_callback_does_not_end_the_image(pool: ModelPool):
    """Nor the engine: the next image is generated too."""

    def raising(progress: Progress) -> None:
        raise RuntimeError(f"a mistake of the caller at step {progress.step}")

    assert submit(pool, "a cat", raising).future.result(WAIT_S)
    assert submit(pool, "a dog").future.result(WAIT_S)
