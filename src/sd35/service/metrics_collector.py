"""Metrics that are read when Prometheus asks: states of the service, and counts that others keep.

`sd35.telemetry.metrics` has the metrics that are counted as work is done.
"""

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

import structlog

from sd35.errors import NotReady, StoreUnavailable
from sd35.host import HostMemory
from sd35.images.record import own_version
from sd35.service.lifecycle import ServiceLifecycle
from sd35.service.service import Service
from sd35.storage.jobs import JobStore, Status
from sd35.telemetry.metrics import MetricDescription, Metrics

if TYPE_CHECKING:
    from prometheus_client import Metric

_COUNTED_S = 5.0  # so old may a count of all jobs be: on a large table it takes its time

Label = TypeVar("Label", bound=str)
Samples: TypeAlias = Iterable[tuple[tuple[str, ...], float]]  # labels' values, and the value


class _Reading(NamedTuple):
    """A metric, and how to read it from an open service."""

    described: MetricDescription
    read: Callable[[Service], Samples]


def _gauge(name: str, meaning: str, read: Callable[[Service], Samples], *labels: str) -> _Reading:
    return _Reading(MetricDescription(name, "gauge", labels, meaning), read)


def _counter(name: str, meaning: str, read: Callable[[Service], Samples], *labels: str) -> _Reading:
    return _Reading(MetricDescription(name, "counter", labels, meaning), read)


def _one(value: float) -> Samples:
    return [((), value)]


def _each(values: Mapping[Label, float]) -> Samples:
    return [((label,), value) for label, value in values.items()]


class MetricsCollector:
    """A collector for prometheus_client. Until the service is ready, most metrics have no value."""

    def __init__(self, lifecycle: ServiceLifecycle) -> None:
        self._lifecycle = lifecycle
        self._jobs = _Jobs()
        self._readings = [*_READINGS, _Reading(_JOBS, self._jobs.counts), _Reading(_JOB_STORE_UP, self._jobs.is_up)]

    def collect(self) -> "Iterator[Metric]":
        """Yield each metric with its present values."""
        try:
            service = self._lifecycle.service
        except NotReady:
            service = None
        yield _family(_READY, _one(service is not None))
        yield _family(_BUILD, [((own_version(), platform.python_version()), 1)])
        yield _family(_STARTUP, _each({phase: round(s, 3) for phase, s in self._lifecycle.startup.seconds.items()}))
        yield _family(_HOST_FREE, _one(HostMemory().free_bytes()))
        for reading in self._readings:
            yield _family(reading.described, _read(reading, service) if service else ())


def _read(reading: _Reading, service: Service) -> Samples:
    """Read a metric. If that fails, log the error and return no value, so that the other metrics are still there."""
    try:
        return reading.read(service)
    except Exception:  # noqa: BLE001  such as a driver's
        structlog.get_logger().exception("a metric cannot be read", metric=reading.described.name)
        return ()


class _Jobs:
    """Counts of jobs by status, refreshed every few seconds at most."""

    def __init__(self) -> None:
        self._counts: Mapping[Status, int] = {}
        self._is_answering = True
        self._until_s = float("-inf")

    def counts(self, service: Service) -> Samples:
        """Return the counts; nothing while the store does not answer."""
        self._count(service.storage.database.jobs)
        return _each({status: self._counts.get(status, 0) for status in Status} if self._is_answering else {})

    def is_up(self, service: Service) -> Samples:
        """Return 1 if the store answers, or 0."""
        self._count(service.storage.database.jobs)
        return _one(self._is_answering)

    def _count(self, store: JobStore) -> None:
        if time.monotonic() < self._until_s:
            return
        try:
            self._counts, self._is_answering = store.counts(), True
        except StoreUnavailable:
            self._is_answering = False
        self._until_s = time.monotonic() + _COUNTED_S


def _engine_images(service: Service) -> Samples:
    status = service.status
    return _each({"waiting": status.waiting, "running": status.running})


def _device_memory(service: Service) -> Samples:
    status = service.status
    return _each({"held": status.held_bytes, "free": status.free_bytes})


def _lookups(service: Service) -> Samples:
    status = service.status
    return _each({"hit": status.prompt_cache_hits, "miss": status.prompt_cache_misses})


def _models(service: Service) -> Samples:
    return [
        ((model.name, model.revision[:12], model.backend, model.precision), 1) for model in service.pool.models.values()
    ]


def _is_building(service: Service) -> Samples:
    return _one(service.pool.fallback_builder.is_running) if service.pool.fallback_builder else ()


def _building_s(service: Service) -> Samples:
    return _one(service.pool.fallback_builder.took_s) if service.pool.fallback_builder else ()


def _build_failures(service: Service) -> Samples:
    return _one(service.pool.fallback_builder.failures) if service.pool.fallback_builder else ()


def _family(described: MetricDescription, samples: Samples) -> "Metric":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kind = CounterMetricFamily if described.kind == "counter" else GaugeMetricFamily
    family = kind(described.name, described.meaning, labels=described.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


_JOBS = MetricDescription("sd35_jobs", "gauge", ("status",), "Jobs in the store.")
_JOB_STORE_UP = MetricDescription("sd35_job_store_up", "gauge", (), "Whether the job store answers.")
_READY = MetricDescription("sd35_ready", "gauge", (), "Whether images can be made, as /readyz says.")
_BUILD = MetricDescription("sd35_build_info", "gauge", ("version", "python"), "Always 1; the labels name the versions.")
_STARTUP = MetricDescription("sd35_startup_seconds", "gauge", ("phase",), "Duration of each phase of the start.")
_HOST_FREE = MetricDescription(
    "sd35_host_memory_free_bytes", "gauge", (), "Memory that the system and the container leave to this process."
)
_READINGS = [
    _gauge("sd35_engine_images", "Images in flight in the engine.", _engine_images, "state"),
    _gauge(
        "sd35_engine_images_limit",
        "Limit of images in flight in the engine.",
        lambda it: _one(it.status.limits.max_in_flight),
    ),
    _gauge("sd35_engine_backlog_seconds", "Estimated work left.", lambda it: _one(it.status.backlog_s)),
    _gauge("sd35_engine_memory_used_bytes", "Working memory in use.", lambda it: _one(it.status.used_bytes)),
    _gauge(
        "sd35_engine_memory_limit_bytes",
        "Working memory in all.",
        lambda it: _one(it.status.limits.memory_bytes),
    ),
    _gauge("sd35_device_memory_bytes", "Memory of the device that the first model runs on.", _device_memory, "state"),
    _counter("sd35_embedding_cache_total", "Lookups of encoded prompts in the cache.", _lookups, "result"),
    _gauge(
        "sd35_embedding_cache_bytes",
        "Size of the cached embeddings.",
        lambda it: _one(it.status.prompt_cache_bytes),
    ),
    _counter(
        "sd35_numerical_failures_total",
        "Attempts that ended with infinite or NaN values, or one colour all over.",
        lambda it: _each(it.status.numerical_failures),
        "kind",
    ),
    _counter(
        "sd35_retried_images_total",
        "Images that were started again in a wider precision after a numerical failure.",
        lambda it: _one(it.status.retried),
    ),
    _gauge(
        "sd35_model_info",
        "Always 1; the labels name what is served.",
        _models,
        "model",
        "revision",
        "backend",
        "precision",
    ),
    _gauge(
        "sd35_retention_paused",
        "Whether retention is paused because the clock cannot be trusted.",
        lambda it: _one(it.is_retention_paused),
    ),
    _gauge("sd35_fallback_active", "Whether a fallback answers while graphs or engines are built.", _is_building),
    _gauge("sd35_build_seconds", "Time from the start of building to the swap.", _building_s),
    _counter("sd35_build_failures_total", "Builds that failed.", _build_failures),
]


def metrics_table() -> str:
    """The table of docs/architecture/19-metrics-logs-traces.md, in Markdown."""
    own = [_READY, _BUILD, _STARTUP, _HOST_FREE, _JOBS, _JOB_STORE_UP, *(reading.described for reading in _READINGS)]
    lines = ["| Metric | Type | Labels | Meaning |", "| --- | --- | --- | --- |"]
    for each in sorted([*own, *Metrics().described]):
        labels = ", ".join(f"`{label}`" for label in each.labels)
        lines.append(f"| `{each.name}` | {each.kind} | {labels} | {each.meaning} |")
    return "\n".join(lines) + "\n"
