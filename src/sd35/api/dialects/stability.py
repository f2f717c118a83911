"""Stability's dialect: `POST /v2beta/stable-image/generate/sd3`. A form to what is wanted, an image to their answer.

Source: the reference of Stability AI's REST API, v2beta, and the samples in it.
"""

import base64
import secrets
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from sd35.api.auth import service_of
from sd35.api.body import described
from sd35.api.dialects.dialect import Dialect
from sd35.api.disconnect import CLIENT_CLOSED_REQUEST, unless_gone
from sd35.api.form import AS_INTEGER, AS_NUMBER, read_form
from sd35.api.generate import (
    IMAGE_HEADERS,
    Call,
    IdempotencyKey,
    digest_of,
    errors_of_generation,
    image_headers,
    making,
)
from sd35.api.refusals import ApiError, ErrorFormat
from sd35.checkpoints.image_sizes import aspect_size
from sd35.errors import ContentRefused, JobEnded, NotAcceptable, UnknownModel
from sd35.generation.params import GenerationParams
from sd35.generation.service import GenerationResult
from sd35.images.encode import encode_async
from sd35.images.formats import Format, format_preference, negotiate, weights_of
from sd35.request import PROMPT_CHARACTERS
from sd35.service.service import Service

_PATH = "/v2beta/stable-image/generate/sd3"
_JSON = "application/json"
_MOST_SEED = 2**32 - 2
_TEXT_ALONE = "left out, for there is no image-to-image here, images are made from text alone"
FinishReason = Literal["SUCCESS", "CONTENT_FILTERED"]
_NAMES = {413: "payload_too_large", 429: "rate_limit_exceeded", 500: "internal_error"}  # the others are HTTP's own


class Form(BaseModel):
    """What to make an image of. Descriptions begin with what is allowed, which errors repeat."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(
        min_length=1,
        max_length=PROMPT_CHARACTERS,
        description=f"text of 1 to {PROMPT_CHARACTERS} characters: what the image shows.",
        examples=["a cat on a blue background"],
    )
    negative_prompt: str = Field(
        "",
        max_length=PROMPT_CHARACTERS,
        description=f"text of at most {PROMPT_CHARACTERS} characters: what to keep out."
        " It has no effect at a cfg_scale of 1, or with a model whose default is 1 or less.",
    )
    aspect_ratio: Literal["16:9", "1:1", "21:9", "2:3", "3:2", "4:5", "5:4", "9:16", "9:21"] = Field(
        "1:1",
        description="one of 16:9, 1:1, 21:9, 2:3, 3:2, 4:5, 5:4, 9:16, 9:21. The size is the one of that shape with as"
        " many pixels as the model's default, or somewhat less: of SD3.5 1344x768, 1024x1024, 1536x640, 832x1216, ...",
    )
    model: Annotated[str, Field(min_length=1)] | SkipJsonSchema[None] = Field(
        None,
        description="a name from /v1/models, or one that the service takes for one of them, as sd3.5-large."
        " Left out: the first of them.",
    )
    seed: Annotated[int, Field(ge=0, le=_MOST_SEED), AS_INTEGER] = Field(
        0,
        description=f"an integer from 0 to {_MOST_SEED}: the same seed and request give the same image."
        " 0: a random one, named in the answer.",
    )
    cfg_scale: Annotated[float, Field(ge=1, le=10), AS_NUMBER] | SkipJsonSchema[None] = Field(
        None, description="a number from 1 to 10. Left out: the model's default, named in /v1/models."
    )
    output_format: Literal["png", "jpeg", "webp", "avif"] | SkipJsonSchema[None] = Field(
        None, description="png, jpeg, webp or avif. Left out: as `Accept` asks, else png."
    )
    mode: Literal["text-to-image"] = Field("text-to-image", description=f"text-to-image, or {_TEXT_ALONE}.")
    image: SkipJsonSchema[None] = Field(None, description=f"{_TEXT_ALONE}.")
    strength: SkipJsonSchema[None] = Field(None, description=f"{_TEXT_ALONE}.")
    style_preset: SkipJsonSchema[None] = Field(None, description="left out, with the style in the prompt.")

    def to_wanted(self, service: Service) -> GenerationParams:
        """The same, free of the dialect. Raises UnknownModel."""
        model = service.model(self.model)
        wide, high = map(int, self.aspect_ratio.split(":"))
        width, height = aspect_size(wide, high, model.card)
        return GenerationParams(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            width=width,
            height=height,
            guidance_scale=self.cfg_scale,
            seed=self.seed or 1 + secrets.randbelow(_MOST_SEED),  # one that can be asked for
            model=model.name,
        )

    def format(self, accept: str | None) -> tuple[Format, bool]:
        """The file's, and whether it comes inside of JSON. Raises NotAcceptable where `accept` takes neither.

        JSON comes where it is liked better than the file, or as much and by its name, where the file is covered by
        no more than `*/*`, as in what axios sends by itself.
        """
        formats = [Format(self.output_format)] if self.output_format else list(Format)
        weights = weights_of(accept)
        file, json = (
            max(format_preference(weights, each.media_type) for each in formats),
            format_preference(weights, _JSON),
        )
        if not (file.weight or json.weight):
            raise NotAcceptable(accept or "", [*(each.media_type for each in formats), _JSON])
        if (json.weight, json.narrowness > 0) > (file.weight, file.narrowness > 0):
            return formats[0], True
        return formats[0] if self.output_format else negotiate(accept, None), False


class Answer(BaseModel):
    """An image inside of JSON. `model` and `digest` are this project's own."""

    image: str = Field(description="The file, in base64.")
    finish_reason: FinishReason
    seed: int
    model: str = Field(description="The name of the model that was used.")
    digest: str = Field(description="The image's identity: SHA-256 of its canonical request.")


class Failure(BaseModel):
    """An error as Stability words it."""

    id: str = Field(description="The request's, also in the header `X-Request-Id` and in the server's log.")
    name: str = Field(description="What kind of error it is, as `bad_request`.")
    errors: list[str] = Field(description="What went wrong, each with what is allowed.")


def _words(refused: ApiError, request_id: str) -> tuple[int, dict[str, Any]]:
    status, error = refused.status, refused.error
    name = _NAMES.get(status) or HTTPStatus(status).name.lower()
    errors = [each.sentence for each in refused.errors]
    if isinstance(error, ContentRefused) or (isinstance(error, JobEnded) and status == 422):  # a job of refused content
        status, name = 403, "content_moderation"
    elif status in {406, 415, 422} or isinstance(error, UnknownModel):
        status, name = 400, "bad_request"
    elif status == 404 and error is None:
        errors = [refused.detail, f"of Stability's API there is: POST {_PATH}"]
    return status, Failure(id=request_id, name=name, errors=errors or [refused.detail]).model_dump()


_WORDING = ErrorFormat(_words, Failure)
_documented = _WORDING.documented
_HEADERS = {
    "finish-reason": "`SUCCESS`, or `CONTENT_FILTERED` where the operator's filter blurred the image.",
    "seed": "The seed, also where it was drawn by chance.",
    **IMAGE_HEADERS,
}
_IMAGE = {
    "description": "The image, or, where `Accept` asks for it, JSON with the image inside.",
    "content": {
        **{each.media_type: {"schema": {"type": "string", "format": "binary"}} for each in Format},
        _JSON: {"schema": Answer.model_json_schema()},
    },
    "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()},
}

router = APIRouter()


@router.post(
    _PATH,
    summary="Make an image from text, as Stability's API",
    response_class=Response,
    openapi_extra=described(Form, "multipart/form-data"),
    responses={
        200: _IMAGE,
        **errors_of_generation(_WORDING),
        400: _documented(
            "The body is no form; or a field is unknown, missing, given twice or wrong, or `Accept` takes nothing that"
            " there is: each is named."
        ),
        403: _documented("The operator's filter refuses it; or it takes more than an hour's share of pixels."),
    },
)
async def generate(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Answers when the image is made. A client that hangs up cancels it, unless it sent an idempotency key.

    Refused are `image` and `strength`, for images are made from text alone, and `style_preset`. An empty file is
    passed over. The headers `stability-client-id`, `-user-id` and `-version` may be there and change nothing.
    """
    form = await read_form(request, Form)
    output_format, is_json = form.format(request.headers.get("accept"))
    service = service_of(request)
    has_metadata = service.policy.has_metadata
    call = Call(
        [form.to_wanted(service)], 0, output_format, has_metadata, idempotency_key, digest_of(form, idempotency_key)
    )
    async with making(request, call) as batch:
        outcomes = await unless_gone(request, batch.outcomes())
    if not outcomes or (outcome := outcomes[0]) is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    file = await encode_async(outcome.png, output_format, has_metadata=has_metadata)
    return _answer(outcome, file, _JSON if is_json else output_format.media_type)


def _answer(outcome: GenerationResult, file: bytes, media_type: str) -> Response:
    made = outcome.request
    finish_reason: FinishReason = "CONTENT_FILTERED" if outcome.is_blurred else "SUCCESS"
    headers = {"finish-reason": finish_reason, "seed": str(made.seed), **image_headers(outcome)}
    if media_type != _JSON:
        return Response(file, headers=headers, media_type=media_type)
    image = base64.b64encode(file).decode()
    answer = Answer(image=image, finish_reason=finish_reason, seed=made.seed, model=made.model, digest=made.digest)
    return Response(answer.model_dump_json(), headers=headers, media_type=_JSON)


STABILITY = Dialect("stability", ("/v2beta/",), (router,), _WORDING)
