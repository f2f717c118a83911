"""Requests of pages of allowed origins: any header, and requests to a private network if the setting allows them."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from sd35.generation.model_pool import ModelPool
from tests.support.http import problem
from tests.support.serving import serving


def preflight(client: TestClient, **headers: str) -> Any:
    """Send the preflight request of a POST by a page of the allowed origin."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    all_headers = {"origin": "https://app.example", "access-control-request-method": "POST", **sent}
    return client.options("/v1/images/generations", headers=all_headers)


# Headers of OpenAI's JavaScript SDK (openai-node 6) and of other clients.
SDK = (
    "authorization,cache-control,content-type,idempotency-key,openai-beta,openai-organization,openai-project,"
    "x-stainless-arch,x-stainless-custom-poll-interval,x-stainless-helper-method,x-stainless-lang,x-stainless-os,"
    "x-stainless-package-version,x-stainless-poll-helper,x-stainless-retry-count,x-stainless-runtime,"
    "x-stainless-runtime-version,x-stainless-timeout,http-referer,x-title"
)


@pytest.mark.parametrize("origins", ["https://app.example", "*"])
def test_a_page_of_an_allowed_origin_may_send_any_header(pool: ModelPool, origins: str):
    with serving(pool, cors_origins=origins) as client:
        answer = preflight(client, access_control_request_headers=SDK)
        assert answer.status_code == 200
        allowed = {name.strip() for name in answer.headers["access-control-allow-headers"].split(",")}
        assert set(SDK.split(",")) <= allowed
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("is_set", [True, False])
def test_the_setting_decides_on_private_network_preflights(pool: ModelPool, is_set: bool):  # noqa: FBT001  a parameter
    with serving(pool, cors_origins="https://app.example", cors_private_network=is_set) as client:
        answer = preflight(client, access_control_request_private_network="true")
        if is_set:
            assert answer.headers["access-control-allow-private-network"] == "true"
        else:
            assert "cors_private_network" in problem(answer, 400)["detail"]
            assert "access-control-allow-private-network" not in answer.headers
        assert "access-control-allow-private-network" not in preflight(client).headers


def test_a_private_network_preflight_of_another_origin_is_refused(pool: ModelPool):
    with serving(pool, cors_origins="https://app.example", cors_private_network=True) as client:
        answer = preflight(client, origin="https://evil.example", access_control_request_private_network="true")
        problem(answer, 400)
        assert "access-control-allow-origin" not in answer.headers
