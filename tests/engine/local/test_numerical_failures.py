"""Values that go bad: seen wherever it happens, counted, and made again, once, where a wider precision is loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd35.checkpoints.card import Card, SkipLayers
from sd35.engine.base import DeviceLimits, Handle, Progress
from sd35.engine.local.engine import LocalEngine
from sd35.engine.local.prompt_cache import EmbeddingCache
from sd35.errors import NumericalFailure
from sd35.generation.model_pool import ModelPool
from sd35.generation.params import GenerationParams
from tests.support.fake_backend import MINI, WAIT_S, FakeBackend, fake_pipeline, pool_of

SKIP = SkipLayers((7, 8, 9), 2.8, 0.01, 0.2)
SPOILED = [
    ("nan", "not_finite", "values stopped being finite in {} at step 2 of 4"),
    ("void", "not_finite", "values stopped being finite in {} in decoding"),
    ("flat", "uniform", "the frame is of one colour in {} after decoding"),
]


@contextmanager
def studio_of(
    directory: Path, backend: FakeBackend, *beside: FakeBackend, max_in_flight: int = 10, card: Card = MINI
) -> Iterator[ModelPool]:
    """A model pool of one model, in as many backends; new requests are for the first."""
    pipelines = [fake_pipeline(directory / "mini", card, each) for each in (backend, *beside)]
    limits = DeviceLimits(max_rows=8, max_in_flight=max_in_flight, max_wait_s=600, memory_bytes=10**9)
    with pool_of(LocalEngine(pipelines, limits, EmbeddingCache(10**6))) as pool:
        yield pool
        for each in (backend, *beside):
            each.release.set()


def submit(pool: ModelPool, prompt: str, on_progress: Any = None, **wanted: Any) -> Handle:
    """Ask for an image."""
    return pool.submit(pool.resolve(GenerationParams(prompt, **{"seed": 1, **wanted})), on_progress)


@pytest.mark.parametrize(("word", "kind", "happened"), SPOILED)
def test_a_spoiled_image_is_counted_and_says_what_to_do(tmp_path: Path, word: str, kind: str, happened: str):
    """Without a wider precision it fails, naming precision and place, and how it could be made."""
    with studio_of(tmp_path, FakeBackend("float16")) as pool:
        with pytest.raises(NumericalFailure) as failed:
            submit(pool, word).future.result(WAIT_S)
        assert str(failed.value).startswith(happened.format("float16") + "; a wider precision may help: as `precision`")
        assert pool.engine.status().numerical_failures == {"not_finite": 0, "uniform": 0, kind: 1}
        assert pool.engine.status().retried == 0


@pytest.mark.parametrize(("word", "kind"), [each[:2] for each in SPOILED])
def test_a_spoiled_image_is_what_the_standby_makes_of_it(tmp_path: Path, word: str, kind: str):
    """It is made again from its noise: the fallback's own image, to the byte and by its record; its mates are not."""
    with studio_of(tmp_path / "own", FakeBackend(sound=True)) as pool:
        expected = pool.encode(submit(pool, word).future.result(WAIT_S))
    narrow = FakeBackend("float16")
    with studio_of(tmp_path / "both", narrow, FakeBackend(sound=True)) as pool:
        mate = submit(pool, "a cat").future.result(WAIT_S)
        held = submit(pool, "held")
        assert narrow.started.wait(WAIT_S)
        numerical_failures, beside = submit(pool, word), submit(pool, "a cat", seed=1)
        narrow.release.set()
        assert held.future.result(WAIT_S)
        made = pool.encode(numerical_failures.future.result(WAIT_S))
        assert made.record.request.profile == "double/float32"
        assert made.png == expected.png
        assert beside.future.result(WAIT_S).request.profile == "double/float16"
        assert np.array_equal(beside.future.result().pixels, mate.pixels)
        assert pool.engine.status().numerical_failures == {"not_finite": 0, "uniform": 0, kind: 1}
        assert pool.engine.status().retried == 1


@pytest.mark.parametrize(("word", "kind", "happened"), SPOILED)
def test_what_the_standby_spoils_too_is_not_tried_a_third_time(tmp_path: Path, word: str, kind: str, happened: str):
    """Two attempts, and an error that names both, although a third backend would be there."""
    backends = FakeBackend("float16"), FakeBackend(), FakeBackend(sound=True)
    backends[2].precision = "float64"
    with studio_of(tmp_path, *backends) as pool:
        with pytest.raises(NumericalFailure) as failed:
            submit(pool, word).future.result(WAIT_S)
        again, before = happened.format("float32"), happened.format("float16")
        assert str(failed.value) == f"{again}; before that, {before}: it was tried twice"
        assert pool.engine.status().numerical_failures == {"not_finite": 0, "uniform": 0, kind: 2}
        assert pool.engine.status().retried == 1
        assert not backends[2].steps


@pytest.mark.parametrize("beside", ["float16", "float64"])
def test_what_holds_no_more_is_not_tried(tmp_path: Path, beside: str):
    """A fallback that is narrower, or not known to be wider, makes nothing again."""
    fallback = FakeBackend(beside, sound=True)
    with studio_of(tmp_path, FakeBackend(), fallback) as pool:
        with pytest.raises(NumericalFailure, match="in float32 at step 2 of 4; try another seed"):
            submit(pool, "nan").future.result(WAIT_S)
        assert not fallback.steps


def test_what_the_standby_cannot_make_fails(tmp_path: Path):
    """Skip-layer guidance is no part of it: another image would not be what was asked for."""
    fallback = FakeBackend(sound=True)
    fallback.can_skip_layers = False
    with studio_of(tmp_path, FakeBackend("float16"), fallback, card=replace(MINI, skip_layers=SKIP)) as pool:
        with pytest.raises(NumericalFailure, match="in float16 at step 2"):
            submit(pool, "nan", skip_layer_scale=2).future.result(WAIT_S)
        assert submit(pool, "nan", skip_layer_scale=0).future.result(WAIT_S)


def test_who_asks_for_the_same_meanwhile_waits_for_the_second_attempt(tmp_path: Path):
    """One image for all of them; who leaves does not stop it, and progress begins anew for who listens."""
    narrow, fallback = FakeBackend("float16"), FakeBackend(sound=True)
    narrow.release.set()
    with studio_of(tmp_path, narrow, fallback) as pool:
        heard: list[int] = []

        def listen(progress: Progress) -> None:
            heard.append(progress.step)

        first = submit(pool, "held nan", listen)
        assert fallback.started.wait(WAIT_S)
        joining, leaving = submit(pool, "held nan"), submit(pool, "held nan")
        pool.engine.cancel(leaving)
        fallback.release.set()
        assert first.future.result(WAIT_S).pixels is joining.future.result(WAIT_S).pixels
        assert leaving.future.cancelled()
        assert heard == [1, 1, 2, 3, 4]
        assert narrow.steps == ["held nan"] * 2
        assert fallback.steps == ["held nan"] * 4


def test_a_second_attempt_that_nobody_waits_for_is_stopped(tmp_path: Path):
    """The last to leave ends it before its next step, and the same can be asked for again."""
    narrow, fallback = FakeBackend("float16"), FakeBackend(sound=True)
    narrow.release.set()
    with studio_of(tmp_path, narrow, fallback) as pool:
        leaving = submit(pool, "held nan", steps=50)
        assert fallback.started.wait(WAIT_S)
        pool.engine.cancel(leaving)
        fallback.release.set()
        assert submit(pool, "held nan", steps=50).future.result(WAIT_S)
        assert fallback.steps == ["held nan"] * 51


def test_a_second_attempt_is_accepted_in_a_full_house_and_finished_by_a_drain(tmp_path: Path):
    """What was accepted is made: no limit is applied again, and closing waits for it."""
    narrow = FakeBackend("float16")
    with studio_of(tmp_path, narrow, FakeBackend(sound=True), max_in_flight=2) as pool:
        handles = [submit(pool, "held"), submit(pool, "flat")]
        narrow.release.set()
        pool.engine.drain()
        profiles = [handle.future.result(0).request.profile for handle in handles]
        assert profiles == ["double/float16", "double/float32"]
