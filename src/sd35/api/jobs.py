"""`/v1/jobs`: images that are asked for now and fetched later. What is asked for is the body of `/v1/txt2img`."""

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
from sd35.api.body import read_json
from sd35.api.generate import Call, IdempotencyKey, digest_of, job_specs_of
from sd35.api.problems import Problem, documented
from sd35.api.refusals import ApiError, FieldError, shown
from sd35.api.txt2img import Txt2Img, body_of
from sd35.errors import Sd35Error
from sd35.images.formats import Format
from sd35.images.png import write_png
from sd35.jobs.progress import Event
from sd35.service.service import Service
from sd35.storage.jobs import Job, JobStore, Status
from sd35.telemetry.tracing import note
from sd35.threads import STORES

_MOST = 200  # jobs of a page


class JobBody(Txt2Img):
    """The body of `/v1/txt2img`, and whom to tell."""

    webhook: str | None = Field(
        None,
        max_length=2000,
        description="an https address: where the job is sent, signed, when it has ended. Left out or null: nowhere.",
    )


class ImageView(BaseModel):
    """An image that a job made."""

    digest: str = Field(description="The image's identity, and its name at /v1/artifacts/.")
    url: str
    cached: bool = Field(description="Whether it was made before, or for someone else who asked for the very same.")
    content_filtered: bool = Field(description="Whether the operator's filter blurred it.")


class JobView(BaseModel):
    """A job as it is now."""

    id: str
    status: Status
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    place: int | None = Field(None, description="Jobs that go before it; of a queued one only.")
    request: dict[str, Any] = Field(description="What is made, with nothing left open: seed, sizes, model.")
    image: ImageView | None = None
    error: Problem | None = None


class JobPage(BaseModel):
    """Jobs, the newest first."""

    object: Literal["list"] = "list"
    data: list[JobView]
    next_cursor: str | None = Field(None, description="For `cursor`, where there are more.")


def job_body(store: JobStore, job_id: str) -> bytes | None:
    """What a webhook tells of a job; None where it was forgotten."""
    job = store.get(job_id, None)
    return job_view(job).model_dump_json(exclude_none=True).encode() if job else None


def job_view(job: Job, place: int | None = None) -> JobView:
    """A job as the API and its webhook show it."""
    image = error = None
    if made := job.result:
        address = f"/v1/artifacts/{made.digest}"
        if job.spec.format is not Format.PNG:
            address += f"?output_format={job.spec.format}"
        image = ImageView(digest=made.digest, url=address, cached=made.was_cached, content_filtered=made.is_blurred)
    if failure := job.failure:
        error = Problem.of(failure.status, failure.detail)
    return JobView(
        id=job.id,
        status=job.status,
        created_at=_time(job.created_s),
        started_at=None if job.started_s is None else _time(job.started_s),
        ended_at=None if job.ended_s is None else _time(job.ended_s),
        place=place,
        request=json.loads(job.spec.request.canonical),
        image=image,
        error=error,
    )


router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
_NOT_NOW: dict[int | str, dict[str, Any]] = {
    503: documented("Loading or closing, or the job store does not answer.", **{"Retry-After": "Seconds."})
}
_NOT_THERE: dict[int | str, dict[str, Any]] = {
    404: documented("There is no such job, or it is another key's."),
    **_NOT_NOW,
}


async def found_job(request: Request, job_id: str) -> Job:
    """The job of the address, if whoever asks may see it."""
    job = await STORES.run(service_of(request).jobs.store.get, job_id, caller_of(request).visible_to)
    if job is None:
        error = FieldError(field="job_id", got=shown(job_id), allowed="the id of a job of yours")
        raise ApiError.of_fields(404, [error])
    return job


FoundJob = Annotated[Job, Depends(found_job)]


@router.post(
    "",
    status_code=202,
    summary="Ask for an image to be made",
    openapi_extra=body_of(JobBody),
    responses={
        400: documented("The body is not JSON."),
        404: documented("No model of that name is served; the problem lists those that are."),
        409: documented("The idempotency key came before with another body."),
        413: documented("The body is too large."),
        415: documented("The body is not `application/json`."),
        422: documented("A field is unknown, missing, of the wrong type or out of range; each is named."),
        429: documented("As many jobs wait as may.", **{"Retry-After": "Seconds."}),
        **_NOT_NOW,
    },
)
async def create(request: Request, response: Response, idempotency_key: IdempotencyKey = None) -> JobView:
    """Answers at once. The job survives the connection and restarts; it ends with an image, an error, or cancelled."""
    service, caller = service_of(request), caller_of(request)
    body = await read_json(request, JobBody)
    service.webhooks.check(body.webhook)
    wanted = body.format or Format.PNG
    call = Call(
        [body.to_wanted()], body.priority, wanted, body.metadata, idempotency_key, digest_of(body, idempotency_key)
    )
    job_spec = replace(job_specs_of(request, call)[0], webhook=body.webhook)
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


@router.get("", summary="Which jobs are there?", responses=_NOT_NOW)
async def page(
    request: Request,
    status: Annotated[list[Status] | None, Query(description="Only these.")] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST)] = 50,
    cursor: Annotated[int | None, Query(ge=1, lt=2**53, description="The last page's `next_cursor`.")] = None,
) -> JobPage:
    """Those of the key that asks; an administrator sees all."""
    service = service_of(request)
    visible_to = caller_of(request).visible_to
    jobs = await STORES.run(service.jobs.store.page, visible_to, status or [], cursor, limit + 1)
    more = str(jobs[limit - 1].number) if len(jobs) > limit else None
    return JobPage(data=await _views(jobs[:limit], service), next_cursor=more)


@router.get("/{job_id}", summary="How far is a job?", responses=_NOT_THERE)  # noqa: FAST003  `found_job` takes it
async def get(request: Request, job: FoundJob) -> JobView:
    """With its place while it is queued, and its image's address when it succeeded."""
    (view,) = await _views([job], service_of(request))
    return view


@router.delete("/{job_id}", summary="Cancel a job, or forget it", responses=_NOT_THERE)  # noqa: FAST003  see above
async def delete(request: Request, job: FoundJob) -> JobView:
    """One that has not ended is cancelled, within a step. One that has ended is forgotten: prompt, image and all."""
    service, visible_to = service_of(request), caller_of(request).visible_to
    if job.status.is_end:
        await service.forget(job, visible_to)
        return job_view(job)
    return job_view(await service.jobs.cancel(job.id, visible_to) or job)


@router.get(
    "/{job_id}/events",  # noqa: FAST003  see above
    summary="Follow a job",
    response_class=EventSourceResponse,
    responses=_NOT_THERE,
)
async def events(
    request: Request,
    job: FoundJob,
    preview: Annotated[bool, Query(description="With a small image of what it will be, after each step.")] = False,  # noqa: FBT002
    last_event_id: Annotated[int | None, Header(ge=0, lt=2**31, description="Of the last event that arrived.")] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: `queued`; `running`, with steps and seconds left; `succeeded`, `failed` or `cancelled`."""
    after = -1 if last_event_id is None else last_event_id
    async for event in service_of(request).jobs.events(job, after, previews=preview):
        yield await asyncio.to_thread(sent, event, has_preview=preview)  # a filter may look at a preview


def sent(event: Event, *, has_preview: bool) -> ServerSentEvent:
    """An event as it goes over the wire."""
    data: dict[str, Any] = {"status": event.status}
    if event.job:
        data = job_view(event.job).model_dump(mode="json", exclude_none=True)
    elif event.status is Status.QUEUED:
        data["place"] = event.position
    else:
        left_s = None if event.remaining_s is None else round(event.remaining_s, 1)
        data |= {"step": event.done, "steps": event.steps, "seconds_left": left_s}
        if has_preview and event.preview:
            png = write_png(event.preview(), {})
            data["preview"] = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return ServerSentEvent(data=data, event=event.status, id=str(event.number))


async def _views(jobs: Sequence[Job], service: Service) -> list[JobView]:
    places = await service.places(jobs)
    return [job_view(job, places.get(job.id)) for job in jobs]


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
