"""The event stream of OpenAI's images API: previews of one image, and the image."""

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from sd35.api.auth import service_of
from sd35.api.dialects.openai.body import GenerationBody
from sd35.api.dialects.openai.errors import ERROR_FORMAT
from sd35.api.dialects.openai.responses import common_fields, file_item, usage_of
from sd35.api.errors import report_error
from sd35.api.generate import preview_png, running_batch, unless_disconnected
from sd35.engine.base import Pixels
from sd35.errors import Sd35Error
from sd35.generation.service import ImageProgress
from sd35.images.encode import encode
from sd35.request import Request as ImageRequest
from sd35.storage.jobs import JobSpec

_PARTIAL, _COMPLETED, _ERROR = "image_generation.partial_image", "image_generation.completed", "error"
EVENT_SCHEMA = {  # for `itemSchema` of OpenAPI 3.2, because `schema` would describe the stream as a whole
    "type": "object",
    "properties": {
        "event": {"type": "string", "enum": [_PARTIAL, _COMPLETED, _ERROR]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}


async def stream_response(request: Request, body: GenerationBody, job_specs: Sequence[JobSpec]) -> Response:
    """Stream the events of one image. Raises errors that come before the first event, so that they set the status."""
    events = _events(request, body, job_specs)

    first = await unless_disconnected(request, anext(events))

    async def all_events() -> AsyncIterator[bytes]:
        try:
            yield first
            async for event in events:
                yield event
        except Sd35Error as error:
            _, content = ERROR_FORMAT.render(report_error(request, error), "")
            yield _event(_ERROR, content)
        finally:
            await events.aclose()

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would buffer the events
    return StreamingResponse(all_events(), media_type="text/event-stream", headers=headers)


async def _events(request: Request, body: GenerationBody, job_specs: Sequence[JobSpec]) -> AsyncGenerator[bytes, None]:
    service, updates = service_of(request), asyncio.Queue[ImageProgress | None]()
    image_request = job_specs[0].request
    fields = common_fields(body, image_request)
    preview_steps = _preview_steps(body.partial_images or 0, image_request.steps)
    index = 0
    async with running_batch(
        request, job_specs, lambda _, progress: updates.put_nowait(progress), previews=bool(preview_steps)
    ) as batch:
        results = asyncio.ensure_future(batch.results())
        results.add_done_callback(lambda _: updates.put_nowait(None))
        while progress := await updates.get():
            due = {step for step in preview_steps if step <= progress.step < image_request.steps}
            if due and progress.preview:
                preview_steps -= due  # a restarted generation repeats its steps, but must not repeat previews
                content = await asyncio.to_thread(_preview, progress.preview, image_request, body)
                preview = {"b64_json": content, "partial_image_index": index}
                yield _event(_PARTIAL, {**fields, **preview, "created_at": int(time.time())})
                index += 1
        (result,) = await results
    assert result, "nothing can skip the image of a stream"
    image = await file_item(request, body, result)
    usage = usage_of(service, [result])
    usage_field = {"usage": usage.model_dump()} if usage else {}
    content_fields = {**image.model_dump(exclude_none=True), **usage_field, "model": result.request.model}
    yield _event(_COMPLETED, {**fields, **content_fields, "created_at": int(time.time())})


def _preview_steps(partial_images: int, steps: int) -> set[int]:
    """Return the steps after which a preview is sent: evenly spaced, without the last step."""
    indices = {math.ceil(steps * (each + 1) / (partial_images + 1)) for each in range(partial_images)}
    return indices - {steps}


def _preview(preview: Callable[[], Pixels], request: ImageRequest, body: GenerationBody) -> str:
    """Return a preview in the requested format, in base64. Takes CPU time: call it in a thread."""
    png = preview_png(preview, request)
    return base64.b64encode(encode(png, body.format, has_metadata=False, quality=body.compression)).decode()


def _event(kind: str, data: dict[str, Any]) -> bytes:
    return format_sse_event(event=kind, data_str=json.dumps({"type": kind, **data}))
