"""The checkpoints and settings of AUTOMATIC1111's API, and the lookup of a checkpoint by title, file name or hash."""

import re

from fastapi import APIRouter, Request

from sd35.api.auth import caller_of, service_of
from sd35.api.body import openapi_body, read_object
from sd35.api.dialects.automatic1111.body import NewOptions
from sd35.api.dialects.automatic1111.errors import BODY_ERRORS, ERROR_FORMAT, MODEL_ERRORS
from sd35.api.dialects.automatic1111.responses import Checkpoint, Options
from sd35.api.dialects.automatic1111.settings import read_settings
from sd35.api.sessions import Sessions
from sd35.engine.model_info import ModelInfo
from sd35.errors import InvalidRequest
from sd35.generation.params import find_model
from sd35.images.infotext import HASH_CHARS
from sd35.service.service import Service

_ENDING = re.compile(r"(\.safetensors|\.ckpt)?( \[[0-9a-f]+\])?$")  # of a title, such as ".safetensors [0123456789]"
router = APIRouter(prefix="/sdapi/v1")


@router.get("/options", summary="Get the client's settings", responses=ERROR_FORMAT.unavailable)
async def options(request: Request) -> Options:
    """Return the settings that clients read. A client can change `sd_model_checkpoint` only."""
    service = service_of(request)
    model = find_model(service.pool.models, sessions_of(request).chosen_model(caller_of(request).client))
    return Options(sd_model_checkpoint=title(model), sd_checkpoint_hash=model.revision)


@router.post(
    "/options",
    summary="Choose the client's checkpoint",
    openapi_extra=openapi_body(NewOptions),
    responses={**BODY_ERRORS, **MODEL_ERRORS, **ERROR_FORMAT.unavailable},
)
async def set_options(request: Request) -> None:
    """Set `sd_model_checkpoint` for this client's later calls. The 1000 latest choices are kept while the service runs.

    Settings that do not change images, and AUTOMATIC1111's default values, are accepted without effect. Others are
    refused.
    """
    settings, service = read_settings(await read_object(request)), service_of(request)
    if service.policy.has_metadata and not settings.has_metadata:
        allowed = "true in this route; for false, use the field override_settings of POST /sdapi/v1/txt2img"
        raise InvalidRequest("enable_pnginfo", False, allowed)  # noqa: FBT003
    if name := served_name(settings.checkpoint, service):
        model = find_model(service.pool.models, name)
        sessions_of(request).choose_model(caller_of(request).client, model.name)


@router.get("/sd-models", summary="List checkpoints", responses=ERROR_FORMAT.unavailable)
async def checkpoints(request: Request) -> list[Checkpoint]:
    """Return the served checkpoints. The first one is the default."""
    return [
        Checkpoint(
            title=title(model),
            model_name=model.name,
            hash=model.revision[:HASH_CHARS],
            sha256=model.revision,
            filename=f"{model.name}.safetensors",
        )
        for model in service_of(request).pool.models.values()
    ]


def sessions_of(request: Request) -> Sessions:
    """Return the running calls and the chosen models of all clients."""
    sessions: Sessions = request.app.state.sessions
    return sessions


def title(model: ModelInfo) -> str:
    """Return a checkpoint's title in AUTOMATIC1111's form: its name and short hash."""
    return f"{model.name} [{model.revision[:HASH_CHARS]}]"


def served_name(requested: str | None, service: Service) -> str | None:
    """Return the name of the model that a client requests by name, title, file name, hash or alias.

    None means that the client requests no model, or an alias of the default model. Aliases are allowed unless
    `strict_dialects` is set. A name that matches no model is returned too, perhaps without its ending: `find_model`
    refuses it.
    """
    models, aliases = service.pool.models, service.policy.aliases
    if not requested:
        return None
    if requested in models:
        return requested
    for name, model in models.items():
        revision = model.revision
        known = {title(model), f"{name}.safetensors", f"{name}.safetensors [{revision[:HASH_CHARS]}]"}
        if requested in {*known, revision, revision[:HASH_CHARS]}:
            return name
    # Clients may append the ending of a file or title to an alias. But some aliases contain such an ending themselves.
    if not aliases.is_strict and requested not in aliases.aliases:
        requested = _ENDING.sub("", requested)
    return aliases.served(requested, models)
