"""The body and the route of `POST /v1/txt2img`, in this project's own dialect."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from sd35.api import fields
from sd35.api.auth import service_of
from sd35.api.body import openapi_body, read_json
from sd35.api.errors import PROBLEM, Responses, documented
from sd35.api.generate import (
    IMAGE_HEADERS,
    IdempotencyKey,
    errors_of_generation,
    generate,
    image_headers,
    image_response,
    job_specs_of,
)
from sd35.generation.params import GenerationParams
from sd35.images.encode import encode_async
from sd35.images.formats import Format, negotiate
from sd35.request import PRIORITY, SKIP_LAYER_SCALE

_DEFAULT = "Omitted or null: the model's default, listed in /v1/models."
_SIDE_ALLOWED = f"{fields.SIDE_ALLOWED}, listed in /v1/models"


class Txt2Img(BaseModel, extra="forbid", allow_inf_nan=False):
    """The body of `POST /v1/txt2img`. Each description begins with the allowed values, which errors repeat."""

    prompt: fields.Prompt = Field(
        description=f"{fields.PROMPT_ALLOWED}, without lone surrogates: what the image shows.",
        examples=["a cat on a blue background"],
    )
    negative_prompt: fields.NegativePrompt | None = Field(
        None,
        description=f"{fields.NEGATIVE_PROMPT_ALLOWED}, without lone surrogates: what the image should not show."
        " It has no effect if `guidance_scale` is 1 or less. Omitted or null: empty.",
    )
    width: fields.Side | None = Field(None, description=f"{_SIDE_ALLOWED}: the width in pixels. {_DEFAULT}")
    height: fields.Side | None = Field(None, description=f"{_SIDE_ALLOWED}: the height in pixels. {_DEFAULT}")
    steps: fields.Steps | None = Field(
        None, description=f"{fields.STEPS_ALLOWED}: the number of denoising steps. {_DEFAULT}"
    )
    guidance_scale: fields.GuidanceScale | None = Field(
        None,
        description=f"{fields.GUIDANCE_SCALE_ALLOWED}: how closely the image follows the prompt."
        f" 1 or less turns classifier-free guidance off, which halves the computation. {_DEFAULT}",
    )
    skip_layer_scale: Annotated[float, Field(ge=SKIP_LAYER_SCALE[0], le=SKIP_LAYER_SCALE[1])] | None = Field(
        None,
        description=f"a number from {SKIP_LAYER_SCALE[0]:g} to {SKIP_LAYER_SCALE[1]:g}, in the model's range, listed in"
        " /v1/models: the scale of skip-layer guidance, which improves the structure of the image with one more"
        f" prediction in some steps. 0 turns it off. It has no effect if `guidance_scale` is 1 or less. {_DEFAULT}",
    )
    seed: fields.Seed | None = Field(
        None,
        description=f"{fields.SEED_ALLOWED}: the same seed and request give the same image."
        " Omitted or null: a random seed, which the response names.",
    )
    model: str | None = Field(
        None, description="a name from /v1/models: the model to use. Omitted or null: the first of /v1/models."
    )
    priority: Annotated[int, Field(ge=PRIORITY[0], le=PRIORITY[1])] = Field(
        0,
        description=f"an integer from {PRIORITY[0]} to {PRIORITY[1]}: images with a higher priority go before the same"
        " client's other images. It does not change the image.",
    )

    output_format: fields.OutputFormat | None = Field(
        None,
        description="png, jpeg, webp or avif: the file format. Omitted or null: by `Accept`, else png (jobs: png).",
    )
    metadata: bool = Field(
        True,  # noqa: FBT003
        description="true or false: whether the file contains its request and the versions that generated it. Ignored"
        " if the setting `keep_metadata` is false: then files have no metadata.",
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


_EXAMPLE = {"width": 1024, "height": 1024, "steps": 28, "guidance_scale": 4.5, "seed": 7}
EXAMPLES = {
    "smallest": {"value": {"prompt": "a cat on a blue background"}},
    "with settings": {"value": {"prompt": "a cat to the left of a dog", "negative_prompt": "a tree", **_EXAMPLE}},
}
BODY_ERRORS: Responses = {
    400: documented("The body is not JSON."),
    404: documented("No model of that name is served. The error lists the served models."),
    415: documented("The `Content-Type` of the body is not `application/json`."),
    422: documented("A field is unknown, missing, of the wrong type or out of range. The error names each such field."),
}
router = APIRouter(tags=["images"])


@router.post(
    "/v1/txt2img",
    summary="Generate an image from text",
    response_class=Response,
    openapi_extra=openapi_body(Txt2Img, examples=EXAMPLES),
    responses={
        200: image_response(
            "The image. From the metadata of a PNG file, `sd35 replay` can generate it again.", IMAGE_HEADERS
        ),
        **errors_of_generation(PROBLEM),
        **BODY_ERRORS,
        406: documented("`Accept` allows none of the formats."),
    },
)
async def txt2img(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Return the image when it is done. If the client disconnects, the image is cancelled.

    With an idempotency key, the call runs as a job: a disconnect does not cancel it, and the same call sent again
    returns the same image.
    """
    body = await read_json(request, Txt2Img)
    file_format = negotiate(request.headers.get("accept"), body.format)
    (job_spec,) = job_specs_of(request, body, [body.to_params()], idempotency_key)
    job_spec = replace(job_spec, priority=body.priority, format=file_format, has_metadata=body.metadata)
    (result,) = await generate(request, [job_spec])
    has_metadata = body.metadata and service_of(request).policy.has_metadata
    content = await encode_async(result.png, file_format, has_metadata=has_metadata)
    return Response(content, headers=image_headers(result), media_type=file_format.media_type)
