"""`POST /v1/txt2img`: this project's own dialect. Wire format to what is wanted, a finished picture to a response."""

import asyncio
from typing import Annotated, Any
from urllib.parse import quote

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from sd35.api.body import read_json
from sd35.api.problems import documented
from sd35.engine.loop import Engine
from sd35.engine.picture import Painted, Ticket
from sd35.request import (
    GUIDANCE_SCALE,
    PRIORITY,
    PROMPT_CHARACTERS,
    SEED,
    SIZE_MULTIPLE_PX,
    SKIP_LAYER_SCALE,
    STEPS,
)
from sd35.service.opening import Opening
from sd35.service.resolve import Wanted
from sd35.service.studio import Finished

CLIENT_CLOSED_REQUEST = 499  # as nginx logs it; nobody is left to read it

_DEFAULT = "Left out or null: the model's default, named in /v1/models."
_SIDE: dict[str, Any] = {"ge": SIZE_MULTIPLE_PX, "multiple_of": SIZE_MULTIPLE_PX}
_SIDE_ALLOWED = f"an integer, a multiple of {SIZE_MULTIPLE_PX}, in the model's range as in /v1/models. {_DEFAULT}"


class Txt2Img(BaseModel):
    """What to make a picture of, and how. Descriptions begin with what is allowed, which errors repeat."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(
        min_length=1,
        max_length=PROMPT_CHARACTERS,
        description=f"text of 1 to {PROMPT_CHARACTERS} characters, without lone surrogates: what the picture shows.",
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
        description=f"an integer from {SEED[0]} to {SEED[1]}: the same seed and request give the same picture."
        " Left out or null: a random one, named in the answer's headers.",
    )
    model: str | None = Field(None, description="a name from /v1/models. Left out or null: the first of them.")
    priority: Annotated[int, Field(ge=PRIORITY[0], le=PRIORITY[1])] = Field(
        0,
        description=f"an integer from {PRIORITY[0]} to {PRIORITY[1]}: higher goes before the same client's others. It"
        " is no part of what the picture is.",
    )

    def to_wanted(self) -> Wanted:
        """The same, free of the dialect."""
        return Wanted(**{**self.model_dump(exclude={"priority"}), "negative_prompt": self.negative_prompt or ""})


_PICTURE = {
    "description": "The picture. Its text chunks carry the request, for `sd35 replay`.",
    "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
    "headers": {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in {
            "X-Sd35-Seed": "The seed, also where it was drawn by chance.",
            "X-Sd35-Digest": "The picture's identity: SHA-256 of its canonical request.",
            "X-Sd35-Model": "The model, percent-encoded where its name is not ASCII.",
            "X-Sd35-Time-Ms": "Milliseconds from acceptance to the finished file.",
            "X-Sd35-Drawn-Size": "Only where the picture was drawn smaller and enlarged: the size drawn, as 128x128.",
            "X-Sd35-Cut-Off": "Only where the text encoders read a part of a prompt only: the fields, comma-separated.",
            "Server-Timing": "Milliseconds waiting (`wait`), computing (`picture`) and writing the file (`png`).",
            "X-Request-Id": "The request's name in the server's log.",
        }.items()
    },
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": Txt2Img.model_json_schema(),
                "examples": {
                    "smallest": {"value": {"prompt": "a cat on a blue background"}},
                    "everything": {
                        "value": {
                            "prompt": "a cat to the left of a dog on a red background",
                            "negative_prompt": "a tree",
                            "width": 1024,
                            "height": 1024,
                            "steps": 28,
                            "guidance_scale": 4.5,
                            "seed": 7,
                        }
                    },
                },
            }
        },
    }
}

router = APIRouter()


@router.post(
    "/v1/txt2img",
    summary="Make a picture from text",
    response_class=Response,
    openapi_extra=_BODY,
    responses={
        200: _PICTURE,
        400: documented("The body is not JSON."),
        404: documented("No model of that name is served; the problem lists those that are."),
        413: documented("The body is too large."),
        415: documented("The body is not `application/json`."),
        422: documented("A field is unknown, missing, of the wrong type or out of range; each is named."),
        500: documented("This picture could not be made; others are not affected."),
        503: documented("Too many pictures wait, or the service is loading or closing.", **{"Retry-After": "Seconds."}),
    },
)
async def txt2img(request: Request) -> Response:
    """Answers with the PNG file when the picture is made. A client that hangs up cancels its picture."""
    opening: Opening = request.app.state.opening
    body = await read_json(request, Txt2Img)
    studio = opening.studio
    resolved = studio.resolve(body.to_wanted())
    client = request.client.host if request.client else None
    ticket = studio.submit(resolved, client=client, priority=body.priority)
    structlog.contextvars.bind_contextvars(digest=resolved.digest, model=resolved.model)
    painted = await _painted_unless_gone(request, studio.engine, ticket)
    if painted is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    structlog.contextvars.bind_contextvars(
        digest=painted.request.digest,
        waited_ms=round(1000 * painted.waited_s),
        picture_ms=round(1000 * painted.took_s),
    )
    loop = asyncio.get_running_loop()
    finishing_s = loop.time()
    finished = await asyncio.to_thread(studio.finish, painted)
    return _response(finished, painted, loop.time() - finishing_s)


async def _painted_unless_gone(request: Request, engine: Engine, ticket: Ticket) -> Painted | None:
    """Wait for the picture; None, and the picture cancelled, where the client hung up first."""
    painting = asyncio.wrap_future(ticket.future)
    hanging_up = asyncio.create_task(_hang_up(request))
    either: list[asyncio.Future[Any]] = [painting, hanging_up]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return await painting if painting.done() else None
    finally:
        hanging_up.cancel()
        painting.cancel()
        engine.cancel(ticket)  # of no effect on a picture that is done


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _response(finished: Finished, painted: Painted, finishing_s: float) -> Response:
    request = finished.record.request
    total_ms = 1000 * (painted.waited_s + painted.took_s + finishing_s)
    headers = {
        "X-Sd35-Seed": str(request.seed),
        "X-Sd35-Digest": request.digest,
        "X-Sd35-Model": quote(request.model),
        "X-Sd35-Time-Ms": f"{total_ms:.0f}",
        "Server-Timing": f"wait;dur={1000 * painted.waited_s:.1f}, picture;dur={1000 * painted.took_s:.1f},"
        f" png;dur={1000 * finishing_s:.1f}",
    }
    if finished.is_enlarged:
        headers["X-Sd35-Drawn-Size"] = "{}x{}".format(*finished.drawn)
    if finished.record.maker.cut_off:
        headers["X-Sd35-Cut-Off"] = ", ".join(finished.record.maker.cut_off)
    return Response(finished.png, headers=headers, media_type="image/png")
