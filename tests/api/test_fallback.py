"""A fallback over HTTP: the profile in responses, numerical failures in metrics, and a build that fails."""

import sys
from pathlib import Path

from starlette.testclient import TestClient

from sd35.engine.model_info import ModelInfo
from sd35.errors import NotCompiled
from sd35.generation.fallback import FallbackBuilder
from sd35.generation.model_pool import ModelPool
from sd35.images.png import read_png
from sd35.images.record import from_text
from tests.support.fake_backend import FakeBackend, Fault, fake_pipeline, fake_pool
from tests.support.serving import serving


def pool_with_fallback(directory: Path) -> ModelPool:
    """Return a model pool whose model runs in float16 and fails for some prompts, with a fallback in float32."""
    failing = FakeBackend("float16", {"a dog": Fault.UNIFORM, "a tree": Fault.STEP_NAN})
    return fake_pool(directory, failing, fallback=FakeBackend())


def test_a_response_names_the_profile_that_generated_the_image(tmp_path: Path):
    with serving(pool_with_fallback(tmp_path)) as client:
        plain, again = (client.post("/v1/txt2img", json={"prompt": word, "seed": 1}) for word in ("a cat", "a dog"))
        records = [from_text(read_png(each.content)[1]) for each in (plain, again)]
        assert [record.request.profile for record in records] == ["double/float16", "double/float32"]
        assert again.headers["x-sd35-digest"] == records[1].request.digest
        failed = client.post("/v1/txt2img", json={"prompt": "a tree", "model": "large"})
        assert (failed.status_code, failed.headers["content-type"]) == (500, "application/problem+json")
        assert "no longer finite in float16 at step 2 of 30" in failed.json()["detail"]
        text = client.get("/metrics").text
    for line in (
        'sd35_numerical_failures_total{kind="not_finite"} 1.0',
        'sd35_numerical_failures_total{kind="uniform"} 1.0',
        "sd35_retried_images_total 1.0",
    ):
        assert f"{line}\n" in text
    assert "\nsd35_building " not in text  # no build is running
    assert "_created" not in text


def test_a_build_that_fails_leaves_the_service_ready(tmp_path: Path):
    pool = fake_pool(tmp_path)
    pending = [fake_pipeline(tmp_path / "mini").checkpoint]

    def open_model(_: object) -> ModelInfo:
        raise NotCompiled("its graphs are", ["compile"])

    pool.fallback_builder = FallbackBuilder(
        pending, lambda _: [sys.executable, "-c", "raise SystemExit(1)"], open_model, pool.swap
    )
    with serving(pool) as client:
        while metric(client, "sd35_fallback_active"):
            pass
        assert metric(client, "sd35_build_failures_total") == 1
        assert metric(client, "sd35_build_seconds") > 0
        assert client.get("/readyz").status_code == 200
        card = client.get("/v1/models").json()["data"][0]
        assert (card["backend"], card["precision"]) == ("double", "float32")
        assert client.post("/v1/txt2img", json={"prompt": "a cat"}).status_code == 200


def metric(client: TestClient, name: str) -> float:
    """Return the value of a metric."""
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])
