"""The responses of OpenAI's images API, built from generation results."""

import base64
import time
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel, Field

from sd35.api.auth import service_of
from sd35.api.dialects.openai.body import GenerationBody
from sd35.generation.service import GenerationResult
from sd35.images.encode import encode_async
from sd35.images.formats import Format
from sd35.request import Request as ImageRequest
from sd35.service.service import Service
from sd35.storage.links import PATH, expiry


class InputTokens(BaseModel):
    """The tokens of the input by kind."""

    text_tokens: int
    image_tokens: int = 0


class Usage(BaseModel):
    """The transformer's tokens: those of the prompt that T5 reads, and the image's patches of 16x16 px."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    total_tokens: int


class ImageItem(BaseModel):
    """An image. The fields from `seed` on are this project's own."""

    b64_json: str | None = None
    url: str | None = None
    seed: int
    digest: str
    cached: bool
    content_filtered: bool = Field(description="Whether the content filter blurred it.")


class GenerationsResponse(BaseModel):
    """OpenAI's response. `model` is the name of the model that was used."""

    created: int
    data: list[ImageItem]
    background: Literal["opaque"] = "opaque"
    output_format: str
    quality: str
    size: str
    usage: Usage | None = Field(None, description="Omitted if the model is not served any more.")
    model: str


async def url_item(request: Request, body: GenerationBody, result: GenerationResult) -> ImageItem:
    """Return an image as a signed URL. Raises StoreUnavailable if the image could not be stored."""
    if result.unstored:
        raise result.unstored
    parameters = [] if body.format is Format.PNG else [("output_format", str(body.format))]
    path = f"{PATH}/{result.request.digest}"
    links, expires_at = service_of(request).storage.links, expiry(time.time(), None)
    return _item(result, url=links.sign(path, parameters, expires_at, str(request.base_url)))


async def file_item(request: Request, body: GenerationBody, result: GenerationResult) -> ImageItem:
    """Return an image as a file in base64."""
    has_metadata = service_of(request).policy.has_metadata
    content = await encode_async(result.png, body.format, has_metadata=has_metadata, quality=body.compression)
    return _item(result, b64_json=base64.b64encode(content).decode())


def _item(result: GenerationResult, **content: str) -> ImageItem:
    return ImageItem(
        **content,
        seed=result.request.seed,
        digest=result.request.digest,
        cached=result.was_cached,
        content_filtered=result.is_blurred,
    )


def common_fields(body: GenerationBody, request: ImageRequest) -> dict[str, Any]:
    """Return the fields that hold for all images of a response or event."""
    size = f"{request.width}x{request.height}"
    return {"background": "opaque", "size": size, "quality": body.level, "output_format": body.format}


def usage_of(service: Service, results: Sequence[GenerationResult]) -> Usage | None:
    """Count the tokens of a call, or return None if the model is not served any more."""
    tokens = service.pool.tokens_of(results[0].request)
    if tokens is None:
        return None
    text_tokens, image_tokens = tokens[0], tokens[1] * len(results)
    return Usage(
        input_tokens=text_tokens,
        input_tokens_details=InputTokens(text_tokens=text_tokens),
        output_tokens=image_tokens,
        total_tokens=text_tokens + image_tokens,
    )
