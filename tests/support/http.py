"""Requests to `POST /v1/txt2img`, and checks of the API's error responses."""

from typing import Any

from starlette.testclient import TestClient

PATH = "/v1/txt2img"


def post_txt2img(client: TestClient, **fields: Any) -> Any:
    """Request an image of a cat; `fields` replace or add to the body's fields."""
    return client.post(PATH, json={"prompt": "a cat", **fields})


def problem(response: Any, status: int) -> dict[str, Any]:
    """Return the response's problem document after checking its form (RFC 9457) and its status."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    content: dict[str, Any] = response.json()
    assert content["status"] == status
    assert content["request_id"] == response.headers["x-request-id"]
    return content


def is_refused_by(response: Any, setting: str, got: str) -> bool:
    """Return whether a response, in any dialect's format, is a 403 that names the setting and the refused value."""
    return response.status_code == 403 and setting in response.text and got in response.text
