"""Traces with OpenTelemetry: a span for each stage of an image, below the span of its request.

Traces are on if OpenTelemetry's environment variables configure an exporter. The engine only measures times. The spans
are created from these times afterwards. FastAPI reads the caller's `traceparent` and creates the spans of requests,
with the provider that is opened here.
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

    Returns None if no variable turns traces on, or if one turns them off. Logs a warning and returns None if the
    exporter or the protocol is not supported, or if a package is missing.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    is_requested = bool(exporter or _first_value(environment, _ENDPOINTS))
    is_disabled = exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if is_disabled or not is_requested:
        return None
    log = structlog.get_logger()
    if exporter not in {"", "otlp"}:
        message = "no traces: the value of OTEL_TRACES_EXPORTER is not supported"
        log.warning(message, got=exporter, allowed="otlp or none")
        return None
    protocol = _first_value(environment, _PROTOCOLS) or _PROTOCOL
    if protocol != _PROTOCOL:
        message = f"no traces: the value of {' or '.join(_PROTOCOLS)} is not supported"
        log.warning(message, got=protocol, allowed=_PROTOCOL)
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


def _first_value(environment: Mapping[str, str], names: Sequence[str]) -> str | None:
    """Return the value of the first variable that is set and not empty, or None."""
    return next((environment[name] for name in names if environment.get(name)), None)


class Tracing:
    """Creates spans below the current span. Without a provider, it does nothing."""

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        self.provider = provider
        self._tracer = (provider or trace.NoOpTracerProvider()).get_tracer("sd35")

    def close(self) -> None:
        """Export the spans that have not been exported yet."""
        if self.provider:
            self.provider.shutdown()

    def stages(self, request: Request, stages: Sequence[Stage]) -> None:
        """Create a span for each stage of an image."""
        offset_s = time.time() - time.monotonic()  # stages have times of `time.monotonic`, spans need Unix time
        for stage in stages:
            began_ns, ended_ns = int(1e9 * (stage.began_s + offset_s)), int(1e9 * (stage.ended_s + offset_s))
            span = self._tracer.start_span(stage.name, start_time=began_ns, attributes=_attributes(request, stage.name))
            span.end(ended_ns)

    @contextmanager
    def job(self, job_id: str) -> Iterator[None]:
        """Trace the block as a job. A job has its own trace, because its request may have ended long before."""
        with self._tracer.start_as_current_span("job", attributes={"sd35.job": job_id}):
            bind_trace()
            yield


def bind_trace(traceparent: str | None = None) -> None:
    """Add the trace ID of the current span to later log lines. Without a span, add the trace ID of `traceparent`.

    `traceparent` is the value of the request header with this name.
    """
    context = trace.get_current_span().get_span_context()
    if traceparent and not context.is_valid:
        extracted = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
        context = trace.get_current_span(extracted).get_span_context()
    if context.is_valid:
        structlog.contextvars.bind_contextvars(trace_id=trace.format_trace_id(context.trace_id))


def hide_query() -> None:
    """Replace the query of the request's URL in the current span.

    The query may contain the signature of a link, and anyone with the signature can open the image.
    """
    span = trace.get_current_span()
    if span.is_recording() and "url.query" in getattr(span, "attributes", {}):
        span.set_attribute("url.query", _HIDDEN)


def note(**attributes: str | int) -> None:
    """Add attributes to the current span, prefixed with `sd35.`."""
    trace.get_current_span().set_attributes({f"sd35.{name}": value for name, value in attributes.items()})


def _attributes(request: Request, stage: str) -> Attributes:
    """Return the attributes of the span of a stage. Only the span of "denoise" has attributes."""
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
