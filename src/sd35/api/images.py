"""`/v1/artifacts`: images that were made, by their identity."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field
from starlette._utils import get_route_path

from sd35.api.auth import caller_of, has_link, service_of
from sd35.api.problems import documented
from sd35.api.ranges import answer
from sd35.api.refusals import ApiError, FieldError
from sd35.images.encode import encode_async
from sd35.images.formats import Format, negotiate
from sd35.service.service import Service
from sd35.storage.links import LASTING_S, MOST_LASTING_S, PATH, expiry

_NOT_NOW: dict[int | str, dict[str, Any]] = {
    503: documented("Loading or closing, or a store does not answer.", **{"Retry-After": "Seconds."})
}
_NOT_THERE: dict[int | str, dict[str, Any]] = {
    404: documented("There is no such image, or it is another key's."),
    **_NOT_NOW,
}
_FILE = {"content": {each.media_type: {"schema": {"type": "string", "format": "binary"}} for each in Format}}

router = APIRouter(prefix=PATH, tags=["images"])
Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="The image's identity, as `X-Sd35-Digest`.")]
OutputFormat = Annotated[Format | None, Query(description="Else as `Accept` asks, else png.")]
Metadata = Annotated[bool, Query(description="Whether the file says what made it.")]


class Link(BaseModel):
    """An address that gives the image to whoever has it, without a key."""

    url: str
    expires_at: int = Field(description="Seconds since 1970.")


@router.head("/{digest}", include_in_schema=False)
@router.get(
    "/{digest}",
    summary="An image that was made",
    response_class=Response,
    responses={
        200: {"description": "The file.", **_FILE},
        206: {"description": "The part of it that `Range` asks for.", **_FILE},
        304: {"description": "What the client has is still the same."},
        307: {"description": "The object store gives the file, at this address."},
        403: documented("The link has expired, or its signature is wrong."),
        406: documented("`Accept` takes none of the formats."),
        416: {"description": "The file is shorter than `Range` asks for."},
        **_NOT_THERE,
    },
)
async def get(
    request: Request,
    digest: Digest,
    output_format: OutputFormat = None,
    metadata: Metadata = True,  # noqa: FBT002
) -> Response:
    """For the key that had it made, and for whoever has a signed link. Conditional requests and ranges are honoured."""
    service = service_of(request)
    visible_to = _visible_to(request, service)
    wanted = negotiate(request.headers.get("accept"), output_format)
    has_metadata = metadata and service.policy.has_metadata
    found = await service.image(digest, visible_to, may_redirect=wanted is Format.PNG and has_metadata)
    if found is None:
        raise _missing(digest)
    if isinstance(found, str):
        return RedirectResponse(found, 307, {"Cache-Control": "no-store"})
    content = await encode_async(found, wanted, has_metadata=has_metadata)
    part = answer(
        content,
        f'"{digest[:32]}-{wanted}{"" if has_metadata else "-bare"}-{len(content)}"',
        byte_range=request.headers.get("range"),
        if_none_match=request.headers.get("if-none-match"),
        if_range=request.headers.get("if-range"),
    )
    headers = {**part.headers, "Cache-Control": "private, max-age=31536000, immutable", "Vary": "Accept"}
    return Response(part.body, part.status, headers, wanted.media_type)


@router.post(
    "/{digest}/link",
    summary="A link that others can follow",
    responses={422: documented("A field is wrong."), **_NOT_THERE},
)
async def link(
    request: Request,
    digest: Digest,
    expires_in_s: Annotated[int, Query(ge=1, le=MOST_LASTING_S)] = LASTING_S,
    output_format: OutputFormat = None,
) -> Link:
    """Signed, and good until it expires, wherever the service is reached at."""
    service = service_of(request)
    if not await service.has_image(digest, caller_of(request).visible_to):
        raise _missing(digest)
    expires_at = expiry(time.time(), expires_in_s)
    parameters = [("output_format", str(output_format))] if output_format else []
    url = service.storage.links.link(f"{PATH}/{digest}", parameters, expires_at, str(request.base_url))
    return Link(url=url, expires_at=expires_at)


@router.delete("/{digest}", status_code=204, summary="Remove an image", responses=_NOT_THERE)
async def delete(request: Request, digest: Digest) -> None:
    """For the key that asks; the file goes with the last key that had it made."""
    if not await service_of(request).disown(digest, caller_of(request).owner):
        raise _missing(digest)


def _visible_to(request: Request, service: Service) -> str | None:
    """Whose images are given: the caller's, or with a link, this one. Raises LinkRefused."""
    if not has_link(request.scope):
        return caller_of(request).visible_to
    service.storage.links.check(get_route_path(request.scope), request.query_params.multi_items(), time.time())
    return None


def _missing(digest: str) -> ApiError:
    error = FieldError(field="digest", got=digest, allowed="the digest of an image of yours")
    return ApiError(404, f"digest: got {digest}; allowed: {error.allowed}", [error])
