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
from sd35.api.generate import preview_png, running_batch, wait_while_connected
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
    """Return a response that streams the events of one image.

    Errors before the first event are raised, so that they set the status of the response. A later error is an event.
    """
    events = _generate_events(request, body, job_specs)
    first = await wait_while_connected(request, anext(events))

    async def all_events() -> AsyncIterator[bytes]:
        """Yield the first event and all later ones. An error becomes the last event."""
        try:
            yield first
            async for event in events:
                yield event
        except Sd35Error as error:
            _, content = ERROR_FORMAT.render(report_error(request, error), "")
            yield _format_event(_ERROR, content)
        finally:
            await events.aclose()

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would buffer the events
    return StreamingResponse(all_events(), media_type="text/event-stream", headers=headers)


async def _generate_events(
    request: Request, body: GenerationBody, job_specs: Sequence[JobSpec]
) -> AsyncGenerator[bytes, None]:
    """Generate the image. Yield an event for each preview, and an event with the image."""
    service, updates = service_of(request), asyncio.Queue[ImageProgress | None]()  # None is the end of the progress
    image_request = job_specs[0].request
    fields = common_fields(body, image_request)
    preview_steps = _preview_steps(body.partial_images or 0, image_request.steps)
    preview_index = 0

    def on_step(_: int, progress: ImageProgress) -> None:
        updates.put_nowait(progress)

    async with running_batch(request, job_specs, on_step, previews=bool(preview_steps)) as batch:
        results = asyncio.ensure_future(batch.results())
        results.add_done_callback(lambda _: updates.put_nowait(None))
        while progress := await updates.get():
            due_steps = {step for step in preview_steps if step <= progress.step < image_request.steps}
            if due_steps and progress.preview:
                preview_steps -= due_steps  # a restarted generation repeats its steps, but must not repeat previews
                content = await asyncio.to_thread(_encode_preview, progress.preview, image_request, body)
                preview = {"b64_json": content, "partial_image_index": preview_index}
                yield _format_event(_PARTIAL, {**fields, **preview, "created_at": int(time.time())})
                preview_index += 1
        (result,) = await results
    assert result, "nothing can skip the image of a stream"
    image = await file_item(request, body, result)
    usage = usage_of(service, [result])
    usage_field = {"usage": usage.model_dump()} if usage else {}
    content_fields = {**image.model_dump(exclude_none=True), **usage_field, "model": result.request.model}
    yield _format_event(_COMPLETED, {**fields, **content_fields, "created_at": int(time.time())})


def _preview_steps(partial_images: int, steps: int) -> set[int]:
    """Return the steps after which a preview is sent: evenly spaced, without the last step.

    With few steps, some previews share a step and are sent once.
    """
    preview_steps = {math.ceil(steps * number / (partial_images + 1)) for number in range(1, partial_images + 1)}
    return preview_steps - {steps}


def _encode_preview(preview: Callable[[], Pixels], request: ImageRequest, body: GenerationBody) -> str:
    """Return a preview in the requested format, in base64. Takes CPU time: call it in a thread."""
    png = preview_png(preview, request)
    return base64.b64encode(encode(png, body.format, has_metadata=False, quality=body.compression)).decode()


def _format_event(kind: str, data: dict[str, Any]) -> bytes:
    """Return a server-sent event of this type and with this JSON data."""
    return format_sse_event(event=kind, data_str=json.dumps({"type": kind, **data}))
