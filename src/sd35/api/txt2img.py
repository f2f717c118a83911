"""`POST /v1/txt2img`: the body and the route of this project's own dialect."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from sd35.api.auth import service_of
from sd35.api.body import openapi_body, read_json
from sd35.api.disconnect import CLIENT_CLOSED_REQUEST
from sd35.api.generate import (
    FILE_CONTENT,
    IMAGE_HEADERS,
    IdempotencyKey,
    errors_of_generation,
    generate,
    image_headers,
    job_specs_of,
)
from sd35.api.problems import PROBLEM, documented
from sd35.generation.params import GenerationParams
from sd35.images.encode import encode_async
from sd35.images.formats import Format, negotiate
from sd35.request import (
    GUIDANCE_SCALE,
    PRIORITY,
    PROMPT_CHARACTERS,
    SEED,
    SIZE_MULTIPLE_PX,
    SKIP_LAYER_SCALE,
    STEPS,
)

_DEFAULT = "Omitted or null: the model's default, listed in /v1/models."
_SIDE: dict[str, Any] = {"ge": SIZE_MULTIPLE_PX, "multiple_of": SIZE_MULTIPLE_PX}
_SIDE_ALLOWED = f"an integer, a multiple of {SIZE_MULTIPLE_PX}, in the model's range, listed in /v1/models. {_DEFAULT}"


class Txt2Img(BaseModel):
    """The body. Each description begins with the allowed values, which errors repeat."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(
        min_length=1,
        max_length=PROMPT_CHARACTERS,
        description=f"text of 1 to {PROMPT_CHARACTERS} characters, without lone surrogates: describes the image.",
        examples=["a cat on a blue background"],
    )
    negative_prompt: str | None = Field(
        None,
        max_length=PROMPT_CHARACTERS,
        description=f"text of at most {PROMPT_CHARACTERS} characters, without lone surrogates: describes what to avoid."
        " It has no effect at a guidance scale of 1 or less. Omitted or null: empty.",
    )
    width: Annotated[int, Field(**_SIDE)] | None = Field(None, description=_SIDE_ALLOWED)
    height: Annotated[int, Field(**_SIDE)] | None = Field(None, description=_SIDE_ALLOWED)
    steps: Annotated[int, Field(ge=STEPS[0], le=STEPS[1])] | None = Field(
        None, description=f"an integer from {STEPS[0]} to {STEPS[1]}: denoising steps. {_DEFAULT}"
    )
    guidance_scale: Annotated[float, Field(ge=GUIDANCE_SCALE[0], le=GUIDANCE_SCALE[1])] | None = Field(
        None,
        description=f"a number from {GUIDANCE_SCALE[0]:g} to {GUIDANCE_SCALE[1]:g}: how closely to follow the prompt."
        f" 1 or less turns guidance off and halves the computation. {_DEFAULT}",
    )
    skip_layer_scale: Annotated[float, Field(ge=SKIP_LAYER_SCALE[0], le=SKIP_LAYER_SCALE[1])] | None = Field(
        None,
        description=f"a number from {SKIP_LAYER_SCALE[0]:g} to {SKIP_LAYER_SCALE[1]:g}, in the model's range, listed in"
        " /v1/models: skip-layer guidance, one more prediction in some steps, which improves structure. 0 turns it off."
        f" It has no effect at a guidance scale of 1 or less. {_DEFAULT}",
    )
    seed: Annotated[int, Field(ge=SEED[0], le=SEED[1])] | None = Field(
        None,
        description=f"an integer from {SEED[0]} to {SEED[1]}: the same seed and request give the same image."
        " Omitted or null: a random seed, named in the response's headers.",
    )
    model: str | None = Field(None, description="a name from /v1/models. Omitted or null: the first of them.")
    priority: Annotated[int, Field(ge=PRIORITY[0], le=PRIORITY[1])] = Field(
        0,
        description=f"an integer from {PRIORITY[0]} to {PRIORITY[1]}: higher goes before the same client's other"
        " images. It does not change the image.",
    )

    output_format: Literal["png", "jpeg", "webp", "avif"] | None = Field(
        None,
        description="png, jpeg, webp or avif: the file's format. Omitted or null: by `Accept`, else png.",
    )
    metadata: bool = Field(
        True,  # noqa: FBT003
        description="true or false: whether the file has metadata that describe its generation, if the service allows.",
    )

    @property
    def format(self) -> Format | None:
        """The requested file format, if any."""
        return Format(self.output_format) if self.output_format else None

    def to_params(self) -> GenerationParams:
        """Return the generation parameters of the body."""
        return GenerationParams(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt or "",
            width=self.width,
            height=self.height,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            model=self.model,
            skip_layer_scale=self.skip_layer_scale,
        )


_IMAGE = {
    "description": "The image. Its metadata hold the request, for `sd35 replay`.",
    "content": FILE_CONTENT,
    "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in IMAGE_HEADERS.items()},
}


_SETTINGS = {"width": 1024, "height": 1024, "steps": 28, "guidance_scale": 4.5, "seed": 7}
EXAMPLES = {
    "smallest": {"value": {"prompt": "a cat on a blue background"}},
    "with settings": {"value": {"prompt": "a cat to the left of a dog", "negative_prompt": "a tree", **_SETTINGS}},
}
router = APIRouter()


@router.post(
    "/v1/txt2img",
    summary="Generate an image from text",
    response_class=Response,
    openapi_extra=openapi_body(Txt2Img, examples=EXAMPLES),
    responses={
        200: _IMAGE,
        **errors_of_generation(PROBLEM),
        400: documented("The body is not JSON."),
        404: documented("No model of that name is served. The problem lists the models that are."),
        406: documented("`Accept` allows none of the formats."),
        415: documented("The body is not `application/json`."),
        422: documented("A field is unknown, missing, of the wrong type or out of range. Each is named."),
    },
)
async def txt2img(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Return the file when the image is done. If the client disconnects, the image is cancelled.

    With an idempotency key, the call is a job: disconnecting does not cancel it, and sent again it returns the same
    image.
    """
    body = await read_json(request, Txt2Img)
    file_format = negotiate(request.headers.get("accept"), body.format)
    (job_spec,) = job_specs_of(request, body, [body.to_params()], idempotency_key)
    job_spec = replace(job_spec, priority=body.priority, format=file_format, has_metadata=body.metadata)
    results = await generate(request, [job_spec])
    if not results:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    (result,) = results
    has_metadata = body.metadata and service_of(request).policy.has_metadata
    content = await encode_async(result.png, file_format, has_metadata=has_metadata)
    return Response(content, headers=image_headers(result), media_type=file_format.media_type)
