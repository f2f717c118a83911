"""AUTOMATIC1111's API, `/sdapi/v1/...`: bodies to what is wanted, images to their answer, and what its clients ask.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/api, and its clients, see tests/api/dialects/clients.json.
"""

import asyncio
import base64
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request, Response

from sd35.api.auth import caller_of, service_of
from sd35.api.body import described, parse_json, read_object, read_unparsed_json, type_may_be_missing, validate
from sd35.api.dialects.automatic1111_errors import BODY, MODEL, WORDING
from sd35.api.dialects.automatic1111_lookups import router as lookups
from sd35.api.dialects.automatic1111_options import router as options
from sd35.api.dialects.automatic1111_options import served_name, sessions_of
from sd35.api.dialects.automatic1111_settings import read_settings
from sd35.api.dialects.automatic1111_shapes import (
    MAX_IMAGES,
    Image,
    ImagesResponse,
    PngInfo,
    ProgressNow,
    State,
    StrictTxt2Img,
    Txt2Img,
)
from sd35.api.dialects.dialect import Dialect
from sd35.api.disconnect import CLIENT_CLOSED_REQUEST, unless_gone
from sd35.api.generate import Call, IdempotencyKey, digest_of, errors_of_generation, making, preview_png
from sd35.api.refusals import ApiError, FieldError, shown
from sd35.api.sessions import Running
from sd35.body_limits import TooManyBytes
from sd35.errors import InvalidRequest, NotReplayable
from sd35.generation.params import GenerationParams, series
from sd35.generation.service import GenerationResult
from sd35.images.infotext import HASH_CHARS, KEYWORD, SAMPLER, SCHEDULE, extras, infotext, parse_infotext, read_infotext
from sd35.images.png import with_text, without_text
from sd35.images.record import own_version
from sd35.request import SEED
from sd35.request import Request as Resolved
from sd35.threads import PARSING

_MOST_IMAGE_BYTES = 30 * 1024 * 1024  # of a body with an image in base64
# Bodies with images are received before their turn, so that slow senders do not keep others out.
MOST_HELD_BYTES = 512 * 1024 * 1024
MOST_HELD_BYTES_EACH = 128 * 1024 * 1024  # of one caller
MOST_DESCRIBED = 4  # images whose metadata is read at once; each takes four times its size in memory
_WHITESPACE = b" \t\r\n"  # `base64` and MIME break lines, and a form may indent them
_SAMPLERS, _SCHEDULES = {"euler", "k_euler"}, {"automatic"}
IGNORED = "X-Sd35-Ignored"
_NAMED_FIELDS = 10  # ignored ones that an answer names; more are counted
_IGNORED_HEADER = {
    IGNORED: {"description": "Fields that were ignored: AUTOMATIC1111 has none such.", "schema": {"type": "string"}}
}
_TOO_MANY_IMAGES = WORDING.documented(
    "The caller's own limit is reached, or too many images are being received.", **{"Retry-After": "Seconds."}
)
router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111's API"], dependencies=[Depends(type_may_be_missing)])


@router.post(
    "/txt2img",
    summary="Make images from text, as AUTOMATIC1111's API does",
    response_model=ImagesResponse,
    openapi_extra=described(Txt2Img),
    responses={200: {"headers": _IGNORED_HEADER}, **errors_of_generation(WORDING), **BODY, **MODEL},
)
async def txt2img(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Answers when all images are made but those that were left out. A client that hangs up cancels them."""
    content = await read_object(request)
    service, client = service_of(request), caller_of(request).client
    is_strict = service.policy.aliases.is_strict
    body = validate(content, StrictTxt2Img if is_strict else Txt2Img)
    settings = read_settings(body.override_settings or {})
    body.override_settings = {"sd_model_checkpoint": settings.checkpoint} if settings.checkpoint else {}
    _check(body, is_strict=is_strict)
    model = served_name(settings.checkpoint, service) or sessions_of(request).chosen(client)
    call = Call(_wanted(body, model), idempotency_key=idempotency_key, body_digest=digest_of(body, idempotency_key))
    async with making(request, call) as batch:
        running = Running(batch, body.force_task_id or f"txt2img-{batch.job_specs[0].request.digest[:8]}")
        with sessions_of(request).running(client, running):
            outcomes = await unless_gone(request, batch.outcomes())
    if outcomes is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    has_metadata = service.policy.has_metadata and settings.has_metadata
    answer = await asyncio.to_thread(
        _answer, body, batch.job_specs[0].request, outcomes, running, has_metadata=has_metadata
    )
    return Response(answer, headers=_ignored(content), media_type="application/json")


def _ignored(content: Mapping[str, Any]) -> dict[str, str]:
    """Name the fields that were ignored, in a header. AUTOMATIC1111 ignores fields that it does not have."""
    names = [name for name in content if name not in Txt2Img.model_fields]
    if not names:
        return {}
    shown_names = [quote(str(shown(name)), errors="replace") for name in names[:_NAMED_FIELDS]]
    more = [f"and {len(names) - _NAMED_FIELDS} more"] if len(names) > _NAMED_FIELDS else []
    return {IGNORED: ", ".join([*shown_names, *more])}


def _check(body: Txt2Img, *, is_strict: bool) -> None:
    """What the service and the fields say of each other. Raises InvalidRequest."""
    size, rounds = body.batch_size or 1, body.n_iter or 1
    if size * rounds > MAX_IMAGES:
        raise InvalidRequest("n_iter", rounds, f"1 to {MAX_IMAGES // size} with a batch_size of {size}")
    if not is_strict:
        return
    sampler, scheduler = body.sampler_name or body.sampler_index or SAMPLER, body.scheduler or SCHEDULE
    if sampler.lower() not in _SAMPLERS:
        raise InvalidRequest("sampler_name" if body.sampler_name else "sampler_index", sampler, SAMPLER)
    if scheduler.lower() not in _SCHEDULES:
        raise InvalidRequest("scheduler", scheduler, SCHEDULE)


def _wanted(body: Txt2Img, model: str | None) -> list[GenerationParams]:
    sizes = body.width, body.height, body.steps, body.cfg_scale
    seed = None if body.seed in {None, -1} else body.seed % (SEED[1] + 1)
    wanted = GenerationParams(body.prompt, body.negative_prompt or "", *sizes, seed, model)
    return series(wanted, (body.batch_size or 1) * (body.n_iter or 1))


def _answer(
    body: Txt2Img, first: Resolved, outcomes: Sequence[GenerationResult | None], running: Running, *, has_metadata: bool
) -> str:
    made = [outcome for outcome in outcomes if outcome]
    texts = [infotext(outcome.request, outcome.maker) for outcome in made]
    images = []
    for outcome, text in zip(made, texts, strict=True) if body.send_images is not False else ():
        if not has_metadata:
            png = without_text(outcome.png)
        else:
            png = outcome.png if outcome.is_blurred else with_text(outcome.png, KEYWORD, text)
        images.append(base64.b64encode(png).decode())
    info = _info(body, [outcome.request for outcome in made] or [first], running)
    info["infotexts"] = texts
    for outcome in made:
        info["extra_generation_params"] |= extras(outcome.request, outcome.maker)
    parameters = body.model_dump(mode="json") | {"seed": info["seed"]}
    return json.dumps({"images": images, "parameters": parameters, "info": json.dumps(info)})


def _info(body: Txt2Img, requests: Sequence[Resolved], running: Running) -> dict[str, Any]:
    """What was made, in that UI's names; of lists, one item for each image."""
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
        "job_timestamp": _timestamp(running),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": f"sd35-fp8-mirror {own_version()}",
    }


@router.get("/progress", summary="How far is the client's call?", responses={422: BODY[422]})
async def progress(request: Request, skip_current_image: bool = False) -> ProgressNow:  # noqa: FBT001, FBT002
    """Of the client's own calls; with several, of the one that began first. Idle, all is 0."""
    running = sessions_of(request).first(caller_of(request).client)
    if running is None:
        return ProgressNow()
    batch, latest, done = running.batch, running.latest, running.done
    wanted = batch.job_specs[min(batch.current, len(batch.job_specs) - 1)].request
    was_skipped = any(task.cancelled() for task in batch.tasks) and not batch.was_interrupted
    image = None
    if latest and not skip_current_image:
        image = base64.b64encode(await asyncio.to_thread(preview_png, latest, wanted)).decode()
    return ProgressNow(
        progress=max(0.01, done),  # as theirs: above 0 as long as it runs
        eta_relative=running.took_s * (1 - done) / done if done else 0.0,
        state=State(
            skipped=was_skipped,
            interrupted=batch.was_interrupted,
            job=running.name,
            job_count=len(batch.job_specs),
            job_timestamp=_timestamp(running),
            job_no=batch.current,
            sampling_step=latest.done if latest else 0,
            sampling_steps=wanted.steps,
        ),
        current_image=image,
        current_task=running.name,
    )


@router.post("/interrupt", summary="Leave out what is not made yet of the client's call")
async def interrupt(request: Request) -> dict[str, str]:
    """Of the call that `progress` tells of, which then answers with what it has."""
    if running := sessions_of(request).first(caller_of(request).client):
        running.batch.interrupt()
    return {}


@router.post("/skip", summary="Leave out the image whose turn it is of the client's call")
async def skip(request: Request) -> None:
    """Of the call that `progress` tells of, which goes on with the next."""
    if running := sessions_of(request).first(caller_of(request).client):
        running.batch.skip()


@router.post(
    "/png-info",
    summary="How was an image made?",
    openapi_extra=described(Image),
    response_model=PngInfo,
    responses={**BODY, 429: _TOO_MANY_IMAGES},
)
async def png_info(request: Request) -> Response:
    """Of files of this service, and of all that carry that UI's text: PNG, and JPEG, WebP and AVIF in EXIF."""
    caller, state = caller_of(request), request.app.state
    charge = caller.asking()  # before the body, which is large, is read
    with state.held_images.body_of(caller.client) as count:
        try:
            unparsed = await read_unparsed_json(request, _MOST_IMAGE_BYTES, count)
        except TooManyBytes as error:
            charge.refund()
            raise _too_many_images() from error
        except ApiError:
            charge.refund()
            raise
        async with state.describing:
            try:
                body = await PARSING.run(parse_json, unparsed, Image)
            except ApiError:
                charge.refund()
                raise
            content = await PARSING.run(_described, body.image)
    return Response(content, media_type="application/json")


def _too_many_images() -> ApiError:
    allowed = f"{MOST_HELD_BYTES_EACH} bytes at once from one caller and {MOST_HELD_BYTES} from all"
    headers = {"Retry-After": "1", "Connection": "close"}
    return ApiError(429, f"too many images are being received; allowed: {allowed}", headers=headers)


def _described(image: str) -> str:
    """The answer about an image in base64, as JSON."""
    content = image.lstrip()
    if content[:5].lower() == "data:":
        content = content.partition(",")[2]
    try:
        encoded = content.encode("ascii").translate(None, _WHITESPACE)
        text, others, left_out = read_infotext(base64.b64decode(encoded, validate=True))
    except (ValueError, NotReplayable) as error:
        wrong = FieldError(field="image", got=f"{len(image)} characters", allowed="an image's file in base64")
        raise ApiError(422, f"image: {error}; allowed: {wrong.allowed}", [wrong]) from error
    parameters = parse_infotext(text) if text else {}
    return PngInfo(info=text, items=others, parameters=parameters, left_out=left_out).model_dump_json()


def _timestamp(running: Running) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(running.began_s))


AUTOMATIC1111 = Dialect("automatic1111", ("/sdapi/",), (router, options, lookups), WORDING)
