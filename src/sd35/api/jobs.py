"""`/v1/jobs`: images that are generated asynchronously. A job's body is that of `/v1/txt2img`."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

from sd35.api.auth import caller_of, service_of
from sd35.api.body import openapi_body, read_json
from sd35.api.errors import PROBLEM, ApiError, Problem, Responses, documented
from sd35.api.generate import IdempotencyKey, job_specs_of
from sd35.api.txt2img import BODY_ERRORS, EXAMPLES, Txt2Img
from sd35.errors import Sd35Error
from sd35.images.formats import Format
from sd35.images.png import write_png
from sd35.jobs.progress import Event
from sd35.service.service import Service
from sd35.storage.jobs import Job, JobStore, Status
from sd35.telemetry.tracing import note
from sd35.threads import STORES

_MAX_PAGE_JOBS = 200


class JobBody(Txt2Img):
    """The body of `/v1/txt2img` with a webhook."""

    webhook: str | None = Field(
        None,
        max_length=2000,
        description="an https address: receives the job, signed, when it has ended. Omitted or null: no webhook.",
    )


class ImageView(BaseModel):
    """The image of a job."""

    digest: str = Field(description="The image's identity, and its name at /v1/artifacts/.")
    url: str
    cached: bool = Field(description="Whether an earlier or a concurrent request for the same image generated it.")
    content_filtered: bool = Field(description="Whether the content filter blurred it.")


class JobView(BaseModel):
    """The current state of a job."""

    id: str
    status: Status
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    queue_position: int | None = Field(None, description="The number of jobs before it. Only of a queued job.")
    request: dict[str, Any] = Field(description="The complete request: with seed, size and model.")
    image: ImageView | None = None
    error: Problem | None = None


class JobPage(BaseModel):
    """A page of jobs, the newest first."""

    object: Literal["list"] = "list"
    data: list[JobView]
    next_cursor: str | None = Field(None, description="The `cursor` of the next page, if there is one.")


def job_body(store: JobStore, job_id: str) -> bytes | None:
    """Return the body of a job's webhook, or None if the job was deleted."""
    job = store.get(job_id, None)
    return job_view(job).model_dump_json(exclude_none=True).encode() if job else None


def job_view(job: Job, queue_position: int | None = None) -> JobView:
    """Return a job as the API and webhooks show it."""
    image = error = None
    if result := job.result:
        url = f"/v1/artifacts/{result.digest}"
        if job.spec.format is not Format.PNG:
            url += f"?output_format={job.spec.format}"
        image = ImageView(digest=result.digest, url=url, cached=result.was_cached, content_filtered=result.is_blurred)
    if failure := job.failure:
        error = Problem.of(failure.status, failure.detail)
    return JobView(
        id=job.id,
        status=job.status,
        created_at=datetime.fromtimestamp(job.created_s, UTC),
        started_at=_time(job.started_s),
        ended_at=_time(job.ended_s),
        queue_position=queue_position,
        request=json.loads(job.spec.request.canonical),
        image=image,
        error=error,
    )


router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
_NOT_FOUND: Responses = {404: documented("There is no such job, or another key owns it."), **PROBLEM.unavailable}


async def visible_job(request: Request, job_id: str) -> Job:
    """Return the job of the path, if the caller may see it. A dependency of routes. Raises ApiError (404)."""
    job = await STORES.run(service_of(request).jobs.store.get, job_id, caller_of(request).visible_to)
    if job is None:
        raise ApiError.from_field(404, "job_id", job_id, "the id of a job of yours")
    return job


VisibleJob = Annotated[Job, Depends(visible_job)]


@router.post(
    "",
    status_code=202,
    summary="Create a job",
    openapi_extra=openapi_body(JobBody, examples=EXAMPLES),
    responses={
        **BODY_ERRORS,
        409: documented("The idempotency key was used with another body."),
        413: documented("The body is too large."),
        429: documented("The queue is full.", **{"Retry-After": "Seconds."}),
        **PROBLEM.unavailable,
    },
)
async def create(request: Request, response: Response, idempotency_key: IdempotencyKey = None) -> JobView:
    """Accept a job. It survives the connection and restarts, and ends as succeeded, failed or cancelled."""
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
    (view,) = await _views([job], service)
    return view


@router.get("", summary="List jobs", responses=PROBLEM.unavailable)
async def page(
    request: Request,
    status: Annotated[list[Status] | None, Query(description="List only jobs of these statuses.")] = None,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE_JOBS)] = 50,
    cursor: Annotated[int | None, Query(ge=1, lt=2**53, description="`next_cursor` of the previous page.")] = None,
) -> JobPage:
    """Return the jobs of the calling key, or all jobs for an administrator."""
    service = service_of(request)
    visible_to = caller_of(request).visible_to
    jobs = await STORES.run(service.jobs.store.page, visible_to, status or [], cursor, limit + 1)
    next_cursor = str(jobs[limit - 1].number) if len(jobs) > limit else None
    return JobPage(data=await _views(jobs[:limit], service), next_cursor=next_cursor)


@router.get("/{job_id}", summary="Get a job", responses=_NOT_FOUND)  # noqa: FAST003  `visible_job` takes it
async def get(request: Request, job: VisibleJob) -> JobView:
    """Return a job, with its queue position if it is queued, and its image's URL if it succeeded."""
    (view,) = await _views([job], service_of(request))
    return view


@router.delete("/{job_id}", summary="Cancel or delete a job", responses=_NOT_FOUND)  # noqa: FAST003  see above
async def delete(request: Request, job: VisibleJob) -> JobView:
    """Cancel a job that has not ended, within one step. Delete one that has ended, with its prompt and image."""
    service, visible_to = service_of(request), caller_of(request).visible_to
    if job.status.is_end:
        await service.forget(job, visible_to)
        return job_view(job)
    return job_view(await service.jobs.cancel(job.id, visible_to) or job)


@router.get(
    "/{job_id}/events",  # noqa: FAST003  see above
    summary="Follow a job",
    response_class=EventSourceResponse,
    responses=_NOT_FOUND,
)
async def events(
    request: Request,
    job: VisibleJob,
    preview: Annotated[bool, Query(description="Whether to send small previews, at most four a second.")] = False,  # noqa: FBT002
    last_event_id: Annotated[
        int | None, Header(ge=0, lt=2**31, description="The id of the last event received.")
    ] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: `queued`; `running`, with steps and seconds left; `succeeded`, `failed` or `cancelled`."""
    after = -1 if last_event_id is None else last_event_id
    async for event in service_of(request).jobs.events(job, after, previews=preview):
        yield await asyncio.to_thread(wire_event, event, has_preview=preview)  # a content filter may inspect a preview


def wire_event(event: Event, *, has_preview: bool) -> ServerSentEvent:
    """Return an event in its wire format."""
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


async def _views(jobs: Sequence[Job], service: Service) -> list[JobView]:
    positions = await service.places(jobs)
    return [job_view(job, positions.get(job.id)) for job in jobs]


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
