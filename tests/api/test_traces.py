"""Traces: a span for each stage, below the span of the request or job, in the caller's trace."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from sd35.generation.model_pool import ModelPool
from sd35.telemetry.telemetry import Telemetry
from sd35.telemetry.tracing import Tracing, open_provider
from tests.support.serving import serving

STAGES = ["queue", "encode", "denoise", "decode", "png", "store"]
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
BODY = {"prompt": "a zebra", "seed": 1, "steps": 3}


@contextmanager
def traced(pool: ModelPool) -> Iterator[tuple[TestClient, InMemorySpanExporter]]:
    """Yield a client and the exporter of its spans."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with serving(pool, telemetry=Telemetry(tracing=Tracing(provider))) as client:
        yield client, exporter


class Span(NamedTuple):
    """A span. Ids are hexadecimal."""

    trace_id: str
    span_id: str
    parent_id: str | None
    attributes: dict[str, Any]
    began_ns: int
    ended_ns: int


def by_name(exporter: InMemorySpanExporter) -> dict[str, Span]:
    """Return the spans so far by name. Names are unique in these tests."""
    spans = exporter.get_finished_spans()
    assert len({span.name for span in spans}) == len(spans)
    return {span.name: _span_of(span) for span in spans}


def _span_of(span: ReadableSpan) -> Span:
    context = span.get_span_context()
    assert context
    parent_id = f"{span.parent.span_id:016x}" if span.parent else None
    ids = (f"{context.trace_id:032x}", f"{context.span_id:016x}", parent_id)
    return Span(*ids, dict(span.attributes or {}), span.start_time or 0, span.end_time or 0)


def test_a_request_is_a_span_in_the_callers_trace_with_a_span_for_each_stage(pool: ModelPool):
    with traced(pool) as (client, exporter):
        answer = client.post("/v1/txt2img", json=BODY, headers=TRACEPARENT)
        spans = by_name(exporter)
    assert list(spans) == [*STAGES, "POST /v1/txt2img"]
    request = spans["POST /v1/txt2img"]
    assert (request.trace_id, request.parent_id) == (TRACE_ID, PARENT_ID)
    assert request.attributes["http.route"] == "/v1/txt2img"
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["sd35.cache"] == "miss"
    assert request.attributes["sd35.digest"] == answer.headers["x-sd35-digest"]
    stages = [spans[name] for name in STAGES]
    assert {stage.parent_id for stage in stages} == {request.span_id}
    times = [time_ns for stage in stages for time_ns in (stage.began_ns, stage.ended_ns)]
    slack_ns = 20_000_000  # between two clocks
    assert times == sorted(times)
    assert request.began_ns - slack_ns <= times[0]
    assert times[-1] <= request.ended_ns + slack_ns
    assert spans["denoise"].attributes["sd35.steps"] == 3


def test_a_cached_image_has_no_stages(pool: ModelPool):
    with traced(pool) as (client, exporter):
        client.post("/v1/txt2img", json=BODY)
        exporter.clear()
        client.post("/v1/txt2img", json=BODY)
        (span,) = by_name(exporter).values()
    assert span.attributes["sd35.cache"] == "hit"


def test_a_job_is_a_trace_of_its_own(pool: ModelPool):
    with traced(pool) as (client, exporter):
        job = client.post("/v1/jobs", json=BODY).json()
        with client.stream("GET", f"/v1/jobs/{job['id']}/events") as events:
            assert "succeeded" in "".join(events.iter_text())
    spans = by_name(exporter)
    assert spans["job"].attributes["sd35.job"] == spans["POST /v1/jobs"].attributes["sd35.job"] == job["id"]
    assert spans["job"].parent_id is None
    assert {spans[name].parent_id for name in STAGES} == {spans["job"].span_id}


def test_probes_are_not_traced(pool: ModelPool):
    with traced(pool) as (client, exporter):
        for path in ("/healthz", "/readyz", "/metrics"):
            assert client.get(path).status_code == 200
        assert exporter.get_finished_spans() == ()


def test_no_span_contains_a_prompt_or_the_signature_of_a_link(pool: ModelPool):
    with traced(pool) as (client, exporter):
        client.post("/v1/txt2img", json=BODY)
        client.get(f"/v1/artifacts/{'0' * 64}?expires=1&signature=secret")
        text = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert "/v1/artifacts/{digest}" in text
    for private in ("zebra", "secret", "traceparent"):
        assert private not in text


class Collector(ThreadingHTTPServer):
    """An HTTP server that receives OTLP, as a collector does."""

    def __init__(self) -> None:
        self.received: list[tuple[str, str, ExportTraceServiceRequest]] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        """Store one export."""
        body = self.rfile.read(int(self.headers["content-length"]))
        message = ExportTraceServiceRequest.FromString(body)
        self.server.received.append((self.path, self.headers["content-type"], message))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
        """Log nothing."""


def test_spans_arrive_at_a_collector_over_http(pool: ModelPool, monkeypatch: pytest.MonkeyPatch):
    receiver = Collector()
    thread = threading.Thread(target=receiver.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.server_port}")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=trial")
        with serving(pool, telemetry=Telemetry(tracing=Tracing(open_provider()))) as client:
            client.post("/v1/txt2img", json=BODY, headers=TRACEPARENT)
    finally:
        receiver.shutdown()
        thread.join()
        receiver.server_close()
    assert {(path, kind) for path, kind, _ in receiver.received} == {("/v1/traces", "application/x-protobuf")}
    resources = [spans for _, _, message in receiver.received for spans in message.resource_spans]
    named = {each.key: each.value.string_value for each in resources[0].resource.attributes}
    assert (named["service.name"], named["deployment.environment"]) == ("sd35", "trial")
    spans = {span.name: span for resource in resources for scope in resource.scope_spans for span in scope.spans}
    assert set(spans) == {*STAGES, "POST /v1/txt2img"}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE_ID}
    assert spans["decode"].parent_span_id == spans["POST /v1/txt2img"].span_id


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
    ],
)
def test_without_an_exporter_there_are_no_traces_and_no_log_lines(environment: dict[str, str]):
    with capture_logs() as lines:
        assert open_provider(environment) is None
    assert lines == []


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "the value of OTEL_TRACES_EXPORTER is not supported"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "the value of OTEL_EXPORTER_OTLP_TRACES_PROTOCOL or OTEL_EXPORTER_OTLP_PROTOCOL is not supported",
        ),
    ],
)
def test_unsupported_exporters_are_warned_of(environment: dict[str, str], reason: str):
    with capture_logs() as lines:
        assert open_provider(environment) is None
    (line,) = lines
    assert (line["log_level"], line["event"]) == ("warning", f"no traces: {reason}")
    assert line["got"] in environment.values()
    assert line["allowed"]


def test_an_exporter_that_is_not_installed_is_warned_of(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with capture_logs() as lines:
        assert open_provider({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}) is None
    (line,) = lines
    assert line["log_level"] == "warning"
    assert "sd35-fp8-mirror[otel]" in line["remedy"]
