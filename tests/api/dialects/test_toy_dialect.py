"""A dialect is a module and one entry in a list: a toy with one route, which CONTRIBUTING.md shows as an example."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter, Request, Response
from PIL import Image
from pydantic import BaseModel, Field
from starlette.testclient import TestClient

import sd35.api.app
import sd35.api.dialects
from sd35.access.keys import Role, new_key
from sd35.api import fields
from sd35.api.auth import service_of
from sd35.api.body import openapi_body, read_json
from sd35.api.dialects.dialect import Dialect
from sd35.api.errors import ApiError, ErrorFormat
from sd35.api.generate import (
    IMAGE_HEADERS,
    IdempotencyKey,
    errors_of_generation,
    generate,
    image_headers,
    image_response,
    job_specs_of,
)
from sd35.generation.model_pool import ModelPool
from sd35.generation.params import GenerationParams
from sd35.images.encode import encode_async
from sd35.images.formats import Format
from sd35.images.texts import read_texts
from tests.support.fake_backend import key_store
from tests.support.serving import serving


class Body(BaseModel, extra="forbid"):
    """The body. Each description begins with the allowed values, which errors repeat."""

    text: fields.Prompt = Field(description=f"{fields.PROMPT_ALLOWED}: describes the image.")
    seed: fields.Seed | None = Field(None, description=f"{fields.SEED_ALLOWED}. Omitted or null: a random seed.")


class ErrorBody(BaseModel):
    """An error in the toy API's format."""

    message: str = Field(description="What went wrong, with the allowed values.")


def _render(error: ApiError, _request_id: str) -> tuple[int, dict[str, Any]]:
    return error.status, ErrorBody(message=error.detail).model_dump()


ERROR_FORMAT = ErrorFormat(_render, ErrorBody)
router = APIRouter(tags=["the toy API"])


@router.post(
    "/toy/images",
    summary="Generate an image from text with the toy API",
    response_class=Response,
    openapi_extra=openapi_body(Body),
    responses={
        200: image_response("The image.", IMAGE_HEADERS),
        **errors_of_generation(ERROR_FORMAT),
        400: ERROR_FORMAT.documented("The body is not JSON."),
        415: ERROR_FORMAT.documented("The body is not `application/json`."),
        422: ERROR_FORMAT.documented("A field is unknown, missing or invalid. Each is named."),
    },
)
async def images(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Return the file when the image is done."""
    body = await read_json(request, Body)
    (job_spec,) = job_specs_of(request, body, [GenerationParams(body.text, seed=body.seed)], idempotency_key)
    (result,) = await generate(request, [job_spec])
    has_metadata = service_of(request).policy.has_metadata
    file = await encode_async(result.png, Format.PNG, has_metadata=has_metadata)
    return Response(file, headers=image_headers(result), media_type=Format.PNG.media_type)


TOY = Dialect("toy", ("/toy/",), (router,), ERROR_FORMAT)


@pytest.fixture(autouse=True)
def _toy_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    dialects = (TOY, *sd35.api.dialects.DIALECTS)
    for module in (sd35.api.dialects, sd35.api.app):
        monkeypatch.setattr(module, "DIALECTS", dialects)


@pytest.fixture
def client(pool: ModelPool) -> Iterator[TestClient]:
    """A client of an app with the toy dialect."""
    with serving(pool) as client:
        yield client


def test_an_image_is_generated(client: TestClient) -> None:
    """The route is described, and its requests are counted under the dialect's name."""
    response = client.post("/toy/images", json={"text": "a cat"})
    assert response.status_code == 200, response.text
    with Image.open(io.BytesIO(response.content)) as image:
        assert image.size == (128, 128)
    assert "/toy/images" in client.get("/openapi.json").json()["paths"]
    assert 'dialect="toy",method="POST",route="/toy/images",status="200"' in client.get("/metrics").text


def test_errors_have_its_format(client: TestClient) -> None:
    """Those of its own fields, and those of paths below its prefix that do not exist."""
    response = client.post("/toy/images", json={"txt": "a cat"})
    assert response.status_code == 422
    unknown, missing = response.json()["message"].split("; text: ")
    assert unknown == "txt: got 'a cat'; allowed: only known fields (text, seed)"
    assert missing == "got 'nothing'; allowed: text of 1 to 10000 characters"
    assert client.get("/toy/other").json().keys() == {"message"}


def test_keys_are_required_as_everywhere(pool: ModelPool) -> None:
    """The error has the dialect's format, too."""
    key, _ = new_key("me", Role.USER, 0)
    with serving(pool, key_store(key)) as client:
        response = client.post("/toy/images", json={"text": "a cat"})
        assert response.status_code == 401
        assert response.json().keys() == {"message"}


def test_images_have_no_metadata_if_the_operator_keeps_none(pool: ModelPool) -> None:
    """A dialect has to leave it out itself."""
    with serving(pool, keep_metadata="false") as client:
        response = client.post("/toy/images", json={"text": "a cat"})
        assert read_texts(response.content).texts == {}
