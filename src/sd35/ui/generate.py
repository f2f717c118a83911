"""Generation of several images. Each has its own job, and their progress is followed concurrently."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.concurrency import run_in_threadpool

from sd35.images.record import MAKER_KEY
from sd35.images.texts import read_texts
from sd35.ui.client import Client, ServiceError, Visitor, problem_message

_MIN_INTERVAL_S = 0.1  # minimum time between two updates of the page, because steps may be faster
_NOT_SAVED = "The image was generated, but the server of this page has no room for it."
_INTERRUPTED = "The service closed before this image was done. It continues when it is restarted."

SaveFile = Callable[[bytes, str], str]


@dataclass(frozen=True)
class GeneratedImage:
    """A generated image. `path` is its file, exactly as the service sent it."""

    path: str
    digest: str
    request: Mapping[str, Any]
    was_cached: bool
    is_blurred: bool
    truncated: Sequence[str]


@dataclass
class ImageJob:
    """A job for one image. `error` is the message for the user if the job failed."""

    job_id: str = ""
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"] = "queued"
    aspect: float = 1.0
    queue_position: int | None = None
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    preview: str | None = None
    image: GeneratedImage | None = None
    error: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether the job has failed, was cancelled, or has a saved image."""
        return self.status in {"failed", "cancelled"} or self.image is not None

    @property
    def progress(self) -> float:
        """The share of finished steps, from 0 to 1."""
        return 1.0 if self.image else self.step / self.steps if self.steps else 0.0


@dataclass
class ImageBatch:
    """The jobs of one click on Generate. If `is_cancelled`, no more jobs are created."""

    visitor: Visitor
    jobs: list[ImageJob] = field(default_factory=list)
    is_cancelled: bool = False

    @property
    def active_job_ids(self) -> list[str]:
        """IDs of the jobs to cancel. Ended jobs are not included, because the service would delete their images."""
        return [each.job_id for each in self.jobs if each.job_id and each.status in {"queued", "running"}]


async def generate(
    client: Client, bodies: Sequence[Mapping[str, Any]], batch: ImageBatch, save_file: SaveFile
) -> AsyncGenerator[ImageBatch]:
    """Generate an image for each body, and yield the batch whenever it has changed.

    Closing the generator cancels the jobs.

    Args:
        client: The client of the service.
        bodies: The request body of each job.
        batch: The batch to add the jobs to.
        save_file: Takes the content and the name of a file, saves it, and returns its path.

    Raises:
        ServiceError: The service does not accept the first job.
    """
    changed = asyncio.Event()
    followers: list[asyncio.Task[None]] = []
    try:
        for body in bodies:
            job = await _create_job(client, body, batch)
            batch.jobs.append(job)
            if job.job_id:
                followers.append(asyncio.create_task(_follow(client, job, batch.visitor, save_file, changed)))
            if batch.is_cancelled:  # the user has cancelled while this job was created
                client.cancel_later([job.job_id], batch.visitor)
                break
        while not all(each.has_ended for each in batch.jobs):
            yield batch
            await changed.wait()
            await asyncio.sleep(_MIN_INTERVAL_S)
            changed.clear()
        yield batch
    finally:
        for task in followers:
            task.cancel()
        if batch.active_job_ids:
            client.cancel_later(batch.active_job_ids, batch.visitor)


async def _create_job(client: Client, body: Mapping[str, Any], batch: ImageBatch) -> ImageJob:
    try:
        job = await client.create_job(body, batch.visitor)
    except ServiceError as error:
        if not batch.jobs:
            raise
        return ImageJob(status="failed", error=error.message)
    request = job["request"]
    aspect = request["width"] / request["height"]
    return ImageJob(job["id"], aspect=aspect, queue_position=job.get("queue_position"), steps=request["steps"])


async def _follow(client: Client, job: ImageJob, visitor: Visitor, save_file: SaveFile, changed: asyncio.Event) -> None:
    """Update a job from its events until it has ended."""
    try:
        async for event in client.events(job.job_id, visitor):
            await _update(client, job, event, visitor, save_file)
            changed.set()
        if not job.has_ended:
            job.status, job.error = "failed", _INTERRUPTED
    except ServiceError as error:
        job.status, job.error = "failed", error.message
    except OSError:
        job.status, job.error = "failed", _NOT_SAVED
    finally:
        changed.set()


async def _update(
    client: Client, job: ImageJob, event: Mapping[str, Any], visitor: Visitor, save_file: SaveFile
) -> None:
    job.status = event["status"]
    if image := event.get("image"):
        png = await client.image(image["digest"], visitor)
        request = event["request"]
        name = f"sd35-{request['seed']}-{image['digest'][:8]}.png"
        path = await run_in_threadpool(save_file, png, name)
        truncated = await run_in_threadpool(_truncated_prompts, png)
        job.image = GeneratedImage(
            path, image["digest"], request, image["cached"], image["content_filtered"], truncated
        )
    elif error := event.get("error"):
        job.error = problem_message(error)
    elif not job.has_ended:
        job.queue_position = event.get("queue_position")
        job.step, job.steps = event.get("step", job.step), event.get("steps", job.steps)
        job.seconds_left = event.get("seconds_left")
        job.preview = event.get("preview", job.preview)


def _truncated_prompts(png: bytes) -> Sequence[str]:
    """Return the names of the truncated prompts in a file's record. Empty if the file has no record."""
    maker = read_texts(png).texts.get(MAKER_KEY)
    names = json.loads(maker).get("cut_off", []) if maker else []
    return tuple(map(str, names))
