"""Pictures of one call: refused as one, made side by side as far as there is room, and left out one by one."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from sd35.errors import Overloaded, PictureFailed
from sd35.generation.model_pool import Studio
from sd35.generation.params import Wanted
from sd35.generation.service import Outcome
from sd35.service.batch import Batch
from sd35.service.service import Service
from sd35.storage.jobs import Order
from tests.support.fake_backend import WAIT_S, NumpyBackend
from tests.support.services import service_of

Run = Callable[[Callable[[Service], Coroutine[Any, Any, Any]]], Any]


@pytest.fixture
def max_pictures() -> int:
    """Of the studio."""
    return 4


@pytest.fixture
def run(studio: Studio) -> Run:
    """Runs a coroutine function over a service, for a while at most."""

    async def bounded(work: Callable[[Service], Coroutine[Any, Any, Any]]) -> Any:
        async with asyncio.timeout(2 * WAIT_S):
            return await work(service_of(studio, max_pictures=8))

    return lambda work: asyncio.run(bounded(work))


def orders(service: Service, *prompts: str) -> list[Order]:
    """One for each prompt."""
    return [Order(service.studio.resolve(Wanted(prompt, seed=place, steps=2))) for place, prompt in enumerate(prompts)]


def prompts_of(outcomes: list[Outcome | None]) -> list[str | None]:
    """What the pictures are of."""
    return [None if outcome is None else outcome.request.prompt for outcome in outcomes]


async def begun(backend: NumpyBackend) -> None:
    """Until a picture is held."""
    assert await asyncio.to_thread(backend.started.wait, WAIT_S)


def test_all_pictures_come_in_their_order(run: Run):
    """Also where there are more than the engine takes at once: who was let in waits for the rest."""
    prompts = [f"picture {number}" for number in range(9)]

    async def work(service: Service) -> list[Outcome | None]:
        return await Batch(service, orders(service, *prompts), "me", 9).outcomes()

    assert prompts_of(run(work)) == prompts


def test_no_more_are_made_at_once_than_may(run: Run, backend: NumpyBackend):
    """With one at once, no step is of two pictures."""

    async def work(service: Service) -> list[Outcome | None]:
        return await Batch(service, orders(service, "a", "b", "c"), "me", 1).outcomes()

    assert prompts_of(run(work)) == ["a", "b", "c"]
    assert set(backend.rows) == {1}


def test_steps_are_told_by_the_place_of_their_picture(run: Run):
    """Each picture's steps, and its latest in `progress`."""
    told: list[tuple[int, int]] = []

    async def work(service: Service) -> None:
        batch = Batch(
            service, orders(service, "a", "b"), "me", 1, lambda place, progress: told.append((place, progress.done))
        )
        await batch.outcomes()
        assert [progress and progress.done for progress in batch.progress] == [2, 2]

    run(work)
    assert told == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_skipping_leaves_out_the_picture_whose_turn_it_is(run: Run, backend: NumpyBackend):
    """The others are made."""

    async def work(service: Service) -> list[Outcome | None]:
        batch = Batch(service, orders(service, "a held one", "another"), "me", 1)
        await begun(backend)
        batch.skip()
        backend.release.set()
        return await batch.outcomes()

    assert prompts_of(run(work)) == [None, "another"]


def test_an_interruption_keeps_what_is_made(run: Run, backend: NumpyBackend):
    """And leaves out the rest."""

    async def work(service: Service) -> list[Outcome | None]:
        batch = Batch(service, orders(service, "quick", "a held one", "a third"), "me", 1)
        waiting = asyncio.ensure_future(batch.outcomes())
        await batch.tasks[0]
        batch.interrupt()
        backend.release.set()
        assert batch.was_interrupted
        return await waiting

    assert prompts_of(run(work)) == ["quick", None, None]


def test_a_call_is_refused_before_any_of_it_is_made(run: Run, backend: NumpyBackend):
    """Where there is no room for the first."""

    async def work(service: Service) -> None:
        held = Batch(service, orders(service, *(f"held {number}" for number in range(4))), "you", 4)
        await begun(backend)
        crowd = [asyncio.ensure_future(service.make(order, "you")) for order in orders(service, "x", "y", "z")]
        await asyncio.sleep(0)
        batch = Batch(service, orders(service, "first", "second"), "me", 2)
        with pytest.raises(Overloaded):
            await batch.outcomes()
        backend.release.set()
        await asyncio.gather(held.outcomes(), *crowd, return_exceptions=True)

    run(work)
    assert not {"first", "second"} & set(backend.steps)


def test_one_that_fails_ends_the_call(run: Run, backend: NumpyBackend):
    """With its reason, and the others are not made any more."""

    async def work(service: Service) -> None:
        batch = Batch(service, orders(service, "good", "crash", "never"), "me", 1)
        with pytest.raises(PictureFailed):
            await batch.outcomes()

    run(work)
    assert "never" not in backend.steps


def test_a_picture_skipped_before_it_begins_holds_up_no_other(run: Run):
    """The first, in the very moment of the call."""

    async def work(service: Service) -> list[Outcome | None]:
        batch = Batch(service, orders(service, "a", "b"), "me", 1)
        batch.skip()
        return await batch.outcomes()

    assert prompts_of(run(work)) == [None, "b"]
