"""The images of one call: refused together, generated concurrently, and cancelled one by one."""

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
    """The limit of the pool."""
    return 4


@pytest.fixture
def run(pool: ModelPool) -> Run:
    """A function that runs a coroutine function with a service, with a timeout."""

    async def bounded(work: Callable[[Service], Coroutine[Any, Any, Any]]) -> Any:
        async with asyncio.timeout(2 * WAIT_S):
            return await work(service_of(pool, max_in_flight=8))

    return lambda work: asyncio.run(bounded(work))


def job_specs(service: Service, *prompts: str) -> list[JobSpec]:
    """Return a job specification for each prompt."""
    return [
        JobSpec(service.pool.resolve(GenerationParams(prompt, seed=index, steps=2)))
        for index, prompt in enumerate(prompts)
    ]


def prompts_of(results: list[GenerationResult | None]) -> list[str | None]:
    """Return the prompts of the images. Cancelled images are None."""
    return [None if result is None else result.request.prompt for result in results]


async def wait_for_first_step(backend: FakeBackend) -> None:
    """Wait until an image is held in its first step."""
    assert await asyncio.to_thread(backend.started.wait, WAIT_S)


def test_images_are_returned_in_the_order_of_the_call(run: Run):
    """Even if there are more than the engine accepts at once: once the first is accepted, the others wait."""
    prompts = [f"image {number}" for number in range(9)]

    async def work(service: Service) -> list[GenerationResult | None]:
        return await Batch(service, job_specs(service, *prompts), "me", 9).results()

    assert prompts_of(run(work)) == prompts


def test_a_batch_generates_at_most_at_once_images_concurrently(run: Run, backend: FakeBackend):
    """With `at_once` of 1, no step has two images."""

    async def work(service: Service) -> list[GenerationResult | None]:
        return await Batch(service, job_specs(service, "a", "b", "c"), "me", 1).results()

    assert prompts_of(run(work)) == ["a", "b", "c"]
    assert set(backend.rows) == {1}


def test_progress_is_reported_with_the_index_of_the_image(run: Run):
    """`progress` has the latest progress of each image."""
    reported: list[tuple[int, int]] = []

    async def work(service: Service) -> None:
        batch = Batch(
            service,
            job_specs(service, "a", "b"),
            "me",
            1,
            lambda index, progress: reported.append((index, progress.step)),
        )
        await batch.results()
        assert [progress and progress.step for progress in batch.progress] == [2, 2]

    run(work)
    assert reported == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_skipping_cancels_the_current_image_only(run: Run, backend: FakeBackend):
    backend.hold()

    async def work(service: Service) -> list[GenerationResult | None]:
        batch = Batch(service, job_specs(service, "one", "another"), "me", 1)
        await wait_for_first_step(backend)
        batch.skip()
        backend.release.set()
        return await batch.results()

    assert prompts_of(run(work)) == [None, "another"]


def test_an_interruption_keeps_finished_images_and_cancels_the_others(run: Run, backend: FakeBackend):
    backend.hold("slow")

    async def work(service: Service) -> list[GenerationResult | None]:
        batch = Batch(service, job_specs(service, "quick", "slow", "a third"), "me", 1)
        waiting = asyncio.ensure_future(batch.results())
        await batch.tasks[0]
        batch.interrupt()
        backend.release.set()
        assert batch.was_interrupted
        return await waiting

    assert prompts_of(run(work)) == ["quick", None, None]


def test_a_batch_without_room_for_its_first_image_is_refused(run: Run, backend: FakeBackend):
    async def work(service: Service) -> None:
        backend.hold()
        held = Batch(service, job_specs(service, *(f"cat {number}" for number in range(4))), "you", 4)
        await wait_for_first_step(backend)
        others = [
            asyncio.ensure_future(service.generate(job_spec, "you")) for job_spec in job_specs(service, "x", "y", "z")
        ]
        await asyncio.sleep(0)
        batch = Batch(service, job_specs(service, "first", "second"), "me", 2)
        with pytest.raises(Overloaded):
            await batch.results()
        backend.release.set()
        await asyncio.gather(held.results(), *others, return_exceptions=True)

    run(work)
    assert not {"first", "second"} & set(backend.steps)


def test_a_failed_image_ends_the_batch(run: Run, backend: FakeBackend):
    """Its error is raised, and the other images are not generated."""
    backend.faults["bad"] = Fault.STEP_ERROR

    async def work(service: Service) -> None:
        batch = Batch(service, job_specs(service, "good", "bad", "never"), "me", 1)
        with pytest.raises(GenerationFailed):
            await batch.results()

    run(work)
    assert "never" not in backend.steps


def test_an_image_skipped_before_it_starts_does_not_delay_the_others(run: Run):
    async def work(service: Service) -> list[GenerationResult | None]:
        batch = Batch(service, job_specs(service, "a", "b"), "me", 1)
        batch.skip()
        return await batch.results()

    assert prompts_of(run(work)) == [None, "b"]
