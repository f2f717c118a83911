"""`POST /v1/txt2img`: this project's own dialect. Wire format to what is wanted, a finished image to a response."""

from dataclasses import fields as dataclass_fields
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from sd35.api.auth import service_of
from sd35.api.body import described, read_json
from sd35.api.disconnect import CLIENT_CLOSED_REQUEST, unless_gone
from sd35.api.generate import (
    IMAGE_HEADERS,
    Call,
    IdempotencyKey,
    digest_of,
    errors_of_generation,
    image_headers,
    making,
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

_DEFAULT = "Left out or null: the model's default, named in /v1/models."
_SIDE: dict[str, Any] = {"ge": SIZE_MULTIPLE_PX, "multiple_of": SIZE_MULTIPLE_PX}
_SIDE_ALLOWED = f"an integer, a multiple of {SIZE_MULTIPLE_PX}, in the model's range as in /v1/models. {_DEFAULT}"


class Txt2Img(BaseModel):
    """What to make an image of, and how. Descriptions begin with what is allowed, which errors repeat."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(
        min_length=1,
        max_length=PROMPT_CHARACTERS,
        description=f"text of 1 to {PROMPT_CHARACTERS} characters, without lone surrogates: what the image shows.",
        examples=["a cat on a blue background"],
    )
    negative_prompt: str | None = Field(
        None,
        max_length=PROMPT_CHARACTERS,
        description=f"text of at most {PROMPT_CHARACTERS} characters, without lone surrogates: what to keep out."
        " It has no effect at a guidance of 1 or less. Left out or null: empty.",
    )
    width: Annotated[int, Field(**_SIDE)] | None = Field(None, description=_SIDE_ALLOWED)
    height: Annotated[int, Field(**_SIDE)] | None = Field(None, description=_SIDE_ALLOWED)
    steps: Annotated[int, Field(ge=STEPS[0], le=STEPS[1])] | None = Field(
        None, description=f"an integer from {STEPS[0]} to {STEPS[1]}: denoising steps. {_DEFAULT}"
    )
    guidance_scale: Annotated[float, Field(ge=GUIDANCE_SCALE[0], le=GUIDANCE_SCALE[1])] | None = Field(
        None,
        description=f"a number from {GUIDANCE_SCALE[0]:g} to {GUIDANCE_SCALE[1]:g}: how closely to follow the prompt;"
        f" 1 or less turns guidance off and halves the work. {_DEFAULT}",
    )
    skip_layer_scale: Annotated[float, Field(ge=SKIP_LAYER_SCALE[0], le=SKIP_LAYER_SCALE[1])] | None = Field(
        None,
        description=f"a number from {SKIP_LAYER_SCALE[0]:g} to {SKIP_LAYER_SCALE[1]:g}, in the model's range as in"
        " /v1/models: skip-layer guidance, a further prediction in some steps for sounder structure. 0 turns it off; it"
        f" has no effect at a guidance of 1 or less. {_DEFAULT}",
    )
    seed: Annotated[int, Field(ge=SEED[0], le=SEED[1])] | None = Field(
        None,
        description=f"an integer from {SEED[0]} to {SEED[1]}: the same seed and request give the same image."
        " Left out or null: a random one, named in the answer's headers.",
    )
    model: str | None = Field(None, description="a name from /v1/models. Left out or null: the first of them.")
    priority: Annotated[int, Field(ge=PRIORITY[0], le=PRIORITY[1])] = Field(
        0,
        description=f"an integer from {PRIORITY[0]} to {PRIORITY[1]}: higher goes before the same client's others. It"
        " is no part of what the image is.",
    )

    output_format: Literal["png", "jpeg", "webp", "avif"] | None = Field(
        None,
        description="png, jpeg, webp or avif: the file's format. Left out or null: as `Accept` asks, else png.",
    )
    metadata: bool = Field(
        True,  # noqa: FBT003
        description="true or false: whether the file says what made it, as the service allows.",
    )

    @property
    def format(self) -> Format | None:
        """The file's, where one is asked for."""
        return Format(self.output_format) if self.output_format else None

    def to_wanted(self) -> GenerationParams:
        """The same, free of the dialect."""
        fields = self.model_dump(include={field.name for field in dataclass_fields(GenerationParams)})
        return GenerationParams(**{**fields, "negative_prompt": self.negative_prompt or ""})


_IMAGE = {
    "description": "The image. Its text chunks carry the request, for `sd35 replay`.",
    "content": {each.media_type: {"schema": {"type": "string", "format": "binary"}} for each in Format},
    "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in IMAGE_HEADERS.items()},
}


def body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """A body of this kind in the OpenAPI page, with examples."""
    everything = {
        "prompt": "a cat to the left of a dog on a red background",
        "negative_prompt": "a tree",
        "width": 1024,
        "height": 1024,
        "steps": 28,
        "guidance_scale": 4.5,
        "seed": 7,
    }
    examples = {"smallest": {"value": {"prompt": "a cat on a blue background"}}, "everything": {"value": everything}}
    return described(kind, examples=examples)


router = APIRouter()


@router.post(
    "/v1/txt2img",
    summary="Make an image from text",
    response_class=Response,
    openapi_extra=body_of(Txt2Img),
    responses={
        200: _IMAGE,
        **errors_of_generation(PROBLEM),
        400: documented("The body is not JSON."),
        404: documented("No model of that name is served; the problem lists those that are."),
        406: documented("`Accept` takes none of the formats."),
        415: documented("The body is not `application/json`."),
        422: documented("A field is unknown, missing, of the wrong type or out of range; each is named."),
    },
)
async def txt2img(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Answers with the file when the image is made. A client that hangs up cancels its image.

    With an idempotency key it is a job that someone waits for: nothing cancels it, and sent again it is not made again.
    """
    body = await read_json(request, Txt2Img)
    wanted = negotiate(request.headers.get("accept"), body.format)
    call = Call(
        [body.to_wanted()], body.priority, wanted, body.metadata, idempotency_key, digest_of(body, idempotency_key)
    )
    async with making(request, call) as batch:
        outcomes = await unless_gone(request, batch.outcomes())
    if not outcomes or (outcome := outcomes[0]) is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    has_metadata = body.metadata and service_of(request).policy.has_metadata
    content = await encode_async(outcome.png, wanted, has_metadata=has_metadata)
    return Response(content, headers=image_headers(outcome), media_type=wanted.media_type)
