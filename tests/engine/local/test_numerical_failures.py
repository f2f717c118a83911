"""Numerical failures: detected, counted, and retried once if the model is loaded in a wider precision."""

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
from tests.support.fake_backend import MINI, WAIT_S, FakeBackend, Fault, fake_pipeline, pool_of

SKIP = SkipLayers((7, 8, 9), 2.8, 0.01, 0.2)
FAILURES = [
    (Fault.STEP_NAN, "not_finite", "values are no longer finite in {} at step 2 of 4"),
    (Fault.DECODE_NAN, "not_finite", "values are no longer finite in {} in decoding"),
    (Fault.UNIFORM, "uniform", "all pixels have one colour in {} after decoding"),
]


@contextmanager
def pool_with_fallback(
    directory: Path, backend: FakeBackend, *others: FakeBackend, max_in_flight: int = 10, card: Card = MINI
) -> Iterator[ModelPool]:
    """Open a pool with one model in several backends. New requests use the first."""
    pipelines = [fake_pipeline(directory / "mini", card, each) for each in (backend, *others)]
    limits = DeviceLimits(max_rows=8, max_in_flight=max_in_flight, max_wait_s=600, memory_bytes=10**9)
    with pool_of(LocalEngine(pipelines, limits, EmbeddingCache(10**6))) as pool:
        yield pool
        for each in (backend, *others):
            each.release.set()


def submit(pool: ModelPool, prompt: str, on_progress: Any = None, **params: Any) -> Handle:
    """Submit a request for an image."""
    return pool.submit(pool.resolve(GenerationParams(prompt, **{"seed": 1, **params})), on_progress)


@pytest.mark.parametrize(("fault", "kind", "happened"), FAILURES)
def test_a_numerical_failure_is_counted_and_its_error_suggests_a_remedy(
    tmp_path: Path, fault: Fault, kind: str, happened: str
):
    """No wider precision is loaded. The error names the precision, the place and a remedy."""
    with pool_with_fallback(tmp_path, FakeBackend("float16", {"a dog": fault})) as pool:
        with pytest.raises(NumericalFailure) as failed:
            submit(pool, "a dog").future.result(WAIT_S)
        assert str(failed.value).startswith(happened.format("float16") + "; set a wider `precision`")
        assert pool.engine.status().numerical_failures == {"not_finite": 0, "uniform": 0, kind: 1}
        assert pool.engine.status().retried == 0


@pytest.mark.parametrize(("fault", "kind"), [each[:2] for each in FAILURES])
def test_a_retried_image_is_the_fallbacks_image(tmp_path: Path, fault: Fault, kind: str):
    """Its pixels and its record are the fallback's. Other images of the batch do not change."""
    with pool_with_fallback(tmp_path / "own", FakeBackend()) as pool:
        expected = pool.encode(submit(pool, "a dog").future.result(WAIT_S))
    narrow = FakeBackend("float16", {"a dog": fault})
    with pool_with_fallback(tmp_path / "both", narrow, FakeBackend()) as pool:
        expected_other = submit(pool, "a cat").future.result(WAIT_S)
        narrow.hold()
        held = submit(pool, "a tree")
        assert narrow.started.wait(WAIT_S)
        failing, other = submit(pool, "a dog"), submit(pool, "a cat", seed=1)
        narrow.release.set()
        assert held.future.result(WAIT_S)
        encoded = pool.encode(failing.future.result(WAIT_S))
        assert encoded.record.request.profile == "double/float32"
        assert encoded.png == expected.png
        assert other.future.result(WAIT_S).request.profile == "double/float16"
        assert np.array_equal(other.future.result().pixels, expected_other.pixels)
        assert pool.engine.status().numerical_failures == {"not_finite": 0, "uniform": 0, kind: 1}
        assert pool.engine.status().retried == 1


@pytest.mark.parametrize(("fault", "kind", "happened"), FAILURES)
def test_a_numerical_failure_in_the_fallback_is_not_retried(tmp_path: Path, fault: Fault, kind: str, happened: str):
    """The error names both attempts. A third backend is not used."""
    backends = FakeBackend("float16", {"a dog": fault}), FakeBackend(faults={"a dog": fault}), FakeBackend()
    backends[2].precision = "float64"
    with pool_with_fallback(tmp_path, *backends) as pool:
        with pytest.raises(NumericalFailure) as failed:
            submit(pool, "a dog").future.result(WAIT_S)
        again, before = happened.format("float32"), happened.format("float16")
        remedy = f"the first attempt failed too ({before}), so try another seed or other values"
        assert str(failed.value) == f"{again}; {remedy}"
        assert pool.engine.status().numerical_failures == {"not_finite": 0, "uniform": 0, kind: 2}
        assert pool.engine.status().retried == 1
        assert not backends[2].steps


@pytest.mark.parametrize("precision", ["float16", "float64"])
def test_a_fallback_that_is_not_wider_is_not_used(tmp_path: Path, precision: str):
    """The precision of the fallback is narrower or unknown."""
    fallback = FakeBackend(precision)
    with pool_with_fallback(tmp_path, FakeBackend(faults={"a dog": Fault.STEP_NAN}), fallback) as pool:
        with pytest.raises(NumericalFailure, match="in float32 at step 2 of 4; try another seed"):
            submit(pool, "a dog").future.result(WAIT_S)
        assert not fallback.steps


def test_a_request_the_fallback_does_not_support_is_not_retried(tmp_path: Path):
    """Without skip-layer guidance the image would be another one."""
    fallback = FakeBackend()
    fallback.can_skip_layers = False
    narrow = FakeBackend("float16", {"a dog": Fault.STEP_NAN})
    with pool_with_fallback(tmp_path, narrow, fallback, card=replace(MINI, skip_layers=SKIP)) as pool:
        with pytest.raises(NumericalFailure, match="in float16 at step 2"):
            submit(pool, "a dog", skip_layer_scale=2).future.result(WAIT_S)
        assert submit(pool, "a dog", skip_layer_scale=0).future.result(WAIT_S)


def test_an_equal_request_joins_the_second_attempt(tmp_path: Path):
    """A caller that cancels does not stop it. Progress restarts for the first caller."""
    narrow, fallback = FakeBackend("float16", {"a dog": Fault.STEP_NAN}), FakeBackend()
    fallback.hold()
    with pool_with_fallback(tmp_path, narrow, fallback) as pool:
        received: list[int] = []

        def listen(progress: Progress) -> None:
            received.append(progress.step)

        first = submit(pool, "a dog", listen)
        assert fallback.started.wait(WAIT_S)
        joining, leaving = submit(pool, "a dog"), submit(pool, "a dog")
        pool.engine.cancel(leaving)
        fallback.release.set()
        assert first.future.result(WAIT_S).pixels is joining.future.result(WAIT_S).pixels
        assert leaving.future.cancelled()
        assert received == [1, 1, 2, 3, 4]
        assert narrow.steps == ["a dog"] * 2
        assert fallback.steps == ["a dog"] * 4


def test_a_second_attempt_is_stopped_when_its_last_caller_cancels(tmp_path: Path):
    """Before its next step. A new caller of the same request starts a new generation."""
    narrow, fallback = FakeBackend("float16", {"a dog": Fault.STEP_NAN}), FakeBackend()
    fallback.hold()
    with pool_with_fallback(tmp_path, narrow, fallback) as pool:
        leaving = submit(pool, "a dog", steps=50)
        assert fallback.started.wait(WAIT_S)
        pool.engine.cancel(leaving)
        fallback.release.set()
        assert submit(pool, "a dog", steps=50).future.result(WAIT_S)
        assert fallback.steps == ["a dog"] * 51


def test_a_second_attempt_skips_admission_and_is_finished_by_a_drain(tmp_path: Path):
    narrow = FakeBackend("float16", {"a dog": Fault.UNIFORM})
    narrow.hold()
    with pool_with_fallback(tmp_path, narrow, FakeBackend(), max_in_flight=2) as pool:
        handles = [submit(pool, "a cat"), submit(pool, "a dog")]
        narrow.release.set()
        pool.engine.drain()
        profiles = [handle.future.result(0).request.profile for handle in handles]
        assert profiles == ["double/float16", "double/float32"]
