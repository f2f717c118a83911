"""Traces with OpenTelemetry: a span for each stage of an image, below the span of its request.

Active if OpenTelemetry's environment variables configure an exporter. The engine only measures times, and the spans are
created from them afterwards. FastAPI reads W3C's `traceparent` and creates the spans of requests, with the provider
that is opened here.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import structlog
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sd35.engine.base import Stage
from sd35.request import Request

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_HIDDEN = "REDACTED"
_REMEDY = "pip install 'sd35-fp8-mirror[otel]'"
Attributes: TypeAlias = Mapping[str, str | int | float]


def open_provider(environment: Mapping[str, str] = os.environ) -> "TracerProvider | None":
    """Return a provider that exports spans by OTLP, configured by OpenTelemetry's environment variables.

    Returns None if neither OTEL_TRACES_EXPORTER nor an OTLP endpoint is set, and logs a warning and returns None if the
    configuration is not supported or a package is missing.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    is_requested = exporter or next(filter(None, (environment.get(name) for name in _ENDPOINTS)), None)
    if not is_requested or exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    log = structlog.get_logger()
    if exporter not in {"", "otlp"}:
        log.warning("no traces: OTEL_TRACES_EXPORTER is not supported", got=exporter, allowed="otlp or none")
        return None
    protocol = next(filter(None, (environment.get(name) for name in _PROTOCOLS)), _PROTOCOL)
    if protocol != _PROTOCOL:
        log.warning("no traces: OTEL_EXPORTER_OTLP_PROTOCOL is not supported", got=protocol, allowed=_PROTOCOL)
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning("no traces: a package is not installed", missing=error.name, remedy=_REMEDY)
        return None
    attributes = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": "sd35"}
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    log.info("exporting traces")
    return provider


class Tracing:
    """Creates spans below the current one. Does nothing without a provider."""

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        self.provider = provider
        self._tracer = (provider or trace.NoOpTracerProvider()).get_tracer("sd35")

    def close(self) -> None:
        """Export the remaining spans."""
        if self.provider:
            self.provider.shutdown()

    def stages(self, request: Request, stages: Sequence[Stage]) -> None:
        """Create a span for each stage of an image."""
        offset_s = time.time() - time.monotonic()
        for stage in stages:
            began_ns, ended_ns = (int(1e9 * (each_s + offset_s)) for each_s in (stage.began_s, stage.ended_s))
            span = self._tracer.start_span(stage.name, start_time=began_ns, attributes=_attributes(request, stage.name))
            span.end(ended_ns)

    @contextmanager
    def job(self, job_id: str) -> Iterator[None]:
        """Trace a job separately from the request that submitted it: that request may have ended long before."""
        with self._tracer.start_as_current_span("job", attributes={"sd35.job": job_id}):
            bind_trace()
            yield


def bind_trace(traceparent: str | None = None) -> None:
    """Add the trace ID of the current span to later log lines. Without a span, uses the `traceparent` of the caller."""
    context = trace.get_current_span().get_span_context()
    if traceparent and not context.is_valid:
        extracted = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
        context = trace.get_current_span(extracted).get_span_context()
    if context.is_valid:
        structlog.contextvars.bind_contextvars(trace_id=trace.format_trace_id(context.trace_id))


def hide_query() -> None:
    """Hide the query of the current request in its span: the signature of a link gives access to the image."""
    span = trace.get_current_span()
    if span.is_recording() and "url.query" in getattr(span, "attributes", {}):
        span.set_attribute("url.query", _HIDDEN)


def note(**attributes: str | int) -> None:
    """Add attributes to the current span, prefixed with `sd35.`."""
    trace.get_current_span().set_attributes({f"sd35.{name}": value for name, value in attributes.items()})


def _attributes(request: Request, stage: str) -> Attributes:
    if stage != "denoise":
        return {}
    return {
        "sd35.model": request.model,
        "sd35.profile": request.profile,
        "sd35.steps": request.steps,
        "sd35.guidance_scale": request.guidance_scale,
        "sd35.width": request.width,
        "sd35.height": request.height,
    }
