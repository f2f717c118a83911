"""Authentication and authorisation: keys, roles, limits, proxies, CORS, and a path under a proxy."""

import asyncio
import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends
from starlette.testclient import TestClient

from sd35.access.keys import Key, Quota, Role, new_key
from sd35.api.auth import require_admin
from sd35.errors import (
    ContentRefused,
    IdempotencyConflict,
    InvalidSetting,
    NotAllowed,
    NotAuthenticated,
    NotReady,
    Overloaded,
    Sd35Error,
    StoreUnavailable,
    TooMany,
)
from sd35.generation.model_pool import ModelPool
from sd35.settings import load_settings
from sd35.storage.memory.keys import MemoryKeyStore
from tests.support.fake_backend import WAIT_S, FakeBackend, Fault, fake_pool, key_store
from tests.support.http import post_txt2img, problem
from tests.support.serving import serving

USER, USER_SECRET = new_key("user", Role.USER, 1.0)
ADMIN, ADMIN_SECRET = new_key("admin", Role.ADMIN, 1.0)
BEARER = {"authorization": f"Bearer {USER_SECRET}"}
AS_ADMIN = {"authorization": f"Bearer {ADMIN_SECRET}"}
CAT = {"prompt": "a cat", "steps": 1, "width": 64, "height": 64}  # 4096 pixels


@pytest.fixture
def client_with_keys(pool: ModelPool) -> Iterator[TestClient]:
    """A client of an app in which a user and an administrator have keys."""
    with serving(pool, key_store(USER, ADMIN)) as client:
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        BEARER,
        {"authorization": f"bearer  {USER_SECRET}"},
        {"x-api-key": USER_SECRET},
        AS_ADMIN,
        {"authorization": "Basic " + base64.b64encode(f"anyone:{USER_SECRET}".encode()).decode()},
        {"authorization": "Basic dTpw", "x-api-key": USER_SECRET},
    ],
    ids=["bearer", "lower case", "header", "admin", "password", "beside another scheme"],
)
def test_a_key_is_accepted_in_each_header(client_with_keys: TestClient, headers: dict[str, str]):
    assert client_with_keys.post("/v1/txt2img", json=CAT, headers=headers).status_code == 200


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/txt2img"), ("GET", "/v1/models"), ("GET", "/metrics")])
def test_without_a_key_the_response_says_how_to_send_one(client_with_keys: TestClient, method: str, path: str):
    response = client_with_keys.request(method, path)
    assert "'Authorization: Bearer sd35_...' or 'X-Api-Key: sd35_...'" in problem(response, 401)["detail"]
    assert response.headers["www-authenticate"] == "Bearer"


def test_the_description_says_which_routes_need_a_key(client_with_keys: TestClient):
    paths = client_with_keys.get("/openapi.json").json()["paths"]
    operations = [(method, path, each) for path, methods in paths.items() for method, each in methods.items()]
    for method, path, operation in operations:
        status = client_with_keys.request(method, path).status_code
        assert (status == 401) == ("security" in operation)
        assert str(status) in operation["responses"]


def test_a_route_that_does_not_exist_needs_a_key_too(client_with_keys: TestClient):
    """Callers without a key cannot find out which routes exist."""
    problem(client_with_keys.get("/v1/nothing"), 401)
    problem(client_with_keys.get("/v1/nothing", headers=BEARER), 404)


@pytest.mark.parametrize(
    "path",
    ["/", "/healthz", "/readyz", "/docs", "/openapi.json", "/favicon.ico", "/static-offline-docs/swagger-ui.css"],
)
def test_probes_and_the_description_need_no_key(client_with_keys: TestClient, path: str):
    assert client_with_keys.get(path).status_code < 400


def test_every_invalid_key_gets_the_same_response(client_with_keys: TestClient):
    wrong = USER_SECRET[:-4] + ("AAAA" if USER_SECRET[-4:] != "AAAA" else "BBBB")
    answers = set()
    for secret in (new_key("other", Role.ADMIN, 1.0)[1], wrong, "nonsense", "sd35_" + "0" * 16 + "_"):
        response = client_with_keys.get("/v1/models", headers={"x-api-key": secret})
        answers.add((response.status_code, response.headers["www-authenticate"], response.json()["detail"]))
    message = "the API key is not valid: it is incomplete, unknown or revoked; ask the operator for another"
    assert answers == {(401, "Bearer", message)}


@pytest.mark.parametrize("need_admin", [True, False])
def test_metrics_need_an_administrator_if_set(pool: ModelPool, need_admin: bool):  # noqa: FBT001  a parameter
    with serving(pool, key_store(USER, ADMIN), metrics_need_admin=need_admin) as client:
        assert client.get("/metrics", headers=AS_ADMIN).status_code == 200
        response = client.get("/metrics", headers=BEARER)
        if need_admin:
            assert "needs an administrator's API key" in problem(response, 403)["detail"]
        else:
            assert response.status_code == 200


def test_a_route_can_require_an_administrator(client_with_keys: TestClient):
    app: Any = client_with_keys.app
    app.get("/v1/admin", dependencies=[Depends(require_admin)])(lambda: "you may")
    assert client_with_keys.get("/v1/admin", headers=AS_ADMIN).json() == "you may"
    problem(client_with_keys.get("/v1/admin", headers=BEARER), 403)


def test_nobody_gets_access_while_the_key_store_is_unavailable(pool: ModelPool):
    class Unavailable(MemoryKeyStore):
        def keys(self) -> list[Key]:
            raise StoreUnavailable("the database does not answer")

    with serving(pool, Unavailable()) as client:
        response = client.get("/v1/models", headers=BEARER)
        assert problem(response, 503)["detail"] == "the database does not answer"
        assert int(response.headers["retry-after"]) >= 1
        assert client.get("/healthz").status_code == 200


def test_a_key_has_its_own_limits(pool: ModelPool):
    small, small_secret = new_key("small", Role.USER, 1.0, Quota(requests_per_minute=2))
    with serving(pool, key_store(small, USER), requests_per_minute=100) as client:
        headers = {"x-api-key": small_secret}
        first = client.post("/v1/txt2img", json=CAT, headers=headers)
        assert first.headers["ratelimit-policy"] == '"requests";q=2;w=60'
        assert first.headers["ratelimit"].startswith('"requests";r=1;t=')
        assert client.post("/v1/txt2img", json=CAT, headers=headers).status_code == 200
        refused = client.post("/v1/txt2img", json=CAT, headers=headers)
        assert "(requests: 2 in 60 s)" in problem(refused, 429)["detail"]
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.headers["ratelimit"].startswith('"requests";r=0;t=')
        assert client.get("/v1/models", headers=headers).status_code == 200
        assert client.post("/v1/txt2img", json=CAT, headers=BEARER).status_code == 200


def test_requested_pixels_are_counted_and_refused_requests_are_not(pool: ModelPool):
    with serving(pool, pixels_per_hour=2 * 4096) as client:
        for _ in range(3):
            problem(post_txt2img(client, steps=0), 422)
            problem(post_txt2img(client, model="none"), 404)
        assert "this request takes 16384 pixels" in problem(post_txt2img(client), 403)["detail"]
        assert client.post("/v1/txt2img", json=CAT).status_code == 200
        assert client.post("/v1/txt2img", json=CAT).headers["ratelimit"].startswith('"pixels";r=0;')
        refused = client.post("/v1/txt2img", json=CAT)
        assert "(pixels: 8192 in 3600 s)" in problem(refused, 429)["detail"]
        assert 1790 <= int(refused.headers["retry-after"]) <= 1800


def test_concurrent_images_are_limited_until_they_end(pool: ModelPool, backend: FakeBackend):
    with serving(pool, concurrency=1) as client:
        answers: list[Any] = []
        backend.hold()
        running = threading.Thread(target=lambda: answers.append(post_txt2img(client, prompt="a tree")))
        running.start()
        assert backend.started.wait(WAIT_S)
        refused = client.post("/v1/txt2img", json=CAT)
        assert "this client has reached its limit of concurrent images, which is 1" in problem(refused, 429)["detail"]
        backend.release.set()
        running.join(WAIT_S)
        assert answers[0].status_code == 200
        backend.faults["a dog"] = Fault.STEP_ERROR
        assert post_txt2img(client, prompt="a dog").status_code == 500
        assert client.post("/v1/txt2img", json=CAT).status_code == 200


def test_a_request_refused_by_a_full_engine_is_not_charged(pool: ModelPool, backend: FakeBackend):
    with serving(pool, requests_per_minute=2) as client:
        backend.hold()
        handles = [pool.submit(pool.resolve(_params("a tree")), client="other") for _ in range(3)]
        assert backend.started.wait(WAIT_S)
        for _ in range(5):
            assert "3 of at most 3 images are waiting or running" in problem(post_txt2img(client), 429)["detail"]
        backend.release.set()
        assert all(handle.future.result(WAIT_S) for handle in handles)
        assert post_txt2img(client).status_code == 200


def _params(prompt: str) -> Any:
    from sd35.generation.params import GenerationParams

    return GenerationParams(prompt)


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (NotAuthenticated("a key"), 401, None),
        (NotAllowed("not yours"), 403, None),
        (IdempotencyConflict("k"), 409, None),
        (ContentRefused("not that"), 422, None),
        (TooMany("two a minute", 3.2), 429, "4"),
        (Overloaded("full", 0.1), 429, "1"),
        (NotReady("closing", 5), 503, "5"),
        (StoreUnavailable("disk full"), 503, "5"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Sd35Error) else None,
)
def test_each_error_has_its_status_and_retry_after(
    pool: ModelPool, monkeypatch: pytest.MonkeyPatch, error: Sd35Error, status: int, retry_after: str | None
):
    def failing(_: object) -> None:
        raise error

    monkeypatch.setattr(pool, "resolve", failing)
    with serving(pool) as client:
        response = post_txt2img(client)
    assert problem(response, status)["detail"] == str(error)
    assert response.headers.get("retry-after") == retry_after


def clients_of_images(pool: ModelPool, headers: dict[str, str], **settings: Any) -> set[object]:
    """Return the clients for whom images are submitted to the engine, by a request from 10.1.1.1 with these headers."""
    clients: set[object] = set()
    submit = pool.submit

    def submit_and_record(*args: Any, client: object, **more: Any) -> Any:
        clients.add(client)
        return submit(*args, client=client, **more)

    pool.submit = submit_and_record  # type: ignore[method-assign,assignment]
    with serving(pool, **settings) as client:
        inside = TestClient(client.app, "http://127.0.0.1", client=("10.1.1.1", 5))
        assert inside.post("/v1/txt2img", json=CAT, headers=headers).status_code == 200
    return clients


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        ("", "203.0.113.7", "10.1.1.1"),
        ("10.2.0.0/16", "203.0.113.7", "10.1.1.1"),
        ("10.1.1.1", "203.0.113.7", "203.0.113.7"),
        ("10.1.0.0/16, 192.0.2.1", "1.2.3.4, 203.0.113.7, 192.0.2.1", "203.0.113.7"),
    ],
)
def test_the_client_address_is_taken_from_trusted_proxies_only(
    pool: ModelPool, trusted: str, forwarded: str, client: str
):
    """It is the last address that is not a trusted proxy. Clients can write anything before it."""
    assert clients_of_images(pool, {"x-forwarded-for": forwarded}, trusted_proxies=trusted) == {client}


def test_other_origins_get_no_cors_headers_by_default(client: TestClient):
    origin = {"origin": "https://example.com"}
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=origin).headers
    answer = client.options("/v1/txt2img", headers={**origin, "access-control-request-method": "POST"})
    assert "access-control-allow-origin" not in answer.headers


def test_allowed_origins_get_cors_headers(pool: ModelPool):
    with serving(pool, key_store(USER), cors_origins="https://example.com") as client:
        question = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        allowed = client.options("/v1/txt2img", headers={"origin": "https://example.com", **question})
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://example.com")
        refused = client.options("/v1/txt2img", headers={"origin": "https://evil.example", **question})
        assert problem(refused, 400)["detail"].startswith("Disallowed CORS origin; allowed: GET, HEAD, POST")
        assert "access-control-allow-origin" not in refused.headers
        denied = client.get("/v1/models", headers={"origin": "https://example.com"})
        assert (denied.status_code, denied.headers["access-control-allow-origin"]) == (401, "https://example.com")
        answer = client.post("/v1/txt2img", json=CAT, headers={"origin": "https://example.com", **BEARER})
        readable = answer.headers["access-control-expose-headers"].lower().split(", ")
        own = {name for name in answer.headers if name.startswith("x-")} | {"server-timing", "retry-after"}
        own -= {"x-content-type-options"}  # a header for browsers
        assert own <= set(readable)
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trusted_proxies", "proxy.example"),
        ("trusted_proxies", "10.0.0.1/8"),
        ("cors_origins", "example.com"),
        ("cors_origins", "https://example.com/"),
        ("root_path", "images"),
        ("root_path", "/images/"),
        ("body_timeout_s", "0"),
    ],
)
def test_invalid_settings_are_refused_with_their_value(name: str, value: str):
    with pytest.raises(InvalidSetting, match=rf"--{name.replace('_', '-')}: got '{value}'"):
        load_settings({name: value})


@pytest.mark.parametrize(
    ("path", "allow"),
    [("/healthz", "GET, HEAD"), ("/v1/models", "GET, HEAD"), ("/v1/txt2img", "POST")],
)
def test_options_and_405_list_the_methods_of_a_path(client: TestClient, path: str, allow: str):
    answer = client.options(path)
    assert (answer.status_code, answer.headers["allow"], answer.content) == (
        204,
        allow,
        b"",
    )
    response = client.request("PATCH", path)
    problem(response, 405)
    assert response.headers["allow"] == allow


def test_pages_link_to_each_other_under_a_root_path(tmp_path: Path):
    async def under_path(scope: Any, receive: Any, send: Any) -> None:  # as uvicorn adds it
        await app({**scope, "root_path": "/images", "path": "/images" + scope["path"]}, receive, send)

    with serving(fake_pool(tmp_path), key_store(USER)) as ready:
        app = ready.app
        client = TestClient(under_path, "http://127.0.0.1", follow_redirects=False)
        assert '<a href="/images/docs">' in client.get("/").text
        assert "/images/openapi.json" in client.get("/docs").text
        assert client.get("/healthz").status_code == 200
        problem(client.get("/v1/models"), 401)
        assert client.get("/v1/models", headers=BEARER).status_code == 200
        digest = client.post("/v1/txt2img", json=CAT, headers=BEARER).headers["x-sd35-digest"]
        url = client.post(f"/v1/artifacts/{digest}/link", headers=BEARER).json()["url"]
        assert "/images/v1/artifacts/" in url
        assert client.get(url.replace("/images", "")).status_code == 200  # as a proxy forwards it
        problem(client.get(url.replace("/images", "") + "&format=webp"), 403)


def test_a_body_that_does_not_arrive_in_time_is_408(pool: ModelPool):
    with serving(pool, body_timeout_s=0.05) as client:
        statuses = []

        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append((message["status"], dict(message["headers"])[b"connection"]))

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/txt2img",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"content-length", b"10")],
        }
        asyncio.run(asyncio.wait_for(client.app(scope, receive, send), WAIT_S))
        assert statuses == [(408, b"close")]


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/jobs", f"/v1/artifacts/{'0' * 64}", "/v1/jobs/none/events", "/metrics"]
)
def test_unknown_query_parameters_are_refused(client_with_keys: TestClient, path: str):
    (error,) = problem(client_with_keys.get(path, params={"statsu": "queued"}, headers=BEARER), 422)["errors"]
    assert (error["field"], error["got"]) == ("statsu", "queued")
    assert error["allowed"].startswith(("only ", "no query parameters"))


@pytest.mark.parametrize(
    ("params", "headers", "field"),
    [
        ({"status": ["queued", "foo"]}, {}, "status"),
        ({"limit": "0"}, {}, "limit"),
        ({}, {"Last-Event-ID": "x"}, "last-event-id"),
    ],
)
def test_the_error_of_an_invalid_parameter_names_it(
    client: TestClient, params: dict[str, Any], headers: dict[str, str], field: str
):
    job = client.post("/v1/jobs", json=CAT).json()
    path = f"/v1/jobs/{job['id']}/events" if headers else "/v1/jobs"
    (error,) = problem(client.get(path, params=params, headers=headers), 422)["errors"]
    assert error["field"] == field


@pytest.mark.parametrize("method", ["DELETE", "POST"])
def test_a_signed_link_cannot_delete(client_with_keys: TestClient, method: str):
    path = f"/v1/artifacts/{'0' * 64}{'/link' if method == 'POST' else ''}"
    (error,) = problem(client_with_keys.request(method, path, params={"signature": "0"}, headers=BEARER), 422)["errors"]
    assert error["field"] == "signature"


def test_probes_ignore_unknown_query_parameters(client_with_keys: TestClient):
    """Some load balancers add a timestamp."""
    assert client_with_keys.get("/healthz?t=1").status_code == client_with_keys.get("/readyz?t=1").status_code == 200
