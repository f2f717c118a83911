"""AUTOMATIC1111's settings and checkpoints: which there are, which hold for a client, and which one a name means."""

import re

from fastapi import APIRouter, Depends, Request

from sd35.api.auth import caller_of, service_of
from sd35.api.body import described, read_object, type_may_be_missing
from sd35.api.dialects.automatic1111_errors import BODY, MODEL, READY
from sd35.api.dialects.automatic1111_settings import read_settings
from sd35.api.dialects.automatic1111_shapes import Checkpoint, NewOptions, Options
from sd35.api.sessions import Sessions
from sd35.errors import InvalidRequest
from sd35.generation.model import Model
from sd35.generation.params import find_model
from sd35.images.infotext import HASH_CHARS
from sd35.service.service import Service

_ENDING = re.compile(r"(\.safetensors|\.ckpt)?( \[[0-9a-f]+\])?$")  # of a checkpoint's title
router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111's API"], dependencies=[Depends(type_may_be_missing)])


@router.get("/options", summary="Which settings hold for the client?", responses=READY)
async def options(request: Request) -> Options:
    """The settings that clients read. Only the checkpoint can be changed; the others are fixed."""
    service = service_of(request)
    model = find_model(service.pool.models, sessions_of(request).chosen(caller_of(request).client))
    return Options(sd_model_checkpoint=title(model), sd_checkpoint_hash=model.checkpoint.revision)


@router.post(
    "/options",
    summary="Choose the client's checkpoint",
    openapi_extra=described(NewOptions),
    responses={**BODY, **MODEL, **READY},
)
async def set_options(request: Request) -> None:
    """`sd_model_checkpoint` holds for the same client, while the service runs. Nothing else can be set.

    Settings that cannot change an image here are accepted, and so are AUTOMATIC1111's defaults; the rest is refused.
    """
    settings, service = read_settings(await read_object(request)), service_of(request)
    if service.policy.has_metadata and not settings.has_metadata:
        raise InvalidRequest("enable_pnginfo", False, "true, or false in a call's override_settings")  # noqa: FBT003
    if name := served_name(settings.checkpoint, service):
        model = find_model(service.pool.models, name)
        sessions_of(request).choose(caller_of(request).client, model.name)


@router.get("/sd-models", summary="Which checkpoints are served?", responses=READY)
async def checkpoints(request: Request) -> list[Checkpoint]:
    """The first is the default."""
    return [
        Checkpoint(
            title=title(model),
            model_name=model.name,
            hash=model.checkpoint.revision[:HASH_CHARS],
            sha256=model.checkpoint.revision,
            filename=f"{model.name}.safetensors",
        )
        for model in service_of(request).pool.models.values()
    ]


def sessions_of(request: Request) -> Sessions:
    """What is kept of each client."""
    sessions: Sessions = request.app.state.sessions
    return sessions


def title(model: Model) -> str:
    """A checkpoint's name and short hash, by which that UI lists it."""
    return f"{model.name} [{model.checkpoint.revision[:HASH_CHARS]}]"


def served_name(asked: str | None, service: Service) -> str | None:
    """The name of what a client asks for: by title, file or hash; else by an alias, where the rules allow them."""
    models, aliases = service.pool.models, service.policy.aliases
    if not asked or asked in models:
        return asked or None
    for name, model in models.items():
        revision = model.checkpoint.revision
        known = {title(model), f"{name}.safetensors", f"{name}.safetensors [{revision[:HASH_CHARS]}]"}
        if asked in {*known, revision, revision[:HASH_CHARS]}:
            return name
    return aliases.served(asked if aliases.is_strict or asked in aliases.aliases else _ENDING.sub("", asked), models)
