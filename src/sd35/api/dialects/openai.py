"""OpenAI's images API: `POST /v1/images/generations`. A body to what is wanted, images to their answer or events.

Source: OpenAI's API reference, and their Python client. `GET /v1/models` is the service's own page, in their form.
"""

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel, ConfigDict, Field

from sd35.api.auth import service_of
from sd35.api.body import described, read_json, type_may_be_missing
from sd35.api.dialects.dialect import Dialect
from sd35.api.disconnect import CLIENT_CLOSED_REQUEST, unless_gone
from sd35.api.generate import Call, IdempotencyKey, digest_of, errors_of_generation, image_headers, making, preview_png
from sd35.api.refusals import ApiError, ErrorFormat, FieldError, noted
from sd35.engine.generation import Progress
from sd35.errors import ContentRefused, InvalidRequest, Sd35Error, UnknownModel
from sd35.generation.params import GenerationParams, series
from sd35.generation.service import GenerationResult
from sd35.images.encode import encode, encode_async
from sd35.images.formats import Format
from sd35.request import GUIDANCE_SCALE, PROMPT_CHARACTERS, SEED, STEPS
from sd35.request import Request as Resolved
from sd35.service.service import Service
from sd35.storage.links import PATH, expiry

_MAX_IMAGES, _MOST_PARTIAL = 10, 3
_ALL = 100  # of quality
_NO_EFFECT = "text. It is taken, and changes nothing."
_QUALITIES = {"low": "low", "high": "high", "hd": "high"}  # others are "medium"
_KINDS = {401: ("authentication_error", "invalid_api_key"), 429: ("rate_limit_error", "rate_limit_exceeded")}
_PARAMS = {"width": "size", "height": "size", "steps": "num_inference_steps"}  # what the service calls otherwise


class Generation(BaseModel):
    """What to make images of. Descriptions begin with what is allowed, which errors repeat."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(
        min_length=1, max_length=PROMPT_CHARACTERS, description=f"text of 1 to {PROMPT_CHARACTERS} characters."
    )
    model: str | None = Field(
        None, description="a name from /v1/models or `model_aliases`. Left out or null: the first of those served."
    )
    n: int | None = Field(
        None,
        ge=1,
        le=_MAX_IMAGES,
        description=f"an integer from 1 to {_MAX_IMAGES}: how many images, of following seeds.",
    )
    size: str | None = Field(
        None, pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$", description="auto, or WIDTHxHEIGHT in the model's range."
    )
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = Field(
        None,
        description="auto, low, medium, high, standard or hd: the model's steps; at low half of them, at high and hd"
        " half as many again.",
    )
    style: Literal["vivid", "natural"] | None = Field(
        None,
        description="vivid or natural: taken, and of no effect, unless `strict_dialects` is set. Say it in the prompt.",
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="b64_json or url. Left out or null: url for models asked for as dall-e..., else b64_json."
    )
    output_format: Literal["png", "jpeg", "webp", "avif"] | None = Field(
        None, description="png, jpeg, webp or avif. Left out or null: png."
    )
    output_compression: int | None = Field(
        None, ge=0, le=_ALL, description="an integer from 0 to 100: the quality of jpeg, webp and avif; 100 with png."
    )
    background: Literal["auto", "opaque"] | None = Field(None, description="auto or opaque: no image is transparent.")
    moderation: Literal["auto", "low"] | None = Field(
        None, description="auto or low: both leave it to the operator's filter."
    )
    user: str | None = Field(None, description=_NO_EFFECT)
    safety_identifier: str | None = Field(None, description=_NO_EFFECT)
    stream: bool | None = Field(None, description="true or false: whether to answer with events, of one image.")
    partial_images: int | None = Field(
        None, ge=0, le=_MOST_PARTIAL, description=f"an integer from 0 to {_MOST_PARTIAL}: previews in a stream."
    )
    negative_prompt: str | None = Field(
        None, max_length=PROMPT_CHARACTERS, description=f"text of at most {PROMPT_CHARACTERS} characters."
    )
    seed: int | None = Field(None, ge=SEED[0], le=SEED[1], description=f"an integer from {SEED[0]} to {SEED[1]}.")
    num_inference_steps: int | None = Field(
        None, ge=STEPS[0], le=STEPS[1], description=f"an integer from {STEPS[0]} to {STEPS[1]}: denoising steps."
    )
    guidance_scale: float | None = Field(
        None,
        ge=GUIDANCE_SCALE[0],
        le=GUIDANCE_SCALE[1],
        description=f"a number from {GUIDANCE_SCALE[0]:g} to {GUIDANCE_SCALE[1]:g}.",
    )

    @property
    def format(self) -> Format:
        """The files'."""
        return Format(self.output_format or "png")

    @property
    def compression(self) -> int | None:
        """The files' quality, None for the format's default."""
        return None if self.output_compression is None or self.format is Format.PNG else max(1, self.output_compression)

    @property
    def level(self) -> str:
        """The quality, in the words of answers."""
        return _QUALITIES.get(self.quality or "", "medium")

    @property
    def gives_url(self) -> bool:
        """Whether the answer names addresses; else it holds the files."""
        default = "url" if (self.model or "").startswith("dall-e") else "b64_json"
        return not self.stream and (self.response_format or default) == "url"

    def check(self, idempotency_key: str | None, *, is_strict: bool) -> None:
        """What fields say of each other. Raises InvalidRequest."""
        if is_strict and self.style is not None:
            raise InvalidRequest("style", self.style, "none: say it in the prompt")
        if self.num_inference_steps is not None and self.level != "medium":
            raise InvalidRequest("quality", self.quality, "auto, medium or standard beside num_inference_steps")
        if self.format is Format.PNG and self.output_compression not in {None, _ALL}:
            raise InvalidRequest("output_compression", self.output_compression, "100 with png, which is exact")
        if self.gives_url and self.compression is not None:
            raise InvalidRequest("output_compression", self.output_compression, "left out with the response_format url")
        if not self.stream and self.partial_images:
            raise InvalidRequest("partial_images", self.partial_images, "0 without stream")
        if self.stream and (self.n or 1) > 1:
            raise InvalidRequest("n", self.n, "1 with stream")
        if self.stream and self.response_format == "url":
            raise InvalidRequest("response_format", "url", "b64_json with stream")
        if self.stream and idempotency_key is not None:
            raise InvalidRequest("idempotency-key", idempotency_key, "none with stream")

    def to_wanted(self, service: Service) -> list[GenerationParams]:
        """The same, free of the dialect. Raises UnknownModel."""
        model = service.model(self.model)
        own = model.card.steps
        steps = {"low": max(1, own // 2), "high": min(own * 3 // 2, STEPS[1])}.get(self.level, self.num_inference_steps)
        width, _, height = (self.size or "auto").partition("x")
        wanted = GenerationParams(
            self.prompt,
            self.negative_prompt or "",
            int(width) if height else None,
            int(height) if height else None,
            steps,
            self.guidance_scale,
            self.seed,
            model.name,
        )
        return series(wanted, self.n or 1)


class Error(BaseModel):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str | None


class Refusal(BaseModel):
    """An error as OpenAI's clients read it."""

    error: Error


class TextTokens(BaseModel):
    """Tokens that were read."""

    text_tokens: int
    image_tokens: int = 0


class Usage(BaseModel):
    """What the transformer worked on: tokens of the prompt that T5 reads, and the image's patches of 16x16 px."""

    input_tokens: int
    input_tokens_details: TextTokens
    output_tokens: int
    total_tokens: int


class GeneratedItem(BaseModel):
    """An image; from `seed` on it is more than OpenAI says."""

    b64_json: str | None = None
    url: str | None = None
    seed: int
    digest: str
    cached: bool
    content_filtered: bool = Field(description="Whether the operator's filter blurred it.")


class ImagesResponse(BaseModel):
    """OpenAI's answer; `model` is what was really used."""

    created: int
    data: list[GeneratedItem]
    background: Literal["opaque"] = "opaque"
    output_format: str
    quality: str
    size: str
    usage: Usage | None = Field(None, description="Left out where what made the images is not served any more.")
    model: str


def _code(wrong: FieldError | None) -> str | None:
    """How a field is wrong. Only the prompt can be missing."""
    if wrong is None:
        return None
    if (wrong.field, wrong.got) == ("prompt", "nothing"):
        return "missing_required_parameter"
    return "unknown_parameter" if wrong.allowed.startswith("only ") else "invalid_value"


def _words(refused: ApiError, _: str) -> tuple[int, dict[str, Any]]:
    status, kind, code = refused.status, "invalid_request_error", None
    wrong = refused.errors[0] if refused.errors else None
    match refused.error:
        case ContentRefused():
            status, kind, code = 400, "image_generation_user_error", "moderation_blocked"
        case UnknownModel():  # on this route OpenAI answers 400; clients take a 404 for a route that is not there
            status, code = 400, "invalid_value"
        case _ if status == 422:
            status, code = 400, _code(wrong)
        case _ if status in _KINDS:
            kind, code = _KINDS[status]
        case _ if status >= 500:
            kind = "server_error"
    message, param = refused.detail, wrong.field if wrong else None
    if wrong and refused.error and wrong.field in _PARAMS:  # what the dialect itself refuses is named as it came
        param = _PARAMS[wrong.field]
        got = f"a {wrong.field} of {wrong.got}" if param == "size" else wrong.got
        message = f"{param}: got {got}; allowed: {wrong.allowed}"
    return status, {"error": Error(message=message, type=kind, param=param, code=code).model_dump()}


WORDING = ErrorFormat(_words, Refusal)
_documented = WORDING.documented
_PARTIAL, _COMPLETED, _ERROR = "image_generation.partial_image", "image_generation.completed", "error"
_EVENT = {  # with `itemSchema`, as OpenAPI 3.2 has it: `schema` would be that of the stream as a whole
    "type": "object",
    "properties": {
        "event": {"type": "string", "enum": [_PARTIAL, _COMPLETED, _ERROR]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}
router = APIRouter(tags=["OpenAI's API"], dependencies=[Depends(type_may_be_missing)])


@router.post(
    "/v1/images/generations",
    summary="Make images from text, as OpenAI's API does",
    response_class=Response,
    openapi_extra=described(Generation),
    responses={
        200: {
            "description": "The images; with `stream` their events.",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/Images"}},
                "text/event-stream": {"itemSchema": _EVENT},
            },
            "model": ImagesResponse,
        },
        **errors_of_generation(WORDING),
        400: _documented("A field is wrong, or no model of that name is served, or the filter refuses it."),
        415: _documented("The body's `Content-Type` is another than `application/json`."),
    },
)
async def generations(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Answers when all images are made, or with `stream` as one is made. A client that hangs up cancels them."""
    body = await read_json(request, Generation)
    service = service_of(request)
    body.check(idempotency_key, is_strict=service.policy.aliases.is_strict)
    call = Call(body.to_wanted(service), 0, body.format, True, idempotency_key, digest_of(body, idempotency_key))  # noqa: FBT003
    if body.stream:
        return await _stream(request, body, call)
    async with making(request, call) as batch:
        outcomes = await unless_gone(request, batch.outcomes())
    made = [outcome for outcome in outcomes or () if outcome]
    if not made:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    give = _addressed if body.gives_url else _enclosed
    answer = ImagesResponse(
        data=[await give(request, body, outcome) for outcome in made],
        created=_now(),
        usage=_usage(service, made),
        model=made[0].request.model,
        **_facts(body, made[0].request),
    )
    headers = image_headers(made[0]) if len(made) == 1 else {}
    return Response(answer.model_dump_json(exclude_none=True), headers=headers, media_type="application/json")


async def _addressed(request: Request, body: Generation, outcome: GenerationResult) -> GeneratedItem:
    """By a signed address. Raises StoreUnavailable where there is nothing at it."""
    if outcome.unstored:
        raise outcome.unstored
    parameters = [] if body.format is Format.PNG else [("output_format", str(body.format))]
    address = f"{PATH}/{outcome.request.digest}"
    links, expires_at = service_of(request).storage.links, expiry(time.time(), None)
    return _image(outcome, url=links.link(address, parameters, expires_at, str(request.base_url)))


async def _enclosed(request: Request, body: Generation, outcome: GenerationResult) -> GeneratedItem:
    has_metadata = service_of(request).policy.has_metadata
    content = await encode_async(outcome.png, body.format, has_metadata=has_metadata, quality=body.compression)
    return _image(outcome, b64_json=base64.b64encode(content).decode())


def _image(outcome: GenerationResult, **where: str) -> GeneratedItem:
    request, was_there = outcome.request, outcome.was_cached
    return GeneratedItem(
        **where, seed=request.seed, digest=request.digest, cached=was_there, content_filtered=outcome.is_blurred
    )


def _facts(body: Generation, request: Resolved) -> dict[str, Any]:
    """What answers and events say of all images alike."""
    size = f"{request.width}x{request.height}"
    return {"background": "opaque", "size": size, "quality": body.level, "output_format": body.format}


def _usage(service: Service, made: Sequence[GenerationResult]) -> Usage | None:
    tokens = service.pool.tokens_of(made[0].request)
    if tokens is None:
        return None
    read, drawn = tokens[0], tokens[1] * len(made)
    read_tokens = TextTokens(text_tokens=read)
    return Usage(input_tokens=read, input_tokens_details=read_tokens, output_tokens=drawn, total_tokens=read + drawn)


async def _stream(request: Request, body: Generation, call: Call) -> Response:
    """Events from the first on: what goes wrong before it is answered by its status."""
    events = _events(request, body, call)

    async def first_event() -> bytes:
        return await anext(events)

    first = await unless_gone(request, first_event())
    if first is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    async def all_events() -> AsyncIterator[bytes]:
        try:
            yield first
            async for event in events:
                yield event
        except Sd35Error as error:
            _, content = _words(noted(request, error), "")
            yield _event(_ERROR, content)
        finally:
            await events.aclose()

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would keep them back
    return StreamingResponse(all_events(), media_type="text/event-stream", headers=headers)


async def _events(request: Request, body: Generation, call: Call) -> AsyncGenerator[bytes, None]:
    service, steps = service_of(request), asyncio.Queue[Progress | None]()
    index = 0
    async with making(request, call, lambda _, progress: steps.put_nowait(progress)) as batch:
        wanted = batch.job_specs[0].request
        marks = _marks(body.partial_images or 0, wanted.steps)
        outcomes = asyncio.ensure_future(batch.outcomes())
        outcomes.add_done_callback(lambda _: steps.put_nowait(None))
        facts = _facts(body, wanted)
        while progress := await steps.get():
            if progress.done in marks:
                marks.remove(progress.done)  # one that is spoiled is made again from its first step
                partial = await asyncio.to_thread(_partial, progress, wanted, body)
                yield _event(
                    _PARTIAL,
                    {**facts, "b64_json": partial, "partial_image_index": index, "created_at": _now()},
                )
                index += 1
        (outcome,) = await outcomes
    assert outcome, "only its own client could leave it out"
    image = await _enclosed(request, body, outcome)
    usage = _usage(service, [outcome])
    more = {"usage": usage.model_dump()} if usage else {}
    made = {**image.model_dump(exclude_none=True), **more, "model": outcome.request.model}
    yield _event(_COMPLETED, {**facts, **made, "created_at": _now()})


def _marks(partial_images: int, steps: int) -> set[int]:
    """After which steps a preview is sent: spread evenly, and none after the last, when the image is there."""
    marks = {math.ceil(steps * (each + 1) / (partial_images + 1)) for each in range(partial_images)}
    return marks - {steps}


def _partial(progress: Progress, wanted: Resolved, body: Generation) -> str:
    """A preview as the file that is asked for, in base64. Keeps a core busy."""
    png = preview_png(progress, wanted)
    return base64.b64encode(encode(png, body.format, has_metadata=False, quality=body.compression)).decode()


def _event(kind: str, data: dict[str, Any]) -> bytes:
    return format_sse_event(event=kind, data_str=json.dumps({"type": kind, **data}))


def _now() -> int:
    return int(time.time())


OPENAI = Dialect("openai", ("/v1/images/",), (router,), WORDING)
