"""AUTOMATIC1111's API, `/sdapi/v1/...`: what its clients send to what is wanted, pictures to what they read.

Source: its own `/docs`, and the clients webuiapi and SillyTavern. Lists of what is not here are empty.
"""

import asyncio
import base64
import json
import re
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from sd35.api.body import read_json, read_object
from sd35.api.callers import caller_of, service_of
from sd35.api.dialects.dialect import Dialect
from sd35.api.making import Call, IdempotencyKey, digest_of, making, picture_headers
from sd35.api.refusals import RequestRefused, Wording
from sd35.api.sessions import Sessions
from sd35.api.waiting import CLIENT_CLOSED_REQUEST, unless_gone
from sd35.backends.host import HostMemory
from sd35.errors import InvalidRequest, NotReplayable
from sd35.request import GUIDANCE_SCALE, PROMPT_CHARACTERS, SEED, SIZE_MULTIPLE_PX, STEPS
from sd35.service.batch import Batch
from sd35.service.desk import Outcome
from sd35.service.encoding import texts_of
from sd35.service.infotext import HASH_CHARACTERS, KEY, SAMPLER, SCHEDULE, infotext, read_infotext
from sd35.service.model import Model
from sd35.service.png import enlarge, with_text, write_png
from sd35.service.record import REQUEST_KEY, from_text, own_version
from sd35.service.resolve import Wanted, series
from sd35.service.service import Service

_ROOT = "/sdapi/v1"
_MOST_PICTURES = 16  # of a call
_MOST_FILE_BYTES = 30 * 1024 * 1024
_EULER, _AUTOMATIC = {"euler", "k_euler"}, {"automatic", "use same scheduler"}
_SUFFIXES = re.compile(rf"(\.safetensors)?( \[[0-9a-f]{{{HASH_CHARACTERS}}}\])?$")
# Fields that a client may send as it always does: what they would change is not here.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "enable_hr": (False, None),
    "subseed_strength": (0, None),
    "seed_resize_from_h": (-1, 0, None),
    "seed_resize_from_w": (-1, 0, None),
    "restore_faces": (False, None),
    "tiling": (False, None),
    "styles": ([], None),
    "s_churn": (0, None),
    "s_min_uncond": (0, None),
    "clip_skip": (1, None),
    "refiner_checkpoint": ("", None),
    "script_name": ("", "None", None),
    "script_args": ([], None),
    "alwayson_scripts": ({}, None),
    "infotext": ("", None),
    "firstpass_image": (None,),
}
# Fields that change nothing, whatever they hold: of the above while those are neutral, of other samplers, of saving.
_OF_NO_EFFECT = (
    *("hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name"),
    *("hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt", "denoising_strength"),
    *("firstphase_width", "firstphase_height", "subseed", "eta", "s_tmax", "s_tmin", "s_noise", "refiner_switch_at"),
    *("do_not_save_samples", "do_not_save_grid", "save_images", "disable_extra_networks", "comments"),
    *("force_task_id", "override_settings_restore_afterwards", "hr_additional_modules"),
    *("url", "auth"),  # SillyTavern passes on what it was told itself
)
_OVERRIDES: dict[str, tuple[Any, ...]] = {
    "CLIP_stop_at_last_layers": (1,),
    "samples_format": ("png",),
    "sd_vae": ("Automatic", "None", "automatic", "none"),
}
_EMPTY: dict[str, Any] = {
    "upscalers": [],
    "latent-upscale-modes": [],
    "loras": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "prompt-styles": [],
    "sd-vae": [],
    "sd-modules": [],
    "embeddings": {"loaded": {}, "skipped": {}},
    "scripts": {"txt2img": [], "img2img": []},
    "cmd-flags": {"api": True, "nowebui": True},
}


def _neutral(allowed: tuple[Any, ...]) -> Any:  # noqa: ANN401  a field's definition
    def check(value: Any) -> Any:  # noqa: ANN401
        if value not in allowed:
            raise ValueError
        return value

    words = " or ".join(json.dumps(each) for each in allowed)
    return Annotated[Any, AfterValidator(check)], Field(
        allowed[-1], description=f"{words}: there is no more of it here."
    )


class _Honoured(BaseModel):
    """What is honoured. Descriptions begin with what is allowed, which errors repeat."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(
        min_length=1, max_length=PROMPT_CHARACTERS, description=f"text of 1 to {PROMPT_CHARACTERS} characters."
    )
    negative_prompt: str | None = Field(
        None, max_length=PROMPT_CHARACTERS, description=f"text of at most {PROMPT_CHARACTERS} characters."
    )
    width: int | None = Field(
        None, ge=SIZE_MULTIPLE_PX, description=f"an integer, a multiple of {SIZE_MULTIPLE_PX}, in the model's range."
    )
    height: int | None = Field(
        None, ge=SIZE_MULTIPLE_PX, description=f"an integer, a multiple of {SIZE_MULTIPLE_PX}, in the model's range."
    )
    steps: int | None = Field(
        None, ge=STEPS[0], le=STEPS[1], description=f"an integer from {STEPS[0]} to {STEPS[1]}. Left out: the model's."
    )
    cfg_scale: float | None = Field(
        None,
        ge=GUIDANCE_SCALE[0],
        le=GUIDANCE_SCALE[1],
        description=f"a number from {GUIDANCE_SCALE[0]:g} to {GUIDANCE_SCALE[1]:g}. Left out: the model's.",
    )
    seed: int | None = Field(
        None, ge=-1, le=SEED[1], description=f"an integer from -1 to {SEED[1]}: -1 is a random one."
    )
    batch_size: int = Field(
        1,
        ge=1,
        le=_MOST_PICTURES,
        description=f"an integer from 1 to {_MOST_PICTURES}: times n_iter, as many pictures.",
    )
    n_iter: int = Field(
        1,
        ge=1,
        le=_MOST_PICTURES,
        description=f"an integer from 1 to {_MOST_PICTURES}: times batch_size, as many pictures.",
    )
    sampler_name: str | None = Field(None, description="text: what is not Euler is served by it, unless set otherwise.")
    sampler_index: str | None = Field(None, description="text: the sampler, by its older name.")
    scheduler: str | None = Field(
        None, description="text: what is not Automatic is served by it, unless set otherwise."
    )
    override_settings: dict[str, Any] | None = Field(
        None, description=f"an object of sd_model_checkpoint, {', '.join(_OVERRIDES)}."
    )
    send_images: bool = Field(True, description="true or false: whether the answer holds the pictures.")  # noqa: FBT003

    def check(self, service: Service) -> None:
        """What types do not say. Raises InvalidRequest."""
        if self.batch_size * self.n_iter > _MOST_PICTURES:
            raise InvalidRequest("n_iter", self.n_iter, f"at most {_MOST_PICTURES} pictures, batch_size times n_iter")
        _check_settings(self.override_settings or {}, _OVERRIDES, "override_settings.")
        if service.rules.naming.is_strict:
            sampler, scheduler = self.sampler_name or self.sampler_index or SAMPLER, self.scheduler or SCHEDULE
            if sampler.lower() not in _EULER:
                raise InvalidRequest("sampler_name", sampler, SAMPLER)
            if scheduler.lower() not in _AUTOMATIC:
                raise InvalidRequest("scheduler", scheduler, SCHEDULE)

    def to_wanted(self, service: Service, chosen: str | None) -> list[Wanted]:
        """The same, free of the dialect; `chosen` is the model where none is named."""
        named = (self.override_settings or {}).get("sd_model_checkpoint")
        wanted = Wanted(
            self.prompt,
            self.negative_prompt or "",
            self.width,
            self.height,
            self.steps,
            self.cfg_scale,
            None if self.seed == -1 else self.seed,
            _name_of(named, service) if named else chosen,
        )
        return series(wanted, self.batch_size * self.n_iter)


_Neutral: dict[str, Any] = {name: _neutral(allowed) for name, allowed in _NEUTRAL.items()}
_Ignored: dict[str, Any] = {
    name: (Any, Field(None, description="anything: it changes nothing here.")) for name in _OF_NO_EFFECT
}
Txt2Img = create_model("Txt2Img", __base__=_Honoured, **_Neutral, **_Ignored)


class PngInfo(BaseModel):
    """A picture to read."""

    image: str = Field(
        description="base64 of a PNG, JPEG, WebP or AVIF file, also with `data:image/png;base64,` before."
    )


class Refusal(BaseModel):
    """An error as A1111 words it."""

    error: str
    detail: str
    body: str
    errors: str


def _words(refused: RequestRefused, _: str) -> tuple[int, dict[str, Any]]:
    kind = type(refused.error).__name__ if refused.error else HTTPStatus(refused.status).phrase.replace(" ", "")
    fields = "; ".join(error.field for error in refused.errors)
    return refused.status, Refusal(error=kind, detail=refused.detail, body="", errors=fields).model_dump()


WORDING = Wording(_words, Refusal, challenge='Basic realm="sd35", Bearer')
_documented = WORDING.documented
_BODY: dict[int | str, dict[str, Any]] = {
    400: _documented("The body is not JSON."),
    413: _documented("The body is too large."),
    415: _documented("The body is not `application/json`."),
    422: _documented("A field is unknown, missing or wrong."),
}
_NOT_NOW: dict[int | str, dict[str, Any]] = {
    503: _documented("Loading or closing, or a store does not answer.", **{"Retry-After": "Seconds."})
}
router = APIRouter(prefix=_ROOT, tags=["AUTOMATIC1111's API"])


def _takes(kind: type[BaseModel] | None) -> dict[str, Any]:
    schema = kind.model_json_schema() if kind else {"type": "object"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.post(
    "/txt2img",
    summary="Make pictures from text, as A1111 does",
    openapi_extra=_takes(Txt2Img),
    responses={
        **_BODY,
        **_NOT_NOW,
        403: _documented("The request takes more than an hour's share of pixels."),
        404: _documented("No checkpoint of that name is served."),
        409: _documented("The idempotency key came before with another body, or its job was cancelled."),
        410: _documented("A picture of the idempotency key was removed."),
        429: _documented(
            "Too many pictures wait, or the caller's own limit is reached.", **{"Retry-After": "Seconds."}
        ),
        500: _documented("A picture could not be made; other requests are not affected."),
    },
)
async def txt2img(request: Request, response: Response, idempotency_key: IdempotencyKey = None) -> Any:  # noqa: ANN401
    """Answers with what was made when nothing is left to make. A client that hangs up cancels the rest."""
    body = await read_json(request, Txt2Img)
    service, client, sessions = service_of(request), caller_of(request).client, _sessions(request)
    body.check(service)
    wanted = body.to_wanted(service, sessions.model(client))
    call = Call(wanted, idempotency_key=idempotency_key, body_digest=digest_of(body))
    async with making(request, call) as batch:
        with sessions.making(client, batch):
            outcomes = await unless_gone(request, batch.outcomes())
    if outcomes is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    made = [outcome for outcome in outcomes if outcome]
    if len(made) == 1:
        response.headers.update(picture_headers(made[0]))
    texts = [infotext(outcome.request, _said(outcome)) for outcome in made]
    files = (
        [_file(outcome, text, service) for outcome, text in zip(made, texts, strict=True)] if body.send_images else []
    )
    info = _info(body, batch, made, texts)
    return {"images": files, "parameters": body.model_dump(mode="json", exclude={"auth"}), "info": json.dumps(info)}


@router.get("/progress", summary="How far is what this client has in the making?", responses=_NOT_NOW)
async def progress(
    request: Request,
    skip_current_image: Annotated[bool, Query(description="Without a preview.")] = False,  # noqa: FBT002
) -> dict[str, Any]:
    """Of the first call that still runs; other clients' are theirs."""
    service_of(request)
    batch = next(iter(_sessions(request).batches(caller_of(request).client)), None)
    state: dict[str, Any] = {"skipped": False, "interrupted": False, "stopping_generation": False, "job": ""}
    state |= {"job_count": 0, "job_timestamp": "0", "job_no": 0, "sampling_step": 0, "sampling_steps": 0}
    if batch is None:
        return {"progress": 0.0, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}
    place = min(batch.current, len(batch.orders) - 1)
    current, wanted = batch.progress[place], batch.orders[place].request
    passed_s = time.monotonic() - batch.began_s
    state |= {
        "interrupted": batch.was_interrupted,
        "job": "txt2img",
        "job_count": len(batch.orders),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(time.time() - passed_s)),
        "job_no": place,
        "sampling_step": current.done if current else 0,
        "sampling_steps": wanted.steps,
    }
    image = None
    if current and not skip_current_image:
        image = await asyncio.to_thread(
            lambda: _base64(write_png(enlarge(current.preview(), wanted.width, wanted.height), {}))
        )
    eta_s = passed_s * (1 - batch.done) / batch.done if batch.done else 0.0
    return {"progress": batch.done, "eta_relative": eta_s, "state": state, "current_image": image, "textinfo": None}


@router.post("/interrupt", summary="Make no more of what this client has in the making", responses=_NOT_NOW)
async def interrupt(request: Request) -> dict[str, Any]:
    """The calls are answered with what is made."""
    service_of(request)
    for batch in _sessions(request).batches(caller_of(request).client):
        batch.interrupt()
    return {}


@router.post("/skip", summary="Leave out the picture whose turn it is", responses=_NOT_NOW)
async def skip(request: Request) -> dict[str, Any]:
    """Of this client's first call that still runs."""
    service_of(request)
    for batch in _sessions(request).batches(caller_of(request).client)[:1]:
        batch.skip()
    return {}


@router.get("/options", summary="The settings, as far as there are any", responses=_NOT_NOW)
async def options(request: Request) -> dict[str, Any]:
    """The checkpoint that this client chose, or the first."""
    return _options(request)


@router.post(
    "/options",
    summary="Choose a checkpoint",
    openapi_extra=_takes(None),
    responses={**_BODY, **_NOT_NOW, 404: _documented("No checkpoint of that name is served.")},
)
async def set_options(request: Request) -> dict[str, Any]:
    """For this client alone; other settings may be sent as they are."""
    given = await read_object(request)
    service = service_of(request)
    _check_settings(given, {name: (value,) for name, value in _options(request).items()}, "")
    if "sd_model_checkpoint" in given:
        named = str(given["sd_model_checkpoint"])
        name = service.studio.resolve(Wanted(" ", model=_name_of(named, service))).model
        _sessions(request).choose(caller_of(request).client, name)
    return {}


@router.get("/sd-models", summary="Which checkpoints are served?", responses=_NOT_NOW)
async def sd_models(request: Request) -> list[dict[str, Any]]:
    """By their titles; the files' places are the server's own business."""
    return [
        {
            "title": _title(model),
            "model_name": model.name,
            "hash": model.checkpoint.revision[:HASH_CHARACTERS],
            "sha256": model.checkpoint.revision,
            "filename": f"{model.name}.safetensors",
            "config": None,
        }
        for model in service_of(request).studio.models.values()
    ]


@router.get("/samplers", summary="Which samplers are there?")
async def samplers() -> list[dict[str, Any]]:
    """One."""
    return [{"name": SAMPLER, "aliases": sorted(_EULER), "options": {}}]


@router.get("/schedulers", summary="Which schedules of sigmas are there?")
async def schedulers() -> list[dict[str, Any]]:
    """The checkpoint's own."""
    return [
        {"name": SCHEDULE.lower(), "label": SCHEDULE, "aliases": None, "default_rho": -1.0, "need_inner_model": False}
    ]


@router.get("/memory", summary="How much memory is there?", responses=_NOT_NOW)
async def memory(request: Request) -> dict[str, Any]:
    """Bytes of the host, and of the device that the first model computes on, where that is another."""
    first = next(iter(service_of(request).studio.models.values())).backend.memory
    host = HostMemory()
    ram = {"free": host.free_bytes(), "used": host.held_bytes(), "total": host.free_bytes() + host.held_bytes()}
    if isinstance(first, HostMemory):
        return {"ram": ram, "cuda": {"error": "nothing computes on a GPU here"}}
    system = {"free": first.free_bytes(), "used": first.held_bytes(), "total": first.free_bytes() + first.held_bytes()}
    return {"ram": ram, "cuda": {"system": system}}


@router.post(
    "/png-info", summary="What does a picture say of how it was made?", openapi_extra=_takes(PngInfo), responses=_BODY
)
async def png_info(request: Request) -> dict[str, Any]:
    """Of this service's pictures, and of A1111's own."""
    body = await read_json(request, PngInfo, _MOST_FILE_BYTES)
    try:
        data = base64.b64decode(body.image.partition("base64,")[2] or body.image, validate=True)
        texts = await asyncio.to_thread(texts_of, data)
    except (ValueError, NotReplayable) as error:
        raise InvalidRequest("image", f"{len(body.image)} characters", f"base64 of a picture: {error}") from error
    text = texts.get(KEY, "")
    if not text and REQUEST_KEY in texts:
        text = infotext(from_text(texts).request)
    return {"info": text, "items": texts, "parameters": read_infotext(text) if text else {}}


def _constant(name: str, answer: Any) -> None:  # noqa: ANN401  JSON
    async def give() -> Any:  # noqa: ANN401
        return answer

    router.add_api_route(f"/{name}", give, name=name, summary=f"{name}: as far as there are any", methods=["GET"])


for _name, _answer in _EMPTY.items():
    _constant(_name, _answer)


@router.post("/refresh-checkpoints", summary="Look for checkpoints again")
async def refresh_checkpoints() -> dict[str, Any]:
    """They are those of the start."""
    return {}


def _sessions(request: Request) -> Sessions:
    sessions: Sessions = request.app.state.sessions
    return sessions


def _title(model: Model) -> str:
    return f"{model.name} [{model.checkpoint.revision[:HASH_CHARACTERS]}]"


def _name_of(named: str, service: Service) -> str | None:
    """A served model's name, by its title in any case; else as the aliases have it, or as it came."""
    models = service.studio.models
    asked = _SUFFIXES.sub("", named).lower()
    found = next((name for name in models if name.lower() == asked), None)
    return found or service.rules.naming.served(named, models)


def _options(request: Request) -> dict[str, Any]:
    studio = service_of(request).studio
    chosen = _sessions(request).model(caller_of(request).client)
    model = studio.models.get(chosen or "") or next(iter(studio.models.values()))
    fixed = {name: allowed[0] for name, allowed in _OVERRIDES.items()}
    return {"sd_model_checkpoint": _title(model), "sd_checkpoint_hash": model.checkpoint.revision, **fixed}


def _check_settings(given: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]], prefix: str) -> None:
    """Raises InvalidRequest for what is not known, or not as it is."""
    for name, value in given.items():
        if name == "sd_model_checkpoint":
            continue
        if name not in known:
            raise InvalidRequest(f"{prefix}{name}", value, f"only sd_model_checkpoint, {', '.join(known)}")
        if value not in known[name]:
            raise InvalidRequest(f"{prefix}{name}", value, " or ".join(map(repr, known[name])))


def _said(outcome: Outcome) -> dict[str, str]:
    return {"Content filtered": "blurred"} if outcome.is_blurred else {}


def _file(outcome: Outcome, text: str, service: Service) -> str:
    has_text = service.rules.has_metadata and not outcome.is_blurred
    return _base64(with_text(outcome.png, KEY, text) if has_text else outcome.png)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _info(body: _Honoured, batch: Batch, made: list[Outcome], texts: list[str]) -> dict[str, Any]:
    """What A1111 says of a call, as its own clients read it; `seed` and the like are the first picture's."""
    first, count = (made[0] if made else batch.orders[0]).request, len(made)
    return {
        "prompt": first.prompt,
        "all_prompts": [first.prompt] * count,
        "negative_prompt": first.negative_prompt,
        "all_negative_prompts": [first.negative_prompt] * count,
        "seed": first.seed,
        "all_seeds": [outcome.request.seed for outcome in made],
        "subseed": first.seed,
        "all_subseeds": [outcome.request.seed for outcome in made],
        "subseed_strength": 0,
        "width": first.width,
        "height": first.height,
        "sampler_name": SAMPLER,
        "cfg_scale": first.guidance_scale,
        "steps": first.steps,
        "batch_size": body.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": first.model,
        "sd_model_hash": first.revision[:HASH_CHARACTERS],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": None,
        "extra_generation_params": {"Schedule type": SCHEDULE},
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": f"sd35 {own_version()}",
    }


AUTOMATIC1111 = Dialect("automatic1111", (f"{_ROOT}/",), (router,), WORDING)
