"""AUTOMATIC1111's dialect, by the bodies that its clients send: `clients.json` has them as their sources have them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from sd35.generation.model_pool import ModelPool
from tests.support.serving import serving

CLIENTS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("clients.json").read_text())
SERVED = [client for client in CLIENTS if "refused" not in client]
REFUSED = [client for client in CLIENTS if "refused" in client]
NAME = "{client}".format_map


@pytest.fixture
def client(pool: ModelPool) -> Iterator[TestClient]:
    """A client of a server with the default settings."""
    with serving(pool) as client:
        yield client


@pytest.mark.parametrize("theirs", SERVED, ids=NAME)
def test_a_client_gets_its_images(client: TestClient, theirs: dict[str, Any]):
    """As many as it asks for, with the seed that it asks for; fields that AUTOMATIC1111 does not have are named."""
    body = theirs["body"]
    response = client.post("/sdapi/v1/txt2img", json=body)
    assert response.status_code == 200, response.text
    info = json.loads(response.json()["info"])
    assert len(response.json()["images"]) == body.get("batch_size", 1) * body.get("n_iter", 1)
    assert info["prompt"] == body["prompt"]
    assert info["seed"] == theirs.get("seed", info["seed"])
    assert response.headers.get("x-sd35-ignored", "") == ", ".join(theirs.get("ignored", []))


@pytest.mark.parametrize("theirs", REFUSED, ids=NAME)
def test_the_error_names_each_field_that_is_not_supported(client: TestClient, theirs: dict[str, Any]):
    """Each field that would change the image is named, and no other."""
    response = client.post("/sdapi/v1/txt2img", json=theirs["body"])
    assert response.status_code == 422, response.text
    named = {sentence.partition(":")[0] for sentence in response.json()["errors"].split("; ") if ": got" in sentence}
    assert named == set(theirs["refused"])
