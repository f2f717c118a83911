"""A stored image whose file is damaged, as clients meet it."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from sd35.generation.model_pool import ModelPool
from tests.support.services import memory_storage
from tests.support.serving import serving

ASKED = {"prompt": "a cat", "seed": 1}


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
    """404 without an ETag and without leave to cache it, by address and by signed link, whatever is asked of it."""
    storage = memory_storage()
    with serving(pool, storage=storage) as client:
        made = client.post("/v1/txt2img", json=ASKED)
        digest = made.headers["x-sd35-digest"]
        address = f"/v1/artifacts/{digest}"
        link = client.post(f"{address}/link").json()["url"]
        storage.images.blobs.replace(f"{digest}.png", made.content[:left_bytes])
        for each in (address, link):
            answer = client.request(method, each, headers=headers)
            assert answer.status_code == 404
            assert not {"etag", "last-modified"} & set(answer.headers)
            assert "immutable" not in answer.headers.get("cache-control", "")


DIALECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "own": ("/v1/txt2img", {"json": ASKED}),
    "openai": ("/v1/images/generations", {"json": {**ASKED, "response_format": "url"}}),
    "stability": (
        "/v2beta/stable-image/generate/sd3",
        {"data": {key: str(value) for key, value in ASKED.items()}, "files": {"none": b""}},
    ),
    "automatic1111": ("/sdapi/v1/txt2img", {"json": ASKED}),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_damaged_image_is_regenerated_in_each_dialect(pool: ModelPool, dialect: str):
    """200 with a whole image, at its address too: an empty file is not an error for ever."""
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
    """From 0, so that the first one is seen."""
    assert "sd35_damaged_images_total 0.0" in client.get("/metrics").text
