"""Routes about the service: health, readiness and models."""

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Request
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

    width: int = Field(description="The width in pixels.")
    height: int = Field(description="The height in pixels.")
    steps: int = Field(description="The number of denoising steps.")
    guidance_scale: float = Field(description="The scale of classifier-free guidance.")
    skip_layer_scale: float = Field(
        description="The scale of skip-layer guidance. 0 if the model or the backend does not support it."
    )


class Ranges(BaseModel):
    """The allowed values. An array has the minimum and the maximum."""

    side_px: tuple[int, int] = Field(description="Width and height in pixels. Larger if `enlarges` is true.")
    size_multiple_px: int = Field(
        default=SIZE_MULTIPLE_PX, description="Width and height are multiples of this number."
    )
    max_pixels: int = Field(description="The maximum number of pixels, width x height.")
    steps: tuple[int, int] = Field(default=STEPS, description="The number of denoising steps.")
    guidance_scale: tuple[float, float] = Field(
        default=GUIDANCE_SCALE, description="The scale of classifier-free guidance."
    )
    skip_layer_scale: tuple[float, float] = Field(
        description="The scale of skip-layer guidance. `[0, 0]` if the model or the backend does not support it."
    )
    seed: tuple[int, int] = Field(default=SEED, description="The seed.")


class ModelCard(BaseModel):
    """A served model. The fields `id` to `owned_by` are OpenAI's. The others are this project's."""

    id: str = Field(description="The name of the model, as in the field `model` of a request.")
    object: Literal["model"] = Field(default="model", description="Always `model`.")
    created: int = Field(description="When the model's directory last changed, in seconds since 1970.")
    owned_by: str = Field(default="sd35", description="Always `sd35`.")
    revision: str = Field(description="The SHA-256 over the files of the model.")
    licence: str = Field(description="The licence of the weights.")
    backend: str = Field(description="The backend that runs the model.")
    precision: str = Field(description="The number format of the computation, such as `bfloat16`.")
    defaults: Defaults = Field(description="The model's values for fields that a request omits.")
    ranges: Ranges = Field(description="The allowed values of fields.")
    native_pixels: int = Field(
        description="If `enlarges` is true, images beyond `side_px` are generated with about this number of pixels."
    )
    enlarges: bool = Field(
        description="Whether images with a side above `side_px` are generated smaller and then enlarged. If false, they"
        " are refused."
    )
    max_sequence_length: int = Field(description="The number of tokens of a prompt that the T5 text encoder reads.")
    substitute_reason: str | None = Field(
        description="Why the checkpoint `auto` serves this model instead of an SD3.5 model, and how to change that."
        " Null for a model that the settings name, and for SD3.5."
    )


class ModelList(BaseModel):
    """The served models, in OpenAI's format."""

    object: Literal["list"] = Field(default="list", description="Always `list`.")
    data: list[ModelCard] = Field(description="The models. The first one is the default.")


class Health(BaseModel):
    """A sign that the process is alive."""

    status: Literal["ok"] = Field(default="ok", description="Always `ok`.")
    uptime_s: float = Field(description="The number of seconds since the server started.")


class Ready(BaseModel):
    """A sign that the service is ready."""

    status: Literal["ready"] = Field(default="ready", description="Always `ready`.")
    models: list[str] = Field(description="The names of the served models. The first one is the default.")


router = APIRouter(tags=["service"])
ModelName = Annotated[str, Path(description="The name of the model, or an alias of the setting `model_aliases`.")]


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Check that the process is alive")
async def healthz(request: Request) -> Health:
    """Return 200 while the process runs, also before the models are loaded."""
    return Health(uptime_s=round(time.monotonic() - request.app.state.started_s, 3))


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Check that the service is ready", responses=PROBLEM.unavailable)
async def readyz(request: Request) -> Ready:
    """Return 200 once the models have generated a test image, and 503 before that.

    Also return 503 while the service closes, and after its engine has failed.
    """
    lifecycle: ServiceLifecycle = request.app.state.lifecycle
    return Ready(models=list(lifecycle.pool.models))  # `pool` raises NotReady, which is the 503


@router.head("/v1/models", include_in_schema=False)
@router.get(
    "/v1/models",
    summary="List models",
    responses=PROBLEM.unavailable,
    dependencies=[Depends(refuse_unknown_parameters)],
)
async def models(request: Request) -> ModelList:
    """Return the served models in OpenAI's format, with the defaults and the allowed values of each."""
    return ModelList(data=[_model_card(model, request) for model in service_of(request).pool.models.values()])


@router.get(
    "/v1/models/{name}",
    summary="Get a model",
    responses={404: documented("No model of that name is served."), **PROBLEM.unavailable},
    dependencies=[Depends(refuse_unknown_parameters)],
)
async def model(request: Request, name: ModelName) -> ModelCard:
    """Return a served model by its name or by one of its aliases."""
    return _model_card(service_of(request).model(name), request)


def _model_card(model: ModelInfo, request: Request) -> ModelCard:
    """Return a model in the form that the API sends. `card` is the checkpoint's file with its defaults and limits."""
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
