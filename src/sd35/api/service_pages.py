"""What a client and an operator ask about the service itself: models, health, readiness."""

import time
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from sd35.api.auth import service_of
from sd35.api.problems import documented
from sd35.api.query import refuse_unknown
from sd35.engine.model_info import ModelInfo
from sd35.planning.auto import why_standing_in
from sd35.request import GUIDANCE_SCALE, SEED, SIZE_MULTIPLE_PX, SKIP_LAYER_SCALE, STEPS
from sd35.service.lifecycle import ServiceLifecycle


class Defaults(BaseModel):
    """What a request that leaves a field out gets."""

    width: int
    height: int
    steps: int
    guidance_scale: float
    skip_layer_scale: float


class Ranges(BaseModel):
    """What a request may ask for; each is (least, most)."""

    side_px: tuple[int, int] = Field(description="Each side's range as drawn; larger ones only where `enlarges`.")
    size_multiple_px: int = SIZE_MULTIPLE_PX
    max_pixels: int = Field(description="Most pixels, width x height, that may be asked for.")
    steps: tuple[int, int] = STEPS
    guidance_scale: tuple[float, float] = GUIDANCE_SCALE
    skip_layer_scale: tuple[float, float] = Field(
        description="Of skip-layer guidance; 0 to 0 where the model is not for it or the backend cannot."
    )
    seed: tuple[int, int] = SEED


class ModelCard(BaseModel):
    """A model as OpenAI's list names it (`id` to `owned_by`), and what this project says of it beside."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When it was put where it lies, in seconds since 1970.")
    owned_by: str = "sd35"
    revision: str = Field(description="SHA-256 over its files.")
    licence: str
    backend: str
    precision: str
    defaults: Defaults
    ranges: Ranges
    native_pixels: int
    enlarges: bool = Field(
        description="Whether sizes above its range are drawn with `native_pixels` at the same aspect, then enlarged."
    )
    max_sequence_length: int = Field(description="Tokens that T5 reads of a prompt.")
    standing_in: str | None = Field(
        description="Where `auto` found no SD3.5 model and this one is served in its place: why, and what to do."
    )


class ModelList(BaseModel):
    """OpenAI's list envelope. The first model is the default."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """That the process answers."""

    status: Literal["ok"] = "ok"
    uptime_s: float


class Ready(BaseModel):
    """That images can be made."""

    status: Literal["ready"] = "ready"
    models: list[str]


_NOT_READY: dict[int | str, dict[str, Any]] = {503: documented("Loading, or closing.", **{"Retry-After": "Seconds."})}
router = APIRouter()


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Is the process alive?")
async def healthz(request: Request) -> Health:
    """Always 200, also while the model loads and while images are made."""
    return Health(uptime_s=round(time.monotonic() - request.app.state.started_s, 3))


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Can images be made?", responses=_NOT_READY)
async def readyz(request: Request) -> Ready:
    """200 once the model has drawn a first image; 503 before, and while closing."""
    lifecycle: ServiceLifecycle = request.app.state.lifecycle
    return Ready(models=list(lifecycle.pool.models))


@router.head("/v1/models", include_in_schema=False)
@router.get(
    "/v1/models", summary="Which models are served?", responses=_NOT_READY, dependencies=[Depends(refuse_unknown)]
)
async def models(request: Request) -> ModelList:
    """OpenAI's list, with defaults, ranges and text length of each model."""
    return ModelList(data=[_card(model, request) for model in service_of(request).pool.models.values()])


@router.get(
    "/v1/models/{name}",
    summary="What is a model?",
    responses={404: documented("No model of that name is served."), **_NOT_READY},
    dependencies=[Depends(refuse_unknown)],
)
async def model(request: Request, name: str) -> ModelCard:
    """One of the list, by its name or by one of its aliases."""
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
        standing_in=why_standing_in(request.app.state.settings, model.name),
    )
