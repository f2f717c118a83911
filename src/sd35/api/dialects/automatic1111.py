"""AUTOMATIC1111's API, `/sdapi/v1/...`: bodies to what is wanted, pictures to their answer, and what its clients ask.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/api, and the clients webuiapi, SillyTavern and Open WebUI.
"""

import asyncio
import base64
import json
import re
import time
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from fastapi import APIRouter, Request, Response

from sd35.api.body import described, read_json, validate
from sd35.api.callers import caller_of, service_of
from sd35.api.dialects.automatic1111_shapes import (
    MOST_PICTURES,
    Checkpoint,
    Image,
    Memory,
    Options,
    Pictures,
    PngInfo,
    ProgressNow,
    Refusal,
    SamplerItem,
    SchedulerItem,
    State,
    Txt2Img,
)
from sd35.api.dialects.dialect import Dialect
from sd35.api.making import Call, IdempotencyKey, digest_of, making, preview_png, refusals_of_making
from sd35.api.refusals import FieldError, RequestRefused, Wording
from sd35.api.sessions import Running, Sessions
from sd35.api.waiting import CLIENT_CLOSED_REQUEST, unless_gone
from sd35.backends.host import HostMemory
from sd35.errors import InvalidRequest, NotReplayable
from sd35.metadata.record import own_version
from sd35.request import Request as Resolved
from sd35.service.desk import Outcome
from sd35.service.infotext import HASH_DIGITS, KEYWORD, SAMPLER, SCHEDULE, extras, infotext, parse, read
from sd35.service.model import Model
from sd35.service.png import with_text, without_text
from sd35.service.resolve import Wanted, find_model, series
from sd35.service.service import Service
from sd35.service.threads import PARSING

_MOST_IMAGE_BYTES = 30 * 1024 * 1024  # of a body with a picture in base64
MOST_DESCRIBED = 4  # images whose metadata is read at once; each takes four times its size in memory
_WHITESPACE = b" \t\r\n"  # `base64` and MIME break lines, and a form may indent them
_SAMPLERS, _SCHEDULES = {"euler", "k_euler"}, {"automatic"}
_ENDING = re.compile(r"(\.safetensors|\.ckpt)?( \[[0-9a-f]+\])?$")  # of a checkpoint's title
_EMPTY = ["upscalers", "latent-upscale-modes", "loras", "sd-vae", "hypernetworks", "face-restorers"]
_EMPTY += ["realesrgan-models", "prompt-styles", "script-info", "extensions"]


def _words(refused: RequestRefused, _: str) -> tuple[int, dict[str, Any]]:
    errors = "; ".join(each.sentence for each in refused.errors)
    kind = type(refused.error).__name__ if refused.error else "HTTPException"
    return refused.status, Refusal(error=kind, detail=refused.detail, errors=errors).model_dump()


WORDING = Wording(_words, Refusal, challenge='Basic realm="sd35", Bearer')
_documented = WORDING.documented
_Answers: TypeAlias = dict[int | str, dict[str, Any]]
_BODY: _Answers = {
    400: _documented("The body is not JSON."),
    413: _documented("The body is too large."),
    415: _documented("The body is not `application/json`."),
    422: _documented("A field is wrong; each is named."),
}
_MODEL: _Answers = {404: _documented("No model of that name is served; the answer lists those that are.")}
_READY: _Answers = {503: _documented("Loading or closing, or a store does not answer.", **{"Retry-After": "Seconds."})}
router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111's API"])


@router.post(
    "/txt2img",
    summary="Make pictures from text, as AUTOMATIC1111's API does",
    response_model=Pictures,
    openapi_extra=described(Txt2Img),
    responses={**refusals_of_making(WORDING), **_BODY, **_MODEL},
)
async def txt2img(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Answers when all pictures are made but those that were left out. A client that hangs up cancels them."""
    body = await read_json(request, Txt2Img)
    options = validate(body.override_settings or {}, Options)
    body.override_settings = options.model_dump(exclude_none=True)
    service, client = service_of(request), caller_of(request).client
    _check(body, is_strict=service.rules.naming.is_strict)
    model = _served(options.sd_model_checkpoint, service) or _sessions(request).chosen(client)
    call = Call(_wanted(body, model), idempotency_key=idempotency_key, body_digest=digest_of(body, idempotency_key))
    async with making(request, call) as batch:
        running = Running(batch, body.force_task_id or f"txt2img-{batch.orders[0].request.digest[:8]}")
        with _sessions(request).running(client, running):
            outcomes = await unless_gone(request, batch.outcomes())
    if outcomes is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    content = await asyncio.to_thread(
        _answer, body, batch.orders[0].request, outcomes, running, has_metadata=service.rules.has_metadata
    )
    return Response(content, media_type="application/json")


def _check(body: Txt2Img, *, is_strict: bool) -> None:
    """What the service and the fields say of each other. Raises InvalidRequest."""
    size, rounds = body.batch_size or 1, body.n_iter or 1
    if size * rounds > MOST_PICTURES:
        raise InvalidRequest("n_iter", rounds, f"1 to {MOST_PICTURES // size} with a batch_size of {size}")
    if not is_strict:
        return
    sampler, scheduler = body.sampler_name or body.sampler_index or SAMPLER, body.scheduler or SCHEDULE
    if sampler.lower() not in _SAMPLERS:
        raise InvalidRequest("sampler_name" if body.sampler_name else "sampler_index", sampler, SAMPLER)
    if scheduler.lower() not in _SCHEDULES:
        raise InvalidRequest("scheduler", scheduler, SCHEDULE)


def _wanted(body: Txt2Img, model: str | None) -> list[Wanted]:
    sizes = body.width, body.height, body.steps, body.cfg_scale
    seed = None if body.seed == -1 else body.seed
    wanted = Wanted(body.prompt, body.negative_prompt or "", *sizes, seed, model)
    return series(wanted, (body.batch_size or 1) * (body.n_iter or 1))


def _answer(
    body: Txt2Img, first: Resolved, outcomes: Sequence[Outcome | None], running: Running, *, has_metadata: bool
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
    return json.dumps({"images": images, "parameters": body.model_dump(mode="json"), "info": json.dumps(info)})


def _info(body: Txt2Img, requests: Sequence[Resolved], running: Running) -> dict[str, Any]:
    """What was made, in that UI's names; of lists, one item for each picture."""
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
        "sd_model_hash": first.revision[:HASH_DIGITS],
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


@router.get("/progress", summary="How far is the client's call?", responses={422: _BODY[422]})
async def progress(request: Request, skip_current_image: bool = False) -> ProgressNow:  # noqa: FBT001, FBT002
    """Of the client's own calls; with several, of the one that began first. Idle, all is 0."""
    running = _sessions(request).first(caller_of(request).client)
    if running is None:
        return ProgressNow()
    batch, latest, done = running.batch, running.latest, running.done
    wanted = batch.orders[min(batch.current, len(batch.orders) - 1)].request
    was_skipped = any(task.cancelled() for task in batch.tasks) and not batch.was_interrupted
    image = None
    if latest and not skip_current_image:
        image = base64.b64encode(await asyncio.to_thread(preview_png, latest, wanted)).decode()
    return ProgressNow(
        progress=max(0.01, done),  # as theirs: above 0 as long as it runs
        eta_relative=(time.time() - running.began_s) * (1 - done) / done if done else 0.0,
        state=State(
            skipped=was_skipped,
            interrupted=batch.was_interrupted,
            job=running.name,
            job_count=len(batch.orders),
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
    if running := _sessions(request).first(caller_of(request).client):
        running.batch.interrupt()
    return {}


@router.post("/skip", summary="Leave out the picture whose turn it is of the client's call")
async def skip(request: Request) -> None:
    """Of the call that `progress` tells of, which goes on with the next."""
    if running := _sessions(request).first(caller_of(request).client):
        running.batch.skip()


@router.get("/options", summary="Which settings hold for the client?", responses=_READY)
async def options(request: Request) -> Options:
    """Those that clients read; all but the checkpoint are as they are."""
    service = service_of(request)
    model = find_model(service.studio.models, _sessions(request).chosen(caller_of(request).client))
    return Options(
        sd_model_checkpoint=_title(model),
        sd_checkpoint_hash=model.checkpoint.revision,
        sd_vae="Automatic",
        CLIP_stop_at_last_layers=1,
        samples_format="png",
        samples_save=False,
        grid_save=False,
        return_grid=False,
        eta_noise_seed_delta=0,
    )


@router.post(
    "/options",
    summary="Choose the client's checkpoint",
    openapi_extra=described(Options),
    responses={**_BODY, **_MODEL, **_READY},
)
async def set_options(request: Request) -> None:
    """`sd_model_checkpoint` holds for the same client, while the service runs; the rest is as it is already."""
    given = await read_json(request, Options)
    service = service_of(request)
    if name := _served(given.sd_model_checkpoint, service):
        model = find_model(service.studio.models, name)
        _sessions(request).choose(caller_of(request).client, model.name)


@router.get("/sd-models", summary="Which checkpoints are served?", responses=_READY)
async def checkpoints(request: Request) -> list[Checkpoint]:
    """The first is the default."""
    return [
        Checkpoint(
            title=_title(model),
            model_name=model.name,
            hash=model.checkpoint.revision[:HASH_DIGITS],
            sha256=model.checkpoint.revision,
            filename=f"{model.name}.safetensors",
        )
        for model in service_of(request).studio.models.values()
    ]


@router.post("/refresh-checkpoints", summary="Nothing: what is served does not change")
async def refresh_checkpoints() -> None:
    """The checkpoints are those that the service began with."""


@router.get("/samplers", summary="Which samplers are there?")
async def samplers() -> list[SamplerItem]:
    """One."""
    return [SamplerItem()]


@router.get("/schedulers", summary="Which noise schedules are there?")
async def schedulers() -> list[SchedulerItem]:
    """One."""
    return [SchedulerItem()]


@router.get("/scripts", summary="Which scripts are there?")
async def scripts() -> dict[Literal["txt2img", "img2img"], list[str]]:
    """None."""
    return {"txt2img": [], "img2img": []}


@router.get("/embeddings", summary="Which textual inversions are there?")
async def embeddings() -> dict[Literal["loaded", "skipped"], dict[str, str]]:
    """None."""
    return {"loaded": {}, "skipped": {}}


async def _none() -> list[str]:
    """None: pictures are made from text, by the checkpoints alone."""
    return []


for _name in _EMPTY:
    router.add_api_route(f"/{_name}", _none, summary=f"Which {_name} are there?", operation_id=f"automatic1111-{_name}")


@router.get("/cmd-flags", summary="How was the service started?")
async def cmd_flags() -> dict[str, bool]:
    """In that UI's words: with its API, and without its pages."""
    return {"api": True, "nowebui": True}


@router.get("/memory", summary="How much memory is there?", responses=_READY)
async def memory(request: Request) -> Memory:
    """Of the system, and where the first model computes."""
    used = next(iter(service_of(request).studio.models.values())).backend.memory
    host = HostMemory()
    if isinstance(used, HostMemory):
        return Memory(ram=_bytes(host.free_bytes(), host.held_bytes()), cuda={"error": "models compute on processors"})
    system = _bytes(used.free_bytes(), used.held_bytes())
    return Memory(ram=_bytes(host.free_bytes(), host.held_bytes()), cuda={"system": system})


def _bytes(free: int, held: int) -> dict[str, int]:
    return {"free": free, "used": held, "total": free + held}


@router.post(
    "/png-info",
    summary="How was a picture made?",
    openapi_extra=described(Image),
    response_model=PngInfo,
    responses={**_BODY, 429: _documented("The caller's own limit is reached.", **{"Retry-After": "Seconds."})},
)
async def png_info(request: Request) -> Response:
    """Of files of this service, and of all that carry that UI's text: PNG, and JPEG, WebP and AVIF in EXIF."""
    charge = caller_of(request).asking()  # before the body, which is large, is read
    async with request.app.state.describing:
        try:
            body = await read_json(request, Image, _MOST_IMAGE_BYTES, PARSING)
        except RequestRefused:
            charge.refund()
            raise
        content = await PARSING.run(_described, body.image)
    return Response(content, media_type="application/json")


def _described(image: str) -> str:
    """The answer about an image in base64, as JSON."""
    content = image.lstrip()
    if content[:5].lower() == "data:":
        content = content.partition(",")[2]
    try:
        encoded = content.encode("ascii").translate(None, _WHITESPACE)
        text, others = read(base64.b64decode(encoded, validate=True))
    except (ValueError, NotReplayable) as error:
        wrong = FieldError(field="image", got=f"{len(image)} characters", allowed="a picture's file in base64")
        raise RequestRefused(422, f"image: {error}; allowed: {wrong.allowed}", [wrong]) from error
    return PngInfo(info=text, items=others, parameters=parse(text) if text else {}).model_dump_json()


def _sessions(request: Request) -> Sessions:
    sessions: Sessions = request.app.state.sessions
    return sessions


def _title(model: Model) -> str:
    return f"{model.name} [{model.checkpoint.revision[:HASH_DIGITS]}]"


def _served(asked: str | None, service: Service) -> str | None:
    """The name of what a client asks for: by title, file or hash; else by an alias, where the rules allow them."""
    models, naming = service.studio.models, service.rules.naming
    if not asked or asked in models:
        return asked or None
    for name, model in models.items():
        revision = model.checkpoint.revision
        known = {_title(model), f"{name}.safetensors", f"{name}.safetensors [{revision[:HASH_DIGITS]}]"}
        if asked in {*known, revision, revision[:HASH_DIGITS]}:
            return name
    return naming.served(asked if naming.is_strict or asked in naming.aliases else _ENDING.sub("", asked), models)


def _timestamp(running: Running) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(running.began_s))


AUTOMATIC1111 = Dialect("automatic1111", ("/sdapi/",), (router,), WORDING)
