"""`POST /v1/txt2img`: each field has its effect or is refused, and no request causes a 500."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from sd35.api.body import MAX_BODY_BYTES
from sd35.generation.replay import read_stored_image
from tests.support.fake_backend import WAIT_S, FakeBackend, Fault, fake_pool
from tests.support.http import PATH, post_txt2img, problem
from tests.support.serving import serving

JSON = {"content-type": "application/json"}


def test_a_prompt_is_enough(client: TestClient):
    response = post_txt2img(client)
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(response.content)).size == (128, 128)
    request = read_stored_image(response.content).record.request
    assert response.headers["x-sd35-seed"] == str(request.seed)
    assert response.headers["x-sd35-digest"] == request.digest
    assert response.headers["x-sd35-model"] == "mini"
    assert int(response.headers["x-sd35-time-ms"]) >= 0
    assert "x-sd35-generated-size" not in response.headers
    assert "x-sd35-truncated" not in response.headers


def test_every_field_reaches_the_request(client: TestClient):
    fields = {
        "prompt": "ein Übergrößenträger 🐈",
        "negative_prompt": "a dog",
        "width": 256,
        "height": 512,
        "steps": 3,
        "guidance_scale": 7,
        "skip_layer_scale": 1.5,
        "seed": 2**32 - 1,
        "model": "large",
    }
    response = post_txt2img(client, **fields)
    request = read_stored_image(response.content).record.request
    assert {name: getattr(request, name) for name in fields} == fields


def test_the_same_request_gives_the_same_bytes(client: TestClient):
    first, second, other = (post_txt2img(client, seed=seed).content for seed in (1, 1, 2))
    assert first == second != other


def test_null_means_omitted(client: TestClient):
    """Except for the prompt."""
    nulls = dict.fromkeys(
        ("negative_prompt", "width", "height", "steps", "guidance_scale", "skip_layer_scale", "model")
    )
    assert post_txt2img(client, seed=1, **nulls).content == post_txt2img(client, seed=1).content
    assert problem(post_txt2img(client, prompt=None), 422)["errors"][0]["field"] == "prompt"


def test_headers_name_the_generated_size_and_truncated_prompts(client: TestClient):
    response = post_txt2img(client, prompt="cat " * 21, width=1024, height=1024, steps=1)
    assert Image.open(io.BytesIO(response.content)).size == (1024, 1024)
    assert response.headers["x-sd35-generated-size"] == "128x128"
    assert response.headers["x-sd35-truncated"] == "prompt"


@pytest.mark.parametrize(
    ("fields", "field", "allowed"),
    [
        ({"prompt": ""}, "prompt", "1 to 10000"),
        ({"prompt": 5}, "prompt", "text"),
        ({"prompt": "x" * 10_001}, "prompt", "1 to 10000"),
        ({"negative_prompt": "x" * 10_001}, "negative_prompt", "10000"),
        ({"prompt": "\ud83d"}, "prompt", "surrogates"),
        ({"steps": 0}, "steps", "1 to 150"),
        ({"steps": 151}, "steps", "1 to 150"),
        ({"steps": "28"}, "steps", "integer"),
        ({"steps": 28.0}, "steps", "integer"),
        ({"steps": True}, "steps", "integer"),
        ({"guidance_scale": -0.1}, "guidance_scale", "0 to 30"),
        ({"guidance_scale": 30.1}, "guidance_scale", "0 to 30"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "0 to 30"),
        ({"guidance_scale": float("inf")}, "guidance_scale", "0 to 30"),
        ({"guidance_scale": True}, "guidance_scale", "number"),
        ({"guidance_scale": 10**400}, "guidance_scale", "0 to 30"),
        ({"skip_layer_scale": 10.1}, "skip_layer_scale", "0 to 10"),
        ({"skip_layer_scale": "2.8"}, "skip_layer_scale", "number"),
        (
            {"skip_layer_scale": 2.8},
            "skip_layer_scale",
            "0, because the model mini does not support skip-layer guidance",
        ),
        ({"seed": -1}, "seed", "0 to 4294967295"),
        ({"seed": 2**32}, "seed", "0 to 4294967295"),
        ({"width": 100}, "width", "multiple of 16"),
        ({"height": 0}, "height", "multiple of 16"),
        ({"height": 16 * 10**30}, "height", "pixels in total"),
        ({"width": 1024, "height": 64}, "width", "aspect ratio of at most 4:1"),
        ({"width": 2048, "height": 1024}, "width", "at most 1048576 pixels in total"),
        ({"width": 128, "model": "large"}, "width", "256 to 2048"),
        ({"model": 3}, "model", "/v1/models"),
        ({"priority": 10}, "priority", "-9 to 9"),
        ({"widht": 512}, "widht", "only known fields (prompt, negative_prompt, width"),
    ],
)
def test_the_error_of_an_invalid_field_names_it_with_its_allowed_values(
    client: TestClient, fields: dict[str, Any], field: str, allowed: str
):
    response = client.post(PATH, content=json.dumps({"prompt": "a cat", **fields}), headers=JSON)
    (error,) = problem(response, 422)["errors"]
    assert error["field"] == field
    assert allowed in error["allowed"]
    assert "got" in error


def test_fields_in_the_query_are_refused(client: TestClient):
    (error,) = problem(client.post(f"{PATH}?steps=1", json={"prompt": "a cat"}), 422)["errors"]
    assert (error["field"], error["got"]) == ("steps", "1")


def test_a_priority_changes_no_image(client: TestClient):
    assert post_txt2img(client, seed=1, priority=9).content == post_txt2img(client, seed=1).content


def test_all_invalid_fields_are_named_at_once(client: TestClient):
    errors = problem(client.post(PATH, json={"steps": "x", "seed": [1], "foo": {}}), 422)["errors"]
    assert {error["field"] for error in errors} == {"prompt", "steps", "seed", "foo"}


@pytest.mark.parametrize(
    ("content", "status", "detail"),
    [
        (b"", 400, "cannot be read as JSON"),
        (b"{", 400, "cannot be read as JSON"),
        (b'{"prompt": "\xff"}', 400, "cannot be read as JSON"),
        (b'{"prompt": "a"} {}', 400, "cannot be read as JSON"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}", 422, "seed: got '999"),
        (b"[]", 422, "JSON object"),
        (b"null", 422, "JSON object"),
        (b'{"prompt": "a", "prompt": "b"}', 422, "'prompt' is given twice"),
        (
            b'{"prompt": "a", ' + b", ".join(b'"%d": 1' % n for n in range(10_000)) + b"}",
            422,
            "10000 unknown fields",
        ),
        (b'{"prompt": "' + b"a" * MAX_BODY_BYTES + b'"}', 413, "1048576 bytes"),
    ],
)
def test_an_unusable_body_is_refused(client: TestClient, content: bytes, status: int, detail: str):
    assert detail in problem(client.post(PATH, content=content, headers=JSON), status)["detail"]


def test_a_body_without_a_length_is_limited_too(client: TestClient):
    problem(client.post(PATH, content=(b" " * 65536 for _ in range(20)), headers=JSON), 413)


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}, {**JSON, "content-encoding": "gzip"}])
def test_a_body_of_another_type_or_encoding_is_refused(client: TestClient, headers: dict[str, str]):
    problem(client.post(PATH, content=b'{"prompt": "a"}', headers=headers), 415)


def test_the_content_type_may_have_a_charset(client: TestClient):
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post(PATH, content=b'{"prompt": "a"}', headers=headers).status_code == 200


def test_an_unknown_model_is_404_with_the_served_models(client: TestClient):
    (error,) = problem(post_txt2img(client, model="medium"), 404)["errors"]
    assert (error["field"], error["got"], error["allowed"]) == ("model", "medium", "mini, large")


def test_a_failed_image_is_a_500_with_the_reason(client: TestClient, backend: FakeBackend):
    backend.faults = {"a dog": Fault.STEP_ERROR, "a tree": Fault.STEP_NAN}
    assert "RuntimeError: the runtime's own words" in problem(post_txt2img(client, prompt="a dog"), 500)["detail"]
    assert "no longer finite" in problem(post_txt2img(client, prompt="a tree"), 500)["detail"]
    assert post_txt2img(client).status_code == 200


def test_too_many_images_are_refused_with_retry_after(client: TestClient, backend: FakeBackend):
    pool = client.app.state.lifecycle.pool  # type: ignore[attr-defined]
    backend.hold()
    handles = [pool.submit(pool.resolve(params_of("a tree"))) for _ in range(3)]
    assert backend.started.wait(WAIT_S)
    response = post_txt2img(client)
    assert "3 of at most 3 images are waiting or running; try again in" in problem(response, 429)["detail"]
    assert int(response.headers["retry-after"]) >= 1
    assert client.get("/healthz").status_code == 200
    backend.release.set()
    assert all(handle.future.result(WAIT_S) for handle in handles)


def params_of(prompt: str) -> Any:
    """Return the parameters of a body with only a prompt."""
    from sd35.generation.params import GenerationParams

    return GenerationParams(prompt)


@pytest.fixture(scope="module")
def module_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One client for all examples of a property."""
    with serving(fake_pool(tmp_path_factory.mktemp("models"))) as client:
        yield client


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from([0, 1, 16, 64, 128, 512, 2**32, -0.0, 1e308, "mini", "large", "\ud800"])
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
names = st.sampled_from(
    ["prompt", "negative_prompt", "width", "height", "steps", "guidance_scale", "skip_layer_scale", "seed", "model"]
) | st.text(st.characters(), max_size=5)


@given(st.dictionaries(names, values, max_size=6) | values)
@example({"\ud800": None})
@example({"prompt": "a cat", "\ud800": "\ud800"})
def test_no_json_causes_a_500(module_client: TestClient, body: object):
    response = module_client.post(PATH, content=json.dumps(body), headers=JSON)
    if response.status_code != 200:
        content = problem(response, response.status_code)
        assert 400 <= response.status_code < 500
        assert content["errors"] or response.status_code == 400


@given(st.binary(max_size=200))
def test_no_bytes_cause_a_500(module_client: TestClient, body: bytes):
    assert module_client.post(PATH, content=body, headers=JSON).status_code in {400, 422}


def test_the_directory_of_a_model_may_have_any_name(tmp_path: Path):
    """In headers, the name is percent-encoded."""
    from sd35.engine.base import DeviceLimits
    from sd35.engine.local.engine import LocalEngine
    from sd35.engine.local.prompt_cache import EmbeddingCache
    from tests.support.fake_backend import fake_pipeline, pool_of

    limits = DeviceLimits(max_rows=8, max_in_flight=1, max_wait_s=60, memory_bytes=10**9)
    engine = LocalEngine([fake_pipeline(tmp_path / "große")], limits, EmbeddingCache(0))
    with serving(pool_of(engine)) as client:
        assert post_txt2img(client, model="große").headers["x-sd35-model"] == "gro%C3%9Fe"
