"""Jobs: accepted once, ended once, whatever happens in between; told about while they are made."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sd35.content_filter import AllowAll
from sd35.errors import IdempotencyConflict, NotReady, Overloaded, StoreUnavailable
from sd35.generation.model_pool import ModelPool
from sd35.generation.params import GenerationParams
from sd35.generation.service import GenerationService
from sd35.jobs import runner as running
from sd35.jobs.progress import END, Event, JobProgress
from sd35.jobs.runner import JobRunner
from sd35.storage.jobs import Job, JobSpec, Status
from sd35.storage.storage import Storage
from tests.support.fake_backend import WAIT_S, FakeBackend, Fault, fake_pool
from tests.support.services import memory_storage


@asynccontextmanager
async def runs(
    pool: ModelPool, storage: Storage, most_waiting: int = 100, shutdown_grace_s: float = WAIT_S
) -> AsyncIterator[JobRunner]:
    """A runner at work, of a process of its own as far as the store knows."""
    generation_service = GenerationService(pool, storage.images, AllowAll())
    runner = JobRunner(generation_service, storage.database.jobs, 2, most_waiting)
    runner.start()
    try:
        yield runner
    finally:
        await runner.close(shutdown_grace_s)


def job_spec(pool: ModelPool, prompt: str, **more: Any) -> JobSpec:
    """An order for an image of a seed."""
    return JobSpec(pool.resolve(GenerationParams(prompt, seed=1)), **more)


async def told(runner: JobRunner, job: Job, after: int = -1) -> list[Event]:
    """All that is told of a job."""
    async with asyncio.timeout(WAIT_S):
        return [event async for event in runner.events(job, after)]


async def end_of(runner: JobRunner, job: Job) -> Job:
    """The job when it has ended."""
    async with asyncio.timeout(WAIT_S):
        return await runner.wait(job)


def test_a_job_ends_with_its_image(pool: ModelPool):
    """It is in the store, its owner's, and the job says which it is."""
    storage = memory_storage()

    async def scenario() -> Job:
        async with runs(pool, storage) as runner:
            return await end_of(runner, await runner.accept(job_spec(pool, "a cat", owner="me")))

    job = asyncio.run(scenario())
    assert (job.status, job.failure) == (Status.SUCCEEDED, None)
    assert job.result
    assert job.result.digest == job.spec.request.digest
    assert storage.images.blobs.get(f"{job.result.digest}.png")
    assert storage.database.ownership.owners(job.result.digest) == {"me"}
    assert job.started_s
    assert job.ended_s
    assert job.created_s <= job.started_s <= job.ended_s


def test_a_job_that_fails_says_why_and_harms_no_other(pool: ModelPool, backend: FakeBackend):
    """With the status that a call would have had."""
    backend.faults = {"a dog": Fault.STEP_ERROR, "a tree": Fault.STEP_NAN}

    async def scenario() -> list[Job]:
        async with runs(pool, memory_storage()) as runner:
            jobs = [await runner.accept(job_spec(pool, prompt)) for prompt in ("a dog", "a cat", "a tree")]
            return [await end_of(runner, job) for job in jobs]

    dog, cat, tree = asyncio.run(scenario())
    assert cat.status is Status.SUCCEEDED
    assert dog.failure
    assert (dog.failure.status, "the runtime's own words" in dog.failure.detail) == (500, True)
    assert tree.failure
    assert "finite" in tree.failure.detail


def test_events_are_numbered_and_can_be_resumed(pool: ModelPool, backend: FakeBackend):
    """Queued with its place, running with steps, then the end; who was cut off hears what came after, and no more."""

    async def scenario() -> None:
        async with runs(pool, memory_storage()) as runner:
            backend.hold()
            held = [await runner.accept(job_spec(pool, f"cat {number}")) for number in range(2)]
            job, _ = [await runner.accept(job_spec(pool, prompt)) for prompt in ("a cat", "a dog")]
            events = runner.events(job, -1)
            first = await anext(events)
            assert (first.number, first.status, first.position) == (0, Status.QUEUED, 0)
            backend.release.set()
            numbers = [event.number async for event in events]
            assert numbers == sorted(set(numbers))
            assert numbers[-1] == END
            for each in held:
                assert (await end_of(runner, each)).status is Status.SUCCEEDED
            assert [event.number for event in await told(runner, await end_of(runner, job), 3)] == [END]
            assert await told(runner, await end_of(runner, job), END) == []

    asyncio.run(scenario())


def test_cancelled_jobs_stop(pool: ModelPool, backend: FakeBackend):
    """One that is queued never runs, one that runs ends before its next step; a cancelled one stays so."""

    async def scenario() -> None:
        async with runs(pool, memory_storage()) as runner:
            backend.hold()
            jobs = [await runner.accept(job_spec(pool, f"cat {number}")) for number in range(3)]
            await asyncio.to_thread(backend.started.wait, WAIT_S)
            for job in (jobs[0], jobs[2]):
                cancelled = await runner.cancel(job.id, "")
                assert cancelled
                assert cancelled.status is Status.CANCELLED
            assert await runner.cancel(jobs[1].id, "another") is None
            backend.release.set()
            ends = [(await end_of(runner, job)).status for job in jobs]
            assert ends == [Status.CANCELLED, Status.SUCCEEDED, Status.CANCELLED]
        assert "cat 2" not in backend.steps
        assert backend.steps.count("cat 0") <= 1

    asyncio.run(scenario())


def test_a_job_unfinished_at_shutdown_runs_at_the_next_start(tmp_path: Path, backend: FakeBackend):
    """Handed back, not lost and not failed: the next process makes it, and each image is in the store once."""
    storage = memory_storage()

    async def before(pool: ModelPool) -> list[Job]:
        async with runs(pool, storage, shutdown_grace_s=0) as runner:
            backend.hold()
            jobs = [await runner.accept(job_spec(pool, f"cat {number}")) for number in range(4)]
            await asyncio.to_thread(backend.started.wait, WAIT_S)
        with pytest.raises(NotReady):
            await runner.accept(job_spec(pool, "a cat"))
        return jobs

    with fake_pool(tmp_path / "before", backend) as pool:
        jobs = asyncio.run(before(pool))
        backend.release.set()
    assert storage.database.jobs.counts()[Status.QUEUED] == 4

    async def after(pool: ModelPool) -> list[Job]:
        async with runs(pool, storage) as runner:
            return [await end_of(runner, job) for job in jobs]

    with fake_pool(tmp_path / "after", FakeBackend()) as pool:
        ended = asyncio.run(after(pool))
    assert [job.status for job in ended] == [Status.SUCCEEDED] * 4
    assert len({job.result.digest for job in ended if job.result}) == 4


def test_a_job_of_a_removed_profile_runs_with_the_present_one(pool: ModelPool):
    """Its seed and prompt stay; the image's identity is that of the request which made it."""
    storage = memory_storage()
    request = pool.resolve(GenerationParams("a cat", seed=1))

    async def scenario() -> Job:
        async with runs(pool, storage) as runner:
            return await end_of(runner, await runner.accept(JobSpec(replace(request, profile="other/bfloat16"))))

    job = asyncio.run(scenario())
    assert job.result
    assert job.result.digest == request.digest


def test_idempotency_keys_are_one_job(pool: ModelPool):
    """The same again is the same job; another body under it is refused, another owner's is another."""

    async def scenario() -> None:
        async with runs(pool, memory_storage()) as runner:
            named = job_spec(pool, "a cat", owner="me", idempotency_key="mine", body_digest="1")
            jobs = await asyncio.gather(*(runner.accept(named) for _ in range(10)))
            assert len({job.id for job in jobs}) == 1
            with pytest.raises(IdempotencyConflict, match="'mine' came before with another body"):
                await runner.accept(job_spec(pool, "a dog", owner="me", idempotency_key="mine", body_digest="2"))
            other = await runner.accept(job_spec(pool, "a dog", owner="you", idempotency_key="mine", body_digest="2"))
            assert other.id != jobs[0].id
            for job in (jobs[0], other):
                assert (await end_of(runner, job)).status is Status.SUCCEEDED

    asyncio.run(scenario())


def test_jobs_beyond_the_queue_limit_are_refused(pool: ModelPool, backend: FakeBackend):
    """A job beyond is refused at once, with a time; those that wait are made."""

    async def scenario() -> None:
        async with runs(pool, memory_storage(), most_waiting=2) as runner:
            backend.hold()
            jobs = [await runner.accept(job_spec(pool, f"cat {number}")) for number in range(2)]
            await asyncio.to_thread(backend.started.wait, WAIT_S)
            jobs += [await runner.accept(job_spec(pool, f"a cat {number}")) for number in range(2)]
            with pytest.raises(Overloaded, match="2 jobs wait"):
                await runner.accept(job_spec(pool, "a dog"))
            backend.release.set()
            assert {(await end_of(runner, job)).status for job in jobs} == {Status.SUCCEEDED}

    asyncio.run(scenario())


def test_an_unavailable_store_delays_a_job_and_then_fails_it(pool: ModelPool, monkeypatch: pytest.MonkeyPatch):
    """It waits while that may pass, then fails with the reason; nothing is half-written, and the next job passes."""
    storage = memory_storage()
    monkeypatch.setattr(running, "_STORE_TRIES_S", (0.0, 0.0, 0.0))
    put, tries = storage.images.blobs.put, []

    def away(name: str, content: bytes) -> None:
        tries.append(name)
        if len(tries) in {1, 2, 4, 5, 6, 7}:
            raise StoreUnavailable("the disk is full")
        put(name, content)

    monkeypatch.setattr(storage.images.blobs, "put", away)

    async def scenario() -> list[Job]:
        async with runs(pool, storage) as runner:
            return [
                await end_of(runner, await runner.accept(job_spec(pool, prompt)))
                for prompt in ("a cat", "a dog", "a fox")
            ]

    waited, failed, passed = asyncio.run(scenario())
    assert (waited.status, passed.status) == (Status.SUCCEEDED, Status.SUCCEEDED)
    assert failed.failure
    assert (failed.failure.status, failed.failure.detail) == (503, "the disk is full")
    assert storage.images.blobs.get(f"{failed.spec.request.digest}.png") is None


def test_followers_of_a_job_are_released_when_the_service_closes(pool: ModelPool, backend: FakeBackend):
    """A job that was handed back ends for nobody here: its followers end, and who waits for it is told."""

    async def scenario() -> None:
        async with runs(pool, memory_storage(), shutdown_grace_s=0) as runner:
            backend.hold()
            jobs = [await runner.accept(job_spec(pool, f"cat {number}")) for number in range(4)]
            await asyncio.to_thread(backend.started.wait, WAIT_S)
            following = [asyncio.create_task(told(runner, job)) for job in jobs]
            waiting = [asyncio.create_task(end_of(runner, job)) for job in jobs]
            await asyncio.sleep(0)
        for events in await asyncio.gather(*following):
            assert all(event.job is None for event in events)
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, NotReady)
            assert "closing" in str(outcome)

    asyncio.run(scenario())


def test_a_job_cancelled_before_its_task_starts_releases_its_place(pool: ModelPool):
    """Else such jobs would take all places, one by one, and no other would ever run."""
    storage = memory_storage()
    generation_service = GenerationService(pool, storage.images, AllowAll())
    runner = JobRunner(generation_service, storage.database.jobs, 1, 100)

    async def scenario() -> Status:
        job = await runner.accept(job_spec(pool, "a dog"))
        await runner._claim_once()  # noqa: SLF001  now its task is made, and has not begun
        runner._running[job.id].cancel()  # noqa: SLF001
        storage.database.jobs.cancel(job.id, None, 0.0)
        runner.start()
        other = await runner.accept(job_spec(pool, "a cat"))
        status = (await end_of(runner, other)).status
        await runner.close(WAIT_S)
        return status

    assert asyncio.run(scenario()) is Status.SUCCEEDED


def test_an_unexpected_error_does_not_stop_claiming(pool: ModelPool, monkeypatch: pytest.MonkeyPatch):
    """A job that waits is made although looking for jobs failed before."""
    storage = memory_storage()
    claim = storage.database.jobs.claim
    failures = iter([ZeroDivisionError("our mistake")])

    def claim_after_a_failure(*args: Any) -> list[Job]:
        for failure in failures:
            raise failure
        return claim(*args)

    monkeypatch.setattr(storage.database.jobs, "claim", claim_after_a_failure)

    async def work() -> Job:
        async with runs(pool, storage) as runner:
            return await end_of(runner, await runner.accept(job_spec(pool, "a cat")))

    assert asyncio.run(work()).status is Status.SUCCEEDED


def test_a_cancelled_follower_stops_though_something_happens_at_that_moment():
    """Or a task that waits for a job's next event could not be ended for certain."""

    async def scenario(turns: int) -> bool:
        """Tell an event, let the event loop turn a number of times, and cancel; whether the follower was cancelled."""
        following = JobProgress()
        waiting = asyncio.create_task(following.changed(WAIT_S))
        for _ in range(3):  # until it waits
            await asyncio.sleep(0)
        following.end()
        for _ in range(turns):
            await asyncio.sleep(0)
        was_done = waiting.done()
        waiting.cancel()
        await asyncio.wait([waiting])
        return was_done or waiting.cancelled()

    assert all(asyncio.run(scenario(turns)) for turns in range(5))
