"""Routes of jobs, which generate images asynchronously: `/v1/jobs`."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import structlog
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

from sd35.api.auth import caller_of, service_of
from sd35.api.body import openapi_body, read_json
from sd35.api.errors import PROBLEM, RETRY_AFTER, ApiError, Problem, Responses, documented
from sd35.api.generate import IdempotencyKey, job_specs_of
from sd35.api.images import file_parameters
from sd35.api.txt2img import BODY_ERRORS, EXAMPLES, Txt2Img
from sd35.errors import Sd35Error
from sd35.images.formats import Format
from sd35.images.png import write_png
from sd35.jobs.progress import Event
from sd35.service.service import Service
from sd35.storage.jobs import Job, JobSpec, JobStore, Status
from sd35.storage.links import PATH
from sd35.telemetry.tracing import note
from sd35.threads import STORES

_MAX_PAGE_JOBS = 200


class JobBody(Txt2Img):
    """The body of `POST /v1/jobs`: all fields of `POST /v1/txt2img`, and a webhook."""

    webhook: str | None = Field(
        None,
        max_length=2000,
        description="an https URL: when the job has ended, the service sends the job to this URL in a signed request."
        " Omitted or null: no webhook.",
    )


class ImageView(BaseModel):
    """The image of a job."""

    digest: str = Field(description="The identity of the image, as in `/v1/artifacts/{digest}`.")
    url: str = Field(description="The path of the file, with the format and the metadata that the job requested.")
    cached: bool = Field(description="Whether another request for the same image generated it.")
    content_filtered: bool = Field(description="Whether the content filter blurred the image.")


class JobView(BaseModel):
    """The current state of a job."""

    id: str = Field(description="The id of the job, as in `/v1/jobs/{job_id}`.")
    status: Status = Field(description="The status of the job. `succeeded`, `failed` and `cancelled` are final.")
    created_at: datetime = Field(description="When the service accepted the job.")
    started_at: datetime | None = Field(None, description="When the generation of the image began.")
    ended_at: datetime | None = Field(None, description="When the job ended.")
    queue_position: int | None = Field(None, description="The number of jobs ahead of a queued job, else null.")
    request: dict[str, Any] = Field(description="The complete request: the job's fields, defaults, and the seed.")
    image: ImageView | None = Field(None, description="The image of a job that succeeded, else null.")
    error: Problem | None = Field(None, description="Why the job failed, else null.")


class JobPage(BaseModel):
    """A page of jobs."""

    object: Literal["list"] = Field(default="list", description="Always `list`.")
    data: list[JobView] = Field(description="The jobs, newest first.")
    next_cursor: str | None = Field(None, description="The `cursor` of the next page; null on the last page.")


def job_body(store: JobStore, job_id: str) -> bytes | None:
    """Return the body of a webhook request, or None if the job was deleted."""
    job = store.get(job_id, None)  # None: of any owner
    return job_view(job).model_dump_json(exclude_none=True).encode() if job else None


def job_view(job: Job, queue_position: int | None = None) -> JobView:
    """Return a job in the form that the API and webhooks send. `queue_position` is the number of jobs ahead of it."""
    image = error = None
    if result := job.result:
        image = ImageView(
            digest=result.digest,
            url=_file_url(job.spec, result.digest),
            cached=result.was_cached,
            content_filtered=result.is_blurred,
        )
    if failure := job.failure:
        error = Problem.of(failure.status, failure.detail)
    return JobView(
        id=job.id,
        status=job.status,
        created_at=datetime.fromtimestamp(job.created_s, UTC),
        started_at=_utc_time(job.started_s),
        ended_at=_utc_time(job.ended_s),
        queue_position=queue_position,
        request=json.loads(job.spec.request.canonical),
        image=image,
        error=error,
    )


router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
JobId = Annotated[str, Path(description="The id of the job.")]
_NOT_FOUND: Responses = {404: documented("The job does not exist, or another key owns it."), **PROBLEM.unavailable}


async def visible_job(request: Request, job_id: JobId) -> Job:
    """Return the job that the path names. Use as a dependency of routes.

    Raises ApiError with status 404 if the job does not exist, or if the caller may not see it.
    """
    job = await STORES.run(service_of(request).jobs.store.get, job_id, caller_of(request).visible_to)
    if job is None:
        raise ApiError.from_field(404, "job_id", job_id, "the id of one of your jobs, as in GET /v1/jobs")
    return job


VisibleJob = Annotated[Job, Depends(visible_job)]


@router.post(
    "",
    status_code=202,
    summary="Create a job",
    openapi_extra=openapi_body(JobBody, examples=EXAMPLES),
    responses={
        **BODY_ERRORS,
        403: documented("The image has more pixels than the caller may generate in an hour."),
        409: documented("The idempotency key was used with another body."),
        413: documented("The body is too large."),
        429: documented("The queue is full, or the caller's rate limit is reached.", **{"Retry-After": RETRY_AFTER}),
        **PROBLEM.unavailable,
    },
)
async def create(request: Request, response: Response, idempotency_key: IdempotencyKey = None) -> JobView:
    """Accept a job and return it at once. The job survives a lost connection.

    It also survives restarts of the service, unless the setting `database` is `memory`.
    """
    service, caller = service_of(request), caller_of(request)
    body = await read_json(request, JobBody)
    service.webhooks.check(body.webhook)
    (job_spec,) = job_specs_of(request, body, [body.to_params()], idempotency_key)
    job_spec = replace(
        job_spec,
        priority=body.priority,
        format=body.format or Format.PNG,
        has_metadata=body.metadata,
        webhook=body.webhook,
    )
    charge = caller.charge_job(job_spec.request)
    try:
        job = await service.jobs.accept(job_spec)
    except Sd35Error:
        charge.refund()
        raise
    structlog.contextvars.bind_contextvars(job=job.id)
    note(job=job.id)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return (await _job_views([job], service))[0]


@router.get("", summary="List jobs", responses=PROBLEM.unavailable)
async def page(
    request: Request,
    status: Annotated[list[Status] | None, Query(description="List only jobs with one of these statuses.")] = None,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE_JOBS, description="The maximum number of jobs in the page.")] = 50,
    cursor: Annotated[int | None, Query(ge=1, lt=2**53, description="The `next_cursor` of the previous page.")] = None,
) -> JobPage:
    """Return the jobs of the calling key. An administrator's key gets all jobs."""
    service = service_of(request)
    visible_to = caller_of(request).visible_to
    # One job more than the page holds: if it exists, there is a next page.
    jobs = await STORES.run(service.jobs.store.page, visible_to, status or [], cursor, limit + 1)
    next_cursor = str(jobs[limit - 1].number) if len(jobs) > limit else None
    return JobPage(data=await _job_views(jobs[:limit], service), next_cursor=next_cursor)


@router.get("/{job_id}", summary="Get a job", responses=_NOT_FOUND)  # noqa: FAST003  `visible_job` takes it
async def get(request: Request, job: VisibleJob) -> JobView:
    """Return a job with its queue position if it is queued, and with the URL of its image if it succeeded."""
    return (await _job_views([job], service_of(request)))[0]


@router.delete("/{job_id}", summary="Cancel or delete a job", responses=_NOT_FOUND)  # noqa: FAST003  see above
async def delete(request: Request, job: VisibleJob) -> JobView:
    """Cancel a job that has not ended: a running job stops before its next step.

    Delete a job that has ended, with its prompt and its image. An image that other keys own stays stored for them.
    """
    service, visible_to = service_of(request), caller_of(request).visible_to
    if job.status.is_end:
        await service.forget(job, visible_to)
        return job_view(job)
    cancelled = await service.jobs.cancel(job.id, visible_to)
    return job_view(cancelled or job)  # None if another request has deleted the job meanwhile


@router.get(
    "/{job_id}/events",  # noqa: FAST003  see above
    summary="Follow a job",
    response_class=EventSourceResponse,
    responses=_NOT_FOUND,
)
async def events(
    request: Request,
    job: VisibleJob,
    preview: Annotated[bool, Query(description="Whether to send small previews, at most four each second.")] = False,  # noqa: FBT002
    last_event_id: Annotated[
        int | None,
        Header(ge=0, lt=2**31, description="The id of the last event that the client received. Later events follow."),
    ] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Stream the job's progress as server-sent events. The data of an event is a JSON object.

    An event `queued` has `queue_position`. An event `running` has `step`, `steps` and `seconds_left` (null if unknown).
    With the parameter `preview`, it can also have `preview`: a data URL of a PNG file. The data of an event
    `succeeded`, `failed` or `cancelled` is the job, and the event ends the stream.
    """
    after = -1 if last_event_id is None else last_event_id  # -1 is before the first event
    async for event in service_of(request).jobs.events(job, after, previews=preview):
        # In a thread: rendering a preview takes CPU time, and the content filter that inspects it may block.
        yield await asyncio.to_thread(wire_event, event, has_preview=preview)


def wire_event(event: Event, *, has_preview: bool) -> ServerSentEvent:
    """Return a job's event in the form that the API sends. `has_preview` adds the preview of the event, if any."""
    data: dict[str, Any] = {"status": event.status}
    if event.job:
        data = job_view(event.job).model_dump(mode="json", exclude_none=True)
    elif event.status is Status.QUEUED:
        data["queue_position"] = event.position
    else:
        left_s = None if event.remaining_s is None else round(event.remaining_s, 1)
        data |= {"step": event.done, "steps": event.steps, "seconds_left": left_s}
        if has_preview and event.preview:
            png = write_png(event.preview(), {})
            data["preview"] = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return ServerSentEvent(data=data, event=event.status, id=str(event.number))


def _file_url(spec: JobSpec, digest: str) -> str:
    """Return the path and query of the image of a job, in the format that the job requested."""
    file_format = None if spec.format is Format.PNG else spec.format  # PNG is the default of the route
    parameters = urlencode(file_parameters(file_format, has_metadata=spec.has_metadata))
    return f"{PATH}/{digest}?{parameters}".removesuffix("?")


async def _job_views(jobs: Sequence[Job], service: Service) -> list[JobView]:
    """Return jobs in the form that the API sends, with the queue positions of the queued jobs."""
    positions = await service.places(jobs)
    return [job_view(job, positions.get(job.id)) for job in jobs]


def _utc_time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
