"""AUTOMATIC1111's dialect, by the bodies that its clients send. `clients.json` has them, with their sources."""

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


@pytest.mark.parametrize("case", SERVED, ids=NAME)
def test_a_client_gets_its_images(client: TestClient, case: dict[str, Any]):
    body = case["body"]
    response = client.post("/sdapi/v1/txt2img", json=body)
    assert response.status_code == 200, response.text
    info = json.loads(response.json()["info"])
    assert len(response.json()["images"]) == body.get("batch_size", 1) * body.get("n_iter", 1)
    assert info["prompt"] == body["prompt"]
    assert info["seed"] == case.get("seed", info["seed"])
    assert response.headers.get("x-sd35-ignored", "") == ", ".join(case.get("ignored", []))


@pytest.mark.parametrize("case", REFUSED, ids=NAME)
def test_the_error_names_each_field_that_is_not_supported(client: TestClient, case: dict[str, Any]):
    response = client.post("/sdapi/v1/txt2img", json=case["body"])
    assert response.status_code == 422, response.text
    named = {sentence.partition(":")[0] for sentence in response.json()["errors"].split("; ") if ": got" in sentence}
    assert named == set(case["refused"])
