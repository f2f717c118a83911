"""Traces: where OpenTelemetry's variables name an exporter, a span for each stage of an image, under its request's.

An engine only notes times; spans are made of them afterwards. W3C's `traceparent` is read by FastAPI's own telemetry,
which makes the requests' spans, from the provider that is made here.
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
    """What exports spans by OTLP, as OpenTelemetry's variables say; None, with a warning, where they ask in vain.

    None as well where they do not ask: OTEL_TRACES_EXPORTER or one of the OTLP endpoints has to be set.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    asks = exporter or next(filter(None, (environment.get(name) for name in _ENDPOINTS)), None)
    if not asks or exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
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
        log.warning("no traces: what exports them is not installed", lacking=error.name, remedy=_REMEDY)
        return None
    named = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": "sd35"}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    log.info("traces are exported")
    return provider


class Tracing:
    """Makes spans under the current one; without a `provider`, none."""

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        self.provider = provider
        self._tracer = (provider or trace.NoOpTracerProvider()).get_tracer("sd35")

    def close(self) -> None:
        """Send what is left."""
        if self.provider:
            self.provider.shutdown()

    def stages(self, request: Request, stages: Sequence[Stage]) -> None:
        """A span for each stage of an image."""
        to_wall_s = time.time() - time.monotonic()
        for stage in stages:
            began_ns, ended_ns = (int(1e9 * (each_s + to_wall_s)) for each_s in (stage.began_s, stage.ended_s))
            span = self._tracer.start_span(stage.name, start_time=began_ns, attributes=_attributes(request, stage.name))
            span.end(ended_ns)

    @contextmanager
    def job(self, job_id: str) -> Iterator[None]:
        """A trace of its own for a job: the request that it came by has long been answered."""
        with self._tracer.start_as_current_span("job", attributes={"sd35.job": job_id}):
            bind_trace()
            yield


def bind_trace(traceparent: str | None = None) -> None:
    """Put the current span's trace into the logs of what follows; without one, the caller's."""
    context = trace.get_current_span().get_span_context()
    if traceparent and not context.is_valid:
        found = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
        context = trace.get_current_span(found).get_span_context()
    if context.is_valid:
        structlog.contextvars.bind_contextvars(trace_id=trace.format_trace_id(context.trace_id))


def hide_query() -> None:
    """Of the current request's address, leave its parameters out: the signature of a link gives the image."""
    span = trace.get_current_span()
    if span.is_recording() and "url.query" in getattr(span, "attributes", {}):
        span.set_attribute("url.query", _HIDDEN)


def note(**attributes: str | int) -> None:
    """Say more of the current span: `model` becomes `sd35.model`."""
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
