"""Images of one call: refused as one, made side by side as far as there is room, and left out one by one."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from sd35.errors import GenerationFailed, Overloaded
from sd35.generation.model_pool import ModelPool
from sd35.generation.params import GenerationParams
from sd35.generation.service import GenerationResult
from sd35.service.batch import Batch
from sd35.service.service import Service
from sd35.storage.jobs import JobSpec
from tests.support.fake_backend import WAIT_S, FakeBackend, Fault
from tests.support.services import service_of

Run = Callable[[Callable[[Service], Coroutine[Any, Any, Any]]], Any]


@pytest.fixture
def max_in_flight() -> int:
    """Of the model pool."""
    return 4


@pytest.fixture
def run(pool: ModelPool) -> Run:
    """Runs a coroutine function over a service, for a while at most."""

    async def bounded(work: Callable[[Service], Coroutine[Any, Any, Any]]) -> Any:
        async with asyncio.timeout(2 * WAIT_S):
            return await work(service_of(pool, max_in_flight=8))

    return lambda work: asyncio.run(bounded(work))


def job_specs(service: Service, *prompts: str) -> list[JobSpec]:
    """One for each prompt."""
    return [
        JobSpec(service.pool.resolve(GenerationParams(prompt, seed=place, steps=2)))
        for place, prompt in enumerate(prompts)
    ]


def prompts_of(outcomes: list[GenerationResult | None]) -> list[str | None]:
    """What the images are of."""
    return [None if outcome is None else outcome.request.prompt for outcome in outcomes]


async def begun(backend: FakeBackend) -> None:
    """Until an image is held."""
    assert await asyncio.to_thread(backend.started.wait, WAIT_S)


def test_all_images_come_in_their_order(run: Run):
    """Also where there are more than the engine takes at once: who was let in waits for the rest."""
    prompts = [f"image {number}" for number in range(9)]

    async def work(service: Service) -> list[GenerationResult | None]:
        return await Batch(service, job_specs(service, *prompts), "me", 9).outcomes()

    assert prompts_of(run(work)) == prompts


def test_a_batch_generates_at_most_the_allowed_number_of_images_at_once(run: Run, backend: FakeBackend):
    """With one at once, no step is of two images."""

    async def work(service: Service) -> list[GenerationResult | None]:
        return await Batch(service, job_specs(service, "a", "b", "c"), "me", 1).outcomes()

    assert prompts_of(run(work)) == ["a", "b", "c"]
    assert set(backend.rows) == {1}


def test_progress_is_reported_with_the_index_of_the_image(run: Run):
    """Each image's steps, and its latest in `progress`."""
    told: list[tuple[int, int]] = []

    async def work(service: Service) -> None:
        batch = Batch(
            service, job_specs(service, "a", "b"), "me", 1, lambda place, progress: told.append((place, progress.step))
        )
        await batch.outcomes()
        assert [progress and progress.step for progress in batch.progress] == [2, 2]

    run(work)
    assert told == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_skipping_leaves_out_the_current_image(run: Run, backend: FakeBackend):
    """The others are made."""
    backend.hold()

    async def work(service: Service) -> list[GenerationResult | None]:
        batch = Batch(service, job_specs(service, "one", "another"), "me", 1)
        await begun(backend)
        batch.skip()
        backend.release.set()
        return await batch.outcomes()

    assert prompts_of(run(work)) == [None, "another"]


def test_an_interruption_keeps_finished_images(run: Run, backend: FakeBackend):
    """And leaves out the rest."""
    backend.hold("slow")

    async def work(service: Service) -> list[GenerationResult | None]:
        batch = Batch(service, job_specs(service, "quick", "slow", "a third"), "me", 1)
        waiting = asyncio.ensure_future(batch.outcomes())
        await batch.tasks[0]
        batch.interrupt()
        backend.release.set()
        assert batch.was_interrupted
        return await waiting

    assert prompts_of(run(work)) == ["quick", None, None]


def test_a_batch_without_room_for_its_first_image_is_refused(run: Run, backend: FakeBackend):
    """Where there is no room for the first."""

    async def work(service: Service) -> None:
        backend.hold()
        held = Batch(service, job_specs(service, *(f"cat {number}" for number in range(4))), "you", 4)
        await begun(backend)
        crowd = [
            asyncio.ensure_future(service.generate(job_spec, "you")) for job_spec in job_specs(service, "x", "y", "z")
        ]
        await asyncio.sleep(0)
        batch = Batch(service, job_specs(service, "first", "second"), "me", 2)
        with pytest.raises(Overloaded):
            await batch.outcomes()
        backend.release.set()
        await asyncio.gather(held.outcomes(), *crowd, return_exceptions=True)

    run(work)
    assert not {"first", "second"} & set(backend.steps)


def test_a_failed_image_ends_the_batch(run: Run, backend: FakeBackend):
    """With its reason, and the others are not made any more."""
    backend.faults["bad"] = Fault.STEP_ERROR

    async def work(service: Service) -> None:
        batch = Batch(service, job_specs(service, "good", "bad", "never"), "me", 1)
        with pytest.raises(GenerationFailed):
            await batch.outcomes()

    run(work)
    assert "never" not in backend.steps


def test_an_image_skipped_before_it_starts_does_not_delay_the_others(run: Run):
    """The first, in the very moment of the call."""

    async def work(service: Service) -> list[GenerationResult | None]:
        batch = Batch(service, job_specs(service, "a", "b"), "me", 1)
        batch.skip()
        return await batch.outcomes()

    assert prompts_of(run(work)) == [None, "b"]
