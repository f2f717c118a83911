"""Stability's REST API: `POST /v2beta/stable-image/generate/sd3`. A form to what is wanted, a picture to their answer.

Source: the reference of their REST API v2beta, and the samples in it.
"""

import base64
from http import HTTPStatus
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from sd35.api.callers import service_of
from sd35.api.dialects.dialect import Dialect
from sd35.api.form import read_form
from sd35.api.making import PICTURE_HEADERS, Call, IdempotencyKey, digest_of, making, picture_headers
from sd35.api.refusals import FieldError, RequestRefused, Wording
from sd35.api.waiting import CLIENT_CLOSED_REQUEST, unless_gone
from sd35.errors import ContentRefused
from sd35.request import PROMPT_CHARACTERS
from sd35.service.encoding import encoded
from sd35.service.formats import Format, liking_of, negotiate
from sd35.service.resolve import Wanted, find_model
from sd35.service.service import Service
from sd35.service.sizes import size_of_aspect

_JSON = "application/json"
_MOST_SEED = 4294967294
_NAMES = {403: "content_moderation", 413: "payload_too_large", 429: "rate_limit_exceeded", 499: "client_closed_request"}
_TEXT_ONLY = "left out: pictures are made from text alone here."

Aspect = Literal["16:9", "1:1", "21:9", "2:3", "3:2", "4:5", "5:4", "9:16", "9:21"]


class Form(BaseModel):
    """What to make a picture of. Descriptions begin with what is allowed, which errors repeat."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(
        min_length=1, max_length=PROMPT_CHARACTERS, description=f"text of 1 to {PROMPT_CHARACTERS} characters."
    )
    negative_prompt: str = Field(
        "", max_length=PROMPT_CHARACTERS, description=f"text of at most {PROMPT_CHARACTERS} characters."
    )
    mode: Literal["text-to-image"] = Field(
        "text-to-image", description="text-to-image: pictures are made from text alone here."
    )
    aspect_ratio: Aspect = Field("1:1", description="16:9, 1:1, 21:9, 2:3, 3:2, 4:5, 5:4, 9:16 or 9:21.")
    model: str | None = Field(
        None, description="a name from /v1/models or `model_aliases`. Left out: the first of those that are served."
    )
    seed: int = Field(0, ge=0, le=_MOST_SEED, description=f"an integer from 0 to {_MOST_SEED}. 0 is a random one.")
    output_format: Literal["png", "jpeg", "webp", "avif"] | None = Field(
        None, description="png, jpeg, webp or avif. Left out: as `Accept` names one, else png."
    )
    cfg_scale: float | None = Field(
        None, ge=1, le=10, description="a number from 1 to 10. Left out: what is best for the model, as in /v1/models."
    )
    strength: None = Field(None, description=_TEXT_ONLY)
    style_preset: None = Field(None, description="left out: there are no presets here; say it in the prompt.")

    def to_wanted(self, service: Service) -> Wanted:
        """The same, free of the dialect. Raises UnknownModel."""
        models = service.studio.models
        name = service.rules.naming.served(self.model, models)
        wide, high = map(int, self.aspect_ratio.split(":"))
        width, height = size_of_aspect(wide, high, find_model(models, name).card)
        return Wanted(
            self.prompt,
            self.negative_prompt,
            width,
            height,
            guidance_scale=self.cfg_scale,
            seed=self.seed or None,
            model=name,
        )


class Answer(BaseModel):
    """A picture in JSON; `model` and `digest` say more than Stability's own."""

    image: str = Field(description="The file, in base64.")
    finish_reason: Literal["SUCCESS", "CONTENT_FILTERED"]
    seed: int
    model: str
    digest: str


class Refusal(BaseModel):
    """An error as Stability words it."""

    id: str = Field(description="The request's, also in the header `X-Request-Id` and in the server's log.")
    name: str = Field(description="What kind of error, as `bad_request`.")
    errors: list[str] = Field(description="What went wrong, each with what is allowed.")


def _words(refused: RequestRefused, request_id: str) -> tuple[int, dict[str, Any]]:
    status = refused.status
    if isinstance(refused.error, ContentRefused):
        status = 403
    elif status in {404, 406, 415, 422} and (refused.errors or refused.error):
        status = 400  # of these their API knows but this one
    is_limit = status == 403 and not isinstance(refused.error, ContentRefused)
    name = "forbidden" if is_limit else _NAMES.get(status) or HTTPStatus(status).phrase.lower().replace(" ", "_")
    told = [f"{error.field}: got {error.got!r}; allowed: {error.allowed}" for error in refused.errors]
    return status, Refusal(id=request_id, name=name, errors=told or [refused.detail]).model_dump()


WORDING = Wording(_words, Refusal)
_documented = WORDING.documented
router = APIRouter(tags=["Stability's API"])
_HEADERS = {
    **PICTURE_HEADERS,
    "finish-reason": "`SUCCESS`, or `CONTENT_FILTERED` where the operator's filter blurred the picture.",
    "seed": "The seed, also where it was drawn by chance.",
}


@router.post(
    "/v2beta/stable-image/generate/sd3",
    summary="Make a picture from text, as Stability's API does",
    response_class=Response,
    openapi_extra={
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": Form.model_json_schema()}}}
    },
    responses={
        200: {
            "description": "The picture.",
            "content": {
                **{each.media_type: {"schema": {"type": "string", "format": "binary"}} for each in Format},
                _JSON: {"schema": Answer.model_json_schema()},
            },
            "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()},
        },
        400: _documented("A field, or `Accept`, is wrong, or the body is no form; each field is named."),
        403: _documented("The filter refuses the prompt or the picture, or it is more than an hour's share of pixels."),
        409: _documented("The idempotency key came before with another body, or its job was cancelled."),
        410: _documented("The picture of the idempotency key was removed."),
        413: _documented("The body is larger than 10 MiB."),
        429: _documented(
            "Too many pictures wait, or the caller's own limit is reached.", **{"Retry-After": "Seconds."}
        ),
        500: _documented("This picture could not be made; others are not affected."),
        503: _documented("Loading or closing, or a store does not answer.", **{"Retry-After": "Seconds."}),
    },
)
async def generate(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Answers with the file, or with JSON where `Accept` likes that better. A client that hangs up cancels its picture.

    The headers `stability-client-id`, `-user-id` and `-version` are taken, and change nothing.
    """
    form = await read_form(request, Form)
    service = service_of(request)
    accept = request.headers.get("accept") or "*/*"
    as_json = _likes_json(accept)
    output_format = Format(form.output_format) if form.output_format else None
    wanted = (output_format or Format.PNG) if as_json else negotiate(accept, output_format)
    call = Call([form.to_wanted(service)], 0, wanted, True, idempotency_key, digest_of(form))  # noqa: FBT003
    async with making(request, call) as batch:
        outcomes = await unless_gone(request, batch.outcomes())
    if not outcomes or (outcome := outcomes[0]) is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    content = await encoded(outcome.png, wanted, has_metadata=service.rules.has_metadata)
    reason: Literal["SUCCESS", "CONTENT_FILTERED"] = "CONTENT_FILTERED" if outcome.is_blurred else "SUCCESS"
    headers = {**picture_headers(outcome), "finish-reason": reason, "seed": str(outcome.request.seed)}
    if not as_json:
        return Response(content, headers=headers, media_type=wanted.media_type)
    made = outcome.request
    answer = Answer(
        image=base64.b64encode(content).decode(),
        finish_reason=reason,
        seed=made.seed,
        model=made.model,
        digest=made.digest,
    )
    return Response(answer.model_dump_json(), headers=headers, media_type=_JSON)


def _likes_json(accept: str) -> bool:
    """Whether JSON is liked better than any picture. Raises RequestRefused where neither is taken."""
    json = liking_of(accept, _JSON)[0]
    picture = max(liking_of(accept, each.media_type)[0] for each in Format)
    if not json and not picture:
        error = FieldError(field="accept", got=accept, allowed=f"image/* or {_JSON}")
        raise RequestRefused(406, f"accept: got {accept!r}; allowed: {error.allowed}", [error])
    return json > picture


STABILITY = Dialect("stability", ("/v2beta/",), (router,), WORDING)
