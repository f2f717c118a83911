"""Whose turn it is in a running engine, and what the engine learns from the pictures it makes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sd35.errors import InvalidRequest, Overloaded
from sd35.generation.model_pool import Studio
from sd35.generation.params import Wanted
from tests.support.fake_backend import WAIT_S, NumpyBackend, double_studio


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
def one_row_studio(tmp_path: Path, backend: NumpyBackend) -> Iterator[Studio]:
    """A studio in which every picture steps alone, so that the order of turns is seen."""
    with double_studio(tmp_path, backend, max_pictures=30, max_rows=1) as studio:
        yield studio
        backend.release.set()


def turns(studio: Studio, backend: NumpyBackend, *asked: tuple[str, str, int]) -> list[str]:
    """Prompts of the steps that are made for (prompt, client, priority), all submitted while another is held."""
    held = studio.submit(studio.resolve(Wanted("held", seed=1, steps=1)), client="else")
    assert backend.started.wait(WAIT_S)
    tickets = [
        studio.submit(studio.resolve(Wanted(prompt, seed=1)), client=client, priority=priority)
        for prompt, client, priority in asked
    ]
    backend.release.set()
    for ticket in (held, *tickets):
        ticket.future.result(WAIT_S)
    return backend.steps[1:]


def test_a_higher_priority_goes_first(one_row_studio: Studio, backend: NumpyBackend):
    """All its steps, before those of what the same client asked for earlier."""
    made = turns(one_row_studio, backend, ("usual", "a", 0), ("urgent", "a", 1))
    assert made == ["urgent"] * 4 + ["usual"] * 4


def test_clients_take_turns(one_row_studio: Studio, backend: NumpyBackend):
    """The one picture of a client does not wait for the five that another asked for before."""
    made = turns(one_row_studio, backend, *((f"many {n}", "a", 0) for n in range(5)), ("one", "b", 0))
    assert [index for index, prompt in enumerate(made) if prompt == "one"][-1] < 10


def test_what_steps_take_is_learnt(tmp_path: Path, backend: NumpyBackend):
    """A wait that is refused by the first guess is accepted once pictures of that size were made."""
    with double_studio(tmp_path, backend, max_wait_s=0.5) as studio:
        with held(studio, backend), pytest.raises(Overloaded):
            studio.submit(studio.resolve(Wanted("a dog", seed=9)))
        for seed in range(3):
            studio.submit(studio.resolve(Wanted("a cat", seed=seed))).future.result(WAIT_S)
        with held(studio, backend):
            studio.submit(studio.resolve(Wanted("a dog", seed=9)))


@contextmanager
def held(studio: Studio, backend: NumpyBackend) -> Iterator[None]:
    """While a picture waits in its first step, with seven more to come."""
    backend.started.clear()
    backend.release.clear()
    picture = studio.submit(studio.resolve(Wanted("held", seed=9, steps=8)))
    assert backend.started.wait(WAIT_S)
    yield
    backend.release.set()
    picture.future.result(WAIT_S)


@pytest.mark.parametrize("peaks_bytes", [(4 * 10**9, 1), (1, 4 * 10**9)], ids=["step", "decoding"])
def test_a_size_seen_to_take_more_than_all_memory_is_refused_from_then_on(
    tmp_path: Path, backend: NumpyBackend, peaks_bytes: tuple[int, int]
):
    """The first picture of its size is made, and shows what it takes; other sizes go on."""
    backend.memory = Peaks(*peaks_bytes, 1, 1)  # type: ignore[assignment]
    with double_studio(tmp_path, backend) as studio:
        studio.submit(studio.resolve(Wanted("a cat", seed=1))).future.result(WAIT_S)
        with pytest.raises(InvalidRequest, match=r"'128x128'; allowed: what 1000\.0 MB .* takes 4000\.0"):
            studio.submit(studio.resolve(Wanted("a cat", seed=2)))
        studio.submit(studio.resolve(Wanted("a cat", seed=3, width=64, height=64))).future.result(WAIT_S)
