"""Routes of stored images: `/v1/artifacts/{digest}`."""

import time
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field
from starlette._utils import get_route_path

from sd35.api.auth import caller_of, has_link, service_of
from sd35.api.errors import PROBLEM, ApiError, Responses, documented
from sd35.api.generate import FILE_CONTENT
from sd35.api.ranges import answer
from sd35.images.encode import encode_async
from sd35.images.formats import Format, negotiate
from sd35.service.service import Service
from sd35.storage.links import DEFAULT_LIFETIME_S, MAX_LIFETIME_S, PATH, expiry

_NOT_FOUND: Responses = {404: documented("The image does not exist, or only other keys own it."), **PROBLEM.unavailable}
_FILE = {"content": FILE_CONTENT}

router = APIRouter(prefix=PATH, tags=["images"])
Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="The identity of the image, as in `X-Sd35-Digest`.")]
OutputFormat = Annotated[Format | None, Query(description="The format of the file. Default: by `Accept`, else png.")]
Metadata = Annotated[
    bool,
    Query(
        description="Whether the file contains its request and the versions that generated it. Ignored if the setting"
        " `keep_metadata` is false: then files have no metadata."
    ),
]


class Link(BaseModel):
    """A signed URL of an image. Anyone can use it without an API key."""

    url: str = Field(description="The complete URL of the file.")
    expires_at: int = Field(description="When the URL expires, in seconds since 1970.")


@router.head("/{digest}", include_in_schema=False)
@router.get(
    "/{digest}",
    summary="Get an image",
    response_class=Response,
    responses={
        200: {"description": "The file.", **_FILE},
        206: {"description": "The part of the file that `Range` selects.", **_FILE},
        304: {"description": "The client's copy is current."},
        307: {"description": "A redirect to the file in the object store, if the setting `redirect_images` is on."},
        403: documented("The signed link has expired, or its signature is wrong."),
        406: documented("`Accept` allows none of the formats."),
        416: {"description": "`Range` is outside the file."},
        **_NOT_FOUND,
    },
)
async def get(
    request: Request,
    digest: Digest,
    output_format: OutputFormat = None,
    metadata: Metadata = True,  # noqa: FBT002
) -> Response:
    """Return the file of an image to its owners, to administrators, and to anyone with a signed link.

    Conditional requests and range requests are supported.
    """
    service = service_of(request)
    visible_to = _visible_to(request, service)
    file_format = negotiate(request.headers.get("accept"), output_format)
    has_metadata = metadata and service.policy.has_metadata
    image = await service.image(digest, visible_to, may_redirect=file_format is Format.PNG and has_metadata)
    if image is None:
        raise _not_found(digest)
    if isinstance(image, str):  # the URL of the file in the object store
        return RedirectResponse(image, 307, {"Cache-Control": "no-store"})
    content = await encode_async(image, file_format, has_metadata=has_metadata)
    # The tag contains the length, because another version of the encoder may write another file.
    etag = f'"{digest[:32]}-{file_format}{"" if has_metadata else "-bare"}-{len(content)}"'
    part = answer(content, etag, request.headers)
    headers = {**part.headers, "Cache-Control": "private, max-age=31536000, immutable", "Vary": "Accept"}
    return Response(part.body, part.status, headers, file_format.media_type)


@router.post(
    "/{digest}/link",
    summary="Create a signed link to an image",
    responses={422: documented("A field is invalid."), **_NOT_FOUND},
)
async def link(
    request: Request,
    digest: Digest,
    expires_in_s: Annotated[
        int, Query(ge=1, le=MAX_LIFETIME_S, description="The number of seconds until the link expires.")
    ] = DEFAULT_LIFETIME_S,
    output_format: OutputFormat = None,
    metadata: Metadata = True,  # noqa: FBT002
) -> Link:
    """Return a signed URL of the file. It is valid until it expires, under every host name of the service."""
    service = service_of(request)
    if not await service.has_image(digest, caller_of(request).visible_to):
        raise _not_found(digest)
    expires_at = expiry(time.time(), expires_in_s)
    parameters = file_parameters(output_format, has_metadata=metadata)
    url = service.storage.links.sign(f"{PATH}/{digest}", parameters, expires_at, str(request.base_url))
    return Link(url=url, expires_at=expires_at)


@router.delete("/{digest}", status_code=204, summary="Delete an image", responses=_NOT_FOUND)
async def delete(request: Request, digest: Digest) -> None:
    """Delete the image for the calling key. The file itself is deleted when no other key owns it."""
    if not await service_of(request).disown(digest, caller_of(request).owner):
        raise _not_found(digest)


def file_parameters(file_format: Format | None, *, has_metadata: bool) -> list[tuple[str, str]]:
    """Return the query parameters of an image's URL that select this file."""
    parameters = [("output_format", str(file_format))] if file_format else []
    return parameters if has_metadata else [*parameters, ("metadata", "false")]


def _visible_to(request: Request, service: Service) -> str | None:
    """Return the owner whose images the request may see, or None for images of all owners.

    The request of an administrator, or with a valid link, may see images of all owners. Raises LinkRefused if a link is
    expired or has a wrong signature.
    """
    if not has_link(request.scope):
        return caller_of(request).visible_to
    service.storage.links.check(get_route_path(request.scope), request.query_params.multi_items(), time.time())
    return None


def _not_found(digest: str) -> ApiError:
    return ApiError.from_field(404, "digest", digest, "the X-Sd35-Digest of a stored image that you may see")
