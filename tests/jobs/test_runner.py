"""JobRunner: jobs, their events, shutdown, and failures of the store."""

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
async def running_jobs(
    pool: ModelPool, storage: Storage, max_queued: int = 100, shutdown_grace_s: float = WAIT_S
) -> AsyncIterator[JobRunner]:
    """Run a job runner. To the job store, each one is another process."""
    generation_service = GenerationService(pool, storage.images, AllowAll())
    runner = JobRunner(generation_service, storage.database.jobs, 2, max_queued)
    runner.start()
    try:
        yield runner
    finally:
        await runner.close(shutdown_grace_s)


def job_spec(pool: ModelPool, prompt: str, **more: Any) -> JobSpec:
    """Return a job for an image with a fixed seed."""
    return JobSpec(pool.resolve(GenerationParams(prompt, seed=1)), **more)


async def events_of(runner: JobRunner, job: Job, after: int = -1) -> list[Event]:
    """Return all events of a job with numbers above `after`."""
    async with asyncio.timeout(WAIT_S):
        return [event async for event in runner.events(job, after)]


async def end_of(runner: JobRunner, job: Job) -> Job:
    """Wait for a job to end and return it."""
    async with asyncio.timeout(WAIT_S):
        return await runner.wait(job)


def test_a_job_ends_with_its_image(pool: ModelPool):
    """The image is stored, and belongs to the owner of the job."""
    storage = memory_storage()

    async def scenario() -> Job:
        async with running_jobs(pool, storage) as runner:
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


def test_a_failed_job_has_a_reason_and_does_not_affect_others(pool: ModelPool, backend: FakeBackend):
    """It also has the HTTP status that a synchronous call would have had."""
    backend.faults = {"a dog": Fault.STEP_ERROR, "a tree": Fault.STEP_NAN}

    async def scenario() -> list[Job]:
        async with running_jobs(pool, memory_storage()) as runner:
            jobs = [await runner.accept(job_spec(pool, prompt)) for prompt in ("a dog", "a cat", "a tree")]
            return [await end_of(runner, job) for job in jobs]

    dog, cat, tree = asyncio.run(scenario())
    assert cat.status is Status.SUCCEEDED
    assert dog.failure
    assert (dog.failure.status, "the runtime's own words" in dog.failure.detail) == (500, True)
    assert tree.failure
    assert "finite" in tree.failure.detail


def test_events_are_numbered_and_can_be_resumed(pool: ModelPool, backend: FakeBackend):
    """A client that resumes gets only the events after the given number."""

    async def scenario() -> None:
        async with running_jobs(pool, memory_storage()) as runner:
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
            assert [event.number for event in await events_of(runner, await end_of(runner, job), 3)] == [END]
            assert await events_of(runner, await end_of(runner, job), END) == []

    asyncio.run(scenario())


def test_cancelled_jobs_stop(pool: ModelPool, backend: FakeBackend):
    """A queued job never running_jobs. A running job stops before its next step."""

    async def scenario() -> None:
        async with running_jobs(pool, memory_storage()) as runner:
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
    """It is neither lost nor failed, and each image is stored once."""
    storage = memory_storage()

    async def before(pool: ModelPool) -> list[Job]:
        async with running_jobs(pool, storage, shutdown_grace_s=0) as runner:
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
        async with running_jobs(pool, storage) as runner:
            return [await end_of(runner, job) for job in jobs]

    with fake_pool(tmp_path / "after", FakeBackend()) as pool:
        ended = asyncio.run(after(pool))
    assert [job.status for job in ended] == [Status.SUCCEEDED] * 4
    assert len({job.result.digest for job in ended if job.result}) == 4


def test_a_job_of_a_removed_profile_runs_with_the_current_one(pool: ModelPool):
    """The digest of the image is that of the renewed request."""
    storage = memory_storage()
    request = pool.resolve(GenerationParams("a cat", seed=1))

    async def scenario() -> Job:
        async with running_jobs(pool, storage) as runner:
            return await end_of(runner, await runner.accept(JobSpec(replace(request, profile="other/bfloat16"))))

    job = asyncio.run(scenario())
    assert job.result
    assert job.result.digest == request.digest


def test_an_idempotency_key_stands_for_one_job(pool: ModelPool):
    """Another body is refused. The same key of another owner is another job."""

    async def scenario() -> None:
        async with running_jobs(pool, memory_storage()) as runner:
            named = job_spec(pool, "a cat", owner="me", idempotency_key="mine", body_digest="1")
            jobs = await asyncio.gather(*(runner.accept(named) for _ in range(10)))
            assert len({job.id for job in jobs}) == 1
            with pytest.raises(IdempotencyConflict, match="'mine' was used before with another body"):
                await runner.accept(job_spec(pool, "a dog", owner="me", idempotency_key="mine", body_digest="2"))
            other = await runner.accept(job_spec(pool, "a dog", owner="you", idempotency_key="mine", body_digest="2"))
            assert other.id != jobs[0].id
            for job in (jobs[0], other):
                assert (await end_of(runner, job)).status is Status.SUCCEEDED

    asyncio.run(scenario())


def test_jobs_beyond_the_queue_limit_are_refused(pool: ModelPool, backend: FakeBackend):
    """The jobs in the queue still run."""

    async def scenario() -> None:
        async with running_jobs(pool, memory_storage(), max_queued=2) as runner:
            backend.hold()
            jobs = [await runner.accept(job_spec(pool, f"cat {number}")) for number in range(2)]
            await asyncio.to_thread(backend.started.wait, WAIT_S)
            jobs += [await runner.accept(job_spec(pool, f"a cat {number}")) for number in range(2)]
            with pytest.raises(Overloaded, match=r"the job queue is full \(maximum length: 2\)"):
                await runner.accept(job_spec(pool, "a dog"))
            backend.release.set()
            assert {(await end_of(runner, job)).status for job in jobs} == {Status.SUCCEEDED}

    asyncio.run(scenario())


def test_an_unavailable_store_delays_a_job_and_then_fails_it(pool: ModelPool, monkeypatch: pytest.MonkeyPatch):
    """Storing the image is retried for a while. The next job succeeds."""
    storage = memory_storage()
    monkeypatch.setattr(running, "_STORE_RETRY_WAITS_S", (0.0, 0.0, 0.0))
    put, tries = storage.images.blobs.put, []

    def fail_sometimes(name: str, content: bytes) -> None:
        tries.append(name)
        if len(tries) in {1, 2, 4, 5, 6, 7}:
            raise StoreUnavailable("the disk is full")
        put(name, content)

    monkeypatch.setattr(storage.images.blobs, "put", fail_sometimes)

    async def scenario() -> list[Job]:
        async with running_jobs(pool, storage) as runner:
            return [
                await end_of(runner, await runner.accept(job_spec(pool, prompt)))
                for prompt in ("a cat", "a dog", "a fox")
            ]

    delayed, failed, next_one = asyncio.run(scenario())
    assert (delayed.status, next_one.status) == (Status.SUCCEEDED, Status.SUCCEEDED)
    assert failed.failure
    assert (failed.failure.status, failed.failure.detail) == (503, "the disk is full")
    assert storage.images.blobs.get(f"{failed.spec.request.digest}.png") is None


def test_listeners_of_a_job_are_released_when_the_service_closes(pool: ModelPool, backend: FakeBackend):
    """Event streams end, and `wait` raises an error."""

    async def scenario() -> None:
        async with running_jobs(pool, memory_storage(), shutdown_grace_s=0) as runner:
            backend.hold()
            jobs = [await runner.accept(job_spec(pool, f"cat {number}")) for number in range(4)]
            await asyncio.to_thread(backend.started.wait, WAIT_S)
            listening = [asyncio.create_task(events_of(runner, job)) for job in jobs]
            waiting = [asyncio.create_task(end_of(runner, job)) for job in jobs]
            await asyncio.sleep(0)
        for events in await asyncio.gather(*listening):
            assert all(event.job is None for event in events)
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, NotReady)
            assert "closing" in str(outcome)

    asyncio.run(scenario())


def test_a_job_cancelled_before_its_task_starts_frees_its_slot(pool: ModelPool):
    """Otherwise, such jobs would occupy all slots, and no other job could run."""
    storage = memory_storage()
    generation_service = GenerationService(pool, storage.images, AllowAll())
    runner = JobRunner(generation_service, storage.database.jobs, 1, 100)

    async def scenario() -> Status:
        job = await runner.accept(job_spec(pool, "a dog"))
        await runner._claim_once()  # noqa: SLF001  now its task is created, but has not started
        runner._running[job.id].cancel()  # noqa: SLF001
        storage.database.jobs.cancel(job.id, None, 0.0)
        runner.start()
        other = await runner.accept(job_spec(pool, "a cat"))
        status = (await end_of(runner, other)).status
        await runner.close(WAIT_S)
        return status

    assert asyncio.run(scenario()) is Status.SUCCEEDED


def test_a_process_whose_engine_has_failed_leaves_jobs_to_another(
    pool: ModelPool, backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It does not keep the job that it has claimed last, and claims no more."""
    storage = memory_storage()
    monkeypatch.setattr(backend, "encode_text", lambda _: (_ for _ in ()).throw(SystemExit("from a library")))

    async def scenario(healthy: ModelPool) -> list[Status]:
        async with running_jobs(pool, storage) as broken:
            jobs = [await broken.accept(job_spec(pool, f"cat {number}")) for number in range(5)]
            first = await end_of(broken, jobs[0])
            while broken._running:  # noqa: SLF001
                await asyncio.wait(list(broken._running.values()))  # noqa: SLF001
            await broken._claim_once()  # noqa: SLF001
            assert storage.database.jobs.counts()[Status.RUNNING] == 0
            async with running_jobs(healthy, storage) as other:
                return [first.status, (await end_of(other, jobs[-1])).status]

    with fake_pool(tmp_path / "healthy", FakeBackend()) as healthy:
        assert asyncio.run(scenario(healthy)) == [Status.FAILED, Status.SUCCEEDED]


def test_an_unexpected_error_does_not_stop_claiming(pool: ModelPool, monkeypatch: pytest.MonkeyPatch):
    storage = memory_storage()
    claim = storage.database.jobs.claim
    failures = iter([ZeroDivisionError("a bug")])

    def claim_after_a_failure(*args: Any) -> list[Job]:
        for failure in failures:
            raise failure
        return claim(*args)

    monkeypatch.setattr(storage.database.jobs, "claim", claim_after_a_failure)

    async def scenario() -> Job:
        async with running_jobs(pool, storage) as runner:
            return await end_of(runner, await runner.accept(job_spec(pool, "a cat")))

    assert asyncio.run(scenario()).status is Status.SUCCEEDED


def test_a_listener_cancelled_at_the_moment_of_an_event_stops():
    """Otherwise, a task that waits for an event could survive its cancellation."""

    async def scenario(turns: int) -> bool:
        """Publish an event, run the event loop `turns` times, cancel. Returns whether the listener stopped."""
        progress = JobProgress()
        waiting = asyncio.create_task(progress.changed(WAIT_S))
        for _ in range(3):  # until it waits
            await asyncio.sleep(0)
        progress.end()
        for _ in range(turns):
            await asyncio.sleep(0)
        was_done = waiting.done()
        waiting.cancel()
        await asyncio.wait([waiting])
        return was_done or waiting.cancelled()

    assert all(asyncio.run(scenario(turns)) for turns in range(5))
