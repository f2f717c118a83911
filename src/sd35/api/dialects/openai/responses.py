"""The responses of OpenAI's images API."""

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
    """The tokens of the input, by kind."""

    text_tokens: int = Field(description="The tokens of the prompt.")
    image_tokens: int = Field(default=0, description="Always 0.")


class Usage(BaseModel):
    """The number of tokens that the model processed."""

    input_tokens: int = Field(description="The tokens of the prompt, as the T5 text encoder counts them.")
    input_tokens_details: InputTokens = Field(description="The tokens of the prompt, and of input images.")
    output_tokens: int = Field(description="The tokens of all images: one token for each square of 16x16 pixels.")
    total_tokens: int = Field(description="The sum of the tokens of the input and the output.")


class ImageItem(BaseModel):
    """An image. OpenAI's API does not have the fields from `seed` on."""

    b64_json: str | None = Field(None, description="The file in base64, if `response_format` is `b64_json`.")
    url: str | None = Field(None, description="A signed link to the file, if `response_format` is `url`.")
    seed: int = Field(description="The seed of the image, even if the service chose it.")
    digest: str = Field(description="The identity of the image, as in `/v1/artifacts/{digest}`.")
    cached: bool = Field(description="Whether an earlier request for the same image generated it.")
    content_filtered: bool = Field(description="Whether the content filter blurred the image.")


class GenerationsResponse(BaseModel):
    """The images of a call. OpenAI's API does not have the field `model`."""

    created: int = Field(description="When the images were done, in seconds since 1970.")
    data: list[ImageItem] = Field(description="The images, with consecutive seeds.")
    background: Literal["opaque"] = Field(default="opaque", description="Always `opaque`.")
    output_format: str = Field(description="The format of the files.")
    quality: str = Field(description="`low`, `medium` or `high`.")
    size: str = Field(description="The size of the images in pixels, as WIDTHxHEIGHT.")
    usage: Usage | None = Field(None, description="The numbers of tokens. Omitted if the model is no longer served.")
    model: str = Field(description="The name of the model that was used.")


async def url_item(request: Request, body: GenerationBody, result: GenerationResult) -> ImageItem:
    """Return an image as a signed URL. Raises StoreUnavailable if the image could not be stored."""
    if result.unstored:
        raise result.unstored
    parameters = [] if body.format is Format.PNG else [("output_format", str(body.format))]
    path = f"{PATH}/{result.request.digest}"
    links, expires_at = service_of(request).storage.links, expiry(time.time(), None)  # None is the default lifetime
    return _image_item(result, url=links.sign(path, parameters, expires_at, str(request.base_url)))


async def file_item(request: Request, body: GenerationBody, result: GenerationResult) -> ImageItem:
    """Return an image as a file in base64."""
    has_metadata = service_of(request).policy.has_metadata
    content = await encode_async(result.png, body.format, has_metadata=has_metadata, quality=body.compression)
    return _image_item(result, b64_json=base64.b64encode(content).decode())


def _image_item(result: GenerationResult, **content: str) -> ImageItem:
    """Return an image with its properties. `content` is the field `url` or `b64_json`."""
    return ImageItem(
        **content,
        seed=result.request.seed,
        digest=result.request.digest,
        cached=result.was_cached,
        content_filtered=result.is_blurred,
    )


def common_fields(body: GenerationBody, request: ImageRequest) -> dict[str, Any]:
    """Return the fields of a response, or of an event of a stream, that are the same for all its images."""
    size = f"{request.width}x{request.height}"
    return {"background": "opaque", "size": size, "quality": body.level, "output_format": body.format}


def usage_of(service: Service, results: Sequence[GenerationResult]) -> Usage | None:
    """Return the numbers of tokens of a call's prompt and images, or None if the model is no longer served."""
    tokens = service.pool.tokens_of(results[0].request)
    if tokens is None:
        return None
    text_tokens, tokens_per_image = tokens
    image_tokens = tokens_per_image * len(results)
    return Usage(
        input_tokens=text_tokens,
        input_tokens_details=InputTokens(text_tokens=text_tokens),
        output_tokens=image_tokens,
        total_tokens=text_tokens + image_tokens,
    )
