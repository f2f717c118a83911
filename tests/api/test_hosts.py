"""The hosts of a server without API keys: the protection against DNS rebinding."""

import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from sd35.access.keys import Role, new_key
from sd35.api.app import create_app
from sd35.api.browsers import AllowedHosts, AllowedOrigins
from sd35.api.dialects import DIALECTS
from sd35.api.ui_mount import UiMount
from sd35.errors import InvalidSetting, StoreUnavailable
from sd35.generation.model_pool import ModelPool
from sd35.service.lifecycle import ServiceLifecycle
from sd35.settings import load_settings
from sd35.storage.memory.keys import MemoryKeyStore
from tests.support.fake_backend import WAIT_S, fake_pool, key_store
from tests.support.http import is_refused_by, problem
from tests.support.serving import StubUi, listening, serving

KEY, SECRET = new_key("user", Role.ADMIN, 1.0)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:8000", "192.168.1.5:80", "203.0.113.9", "127.0.0.1.", "[::1]", "[::1]:8000"),
        *(
            "[2001:DB8::1]:8000",
            "[fe80::1%25eth0]:8000",
            "localhost",
            "LocalHost:8000",
            "localhost.",
            "a.b.localhost:1",
        ),
        *("images.example.com", "Images.Example.com:8443", "gpu", "gpu:8000", "GPU.", "my_gpu"),
        *("a.gpu.example", "b.a.gpu.example:9", "xn--bcher-kva.example", ""),
    ],
)
def test_an_allowed_host_is_answered(host: str):
    allowed = AllowedHosts(
        ["gpu", "My_GPU", "*.gpu.example", "xn--BCHER-kva.example"], "https://images.example.com/sd35"
    )
    assert allowed.error(Headers({"host": host})) is None


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "notlocalhost", "127.0.0.1.evil.example"),
        *("images.example.com.evil.example", "gpu.evil.example", "agpu.example", "gpu.example", "2130706433"),
        *(
            "0x7f.1",
            "[::1",
            "[evil.example]",
            "evil@127.0.0.1",
            "127.0.0.1/evil",
            "127.0.0.1:a",
            "127.0.0.1, evil",
            " ",
        ),
    ],
)
def test_another_host_is_refused(host: str):
    allowed = AllowedHosts(["gpu", "*.gpu.example"], "https://images.example.com")
    error = allowed.error(Headers({"host": host}))
    assert error is not None
    assert repr(host) in str(error)
    assert "allowed_hosts" in str(error)


@given(st.ip_addresses(), st.none() | st.integers(0, 65535))
def test_each_ip_address_is_an_allowed_host(address: Any, port: int | None):
    host = str(address) if address.version == 4 else f"[{address}]"
    assert AllowedHosts([]).error(Headers({"host": host if port is None else f"{host}:{port}"})) is None


@given(st.from_regex(r"[a-z0-9.\[\]:%@_-]{0,20}", fullmatch=True))
def test_any_host_is_allowed_or_refused_with_and_without_a_final_dot(host: str):
    allowed = AllowedHosts(["gpu"])
    if allowed.error(Headers({"host": host})) and ":" not in host:
        assert allowed.error(Headers({"host": f"{host}."}))


def test_any_host_can_be_allowed():
    assert AllowedHosts(["*"]).error(Headers({"host": "evil.example"})) is None


def test_an_international_public_url_is_compared_in_punycode():
    allowed = AllowedHosts([], "https://bücher.example/sd35")
    assert allowed.error(Headers({"host": "xn--bcher-kva.example"})) is None
    origins = AllowedOrigins([], "https://bücher.example:8443/sd35")
    assert origins.error(Headers({"origin": "https://xn--bcher-kva.example:8443"}), "http") is None


@pytest.fixture
def foreign_client() -> TestClient:
    """A client that calls a server without keys, with a stub as its user interface, by a host that is not allowed."""
    app = create_app(ServiceLifecycle(pytest.fail, print, print), load_settings(), ui=UiMount(StubUi))
    return TestClient(app, "http://evil.example:8000", follow_redirects=False)


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/docs", "/openapi.json", "/favicon.ico", "/static-offline-docs/swagger-ui.css", "/metrics", "/nothing"),
        *("/ui", "/ui/", "/ui/config", "/ui/gradio_api/file=a.png", "/v1/models", "/v1/jobs", "/sdapi/v1/progress"),
        f"/v1/artifacts/{'0' * 64}?expires=1&signature=0",
    ],
)
def test_every_page_is_refused_under_a_foreign_host(foreign_client: TestClient, path: str):
    assert is_refused_by(foreign_client.get(path), "allowed_hosts", "evil.example:8000")


def test_every_route_is_refused_under_a_foreign_host(foreign_client: TestClient):
    """All but the probes, in the error format of each dialect."""
    app: Any = foreign_client.app
    refused = 0
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            response = foreign_client.request(method, path)
            assert is_refused_by(response, "allowed_hosts", "evil.example:8000") == (
                path not in {"/healthz", "/readyz"}
            ), path
            refused += response.status_code == 403
    assert refused > 2 * len(DIALECTS)


def test_probes_are_answered_under_any_host(pool: ModelPool):
    with serving(pool) as client:
        for path in ("/healthz", "/readyz"):
            assert client.get(path, headers={"host": "balancer.example"}).status_code == 200


def test_a_host_is_checked_under_a_root_path(tmp_path: Path):
    with serving(fake_pool(tmp_path), root_path="/images") as client:

        async def under_path(scope: Any, receive: Any, send: Any) -> None:  # as uvicorn adds it
            await app({**scope, "root_path": "/images", "path": "/images" + scope["path"]}, receive, send)

        app: Any = client.app
        client_under_path = TestClient(under_path, "http://evil.example")
        assert client_under_path.get("/healthz").status_code == 200
        assert client_under_path.get("/readyz/").status_code == 403
        assert client_under_path.get("/v1/models").status_code == 403


def test_with_keys_any_host_is_answered(pool: ModelPool):
    with serving(pool, key_store(KEY)) as client:
        headers = {"host": "gpu.example"}
        assert client.get("/docs", headers=headers).status_code == 200
        assert client.get("/v1/models", headers=headers | {"x-api-key": SECRET}).status_code == 200
        problem(client.get("/v1/models", headers=headers), 401)


def test_a_key_that_is_added_ends_the_host_check(pool: ModelPool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sd35.access.authenticate.KEY_CACHE_S", 0.0)
    store = MemoryKeyStore()
    with serving(pool, store) as client:
        headers = {"host": "gpu.example", "x-api-key": SECRET}
        problem(client.get("/v1/models", headers=headers), 403)
        store.add(KEY)
        assert client.get("/v1/models", headers=headers).status_code == 200


def test_an_allowed_request_never_waits_for_the_key_store(pool: ModelPool):
    class Unavailable(MemoryKeyStore):
        def keys(self) -> Any:
            raise StoreUnavailable("no route to the database")

    with serving(pool, Unavailable()) as client:
        assert client.get("/docs").status_code == 200
        problem(client.get("/docs", headers={"host": "gpu.example"}), 503)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /v1/models HTTP/1.0\r\n", b"200"),
        (b"GET /v1/models HTTP/1.1\r\nHost:\r\n", b"200"),
        (b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n", b"403"),
        (b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n", b"403"),
        (b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nHost: 127.0.0.1\r\n", b"403"),
        (b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: 127.0.0.1\r\n", b"403"),
        (b"GET http://127.0.0.1/v1/models HTTP/1.1\r\nHost: evil.example\r\n", b"403"),
    ],
)
def test_only_a_single_host_header_counts(pool: ModelPool, head: bytes, status: bytes):
    with listening(pool) as address, socket.create_connection(address, WAIT_S) as connection:
        connection.sendall(head + b"Connection: close\r\n\r\n")
        assert connection.recv(12).endswith(b" " + status)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("allowed_hosts", host)
            for host in ("https://gpu", "gpu:8000", "a b", "gpu/x", "*.*.example", "[::1]", "bücher")
        ),
        *(("public_url", url) for url in ("https://:80", "https://[x", "http://gpu:99999")),
        *(("cors_origins", origin) for origin in ("null", "file:", "app:")),
    ],
)
def test_an_invalid_host_or_origin_is_refused_at_the_start(name: str, value: str):
    with pytest.raises(InvalidSetting) as error:
        load_settings({name: value})
    assert f"--{name.replace('_', '-')}: got '{value}'" in str(error.value)
