"""The metrics of `/metrics`, and the alert rules and dashboard that use them."""

import asyncio
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from sd35.generation.model_pool import ModelPool
from sd35.telemetry.metrics import Metrics
from sd35.telemetry.telemetry import Telemetry
from tests.support.fake_backend import FakeBackend, Fault
from tests.support.serving import serving

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BODY = {"prompt": "a cat", "seed": 1, "steps": 3, "guidance_scale": 4.5}
PROMTOOL = shutil.which("promtool") or ""
promtool = pytest.mark.skipif(not PROMTOOL, reason="needs promtool, of Debian's package prometheus")


@pytest.fixture
def client(pool: ModelPool, backend: FakeBackend) -> Iterator[TestClient]:
    """A client of an app whose service and routes share their telemetry."""
    with serving(pool, telemetry=Telemetry(Metrics(max_rows=8))) as client:
        yield client
        backend.release.set()


def scrape(client: TestClient) -> dict[str, float]:
    """Return the value of each sample, by its name and labels."""
    samples = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def difference(before: dict[str, float], after: dict[str, float], start: str) -> dict[str, float]:
    """Return the changes of the samples whose names begin with `start`."""
    changed = {name: value - before.get(name, 0) for name, value in after.items() if name.startswith(start)}
    return {name: value for name, value in changed.items() if value}


def test_an_image_is_counted_with_its_stages_steps_and_rows(client: TestClient):
    """Three steps with guidance are three steps of the engine in six rows."""
    before = scrape(client)
    assert client.post("/v1/txt2img", json=BODY).status_code == 200
    after = scrape(client)
    assert difference(before, after, "sd35_images_total") == {'sd35_images_total{result="generated"}': 1}
    stages = ("queue", "encode", "denoise", "decode", "png", "store")
    assert difference(before, after, "sd35_stage_duration_seconds_count") == {
        f'sd35_stage_duration_seconds_count{{stage="{stage}"}}': 1 for stage in stages
    }
    engine = difference(before, after, "sd35_engine_")
    assert engine["sd35_engine_steps_total"] == 3
    assert engine["sd35_engine_row_steps_total"] == 6
    assert engine["sd35_engine_batch_duration_seconds_count"] == 3
    assert engine["sd35_engine_batch_occupancy_ratio_sum"] == 3 * 2 / 8
    assert engine["sd35_engine_encoded_prompts_total"] == 2
    assert difference(before, after, "sd35_embedding_cache_total") == {'sd35_embedding_cache_total{result="miss"}': 2}


def test_a_cache_hit_is_counted_and_runs_no_step(client: TestClient):
    client.post("/v1/txt2img", json=BODY)
    before = scrape(client)
    client.post("/v1/txt2img", json=BODY)
    after = scrape(client)
    assert difference(before, after, "sd35_result_cache_total") == {'sd35_result_cache_total{result="hit"}': 1}
    assert not difference(before, after, "sd35_engine_")
    assert not difference(before, after, "sd35_images_total")


def test_requests_are_counted_by_route_and_status_and_never_by_path(client: TestClient):
    """Labels have a limited number of values, whatever clients send."""
    before = scrape(client)
    client.get("/v1/jobs/no-such-job")
    client.get("/made/up")
    client.request("BREW", "/v1/txt2img")
    client.post("/v1/txt2img", json={"prompt": ""})
    after = scrape(client)
    requests = difference(before, after, "sd35_http_requests_total")
    del requests['sd35_http_requests_total{dialect="none",method="GET",route="/metrics",status="200"}']
    assert requests == {
        'sd35_http_requests_total{dialect="sd35",method="GET",route="/v1/jobs/{job_id}",status="404"}': 1,
        'sd35_http_requests_total{dialect="none",method="GET",route="other",status="404"}': 1,
        'sd35_http_requests_total{dialect="sd35",method="other",route="/v1/txt2img",status="405"}': 1,
        'sd35_http_requests_total{dialect="sd35",method="POST",route="/v1/txt2img",status="422"}': 1,
    }


def test_failed_images_are_counted_with_the_kind_of_backend_failure(client: TestClient, backend: FakeBackend):
    backend.faults["a dog"] = Fault.STEP_ERROR
    before = scrape(client)
    assert client.post("/v1/txt2img", json={**BODY, "prompt": "a dog"}).status_code == 500
    after = scrape(client)
    assert difference(before, after, "sd35_images_total") == {'sd35_images_total{result="failed"}': 1}
    assert difference(before, after, "sd35_errors_total") == {'sd35_errors_total{error="GenerationFailed"}': 1}
    assert difference(before, after, "sd35_engine_backend_failures_total") == {
        'sd35_engine_backend_failures_total{kind="other"}': 1
    }


def test_numerical_failures_are_counted_by_kind(client: TestClient, backend: FakeBackend):
    backend.faults["a dog"] = Fault.STEP_NAN
    before = scrape(client)
    client.post("/v1/txt2img", json={**BODY, "prompt": "a dog"})
    after = scrape(client)
    assert difference(before, after, "sd35_numerical_failures") == {
        'sd35_numerical_failures_total{kind="not_finite"}': 1
    }
    assert not difference(before, after, "sd35_engine_backend_failures_total")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "out_of_memory"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory"),
        (RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer"), "out_of_memory"),
        (RuntimeError("an illegal instruction was met"), "other"),
    ],
)
def test_out_of_memory_errors_are_counted_as_such(error: Exception, kind: str):
    """By their type or message: those of Python, PyTorch and ONNX Runtime."""
    metrics = Metrics()
    metrics.failed(f"{type(error).__name__}: {error}", was_split=True)
    value = metrics.registry.get_sample_value
    assert value("sd35_engine_backend_failures_total", {"kind": kind}) == 1
    assert value("sd35_engine_splits_total") == 1


def test_jobs_are_counted_in_the_store_and_when_they_end(client: TestClient):
    before = scrape(client)
    job = client.post("/v1/jobs", json=BODY).json()
    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as events:
        assert "succeeded" in "".join(events.iter_text())
    after = scrape(client)
    name = 'sd35_job_duration_seconds_count{status="succeeded"}'
    assert difference(before, after, "sd35_job_duration_seconds_count") == {name: 1}
    assert set(after) >= {f'sd35_jobs{{status="{status}"}}' for status in ("queued", "running", "succeeded")}
    assert after["sd35_job_store_up"] == 1


def test_no_label_contains_what_a_client_sent(client: TestClient):
    answer = client.post("/v1/txt2img", json={**BODY, "prompt": "a zebra"}, headers={"X-Request-Id": "mine-42"})
    text = client.get("/metrics").text
    for private in ("zebra", "mine-42", answer.headers["x-sd35-digest"]):
        assert private not in text


def test_a_blocked_event_loop_raises_its_lag_metric():
    metrics = Metrics()

    async def block() -> None:
        watching = asyncio.create_task(metrics.measure_loop_lag())
        await asyncio.sleep(0)
        time.sleep(0.2)  # noqa: ASYNC251  blocks on purpose
        for _ in range(5):  # the timer is due, and its task runs
            await asyncio.sleep(0)
        watching.cancel()

    asyncio.run(block())
    value = metrics.registry.get_sample_value
    assert value("sd35_event_loop_lag_seconds_count") == 1
    assert value("sd35_event_loop_lag_seconds_bucket", {"le": "0.05"}) == 0


@promtool
def test_promtool_accepts_the_metrics(client: TestClient):
    client.post("/v1/txt2img", json=BODY)
    text = client.get("/metrics").content
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@promtool
@pytest.mark.parametrize(
    "command",
    [
        ["check", "rules", "rules.yaml"],
        ["test", "rules", "rules.test.yaml"],
        ["check", "config", "--syntax-only", "prometheus.yaml"],
    ],
)
def test_promtool_accepts_the_rules_and_their_tests(command: list[str]):
    done = subprocess.run([PROMTOOL, *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_test_in_which_it_fires():
    alerts = set(re.findall(r"alert: (\w+)", (DEPLOY / "prometheus/rules.yaml").read_text()))
    assert alerts
    assert alerts == set(re.findall(r'alertname="(\w+)",', (DEPLOY / "prometheus/rules.test.yaml").read_text()))


def test_dashboard_and_rules_use_existing_metrics(client: TestClient):
    client.post("/v1/txt2img", json=BODY)
    client.post("/v1/txt2img", json={"prompt": ""})
    known = {"up"}  # of Prometheus
    for family in text_string_to_metric_families(client.get("/metrics").text):
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        known |= {family.name + suffix for suffix in suffixes}
    used = _metrics_of([target["expr"] for panel in _panels() for target in panel.get("targets", ())])
    used |= _metrics_of(re.findall(r"expr: (.*(?:\n +(?!for:|labels:).*)*)", _rules()))
    assert len(used) > 30
    assert used - known == set()


def test_the_panels_of_the_dashboard_have_unique_ids_queries_and_places():
    ids = [panel["id"] for panel in _panels()]
    assert len(set(ids)) == len(ids)
    rows = [panel["title"] for panel in _panels() if panel["type"] == "row"]
    assert rows == ["Traffic", "Latency", "Engine", "Memory", "Errors"]
    occupied: set[tuple[int, int]] = set()
    for panel in _panels():
        position = panel["gridPos"]
        cells = {(position["x"] + x, position["y"] + y) for x in range(position["w"]) for y in range(position["h"])}
        assert position["x"] + position["w"] <= 24
        assert not cells & occupied, panel["title"]
        occupied |= cells
        if panel["type"] != "row":
            assert panel["targets"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads((DEPLOY / "grafana/dashboard.json").read_text())["panels"]
    return panels


def _rules() -> str:
    return (DEPLOY / "prometheus/rules.yaml").read_text()


def _metrics_of(expressions: list[str]) -> set[str]:
    text = "\n".join(expressions)
    return set(re.findall(r"\b(?:sd35|process)_\w+|\bup\b", re.sub(r'"[^"]*"', '""', text)))
