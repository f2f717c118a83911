"""Without API keys, pages of other origins cannot change anything on a server: no forged requests, no framing."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from sd35.access.keys import Role, new_key
from sd35.api.auth import is_open
from sd35.api.browsers import AllowedOrigins
from sd35.api.dialects import DIALECTS
from sd35.generation.model_pool import ModelPool
from sd35.settings import load_settings
from tests.support.fake_backend import key_store
from tests.support.http import is_refused_by
from tests.support.serving import serving

KEY, SECRET = new_key("user", Role.ADMIN, 1.0)
CAT = {"prompt": "a cat", "steps": 1, "width": 64, "height": 64}
OTHER_SITE = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}


def is_refused(headers: dict[str, str], scheme: str = "http", public_url: str | None = None, *others: str) -> bool:
    """Return whether a request with these headers to http://127.0.0.1:8000 is refused."""
    sent = {"host": "127.0.0.1:8000", **headers}
    return AllowedOrigins(others, public_url).error(Headers(sent), scheme) is not None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "same-origin"},
        {"origin": "http://127.0.0.1:8000"},
        {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"},
        {"origin": "https://images.example.com", "host": "sd35:8000", "sec-fetch-site": "same-origin"},
        {"origin": "http://gpu", "host": "gpu:80"},
        {"origin": "http://gpu.example", "host": "GPU.example"},
        {"origin": "http://[::1]:8000", "host": "[::1]:8000"},
    ],
)
def test_the_servers_own_pages_and_clients_without_a_browser_are_allowed(headers: dict[str, str]):
    assert not is_refused(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:9000"},
        {"origin": "http://127.0.0.1:9000", "sec-fetch-site": "same-site"},
        {"origin": "https://127.0.0.1:8000"},
        {"origin": "http://127.0.0.1"},
        {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "null"},
        {"origin": "null", "sec-fetch-site": "none"},
        {"origin": "file://"},
        {"origin": "app://obsidian.md"},
        {"origin": "chrome-extension://abc", "sec-fetch-site": "none"},
        {"origin": "http://evil.example", "x-forwarded-host": "evil.example"},
    ],
)
def test_pages_of_other_origins_are_refused(headers: dict[str, str]):
    assert is_refused(headers)


def test_the_origins_of_the_settings_are_allowed():
    listed = load_settings(
        {"cors_origins": "https://a.example,app://obsidian.md,chrome-extension://abc,file://"}
    ).cors_origins
    for origin in listed:
        assert not is_refused({"origin": origin, "sec-fetch-site": "cross-site"}, "http", None, *listed)
    assert is_refused({"origin": "https://b.example", "sec-fetch-site": "cross-site"}, "http", None, *listed)
    assert not is_refused(OTHER_SITE, "http", None, "*")
    public = "HTTPS://me@Images.example.com:443/sd35".replace("HTTPS", "https")
    assert not is_refused({"origin": "https://images.example.com"}, "http", public)


def test_behind_a_trusted_proxy_the_scheme_is_the_clients(pool: ModelPool):
    """The proxy ends TLS, and the browser does not send `Sec-Fetch-Site`."""
    headers = {"host": "localhost", "origin": "https://localhost", "x-forwarded-proto": "https"}
    for trusted, status in (("10.1.1.1", 200), ("10.2.2.2", 403)):
        with serving(pool, trusted_proxies=trusted) as client:
            proxied = TestClient(client.app, client=("10.1.1.1", 5))
            assert proxied.post("/v1/txt2img", json=CAT, headers=headers).status_code == status


@pytest.fixture
def keyless(pool: ModelPool) -> Iterator[TestClient]:
    """A client of a ready server without keys."""
    with serving(pool) as client:
        yield client


def test_every_route_with_an_effect_refuses_other_sites(keyless: TestClient):
    app: Any = keyless.app
    paths = app.openapi()["paths"].items()
    routes = [(method, path) for path, operations in paths for method in operations]
    unsafe = [route for route in routes if route[0] not in {"get", "head", "options"}]
    assert len(unsafe) > 2 * len(DIALECTS)
    for method, path in unsafe:
        response = keyless.request(method, path, headers=OTHER_SITE)
        assert is_refused_by(response, "cors_origins", "https://evil.example"), path
    assert keyless.get("/v1/models", headers=OTHER_SITE).status_code == 200  # the browser hides the response


def test_no_image_is_generated_for_another_site(keyless: TestClient, pool: ModelPool, monkeypatch: pytest.MonkeyPatch):
    """Browsers send multipart forms and untyped bodies without a preflight request."""
    monkeypatch.setattr(pool, "submit", lambda *_, **__: pytest.fail("an image was generated"))
    form: Any = {"prompt": (None, "a cat")}
    refused = keyless.post("/v2beta/stable-image/generate/sd3", files=form, headers=OTHER_SITE)
    assert refused.json()["name"] == "forbidden"
    assert "https://evil.example" in refused.json()["errors"][0]
    assert keyless.post("/sdapi/v1/txt2img", content='{"prompt": "a cat"}', headers=OTHER_SITE).status_code == 403


def test_with_keys_other_sites_are_refused_only_where_the_browser_adds_the_key(pool: ModelPool):
    with serving(pool, key_store(KEY)) as client:
        assert client.post("/v1/txt2img", json=CAT, headers={**OTHER_SITE, "x-api-key": SECRET}).status_code == 200
        assert client.post("/v1/txt2img", json=CAT, headers=OTHER_SITE).status_code == 401
        assert client.post("/v1/txt2img", json=CAT, auth=("me", SECRET)).status_code == 200
        assert client.post("/v1/txt2img", json=CAT, headers=OTHER_SITE, auth=("me", SECRET)).status_code == 403
        assert is_open("/ui/gradio_api/upload")
        assert client.post("/ui/gradio_api/upload", headers=OTHER_SITE).status_code == 403


def test_a_page_of_an_allowed_origin_may_use_the_server_and_read_its_errors(pool: ModelPool):
    with serving(pool, cors_origins="https://app.example") as client:
        headers = {"origin": "https://app.example", "sec-fetch-site": "cross-site"}
        assert client.post("/v1/txt2img", json=CAT, headers=headers).status_code == 200
        refused = client.post("/v1/txt2img", json=CAT, headers={**headers, "host": "gpu.example"})
        assert is_refused_by(refused, "allowed_hosts", "gpu.example")
        assert refused.headers["access-control-allow-origin"] == "https://app.example"


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_cannot_be_framed_by_other_sites(keyless: TestClient, path: str):
    answer = keyless.get(path)
    assert answer.headers["content-type"].startswith("text/html")
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"


def test_browsers_do_not_guess_the_type_of_a_response(keyless: TestClient):
    for answer in (
        keyless.post("/v1/txt2img", json=CAT),
        keyless.get("/v1/models"),
        keyless.get("/v1/models", headers={"host": "evil.example"}),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "x-frame-options" not in answer.headers
