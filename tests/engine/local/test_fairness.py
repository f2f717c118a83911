"""Whose turn it is in a running engine, and what the engine learns from the images it makes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sd35.errors import InvalidRequest, Overloaded
from sd35.generation.model_pool import ModelPool
from sd35.generation.params import GenerationParams
from tests.support.fake_backend import WAIT_S, FakeBackend, fake_pool


class Peaks:
    """A memory that says of each watched call what it is told to."""

    def __init__(self, *peaks_bytes: int) -> None:
        self._peaks_bytes = iter(peaks_bytes)

    def watch(self) -> None:
        """Nothing to be done."""

    def peak_bytes(self) -> int:
        """The next of the given numbers."""
        return next(self._peaks_bytes)


@pytest.fixture
def one_row_pool(tmp_path: Path, backend: FakeBackend) -> Iterator[ModelPool]:
    """A model pool in which every image steps alone, so that the order of turns is seen."""
    with fake_pool(tmp_path, backend, max_in_flight=30, max_rows=1) as pool:
        yield pool
        backend.release.set()


def turns(pool: ModelPool, backend: FakeBackend, *asked: tuple[str, str, int]) -> list[str]:
    """Prompts of the steps that are made for (prompt, client, priority), all submitted while another is held."""
    backend.hold()
    held = pool.submit(pool.resolve(GenerationParams("a cat", seed=1, steps=1)), client="else")
    assert backend.started.wait(WAIT_S)
    handles = [
        pool.submit(pool.resolve(GenerationParams(prompt, seed=1)), client=client, priority=priority)
        for prompt, client, priority in asked
    ]
    backend.release.set()
    for handle in (held, *handles):
        handle.future.result(WAIT_S)
    return backend.steps[1:]


def test_a_higher_priority_goes_first(one_row_pool: ModelPool, backend: FakeBackend):
    """All its steps, before those of what the same client asked for earlier."""
    made = turns(one_row_pool, backend, ("usual", "a", 0), ("urgent", "a", 1))
    assert made == ["urgent"] * 4 + ["usual"] * 4


def test_clients_take_turns(one_row_pool: ModelPool, backend: FakeBackend):
    """The one image of a client does not wait for the five that another asked for before."""
    made = turns(one_row_pool, backend, *((f"many {n}", "a", 0) for n in range(5)), ("one", "b", 0))
    assert [index for index, prompt in enumerate(made) if prompt == "one"][-1] < 10


def test_the_wait_estimate_learns_from_finished_images(tmp_path: Path, backend: FakeBackend):
    """A wait that is refused by the first guess is accepted once images of that size were made."""
    with fake_pool(tmp_path, backend, max_wait_s=0.5) as pool:
        with held(pool, backend), pytest.raises(Overloaded):
            pool.submit(pool.resolve(GenerationParams("a dog", seed=9)))
        for seed in range(3):
            pool.submit(pool.resolve(GenerationParams("a cat", seed=seed))).future.result(WAIT_S)
        with held(pool, backend):
            pool.submit(pool.resolve(GenerationParams("a dog", seed=9)))


@contextmanager
def held(pool: ModelPool, backend: FakeBackend) -> Iterator[None]:
    """While an image waits in its first step, with seven more to come."""
    backend.hold()
    image = pool.submit(pool.resolve(GenerationParams("a tree", seed=9, steps=8)))
    assert backend.started.wait(WAIT_S)
    yield
    backend.release.set()
    image.future.result(WAIT_S)


@pytest.mark.parametrize("peaks_bytes", [(4 * 10**9, 1), (1, 4 * 10**9)], ids=["step", "decoding"])
def test_a_size_seen_to_take_more_than_all_memory_is_refused_from_then_on(
    tmp_path: Path, backend: FakeBackend, peaks_bytes: tuple[int, int]
):
    """The first image of its size is made, and shows what it takes; other sizes go on."""
    backend.memory = Peaks(*peaks_bytes, 1, 1)  # type: ignore[assignment]
    with fake_pool(tmp_path, backend) as pool:
        pool.submit(pool.resolve(GenerationParams("a cat", seed=1))).future.result(WAIT_S)
        with pytest.raises(InvalidRequest, match=r"'128x128'; allowed: what 1000\.0 MB .* takes 4000\.0"):
            pool.submit(pool.resolve(GenerationParams("a cat", seed=2)))
        pool.submit(pool.resolve(GenerationParams("a cat", seed=3, width=64, height=64))).future.result(WAIT_S)
