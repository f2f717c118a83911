"""Responses about stored images whose files are damaged."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from sd35.generation.model_pool import ModelPool
from tests.support.services import memory_storage
from tests.support.serving import serving

BODY = {"prompt": "a cat", "seed": 1}


@pytest.mark.parametrize("left_bytes", [0, 1000])
@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {}),
        ("HEAD", {}),
        ("GET", {"range": "bytes=0-99"}),
        ("GET", {"if-none-match": "*"}),
        ("GET", {"accept": "image/webp"}),
    ],
)
def test_a_damaged_file_is_not_found(pool: ModelPool, left_bytes: int, method: str, headers: dict[str, str]):
    """The 404 must not have an ETag or be cached."""
    storage = memory_storage()
    with serving(pool, storage=storage) as client:
        response = client.post("/v1/txt2img", json=BODY)
        digest = response.headers["x-sd35-digest"]
        address = f"/v1/artifacts/{digest}"
        link = client.post(f"{address}/link").json()["url"]
        storage.images.blobs.replace(f"{digest}.png", response.content[:left_bytes])
        for each in (address, link):
            answer = client.request(method, each, headers=headers)
            assert answer.status_code == 404
            assert not {"etag", "last-modified"} & set(answer.headers)
            assert "immutable" not in answer.headers.get("cache-control", "")


DIALECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "own": ("/v1/txt2img", {"json": BODY}),
    "openai": ("/v1/images/generations", {"json": {**BODY, "response_format": "url"}}),
    "stability": (
        "/v2beta/stable-image/generate/sd3",
        {"data": {key: str(value) for key, value in BODY.items()}, "files": {"none": b""}},
    ),
    "automatic1111": ("/sdapi/v1/txt2img", {"json": BODY}),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_damaged_image_is_regenerated_in_each_dialect(pool: ModelPool, dialect: str):
    path, body = DIALECTS[dialect]
    storage = memory_storage()
    with serving(pool, storage=storage) as client:
        first = client.post(path, **body)
        assert first.status_code == 200, first.text
        (name,) = storage.images.blobs.names()
        good = storage.images.blobs.get(name)
        storage.images.blobs.replace(name, b"")
        assert client.post(path, **body).status_code == 200
        assert storage.images.blobs.get(name) == good
        assert client.get(f"/v1/artifacts/{name[:64]}").content == good


def test_reads_of_damaged_files_are_counted(client: TestClient):
    """The metric exists from the start, so that an alert sees its first increase."""
    assert "sd35_damaged_images_total 0.0" in client.get("/metrics").text
