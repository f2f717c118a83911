"""The `Content-Type` of a JSON body: optional in imitated dialects, `application/json` in this project's own."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

BODIES: dict[str, dict[str, Any]] = {
    "/v1/images/generations": {"prompt": "a cat"},
    "/sdapi/v1/txt2img": {"prompt": "a cat"},
    "/sdapi/v1/options": {"sd_model_checkpoint": "mini"},
}


def status_of(client: TestClient, path: str, **headers: str) -> int:
    """Return the status of a JSON body that is sent with these headers only."""
    body = json.dumps(BODIES.get(path, {"prompt": "a cat"})).encode()
    return int(client.post(path, content=body, headers=headers).status_code)


@pytest.mark.parametrize("path", BODIES)
def test_an_imitated_dialect_reads_json_without_a_type(client: TestClient, path: str):
    """Dify's tool for AUTOMATIC1111 sends none."""
    assert status_of(client, path) == 200
    assert status_of(client, path, **{"content-type": ""}) == 200
    assert status_of(client, path, **{"content-type": "Application/JSON; charset=utf-8"}) == 200


def test_png_info_reads_json_without_a_type(client: TestClient):
    assert client.post("/sdapi/v1/png-info", content=b'{"image": 5}').status_code == 422


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "content_type", ["text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data", ";"]
)
def test_another_type_is_refused(client: TestClient, path: str, content_type: str):
    """Pages of other sites can send some of these without a preflight request."""
    assert status_of(client, path, **{"content-type": content_type}) == 415


@pytest.mark.parametrize("path", ["/v1/txt2img", "/v1/jobs"])
def test_this_projects_own_routes_need_the_type(client: TestClient, path: str):
    assert status_of(client, path) == 415
    assert status_of(client, path, **{"content-type": ""}) == 415
