"""Image generation for all dialects: from parameters to results, and the headers of a result."""

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
from sd35.api.errors import RETRY_AFTER, ErrorFormat, Responses, openapi_headers
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
        description="A name that the client chooses for this call. If the client sends the same call again with this"
        " key, it gets the same images, or the same job.",
    ),
]

FILE_CONTENT: dict[str, Any] = {
    file_format.media_type: {"schema": {"type": "string", "format": "binary"}} for file_format in Format
}
IMAGE_HEADERS = {
    "X-Sd35-Seed": "The seed of the image, even if the service chose it.",
    "X-Sd35-Digest": "The identity of the image: the SHA-256 of its complete request.",
    "X-Sd35-Model": "The name of the model, percent-encoded if it is not ASCII.",
    "X-Sd35-Time-Ms": "Milliseconds from the acceptance to the storage of the image. 0 if it was read from the store.",
    "X-Sd35-Generated-Size": "The size at which the image was generated, such as `128x128`. Only if it was enlarged.",
    "X-Sd35-Truncated": "The prompt fields that are too long for the text encoder T5, such as `prompt`, separated by"
    " commas. Only if a prompt was truncated.",
    "X-Sd35-Cache": "`hit` for a cached image, `shared` for an image that was already being generated for another"
    " request, else `miss`.",
    "X-Sd35-Content-Filtered": "`true`. Only if the content filter blurred the image.",
    "X-Sd35-Stored": "`false`. Only if the image could not be stored.",
    "Server-Timing": "Milliseconds of each stage, from `queue` to `store`. Not for an image read from the store.",
    "X-Request-Id": "The id of the request in the server's log.",
}


def image_response(description: str, headers: Mapping[str, str], **content: Any) -> dict[str, Any]:  # noqa: ANN401
    """Describe an image response for OpenAPI. `content` adds descriptions of other bodies, by media type."""
    return {
        "description": description,
        "content": {**FILE_CONTENT, **content},
        "headers": openapi_headers(headers),
    }


def errors_of_generation(error_format: ErrorFormat) -> Responses:
    """Describe the errors of a route that generates images, for OpenAPI."""
    documented = error_format.documented
    return {
        403: documented("The request needs more pixels than the caller may generate in an hour."),
        409: documented("The idempotency key was used with another body, or its job was cancelled."),
        410: documented("An image of the earlier call with this idempotency key was deleted."),
        413: documented("The body is too large."),
        429: documented("The queue is full, or the caller's rate limit is reached.", **{"Retry-After": RETRY_AFTER}),
        500: documented("An image could not be generated. Other requests are not affected."),
        **error_format.unavailable,
    }


def job_specs_of(
    request: Request, body: BaseModel, params: Sequence[GenerationParams], idempotency_key: str | None
) -> list[JobSpec]:
    """Return a job spec for each image: its complete request, its owner and its idempotency key.

    `params` has one item for each image. An idempotency key can be used again only with an equal `body`.

    Raises NotReady like `service_of`, UnknownModel if the model is not served, or InvalidRequest if the model cannot
    generate an image with these parameters.
    """
    pool, owner = service_of(request).pool, caller_of(request).owner
    body_digest = "" if idempotency_key is None else _digest_of(body)
    requests = [pool.resolve(image_params) for image_params in params]
    keys = _idempotency_keys(idempotency_key, len(requests))
    return [
        JobSpec(image_request, owner, idempotency_key=key, body_digest=body_digest)
        for image_request, key in zip(requests, keys, strict=True)
    ]


@asynccontextmanager
async def running_batch(
    request: Request, job_specs: Sequence[JobSpec], on_step: OnStep | None = None, *, previews: bool = False
) -> AsyncIterator[Batch]:
    """Start to generate the images of a call. Leaving the block cancels images that are not done.

    Images with an idempotency key are generated as jobs: then the jobs continue, and only waiting for them ends. Also
    adds the digest and the model of the first image to later log lines of the request.

    For `on_step` and `previews`, see `Batch`. Raises TooMany or NotAllowed if the call exceeds the caller's limits.
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
    """Generate all images of a call, and return their results in order.

    If the client disconnects, cancels the images that are not jobs.

    Raises ClientDisconnect, and the errors of `running_batch` and `Batch.results`.
    """
    async with running_batch(request, job_specs) as batch:
        results = await wait_while_connected(request, batch.results())
    return [result for result in results if result]  # a skipped image is None, and nothing skips images of this call


async def wait_while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """Return the result of `work`. If the client disconnects first, cancel `work` and raise ClientDisconnect.

    Call this after the body of the request was read, because it consumes the messages after the body.
    """
    connection = asyncio.timeout(None)  # expires when the client disconnects, so that `work` needs no task of its own
    watcher = asyncio.ensure_future(_expire_on_disconnect(request, connection))
    try:
        async with connection:
            return await work
    except TimeoutError as error:
        if not connection.expired():  # `work` itself raised it
            raise
        raise ClientDisconnect from error
    finally:
        watcher.cancel()


async def _expire_on_disconnect(request: Request, connection: asyncio.Timeout) -> None:
    """Wait until the client disconnects, then let `connection` expire."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    connection.reschedule(asyncio.get_running_loop().time())


def preview_png(preview: Callable[[], Pixels], request: ImageRequest) -> bytes:
    """Return a preview as a PNG file of the image's size. Takes CPU time: call it in a thread."""
    return write_png(enlarge(preview(), request.width, request.height), {})


def image_headers(result: GenerationResult) -> dict[str, str]:
    """Return the headers of a response with one image, which `IMAGE_HEADERS` describes.

    Also adds the digest and the use of the cache to later log lines of the request.
    """
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
    if maker := result.maker:  # None for a blurred image
        if (maker.drawn_width, maker.drawn_height) != (request.width, request.height):
            headers["X-Sd35-Generated-Size"] = f"{maker.drawn_width}x{maker.drawn_height}"
        if maker.cut_off:
            headers["X-Sd35-Truncated"] = ", ".join(maker.cut_off)
    return headers


def _digest_of(body: BaseModel) -> str:
    """Return the SHA-256 of a body's JSON, in hexadecimal."""
    # Not of canonical JSON (RFC 8785), which cannot represent integers above 2^53.
    return hashlib.sha256(json.dumps(body.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def _idempotency_keys(key: str | None, count: int) -> list[str | None]:
    """Return an idempotency key for each image of a call with the idempotency key `key`.

    The first image gets `key` itself. Others get its hash and their index, which stays below 256 characters.
    """
    if key is None:
        return [None] * count
    key_digest = hashlib.sha256(key.encode()).hexdigest()
    return [key, *(f"{key_digest}/{index}" for index in range(1, count))]
