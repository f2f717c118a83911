"""What all dialects share between a body that was read and its answer: images made, and what is said of one."""

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any
from urllib.parse import quote

import structlog
from fastapi import Header, Request
from pydantic import BaseModel

from sd35.api.auth import caller_of, service_of
from sd35.api.refusals import ErrorFormat
from sd35.engine.generation import Progress
from sd35.generation.params import GenerationParams
from sd35.generation.service import GenerationResult
from sd35.images.formats import Format
from sd35.images.png import write_png
from sd35.images.resize import enlarge
from sd35.request import Request as Resolved
from sd35.service.batch import Batch, OnStep
from sd35.storage.jobs import JobSpec

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[!-~]{1,255}$",
        description="Your own name for this call: sent again, it is the same, and not made again.",
    ),
]

IMAGE_HEADERS = {
    "X-Sd35-Seed": "The seed, also where it was drawn by chance.",
    "X-Sd35-Digest": "The image's identity: SHA-256 of its canonical request.",
    "X-Sd35-Model": "The model, percent-encoded where its name is not ASCII.",
    "X-Sd35-Time-Ms": "Milliseconds from acceptance to the stored file; 0 where it was made before.",
    "X-Sd35-Drawn-Size": "Only where the image was drawn smaller and enlarged: the size drawn, as 128x128.",
    "X-Sd35-Truncated": "Only where the text encoders read a part of a prompt only: the fields, comma-separated.",
    "X-Sd35-Cache": "`hit` where it was made before, `shared` where it was made for others too, else `miss`.",
    "X-Sd35-Content-Filtered": "Only where the operator's filter blurred the image: `true`.",
    "X-Sd35-Stored": "Only where the image could not be stored: `false`.",
    "Server-Timing": "Milliseconds of each stage, `queue` to `store`, where it was made now.",
    "X-Request-Id": "The request's name in the server's log.",
}


def errors_of_generation(wording: ErrorFormat) -> dict[int | str, dict[str, Any]]:
    """How a call for images may end without any, in a dialect's words, for the OpenAPI page."""
    documented, later = wording.documented, {"Retry-After": "Seconds."}
    return {
        403: documented("The request takes more than an hour's share of pixels."),
        409: documented("The idempotency key came before with another body, or its job was cancelled."),
        410: documented("An image of the idempotency key was removed."),
        413: documented("The body is too large."),
        429: documented("Too many images wait, or the caller's own limit is reached.", **later),
        500: documented("An image could not be made; other requests are not affected."),
        503: documented("The service is loading or closing, or a store does not answer.", **later),
    }


@dataclass(frozen=True)
class Call:
    """What a request wants, free of its dialect: the images of one call, and how they are given.

    `body_digest` tells whether what comes under the same idempotency key is the same again; empty without one.
    """

    wanted: Sequence[GenerationParams]
    priority: int = 0
    format: Format = Format.PNG
    has_metadata: bool = True
    idempotency_key: str | None = None
    body_digest: str = ""


def digest_of(body: BaseModel, idempotency_key: str | None) -> str:
    """SHA-256 of what was asked for; empty without a key, for nothing is compared then.

    Not of canonical JSON, which has no integers as large as may come.
    """
    if idempotency_key is None:
        return ""
    return hashlib.sha256(json.dumps(body.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def job_specs_of(request: Request, call: Call) -> list[JobSpec]:
    """A call's images with nothing left open. Raises NotReady, UnknownModel, InvalidRequest."""
    pool, owner = service_of(request).pool, caller_of(request).owner
    resolved = [pool.resolve(wanted) for wanted in call.wanted]
    keys = _keys(call.idempotency_key, len(resolved))
    first = JobSpec(resolved[0], owner, call.priority, call.format, call.has_metadata, body_digest=call.body_digest)
    return [replace(first, request=each, idempotency_key=key) for each, key in zip(resolved, keys, strict=True)]


@asynccontextmanager
async def making(request: Request, call: Call, on_step: OnStep | None = None) -> AsyncIterator[Batch]:
    """The call's images in the making, until the block ends: what is not made then is not wanted any more.

    Raises what `orders_of` raises, and TooMany, NotAllowed by the caller's limits.
    """
    service, caller = service_of(request), caller_of(request)
    job_specs = job_specs_of(request, call)
    structlog.contextvars.bind_contextvars(digest=job_specs[0].request.digest, model=job_specs[0].request.model)
    with caller.making([job_spec.request for job_spec in job_specs]) as charge:
        batch = Batch(service, job_specs, caller.client, charge.at_once, on_step)
        try:
            yield batch
        finally:
            batch.interrupt()


def preview_png(progress: Progress, request: Resolved) -> bytes:
    """What an image will be, a PNG file of its size. Keeps a core busy."""
    return write_png(enlarge(progress.preview(), request.width, request.height), {})


def image_headers(outcome: GenerationResult) -> dict[str, str]:
    """What an answer that is one image says of it; see `PICTURE_HEADERS`."""
    request, stages = outcome.request, outcome.stages
    took_s = stages[-1].ended_s - stages[0].began_s if stages else 0
    structlog.contextvars.bind_contextvars(digest=request.digest, cache=outcome.cache)
    headers = {
        "X-Sd35-Seed": str(request.seed),
        "X-Sd35-Digest": request.digest,
        "X-Sd35-Model": quote(request.model),
        "X-Sd35-Time-Ms": f"{1000 * took_s:.0f}",
        "X-Sd35-Cache": outcome.cache,
    }
    if stages:
        headers["Server-Timing"] = ", ".join(f"{stage.name};dur={1000 * stage.took_s:.1f}" for stage in stages)
    if outcome.is_blurred:
        headers["X-Sd35-Content-Filtered"] = "true"
    if outcome.unstored:
        headers["X-Sd35-Stored"] = "false"
    if maker := outcome.maker:
        if (maker.drawn_width, maker.drawn_height) != (request.width, request.height):
            headers["X-Sd35-Drawn-Size"] = f"{maker.drawn_width}x{maker.drawn_height}"
        if maker.cut_off:
            headers["X-Sd35-Truncated"] = ", ".join(maker.cut_off)
    return headers


def _keys(key: str | None, count: int) -> list[str | None]:
    """A name for each image of a call that has one: no other call's, and no longer than one may be."""
    if key is None:
        return [None] * count
    rest = hashlib.sha256(key.encode()).hexdigest()
    return [key, *(f"{rest}/{place}" for place in range(1, count))]
