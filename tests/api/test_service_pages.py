"""Health, readiness, models, documentation, and what all responses have in common."""

import asyncio
import http.client
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from sd35.api.app import create_app
from sd35.errors import CheckpointError
from sd35.generation.model_pool import ModelPool
from sd35.service.lifecycle import ServiceLifecycle
from sd35.service.service import Service
from sd35.settings import load_settings
from tests.support.fake_backend import WAIT_S, FakeBackend
from tests.support.services import service_of
from tests.support.serving import cancellations, serving


def test_models_are_listed_in_openais_format_with_fields_of_this_project(client: TestClient):
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    mini, large = listed["data"]
    assert (mini["id"], mini["object"], mini["owned_by"]) == ("mini", "model", "sd35")
    expected = {"width": 128, "height": 128, "steps": 4, "guidance_scale": 4.5, "skip_layer_scale": 0.0}
    assert mini["defaults"] == expected
    assert (mini["ranges"]["skip_layer_scale"], large["ranges"]["skip_layer_scale"]) == ([0, 0], [0, 10])
    assert large["defaults"]["skip_layer_scale"] == 2.8
    assert mini["ranges"]["side_px"] == [64, 256]
    assert (mini["max_sequence_length"], mini["native_pixels"], mini["enlarges"]) == (20, 16384, True)
    assert (mini["backend"], mini["precision"], mini["licence"]) == ("double", "float32", "Apache-2.0")
    assert (mini["substitute_reason"], large["substitute_reason"]) == (None, None)
    assert (large["id"], large["enlarges"], large["defaults"]["width"]) == ("large", False, 1024)


def test_nothing_but_health_is_answered_while_the_model_loads(pool: ModelPool):
    load, ready = threading.Event(), threading.Event()

    def open_service() -> Service:
        assert load.wait(WAIT_S)
        return service_of(pool)

    with TestClient(
        create_app(ServiceLifecycle(open_service, ready.set, lambda _: None), load_settings()), "http://127.0.0.1"
    ) as client:
        assert client.get("/healthz").status_code == 200
        for response in (
            client.get("/readyz"),
            client.get("/v1/models"),
            client.post("/v1/txt2img", json={"prompt": "a cat"}),
        ):
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert "loading" in response.json()["detail"]
        load.set()
        assert ready.wait(WAIT_S)
        assert client.get("/readyz").json() == {"status": "ready", "models": ["mini", "large"]}
        assert client.post("/v1/txt2img", json={"prompt": "a cat"}).status_code == 200


def test_a_broken_engine_is_not_ready(backend: FakeBackend, client: TestClient, monkeypatch: pytest.MonkeyPatch):
    assert "sd35_ready 1.0\n" in client.get("/metrics").text
    monkeypatch.setattr(backend, "encode_text", lambda _: (_ for _ in ()).throw(SystemExit("from a library")))
    assert client.post("/v1/txt2img", json={"prompt": "a cat"}).status_code == 500
    response = client.get("/readyz")
    message = (
        "the service is broken because its engine has failed; its operator must restart it (its log shows the reason)"
    )
    assert (response.status_code, response.json()["detail"], response.headers["retry-after"]) == (503, message, "5")
    assert "sd35_ready 0.0\n" in client.get("/metrics").text


def test_a_failed_load_is_reported_to_the_caller():
    error, failures = CheckpointError("no weights"), []
    reported = threading.Event()

    def open_service() -> Service:
        raise error

    def on_failure(failure: Exception) -> None:
        failures.append(failure)
        reported.set()

    with TestClient(
        create_app(ServiceLifecycle(open_service, lambda: None, on_failure), load_settings()), "http://127.0.0.1"
    ) as client:
        assert reported.wait(WAIT_S)
        assert client.get("/readyz").status_code == 503
    assert failures == [error]


def test_closing_refuses_new_images_and_finishes_those_accepted(pool: ModelPool, backend: FakeBackend):
    async def scenario() -> None:
        ready = asyncio.Event()
        lifecycle = ServiceLifecycle(lambda: service_of(pool), ready.set, lambda _: None)
        lifecycle.start()
        await ready.wait()
        backend.hold()
        handle = pool.submit(pool.resolve(_params("a cat")))
        closing = asyncio.create_task(lifecycle.close())
        await asyncio.to_thread(backend.started.wait, WAIT_S)
        client = TestClient(
            create_app(lifecycle, load_settings()), "http://127.0.0.1"
        )  # without its lifespan, because the lifecycle has started already
        for response in (client.get("/readyz"), client.post("/v1/txt2img", json={"prompt": "a cat"})):
            assert response.status_code == 503
            assert "closing" in response.json()["detail"]
        assert client.get("/healthz").status_code == 200
        backend.release.set()
        await closing
        assert handle.future.done()
        assert handle.future.result()

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/v1/txt2img", "/v1/images/generations"])
def test_a_request_accepted_before_closing_gets_its_image(client: TestClient, backend: FakeBackend, path: str):
    lifecycle, portal = client.app.state.lifecycle, client.portal  # type: ignore[attr-defined]
    assert portal
    with ThreadPoolExecutor() as pool:
        backend.hold()
        response = pool.submit(client.post, path, json={"prompt": "a cat"})
        assert backend.started.wait(WAIT_S)
        closing = portal.start_task_soon(lifecycle.close)
        portal.call(asyncio.sleep, 0)
        assert client.get("/readyz").status_code == 503
        backend.release.set()
        assert response.result(WAIT_S).status_code == 200
        closing.result(WAIT_S)


def _params(prompt: str) -> Any:
    from sd35.generation.params import GenerationParams

    return GenerationParams(prompt)


def test_health_is_answered_while_an_image_is_generated(address: tuple[str, int], backend: FakeBackend):
    generating = http.client.HTTPConnection(*address, timeout=WAIT_S)
    backend.hold()
    generating.request("POST", "/v1/txt2img", json.dumps({"prompt": "a cat"}), {"content-type": "application/json"})
    assert backend.started.wait(WAIT_S)
    probe = http.client.HTTPConnection(*address, timeout=WAIT_S)
    probe.request("GET", "/healthz")
    assert probe.getresponse().status == 200
    assert backend.steps == ["a cat"]
    backend.release.set()
    assert generating.getresponse().read().startswith(b"\x89PNG")
    generating.close()
    probe.close()


def test_a_disconnect_cancels_the_image(address: tuple[str, int], pool: ModelPool, backend: FakeBackend):
    cancelled = cancellations(pool)
    backend.hold()
    body = json.dumps({"prompt": "a dog", "steps": 150}).encode()
    with socket.create_connection(address, timeout=WAIT_S) as connection:
        head = (
            "POST /v1/txt2img HTTP/1.1",
            "Host: 127.0.0.1",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        )
        connection.sendall("\r\n".join([*head, "\r\n"]).encode() + body)
        assert backend.started.wait(WAIT_S)
    assert cancelled.wait(WAIT_S)
    backend.release.set()
    other = http.client.HTTPConnection(*address, timeout=WAIT_S)
    other.request("POST", "/v1/txt2img", b'{"prompt": "a cat"}', {"content-type": "application/json"})
    assert other.getresponse().status == 200
    other.close()
    assert backend.steps == ["a dog"] + ["a cat"] * 4


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/txt2img", 405), ("POST", "/healthz", 405), ("POST", "/v1/txt2img/", 404)],
)
def test_404_and_405_are_problem_documents(client: TestClient, method: str, path: str, status: int):
    response = client.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/v1/models", "/metrics"])
def test_head_is_answered_as_get(client: TestClient, path: str):
    assert client.head(path).status_code == client.get(path).status_code < 400


def test_a_valid_request_id_is_returned_and_an_invalid_one_replaced(client: TestClient):
    assert client.get("/healthz", headers={"x-request-id": "Abc-1.2_3"}).headers["x-request-id"] == "Abc-1.2_3"
    for bad in (b"a b", b"x" * 65, b"\xe9"):
        returned = client.get("/healthz", headers={b"x-request-id": bad}).headers["x-request-id"]
        assert len(returned) == 16
        int(returned, 16)


def test_an_unexpected_error_is_a_500_with_the_request_id(pool: ModelPool, monkeypatch: pytest.MonkeyPatch):
    def broken(_: object) -> None:
        raise ZeroDivisionError("internal words")

    monkeypatch.setattr(pool, "resolve", broken)
    with serving(pool) as client:
        response = client.post("/v1/txt2img", json={"prompt": "a cat"}, headers={"x-request-id": "mine"})
    assert (response.status_code, response.headers["content-type"]) == (500, "application/problem+json")
    assert "internal words" not in response.text
    assert response.json()["request_id"] == "mine"


def test_the_documentation_works_without_the_internet(client: TestClient):
    page = client.get("/docs").text
    assert "http://" not in page
    assert "https://" not in page
    for asset in ("/static-offline-docs/swagger-ui-bundle.js", "/static-offline-docs/swagger-ui.css"):
        assert asset in page
        assert client.get(asset).status_code == 200
    assert '<a href="/docs">' in client.get("/").text


def test_openapi_describes_the_body_the_responses_and_the_headers(client: TestClient):
    operation = client.get("/openapi.json").json()["paths"]["/v1/txt2img"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["prompt"]
    assert body["additionalProperties"] is False
    assert {"type": "integer", "minimum": 1, "maximum": 150} in body["properties"]["steps"]["anyOf"]
    assert operation["responses"].keys() == {
        *("200", "400", "401", "403", "404", "406", "408", "409", "410", "413", "415", "422", "429", "500", "503")
    }
    assert "X-Sd35-Seed" in operation["responses"]["200"]["headers"]
    assert operation["responses"]["200"]["content"].keys() == {
        f"image/{kind}" for kind in ("png", "jpeg", "webp", "avif")
    }
    assert "application/problem+json" in operation["responses"]["422"]["content"]


def test_every_reference_in_the_openapi_page_resolves(client: TestClient):
    page = client.get("/openapi.json").json()

    def references(node: Any) -> set[str]:
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
        own = {node["$ref"]} if isinstance(node, dict) and "$ref" in node else set()
        return own.union(*(references(child) for child in children))

    for reference in references(page):
        target = page
        for name in reference.removeprefix("#/").split("/"):
            target = target[name]
