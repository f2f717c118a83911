"""`POST /sdapi/v1/png-info` of AUTOMATIC1111's API: the generation settings in an image file."""

import base64

from fastapi import APIRouter, Request, Response

from sd35.api.auth import caller_of
from sd35.api.body import openapi_body, parse_json, read_unparsed_json
from sd35.api.dialects.automatic1111.body import ImageBody
from sd35.api.dialects.automatic1111.errors import BODY_ERRORS, documented
from sd35.api.dialects.automatic1111.responses import PngInfo
from sd35.api.errors import RETRY_AFTER, ApiError, FieldError
from sd35.body_limits import TooManyBytes
from sd35.errors import NotReplayable
from sd35.images.infotext import parse_infotext, read_infotext
from sd35.threads import PARSING

_MAX_BODY_BYTES = 30 * 1024 * 1024
# Bodies are received before they wait for a parser, so that slow clients do not block others.
MAX_RECEIVED_BYTES = 512 * 1024 * 1024  # of all bodies that are being received or wait for a parser
MAX_RECEIVED_BYTES_EACH = 128 * 1024 * 1024  # of the bodies of one caller
MAX_PARSED_IMAGES = 4  # at the same time, because parsing an image takes four times its size in memory
_WHITESPACE = b" \t\r\n"  # the command `base64` and MIME break lines, and forms may indent them
_TOO_MANY_IMAGES = documented(
    "The caller's rate limit is reached, or too many images are being received.", **{"Retry-After": RETRY_AFTER}
)
router = APIRouter(prefix="/sdapi/v1")


@router.post(
    "/png-info",
    summary="Read the settings of an image file",
    openapi_extra=openapi_body(ImageBody),
    response_model=PngInfo,
    responses={**BODY_ERRORS, 429: _TOO_MANY_IMAGES},
)
async def png_info(request: Request) -> Response:
    """Return the generation settings that an image file contains.

    Files of this service can be PNG, JPEG, WebP or AVIF. Files of other programs have settings only if they contain
    AUTOMATIC1111's text.
    """
    caller, state = caller_of(request), request.app.state
    charge = caller.charge_request()  # before the large body is read; refunded if the body is refused
    with state.received_images.body_of(caller.client) as count:
        try:
            unparsed = await read_unparsed_json(request, _MAX_BODY_BYTES, count)
        except TooManyBytes as error:
            charge.refund()
            raise _too_many_images() from error
        except ApiError:
            charge.refund()
            raise
        async with state.image_parsing:
            try:
                body = await PARSING.run(parse_json, unparsed, ImageBody)
            except ApiError:
                charge.refund()
                raise
            content = await PARSING.run(_read_png_info, body.image)
    return Response(content, media_type="application/json")


def _too_many_images() -> ApiError:
    limits = f"{MAX_RECEIVED_BYTES_EACH} bytes at once from one client, and {MAX_RECEIVED_BYTES} from all"
    detail = f"too many images are being received (allowed: {limits}); try again in 1 s"
    return ApiError(429, detail, headers={"Retry-After": "1", "Connection": "close"})


def _read_png_info(image: str) -> str:
    """Return the JSON of the response for an image file in base64.

    Raises ApiError with status 422 if `image` is not base64, not an image file, or damaged.
    """
    content = image.lstrip()
    if content[:5].lower() == "data:":  # a data URL
        content = content.partition(",")[2]
    try:
        encoded = content.encode("ascii").translate(None, _WHITESPACE)
        text, other_texts, left_out = read_infotext(base64.b64decode(encoded, validate=True))
    except (ValueError, NotReplayable) as error:
        field = FieldError(field="image", got=f"{len(image)} characters", allowed="an image file in base64")
        detail = f"image: got {field.got}, which cannot be read ({error}); allowed: {field.allowed}"
        raise ApiError(422, detail, [field]) from error
    parameters = parse_infotext(text) if text else {}
    return PngInfo(info=text, items=other_texts, parameters=parameters, left_out=left_out).model_dump_json()
