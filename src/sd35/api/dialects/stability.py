"""Stability's API: `POST /v2beta/stable-image/generate/sd3`.

Source: the reference of Stability AI's REST API, v2beta, and its samples.
"""

import base64
import secrets
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from sd35.api import fields
from sd35.api.auth import service_of
from sd35.api.body import openapi_body
from sd35.api.dialects.dialect import Dialect
from sd35.api.errors import ApiError, ErrorFormat
from sd35.api.form import AS_INTEGER, AS_NUMBER, read_form
from sd35.api.generate import (
    IMAGE_HEADERS,
    IdempotencyKey,
    errors_of_generation,
    generate,
    image_headers,
    image_response,
    job_specs_of,
)
from sd35.checkpoints.image_sizes import aspect_size
from sd35.errors import ContentRefused, JobEnded, NotAcceptable, UnknownModel
from sd35.generation.params import GenerationParams
from sd35.generation.service import GenerationResult
from sd35.images.encode import encode_async
from sd35.images.formats import Format, format_preference, negotiate, weights_of
from sd35.service.service import Service

_PATH = "/v2beta/stable-image/generate/sd3"
_JSON = "application/json"
_MAX_SEED = 2**32 - 2
_TEXT_ONLY = "because this server generates images from text only"
FinishReason = Literal["SUCCESS", "CONTENT_FILTERED"]
# Stability's names of errors, by status. Errors with another status have the name of the status, such as not_found.
_NAMES = {413: "payload_too_large", 429: "rate_limit_exceeded", 500: "internal_error"}


class Form(BaseModel, extra="forbid", allow_inf_nan=False):
    """The body of `generate/sd3`. Each description begins with the allowed values, which errors repeat."""

    prompt: fields.Prompt = Field(
        description=f"{fields.PROMPT_ALLOWED}: what the image shows.", examples=["a cat on a blue background"]
    )
    negative_prompt: fields.NegativePrompt = Field(
        "",
        description=f"{fields.NEGATIVE_PROMPT_ALLOWED}: what the image should not show."
        " It has no effect if `cfg_scale`, or the model's default for it, is 1 or less.",
    )
    aspect_ratio: Literal["16:9", "1:1", "21:9", "2:3", "3:2", "4:5", "5:4", "9:16", "9:21"] = Field(
        "1:1",
        description="one of 16:9, 1:1, 21:9, 2:3, 3:2, 4:5, 5:4, 9:16, 9:21: width to height. The image has about as"
        " many pixels as the model's default size. With SD3.5, 16:9 is 1344x768, and 1:1 is 1024x1024.",
    )
    model: Annotated[str, Field(min_length=1)] | SkipJsonSchema[None] = Field(
        None,
        description="a name from /v1/models, or an alias such as sd3.5-large: the model to use."
        " Omitted: the first of /v1/models.",
    )
    seed: Annotated[int, Field(ge=0, le=_MAX_SEED), AS_INTEGER] = Field(
        0,
        description=f"an integer from 0 to {_MAX_SEED}: the same seed and request give the same image."
        " 0 is a random seed, which the response names.",
    )
    cfg_scale: Annotated[float, Field(ge=1, le=10), AS_NUMBER] | SkipJsonSchema[None] = Field(
        None,
        description="a number from 1 to 10: how closely the image follows the prompt."
        " Omitted: the model's default, listed in /v1/models.",
    )
    output_format: fields.OutputFormat | SkipJsonSchema[None] = Field(
        None, description="png, jpeg, webp or avif: the format of the file. Omitted: by `Accept`, else png."
    )
    mode: Literal["text-to-image"] = Field("text-to-image", description=f"text-to-image, {_TEXT_ONLY}.")
    image: SkipJsonSchema[None] = Field(None, description=f"no value, {_TEXT_ONLY}.")
    strength: SkipJsonSchema[None] = Field(None, description=f"no value, {_TEXT_ONLY}.")
    style_preset: SkipJsonSchema[None] = Field(None, description="no value; describe the style in the prompt.")

    def to_params(self, service: Service) -> GenerationParams:
        """Return the generation parameters of the form. Raises UnknownModel if the model is not served."""
        model = service.model(self.model)
        wide, high = map(int, self.aspect_ratio.split(":"))
        width, height = aspect_size(wide, high, model.card)
        return GenerationParams(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            width=width,
            height=height,
            guidance_scale=self.cfg_scale,
            # 0 requests a random seed. The random seed is not 0 itself, so that the client can request it again.
            seed=self.seed or 1 + secrets.randbelow(_MAX_SEED),
            model=model.name,
        )

    def choose_format(self, accept: str | None) -> tuple[Format, bool]:
        """Return the format of the file, and whether the response is JSON that contains the file in base64.

        `accept` is the request's `Accept` header. The response is JSON if the header prefers JSON to the file. It is
        also JSON if the header gives JSON and the file the same weight, but names JSON and allows the file by `*/*`
        only, as the client library axios does by default.

        Raises NotAcceptable if the header allows neither JSON nor the file.
        """
        formats = [Format(self.output_format)] if self.output_format else list(Format)
        weights = weights_of(accept)
        file = max(format_preference(weights, file_format.media_type) for file_format in formats)
        json = format_preference(weights, _JSON)
        if not (file.weight or json.weight):
            raise NotAcceptable(accept or "", [*(file_format.media_type for file_format in formats), _JSON])
        if (json.weight, json.narrowness > 0) > (file.weight, file.narrowness > 0):  # a narrowness of 0 is `*/*`
            return formats[0], True
        return formats[0] if self.output_format else negotiate(accept, None), False


class ImageResponse(BaseModel):
    """An image in JSON. Stability's API does not have the fields `model` and `digest`."""

    image: str = Field(description="The file in base64.")
    finish_reason: FinishReason = Field(description="`CONTENT_FILTERED` if the content filter blurred the image.")
    seed: int = Field(description="The seed of the image, even if the service chose it.")
    model: str = Field(description="The name of the model that was used.")
    digest: str = Field(description="The identity of the image: the SHA-256 of its complete request.")


class ErrorBody(BaseModel):
    """An error in Stability's format."""

    id: str = Field(description="The id of the request, as in the header `X-Request-Id` and in the server's log.")
    name: str = Field(description="The kind of error, such as `bad_request`.")
    errors: list[str] = Field(description="What went wrong, each with the allowed values.")


def _render_error(api_error: ApiError, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return Stability's status and JSON object of an error. See `ErrorFormat.render`."""
    status, error = api_error.status, api_error.error
    name = _NAMES.get(status) or HTTPStatus(status).name.lower()
    errors = [field_error.sentence for field_error in api_error.errors]
    # The content filter refused a job that ended with 422, unless the model or its limits have changed meanwhile.
    if isinstance(error, ContentRefused) or (isinstance(error, JobEnded) and status == 422):
        status, name = 403, "content_moderation"
    elif status in {406, 415, 422} or isinstance(error, UnknownModel):
        status, name = 400, "bad_request"
    elif status == 404 and error is None:
        errors = [api_error.detail, f"this server has only POST {_PATH} of Stability's API"]
    return status, ErrorBody(id=request_id, name=name, errors=errors or [api_error.detail]).model_dump()


_ERROR_FORMAT = ErrorFormat(_render_error, ErrorBody)
_documented = _ERROR_FORMAT.documented
_HEADERS = {
    "finish-reason": "`SUCCESS`, or `CONTENT_FILTERED` if the content filter blurred the image.",
    "seed": "The seed of the image, even if the service chose it.",
    **IMAGE_HEADERS,
}

router = APIRouter(tags=["Stability's API"])


@router.post(
    _PATH,
    summary="Generate an image from text (Stability)",
    response_class=Response,
    openapi_extra=openapi_body(Form, "multipart/form-data"),
    responses={
        200: image_response(
            "The image, or JSON that contains it if `Accept` prefers JSON.",
            _HEADERS,
            **{_JSON: {"schema": ImageResponse.model_json_schema()}},
        ),
        **errors_of_generation(_ERROR_FORMAT),
        400: _documented(
            "The body is not a form, or a field is unknown, missing, repeated or invalid, or `Accept` allows none of"
            " the formats. The error names each such field."
        ),
        403: _documented(
            "The content filter refuses the request, or it needs more pixels than the caller may generate in an hour."
        ),
    },
)
async def generate_sd3(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Return the image when it is done.

    If the client disconnects, the image is cancelled, unless the call has an idempotency key. The fields `image`,
    `strength` and `style_preset` are refused. Empty files are ignored, and so are the headers `stability-client-id`,
    `stability-client-user-id` and `stability-client-version`.
    """
    form = await read_form(request, Form)
    output_format, is_json = form.choose_format(request.headers.get("accept"))
    service = service_of(request)
    (job_spec,) = job_specs_of(request, form, [form.to_params(service)], idempotency_key)
    (result,) = await generate(request, [replace(job_spec, format=output_format)])
    file = await encode_async(result.png, output_format, has_metadata=service.policy.has_metadata)
    return _response(result, file, _JSON if is_json else output_format.media_type)


def _response(result: GenerationResult, file: bytes, media_type: str) -> Response:
    """Return the response of a call: the file itself, or JSON that contains the file if `media_type` is JSON."""
    request = result.request
    finish_reason: FinishReason = "CONTENT_FILTERED" if result.is_blurred else "SUCCESS"
    headers = {"finish-reason": finish_reason, "seed": str(request.seed), **image_headers(result)}
    if media_type != _JSON:
        return Response(file, headers=headers, media_type=media_type)
    body = ImageResponse(
        image=base64.b64encode(file).decode(),
        finish_reason=finish_reason,
        seed=request.seed,
        model=request.model,
        digest=request.digest,
    )
    return Response(body.model_dump_json(), headers=headers, media_type=_JSON)


STABILITY = Dialect("stability", ("/v2beta/",), (router,), _ERROR_FORMAT)
