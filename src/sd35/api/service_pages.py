"""Routes about the service itself: models, health, readiness."""

import time
from typing import Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from sd35.api.auth import service_of
from sd35.api.errors import PROBLEM, documented
from sd35.api.query import refuse_unknown_parameters
from sd35.engine.model_info import ModelInfo
from sd35.planning.auto import why_standing_in
from sd35.request import GUIDANCE_SCALE, SEED, SIZE_MULTIPLE_PX, SKIP_LAYER_SCALE, STEPS
from sd35.service.lifecycle import ServiceLifecycle


class Defaults(BaseModel):
    """The values of fields that a request omits."""

    width: int
    height: int
    steps: int
    guidance_scale: float
    skip_layer_scale: float


class Ranges(BaseModel):
    """The allowed values, each as (minimum, maximum)."""

    side_px: tuple[int, int] = Field(description="The range of each side. With `enlarges`, sides may be larger.")
    size_multiple_px: int = SIZE_MULTIPLE_PX
    max_pixels: int = Field(description="The largest width x height.")
    steps: tuple[int, int] = STEPS
    guidance_scale: tuple[float, float] = GUIDANCE_SCALE
    skip_layer_scale: tuple[float, float] = Field(
        description="The range of skip-layer guidance. 0 to 0 if the model or the backend does not support it."
    )
    seed: tuple[int, int] = SEED


class ModelCard(BaseModel):
    """A model in OpenAI's format (`id` to `owned_by`), with further fields of this project."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When its directory last changed, in seconds since 1970.")
    owned_by: str = "sd35"
    revision: str = Field(description="SHA-256 over its files.")
    licence: str
    backend: str
    precision: str
    defaults: Defaults
    ranges: Ranges
    native_pixels: int
    enlarges: bool = Field(
        description="Whether larger sizes are generated with `native_pixels` at the same aspect ratio, then enlarged."
    )
    max_sequence_length: int = Field(description="The number of tokens that T5 reads of a prompt.")
    substitute_reason: str | None = Field(
        description="Why `auto` serves this model instead of an SD3.5 model, and how to change that. Else null."
    )


class ModelList(BaseModel):
    """OpenAI's list envelope. The first model is the default."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"
    uptime_s: float


class Ready(BaseModel):
    """The service is ready."""

    status: Literal["ready"] = "ready"
    models: list[str]


router = APIRouter()


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Check that the process is alive")
async def healthz(request: Request) -> Health:
    """Return 200, also while the model loads and while images are generated."""
    return Health(uptime_s=round(time.monotonic() - request.app.state.started_s, 3))


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Check that the service is ready", responses=PROBLEM.unavailable)
async def readyz(request: Request) -> Ready:
    """Return 200 once the model has generated a first image; 503 before that, and while the service closes."""
    lifecycle: ServiceLifecycle = request.app.state.lifecycle
    return Ready(models=list(lifecycle.pool.models))


@router.head("/v1/models", include_in_schema=False)
@router.get(
    "/v1/models",
    summary="List models",
    responses=PROBLEM.unavailable,
    dependencies=[Depends(refuse_unknown_parameters)],
)
async def models(request: Request) -> ModelList:
    """Return the models in OpenAI's format, with the defaults, ranges and text length of each."""
    return ModelList(data=[_card(model, request) for model in service_of(request).pool.models.values()])


@router.get(
    "/v1/models/{name}",
    summary="Get a model",
    responses={404: documented("No model of that name is served."), **PROBLEM.unavailable},
    dependencies=[Depends(refuse_unknown_parameters)],
)
async def model(request: Request, name: str) -> ModelCard:
    """Return a model by its name or by one of its aliases."""
    return _card(service_of(request).model(name), request)


def _card(model: ModelInfo, request: Request) -> ModelCard:
    card, skip_layers = model.card, model.skip_layers
    return ModelCard(
        id=model.name,
        created=int(model.created_s),
        revision=model.revision,
        licence=card.licence,
        backend=model.backend,
        precision=model.precision,
        defaults=Defaults(
            width=card.width,
            height=card.height,
            steps=card.steps,
            guidance_scale=card.guidance_scale,
            skip_layer_scale=skip_layers.scale if skip_layers else 0.0,
        ),
        ranges=Ranges(
            side_px=card.side_px,
            max_pixels=service_of(request).pool.max_pixels,
            skip_layer_scale=SKIP_LAYER_SCALE if skip_layers else (0.0, 0.0),
        ),
        native_pixels=card.native_pixels,
        enlarges=card.enlarges,
        max_sequence_length=card.max_sequence_length,
        substitute_reason=why_standing_in(request.app.state.settings, model.name),
    )
