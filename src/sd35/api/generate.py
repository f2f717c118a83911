"""Image generation as all dialects share it: from parameters to results, and the headers of a result."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import structlog
from fastapi import Header, Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from sd35.api.auth import caller_of, service_of
from sd35.api.errors import ErrorFormat, Responses, openapi_headers
from sd35.engine.base import Pixels
from sd35.generation.params import GenerationParams
from sd35.generation.service import GenerationResult
from sd35.images.formats import Format
from sd35.images.png import write_png
from sd35.images.resize import enlarge
from sd35.request import Request as ImageRequest
from sd35.service.batch import Batch, OnStep
from sd35.storage.jobs import JobSpec

Result = TypeVar("Result")
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[!-~]{1,255}$",
        description="The client's own name for this call. Sent again, it returns the same images.",
    ),
]

FILE_CONTENT: dict[str, Any] = {each.media_type: {"schema": {"type": "string", "format": "binary"}} for each in Format}
IMAGE_HEADERS = {
    "X-Sd35-Seed": "The seed, also if it was random.",
    "X-Sd35-Digest": "The image's identity: SHA-256 of its canonical request.",
    "X-Sd35-Model": "The model, percent-encoded if its name is not ASCII.",
    "X-Sd35-Time-Ms": "Milliseconds from acceptance to the stored file. 0 for a cached image.",
    "X-Sd35-Generated-Size": "The size before the image was enlarged, as 128x128. Only if it was enlarged.",
    "X-Sd35-Truncated": "The prompts that exceed what the text encoders read, comma-separated. Only if there are any.",
    "X-Sd35-Cache": "`hit` for a cached image, `shared` for one generated for several requests at once, else `miss`.",
    "X-Sd35-Content-Filtered": "`true`. Only if the content filter blurred the image.",
    "X-Sd35-Stored": "`false`. Only if the image could not be stored.",
    "Server-Timing": "Milliseconds of each stage, `queue` to `store`. Only if the image was generated now.",
    "X-Request-Id": "The request's id in the server's log.",
}


def image_response(description: str, headers: Mapping[str, str], **content: Any) -> dict[str, Any]:  # noqa: ANN401
    """Describe a response that is an image, or `content` by media type, for OpenAPI."""
    return {
        "description": description,
        "content": {**FILE_CONTENT, **content},
        "headers": openapi_headers(headers),
    }


def errors_of_generation(error_format: ErrorFormat) -> Responses:
    """Describe the errors of a route that generates images, for OpenAPI."""
    documented = error_format.documented
    return {
        403: documented("The request exceeds the pixels of an hour."),
        409: documented("The idempotency key was used with another body, or its job was cancelled."),
        410: documented("An image of the idempotency key was removed."),
        413: documented("The body is too large."),
        429: documented("The queue is full, or the caller's rate limit is reached.", **{"Retry-After": "Seconds."}),
        500: documented("An image could not be generated. Other requests are not affected."),
        **error_format.unavailable,
    }


def job_specs_of(
    request: Request, body: BaseModel, params: Sequence[GenerationParams], idempotency_key: str | None
) -> list[JobSpec]:
    """Resolve parameters into one job spec for each image. `body` is what the idempotency key stands for.

    Raises NotReady, UnknownModel, InvalidRequest.
    """
    pool, owner = service_of(request).pool, caller_of(request).owner
    body_digest = "" if idempotency_key is None else _digest_of(body)
    requests = [pool.resolve(each) for each in params]
    keys = _idempotency_keys(idempotency_key, len(requests))
    return [
        JobSpec(image_request, owner, idempotency_key=key, body_digest=body_digest)
        for image_request, key in zip(requests, keys, strict=True)
    ]


@asynccontextmanager
async def running_batch(
    request: Request, job_specs: Sequence[JobSpec], on_step: OnStep | None = None, *, previews: bool = False
) -> AsyncIterator[Batch]:
    """Generate the images of a call until the block ends, which cancels those that are not done.

    Raises TooMany, NotAllowed by the caller's limits.
    """
    service, caller = service_of(request), caller_of(request)
    first = job_specs[0].request
    structlog.contextvars.bind_contextvars(digest=first.digest, model=first.model)
    with caller.generating([job_spec.request for job_spec in job_specs]) as charge:
        batch = Batch(service, job_specs, caller.client, charge.max_concurrent, on_step, previews=previews)
        try:
            yield batch
        finally:
            batch.interrupt()


async def generate(request: Request, job_specs: Sequence[JobSpec]) -> list[GenerationResult]:
    """Generate all images of a call. They are cancelled if the client disconnects.

    Raises ClientDisconnect, and what `running_batch` and `Batch.outcomes` raise.
    """
    async with running_batch(request, job_specs) as batch:
        results = await unless_disconnected(request, batch.outcomes())
    return [result for result in results if result]


async def unless_disconnected(request: Request, work: Awaitable[Result]) -> Result:
    """Await `work`. If the client disconnects first, cancel it and raise ClientDisconnect.

    The body must have been read.
    """
    connection = asyncio.timeout(None)  # expires when the client disconnects; so `work` needs no task of its own
    watcher = asyncio.ensure_future(_expire_on_disconnect(request, connection))
    try:
        async with connection:
            return await work
    except TimeoutError as error:
        if not connection.expired():
            raise
        raise ClientDisconnect from error
    finally:
        watcher.cancel()


async def _expire_on_disconnect(request: Request, connection: asyncio.Timeout) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    connection.reschedule(asyncio.get_running_loop().time())


def preview_png(preview: Callable[[], Pixels], request: ImageRequest) -> bytes:
    """Return a preview as a PNG file of the image's size. Blocks."""
    return write_png(enlarge(preview(), request.width, request.height), {})


def image_headers(result: GenerationResult) -> dict[str, str]:
    """Return the headers of a response that is one image. See `IMAGE_HEADERS`."""
    request, stages = result.request, result.stages
    took_s = stages[-1].ended_s - stages[0].began_s if stages else 0
    structlog.contextvars.bind_contextvars(digest=request.digest, cache=result.cache)
    headers = {
        "X-Sd35-Seed": str(request.seed),
        "X-Sd35-Digest": request.digest,
        "X-Sd35-Model": quote(request.model),
        "X-Sd35-Time-Ms": f"{1000 * took_s:.0f}",
        "X-Sd35-Cache": result.cache,
    }
    if stages:
        headers["Server-Timing"] = ", ".join(f"{stage.name};dur={1000 * stage.took_s:.1f}" for stage in stages)
    if result.is_blurred:
        headers["X-Sd35-Content-Filtered"] = "true"
    if result.unstored:
        headers["X-Sd35-Stored"] = "false"
    if maker := result.maker:
        if (maker.drawn_width, maker.drawn_height) != (request.width, request.height):
            headers["X-Sd35-Generated-Size"] = f"{maker.drawn_width}x{maker.drawn_height}"
        if maker.cut_off:
            headers["X-Sd35-Truncated"] = ", ".join(maker.cut_off)
    return headers


def _digest_of(body: BaseModel) -> str:
    """Return the SHA-256 of a body. Not of canonical JSON, which lacks integers as large as some bodies have."""
    return hashlib.sha256(json.dumps(body.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def _idempotency_keys(key: str | None, count: int) -> list[str | None]:
    """Return a key for each image of a call: unique to the call, and no longer than a key may be."""
    if key is None:
        return [None] * count
    rest = hashlib.sha256(key.encode()).hexdigest()
    return [key, *(f"{rest}/{index}" for index in range(1, count))]
