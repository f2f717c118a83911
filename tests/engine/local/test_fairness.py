"""Fairness between clients in a running engine, and the costs that the engine learns from its images."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sd35.errors import InvalidRequest, Overloaded
from sd35.generation.model_pool import ModelPool
from sd35.generation.params import GenerationParams
from tests.support.fake_backend import WAIT_S, FakeBackend, fake_pool


class Peaks:
    """A memory with a given peak for each watched call."""

    def __init__(self, *peaks_bytes: int) -> None:
        self._peaks_bytes = iter(peaks_bytes)

    def watch(self) -> None:
        """Do nothing."""

    def peak_bytes(self) -> int:
        """Return the next peak."""
        return next(self._peaks_bytes)


@pytest.fixture
def one_row_pool(tmp_path: Path, backend: FakeBackend) -> Iterator[ModelPool]:
    """A pool that makes one image's step at a time, so that the order of steps can be observed."""
    with fake_pool(tmp_path, backend, max_in_flight=30, max_rows=1) as pool:
        yield pool
        backend.release.set()


def order_of_steps(pool: ModelPool, backend: FakeBackend, *submissions: tuple[str, str, int]) -> list[str]:
    """Return the prompt of each step. All (prompt, client, priority) are submitted during the step of another image."""
    backend.hold()
    held = pool.submit(pool.resolve(GenerationParams("a cat", seed=1, steps=1)), client="else")
    assert backend.started.wait(WAIT_S)
    handles = [
        pool.submit(pool.resolve(GenerationParams(prompt, seed=1)), client=client, priority=priority)
        for prompt, client, priority in submissions
    ]
    backend.release.set()
    for handle in (held, *handles):
        handle.future.result(WAIT_S)
    return backend.steps[1:]


def test_a_higher_priority_goes_first(one_row_pool: ModelPool, backend: FakeBackend):
    """It makes all its steps before an earlier image of the same client continues."""
    steps = order_of_steps(one_row_pool, backend, ("usual", "a", 0), ("urgent", "a", 1))
    assert steps == ["urgent"] * 4 + ["usual"] * 4


def test_clients_take_turns(one_row_pool: ModelPool, backend: FakeBackend):
    """One image of a client does not wait for five earlier images of another client."""
    steps = order_of_steps(one_row_pool, backend, *((f"many {n}", "a", 0) for n in range(5)), ("one", "b", 0))
    assert [index for index, prompt in enumerate(steps) if prompt == "one"][-1] < 10


def test_the_wait_estimate_learns_from_finished_images(tmp_path: Path, backend: FakeBackend):
    """A wait that the first estimate refuses is accepted after images of that size were generated."""
    with fake_pool(tmp_path, backend, max_wait_s=0.5) as pool:
        with held(pool, backend), pytest.raises(Overloaded):
            pool.submit(pool.resolve(GenerationParams("a dog", seed=9)))
        for seed in range(3):
            pool.submit(pool.resolve(GenerationParams("a cat", seed=seed))).future.result(WAIT_S)
        with held(pool, backend):
            pool.submit(pool.resolve(GenerationParams("a dog", seed=9)))


@contextmanager
def held(pool: ModelPool, backend: FakeBackend) -> Iterator[None]:
    """Hold an image in its first step, with seven more to come, until the block ends."""
    backend.hold()
    image = pool.submit(pool.resolve(GenerationParams("a tree", seed=9, steps=8)))
    assert backend.started.wait(WAIT_S)
    yield
    backend.release.set()
    image.future.result(WAIT_S)


@pytest.mark.parametrize("peaks_bytes", [(4 * 10**9, 1), (1, 4 * 10**9)], ids=["step", "decoding"])
def test_a_size_that_needed_more_than_the_memory_is_refused_from_then_on(
    tmp_path: Path, backend: FakeBackend, peaks_bytes: tuple[int, int]
):
    """The first image of that size is generated, and its memory is measured. Other sizes are not affected."""
    backend.memory = Peaks(*peaks_bytes, 1, 1)  # type: ignore[assignment]
    with fake_pool(tmp_path, backend) as pool:
        pool.submit(pool.resolve(GenerationParams("a cat", seed=1))).future.result(WAIT_S)
        with pytest.raises(InvalidRequest, match=r"'128x128'; allowed: sizes that fit in 1000\.0 MB .* needs 4000\.0"):
            pool.submit(pool.resolve(GenerationParams("a cat", seed=2)))
        pool.submit(pool.resolve(GenerationParams("a cat", seed=3, width=64, height=64))).future.result(WAIT_S)
