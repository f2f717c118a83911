"""An image does not depend on the other images in the batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sd35.backends.base import Backend
from sd35.checkpoints.card import SkipLayers
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.engine.base import DeviceLimits, Pixels, Work
from sd35.engine.local.engine import LocalEngine
from sd35.engine.local.pipeline import Pipeline
from sd35.engine.local.prompt_cache import EmbeddingCache
from sd35.request import Request

LIMITS = DeviceLimits(max_rows=16, max_in_flight=100, max_wait_s=600, memory_bytes=10**10)


def request_of(prompt: str, steps: int, guidance: float, size: tuple[int, int] = (96, 64)) -> Request:
    """Return a request. The seed is the length of the prompt."""
    return Request(prompt, "a tree", *size, steps, guidance, len(prompt), "model", "revision", "profile")


WATCHED = [
    request_of("a cat on a blue background", 12, 4.5),
    request_of("a dog above a cat on a red background", 4, 0.0),
    request_of("a rocket", 7, 7.0),
]
OTHERS = [
    request_of("a moon on a black background", 9, 4.5),
    request_of("a fish", 3, 1.0),
    request_of("a key", 5, 30.0),
    request_of("a whale on a white background", 6, 4.5, (64, 64)),
    request_of("x", 8, 2.0),
]


@contextmanager
def engine_of(backend: Backend, checkpoint: Checkpoint, *, reproducible: bool = False) -> Iterator[LocalEngine]:
    """Start an engine with one model."""
    engine = LocalEngine([Pipeline(checkpoint, backend)], LIMITS, EmbeddingCache(10**6), reproducible=reproducible)
    yield engine
    engine.close()


@contextmanager
def counting(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Yield the number of rows, prompts or latents in each call of the backend."""
    counts: list[int] = []
    with monkeypatch.context() as patched:
        for name in ("predict_velocity", "encode_text", "decode_latents"):
            call = getattr(backend, name)

            def counted(items: Sequence[object], call: Any = call) -> Any:
                counts.append(len(items))
                return call(items)

            patched.setattr(backend, name, counted)
        yield counts


def generate(engine: LocalEngine, requests: Sequence[Request]) -> list[Pixels]:
    """Generate all requests at the same time."""
    (model,) = engine.models
    own = [replace(request, model=model.name, profile=model.profile) for request in requests]
    handles = [engine.submit(Work(request, request.width, request.height)) for request in own]
    return [handle.future.result(120).pixels for handle in handles]


@pytest.fixture(scope="module")
def alone(backend: Backend, checkpoint: Checkpoint) -> list[Pixels]:
    """Each watched image, generated alone by a new engine."""
    images = []
    for request in WATCHED:
        with engine_of(backend, checkpoint) as engine:
            images += generate(engine, [request])
    return images


def test_other_rows_in_the_batch_change_no_pixel_by_more_than_one(
    backend: Backend, checkpoint: Checkpoint, alone: list[Pixels], monkeypatch: pytest.MonkeyPatch
):
    """The others have other prompts, steps, guidance and sizes, and come before or after."""
    with engine_of(backend, checkpoint) as engine, counting(backend, monkeypatch) as counts:
        for requests in ([*OTHERS, *WATCHED], [*WATCHED, *OTHERS[::-1]]):
            for image, expected in zip(generate(engine, requests), requests, strict=True):
                if expected in WATCHED:
                    difference = abs(image.astype(int) - alone[WATCHED.index(expected)])
                    assert difference.max() <= 1
    assert max(counts) >= 4  # images shared calls


@pytest.mark.parametrize("backend", ["diffusers"], indirect=True)
def test_skipped_layers_of_one_image_do_not_affect_others(
    backend: Backend, checkpoint: Checkpoint, alone: list[Pixels]
):
    """In one batch, images with and without skipped layers are the same as alone."""
    skipping = replace(checkpoint, card=replace(checkpoint.card, skip_layers=SkipLayers((2, 3), 2.8, 0.2, 0.75)))
    skipping_requests = [
        replace(request, skip_layer_scale=scale) for request, scale in zip(WATCHED, (2.8, 2.8, 1.0), strict=True)
    ]
    expected = [*alone]
    for request in skipping_requests:
        with engine_of(backend, skipping) as engine:
            expected += generate(engine, [request])
    assert [bool((one != other).any()) for one, other in zip(alone, expected[3:], strict=True)] == [True, False, True]
    with engine_of(backend, skipping) as engine:
        together = generate(engine, [*OTHERS, *WATCHED, *skipping_requests])[len(OTHERS) :]
    for image, one in zip(together, expected, strict=True):
        assert abs(image.astype(int) - one).max() <= 1


def test_reproducible_mode_gives_equal_bytes(backend: Backend, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    """This holds alone, with other images, and after other images. Each call has one row."""
    with engine_of(backend, checkpoint, reproducible=True) as engine, counting(backend, monkeypatch) as counts:
        alone = [generate(engine, [request])[0] for request in WATCHED]
        together = generate(engine, [*OTHERS, *WATCHED])[len(OTHERS) :]
    assert set(counts) == {1}
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)
