"""Generate several images. Each image is a job of the service, and the page follows all jobs at the same time."""

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
_NOT_SAVED = (
    "The image was generated, but the server of this page could not save it. Its disk may be full. Tell its operator,"
    " then generate the image again."
)
_INTERRUPTED = "The service closed before this image was done. After a restart, generate it again with the same seed."

SaveFile = Callable[[bytes, str], str]  # saves a file with a content and a name, and returns its path


@dataclass(frozen=True)
class GeneratedImage:
    """A generated image. `path` is its file, exactly as the service sent it.

    `digest` and `request` are the image's identity and settings in the API. `truncated` names the prompts that were too
    long for the model: "prompt", "negative_prompt".
    """

    path: str
    digest: str
    request: Mapping[str, Any]
    was_cached: bool
    is_blurred: bool
    truncated: Sequence[str]


@dataclass
class ImageJob:
    """A job for one image, as the last event described it.

    `aspect` is width divided by height. `queue_position` is the number of jobs ahead. `preview` is a `data:` URL.
    `error` is the message for the user if the job failed.
    """

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
        """Whether the job has failed, was cancelled, or its image is saved."""
        return self.status in {"failed", "cancelled"} or self.image is not None

    @property
    def progress(self) -> float:
        """The share of finished steps, from 0 to 1."""
        if self.image:
            return 1.0
        return self.step / self.steps if self.steps else 0.0


@dataclass
class ImageBatch:
    """The jobs of one click on Generate. After `is_cancelled` is set, no more jobs are created."""

    visitor: Visitor
    jobs: list[ImageJob] = field(default_factory=list)
    is_cancelled: bool = False

    @property
    def active_job_ids(self) -> list[str]:
        """IDs of the jobs to cancel. Ended jobs are not included, because the service would delete their images."""
        return [job.job_id for job in self.jobs if job.job_id and job.status in {"queued", "running"}]


async def generate(
    client: Client, bodies: Sequence[Mapping[str, Any]], batch: ImageBatch, save_file: SaveFile
) -> AsyncGenerator[ImageBatch]:
    """Generate an image for each body, and yield the batch whenever it has changed.

    Closing the generator cancels the jobs.

    Args:
        client: The client of the service.
        bodies: The request body of each job.
        batch: The batch to add the jobs to.
        save_file: Saves the file of an image.

    Raises:
        ServiceError: The service does not accept the first job. If it does not accept a later job, that job fails.
    """
    changed = asyncio.Event()
    followers: list[asyncio.Task[None]] = []
    try:
        for body in bodies:
            job = await _create_job(client, body, batch)
            batch.jobs.append(job)
            if job.job_id:
                followers.append(asyncio.create_task(_follow_job(client, job, batch.visitor, save_file, changed)))
            if batch.is_cancelled:  # the user has cancelled while this job was created
                client.cancel_later([job.job_id], batch.visitor)
                break
        while not all(job.has_ended for job in batch.jobs):
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
    """Create a job. If it is not accepted, returns a failed job, or raises ServiceError if it is the batch's first."""
    try:
        job = await client.create_job(body, batch.visitor)
    except ServiceError as error:
        if not batch.jobs:
            raise
        return ImageJob(status="failed", error=error.message)
    request = job["request"]
    aspect = request["width"] / request["height"]
    return ImageJob(job["id"], aspect=aspect, queue_position=job.get("queue_position"), steps=request["steps"])


async def _follow_job(
    client: Client, job: ImageJob, visitor: Visitor, save_file: SaveFile, changed: asyncio.Event
) -> None:
    """Update a job from its events until it has ended. Sets `changed` after each update."""
    try:
        async for event in client.events(job.job_id, visitor):
            await _update_job(client, job, event, visitor, save_file)
            changed.set()
        if not job.has_ended:
            job.status, job.error = "failed", _INTERRUPTED
    except ServiceError as error:
        job.status, job.error = "failed", error.message
    except OSError:
        job.status, job.error = "failed", _NOT_SAVED
    finally:
        changed.set()


async def _update_job(
    client: Client, job: ImageJob, event: Mapping[str, Any], visitor: Visitor, save_file: SaveFile
) -> None:
    """Update a job from an event. If the event has the image, fetches and saves its file.

    Raises ServiceError if the image cannot be fetched, OSError if it cannot be saved.
    """
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
    """Return the names of the prompts that were too long for the model, from the metadata of an image file."""
    maker = read_texts(png).texts.get(MAKER_KEY)
    names = json.loads(maker).get("cut_off", []) if maker else []
    return tuple(map(str, names))
