"""AUTOMATIC1111's `POST /sdapi/v1/txt2img`, and routes that show, interrupt or skip images of a running call."""

import asyncio
import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response

from sd35.api.auth import caller_of, service_of
from sd35.api.body import openapi_body, read_object, validate
from sd35.api.dialects.automatic1111.body import StrictTxt2Img, Txt2Img
from sd35.api.dialects.automatic1111.errors import BODY_ERRORS, ERROR_FORMAT, MODEL_ERRORS
from sd35.api.dialects.automatic1111.options import served_name, sessions_of
from sd35.api.dialects.automatic1111.responses import ImagesResponse, ProgressResponse, State
from sd35.api.dialects.automatic1111.settings import read_settings
from sd35.api.errors import echo, openapi_headers
from sd35.api.generate import (
    IdempotencyKey,
    errors_of_generation,
    job_specs_of,
    preview_png,
    running_batch,
    wait_while_connected,
)
from sd35.api.sessions import RunningCall
from sd35.generation.service import GenerationResult
from sd35.images.infotext import HASH_CHARS, KEYWORD, SAMPLER, SCHEDULE, extras, infotext
from sd35.images.png import with_text, without_text
from sd35.images.record import own_version
from sd35.request import Request as ImageRequest

IGNORED = "X-Sd35-Ignored"
_MAX_NAMED_FIELDS = 10  # ignored fields that a response names; it gives the number of the others
_IGNORED_HEADER = openapi_headers({IGNORED: "The fields that were ignored because AUTOMATIC1111 does not have them."})
router = APIRouter(prefix="/sdapi/v1")


@router.post(
    "/txt2img",
    summary="Generate images from text (AUTOMATIC1111)",
    response_model=ImagesResponse,
    openapi_extra=openapi_body(Txt2Img),
    responses={200: {"headers": _IGNORED_HEADER}, **errors_of_generation(ERROR_FORMAT), **BODY_ERRORS, **MODEL_ERRORS},
)
async def txt2img(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Return the images when all of them are done or skipped.

    If the client disconnects, the images are cancelled, unless the call has an idempotency key.
    """
    content = await read_object(request)
    service, client = service_of(request), caller_of(request).client
    is_strict = service.policy.aliases.is_strict
    body = validate(content, StrictTxt2Img if is_strict else Txt2Img)
    settings = read_settings(body.override_settings or {})
    # Only the checkpoint: other settings do not change the image, so they must not matter for the idempotency key.
    body.override_settings = {"sd_model_checkpoint": settings.checkpoint} if settings.checkpoint else {}
    body.check(is_strict=is_strict)
    model = served_name(settings.checkpoint, service) or sessions_of(request).chosen_model(client)
    job_specs = job_specs_of(request, body, body.to_params(model), idempotency_key)
    job_specs = [replace(job_spec, has_metadata=settings.has_metadata) for job_spec in job_specs]
    first = job_specs[0].request
    async with running_batch(request, job_specs, previews=True) as batch:
        call = RunningCall(batch, body.force_task_id or f"txt2img-{first.digest[:8]}")
        with sessions_of(request).running(client, call):
            results = await wait_while_connected(request, batch.results())
    done = [result for result in results if result]  # without skipped and interrupted images
    has_metadata = service.policy.has_metadata and settings.has_metadata
    images = []
    if body.send_images is not False:
        images = await asyncio.to_thread(_encode_images, done, has_metadata=has_metadata)
    info = _info_of(body, [result.request for result in done] or [first], call)
    for result in done:
        info["infotexts"].append(infotext(result.request, result.maker))
        info["extra_generation_params"] |= extras(result.request, result.maker)
    parameters = body.model_dump(mode="json") | {"seed": info["seed"]}
    answer = json.dumps({"images": images, "parameters": parameters, "info": json.dumps(info)})
    return Response(answer, headers=_ignored_header(content), media_type="application/json")


@router.get("/progress", summary="Get the progress of the client's call", responses={422: BODY_ERRORS[422]})
async def progress(
    request: Request,
    skip_current_image: Annotated[bool, Query(description="Whether to leave out the preview.")] = False,  # noqa: FBT002
) -> ProgressResponse:
    """Return the progress of the client's oldest running call. If no call is running, all numbers are 0."""
    call = _running_call(request)
    if call is None:
        return ProgressResponse()
    batch, latest, done_share = call.batch, call.current_progress, call.done_share
    last_index = len(batch.job_specs) - 1
    current_request = batch.job_specs[min(batch.current, last_index)].request  # `current` is past the last at the end
    was_skipped = any(task.cancelled() for task in batch.tasks) and not batch.was_interrupted
    image = None
    if latest and latest.preview and not skip_current_image:
        image = base64.b64encode(await asyncio.to_thread(preview_png, latest.preview, current_request)).decode()
    return ProgressResponse(
        progress=max(0.01, done_share),  # above 0 while the call runs, as in AUTOMATIC1111
        eta_relative=call.took_s * (1 - done_share) / done_share if done_share else 0.0,
        state=State(
            skipped=was_skipped,
            interrupted=batch.was_interrupted,
            job=call.name,
            job_count=len(batch.job_specs),
            job_timestamp=_timestamp(call),
            job_no=batch.current,
            sampling_step=latest.step if latest else 0,
            sampling_steps=current_request.steps,
        ),
        current_image=image,
        current_task=call.name,
    )


@router.post("/interrupt", summary="Interrupt the client's call")
async def interrupt(request: Request) -> dict[str, str]:
    """Cancel the remaining images of the call that `progress` shows. The call returns the images that are done."""
    if call := _running_call(request):
        call.batch.interrupt()
    return {}


@router.post("/skip", summary="Skip the current image of the client's call")
async def skip(request: Request) -> None:
    """Cancel the current image of the call that `progress` shows. The call continues with the next image."""
    if call := _running_call(request):
        call.batch.skip()


def _running_call(request: Request) -> RunningCall | None:
    """Return the client's oldest running call, or None."""
    return sessions_of(request).oldest_call(caller_of(request).client)


def _ignored_header(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the header that names the fields that AUTOMATIC1111 does not have, or no header if there are none."""
    names = [name for name in content if name not in Txt2Img.model_fields]
    if not names:
        return {}
    named = [quote(str(echo(name)), errors="replace") for name in names[:_MAX_NAMED_FIELDS]]
    more = [f"and {len(names) - _MAX_NAMED_FIELDS} more"] if len(names) > _MAX_NAMED_FIELDS else []
    return {IGNORED: ", ".join([*named, *more])}


def _encode_images(results: Sequence[GenerationResult], *, has_metadata: bool) -> list[str]:
    """Return the PNG files in base64. Takes CPU time: call it in a thread.

    AUTOMATIC1111's text is added to the metadata of a file. Without `has_metadata`, all metadata are removed.
    """
    files = []
    for result in results:
        if not has_metadata:
            png = without_text(result.png)
        elif result.is_blurred:  # such a file has no record of its generation, and gets no text either
            png = result.png
        else:
            png = with_text(result.png, KEYWORD, infotext(result.request, result.maker))
        files.append(base64.b64encode(png).decode())
    return files


def _info_of(body: Txt2Img, requests: Sequence[ImageRequest], call: RunningCall) -> dict[str, Any]:
    """Return the settings of the images, named as in AUTOMATIC1111. Lists have one item for each image.

    The caller fills `infotexts` and completes `extra_generation_params`, because these depend on the results.
    """
    first, subseed = requests[0], -1 if body.subseed is None else body.subseed
    return {
        "prompt": first.prompt,
        "all_prompts": [request.prompt for request in requests],
        "negative_prompt": first.negative_prompt,
        "all_negative_prompts": [request.negative_prompt for request in requests],
        "seed": first.seed,
        "all_seeds": [request.seed for request in requests],
        "subseed": subseed,
        "all_subseeds": [subseed] * len(requests),
        "subseed_strength": 0,
        "width": first.width,
        "height": first.height,
        "sampler_name": SAMPLER,
        "cfg_scale": first.guidance_scale,
        "steps": first.steps,
        "batch_size": body.batch_size or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": first.model,
        "sd_model_hash": first.revision[:HASH_CHARS],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": None,
        "extra_generation_params": {"Schedule type": SCHEDULE},
        "index_of_first_image": 0,
        "infotexts": [],
        "styles": [],
        "job_timestamp": _timestamp(call),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": f"sd35-fp8-mirror {own_version()}",
    }


def _timestamp(call: RunningCall) -> str:
    """Return the time at which a call began, in AUTOMATIC1111's format and UTC."""
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(call.began_s))
