"""Metrics with values that are read at each scrape, from the service and its parts.

`sd35.telemetry.metrics.Metrics` has the metrics that are counted or timed as events happen.
"""

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import structlog

from sd35.engine.base import EngineStatus
from sd35.errors import NotReady, StoreUnavailable
from sd35.generation.fallback import FallbackBuilder
from sd35.host import HostMemory
from sd35.images.record import own_version
from sd35.service.lifecycle import ServiceLifecycle
from sd35.service.service import Service
from sd35.storage.jobs import JobStore, Status
from sd35.telemetry.metrics import MetricDescription, Metrics

if TYPE_CHECKING:
    from prometheus_client import Metric

_MAX_AGE_S = 5.0  # maximum age of the counts of jobs; counting a large table takes a while

Label = TypeVar("Label", bound=str)
Samples: TypeAlias = Iterable[tuple[tuple[str, ...], float]]  # pairs of label values and the metric's value
Read: TypeAlias = Callable[[Service], Samples]  # reads a metric from a running service


def _gauge(name: str, text: str, *labels: str) -> MetricDescription:
    return MetricDescription(name, "gauge", labels, text)


def _counter(name: str, text: str, *labels: str) -> MetricDescription:
    return MetricDescription(name, "counter", labels, text)


def _unlabelled(value: float) -> Samples:
    """Return the only sample of a metric without labels."""
    return [((), value)]


def _by_label(values: Mapping[Label, float]) -> Samples:
    """Return a sample for each value of a metric's only label."""
    return [((label,), value) for label, value in values.items()]


class MetricsCollector:
    """Yields metrics to `prometheus_client`. Those of the service have no value until it is ready."""

    def __init__(self, lifecycle: ServiceLifecycle) -> None:
        self._lifecycle = lifecycle
        jobs = _JobCounts()
        self._readings = {**_READINGS, _JOBS: jobs.counts, _JOB_STORE_UP: jobs.is_up}

    def collect(self) -> "Iterator[Metric]":
        """Yield each metric once, with its current values."""
        try:
            service = self._lifecycle.service
        except NotReady:
            service = None
        yield _family(_READY, _unlabelled(service is not None))
        yield _family(_BUILD, [((own_version(), platform.python_version()), 1)])
        yield _family(_STARTUP, _by_label({phase: round(s, 3) for phase, s in self._lifecycle.startup.seconds.items()}))
        yield _family(_HOST_FREE, _unlabelled(HostMemory().free_bytes()))
        for description, read in self._readings.items():
            yield _family(description, _read_safely(description, read, service) if service else ())


def _read_safely(description: MetricDescription, read: Read, service: Service) -> Samples:
    """Read a metric. If that raises, log the exception and return no sample, so that a scrape has the other metrics."""
    try:
        return read(service)
    except Exception:  # noqa: BLE001  for example an error of a GPU driver
        structlog.get_logger().exception("a metric cannot be read", metric=description.name)
        return ()


class _JobCounts:
    """The number of jobs by status, read from the store at most every few seconds."""

    def __init__(self) -> None:
        self._counts: Mapping[Status, int] = {}
        self._is_answering = True
        self._valid_until_s = float("-inf")

    def counts(self, service: Service) -> Samples:
        """Return the counts, or nothing while the store does not answer."""
        self._refresh(service.storage.database.jobs)
        return _by_label({status: self._counts.get(status, 0) for status in Status} if self._is_answering else {})

    def is_up(self, service: Service) -> Samples:
        """Return 1 if the store answers, else 0."""
        self._refresh(service.storage.database.jobs)
        return _unlabelled(self._is_answering)

    def _refresh(self, store: JobStore) -> None:
        """Count the jobs again if the counts are too old. Note whether the store answers."""
        if time.monotonic() < self._valid_until_s:
            return
        try:
            self._counts, self._is_answering = store.counts(), True
        except StoreUnavailable:
            self._is_answering = False
        self._valid_until_s = time.monotonic() + _MAX_AGE_S


def _engine_images(service: Service) -> Samples:
    """Return the numbers of waiting and running images."""
    status = service.status
    return _by_label({"waiting": status.waiting, "running": status.running})


def _device_memory(service: Service) -> Samples:
    """Return the memory of the first model's device in bytes: held by this process, and free."""
    status = service.status
    return _by_label({"held": status.held_bytes, "free": status.free_bytes})


def _embedding_cache_lookups(service: Service) -> Samples:
    """Return the numbers of hits and misses of the embedding cache."""
    status = service.status
    return _by_label({"hit": status.prompt_cache_hits, "miss": status.prompt_cache_misses})


def _model_info(service: Service) -> Samples:
    """Return a sample with the value 1 for each model. Its labels describe the model."""
    return [
        ((model.name, model.revision[:12], model.backend, model.precision), 1) for model in service.pool.models.values()
    ]


def _reader_of_status(read: Callable[[EngineStatus], float]) -> Read:
    """Return a function that reads a metric without labels from the engine's status."""
    return lambda service: _unlabelled(read(service.status))


def _reader_of_builder(read: Callable[[FallbackBuilder], float]) -> Read:
    """Return a function that reads a metric of the fallback builder. The metric has no sample without a builder."""

    def read_if_present(service: Service) -> Samples:
        builder = service.pool.fallback_builder
        return _unlabelled(read(builder)) if builder else ()

    return read_if_present


def _family(description: MetricDescription, samples: Samples) -> "Metric":
    """Build the `prometheus_client` object of a metric with its samples."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kind = CounterMetricFamily if description.kind == "counter" else GaugeMetricFamily
    family = kind(description.name, description.help, labels=description.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


_JOBS = _gauge("sd35_jobs", "Jobs in the store, by status.", "status")
_JOB_STORE_UP = _gauge("sd35_job_store_up", "1 if the job store answers.")
_READY = _gauge("sd35_ready", "1 if the service can generate images, as in /readyz.")
_BUILD = _gauge("sd35_build_info", "Always 1: the versions in use.", "version", "python")
_STARTUP = _gauge(
    "sd35_startup_seconds",
    "Duration of the phases of the start: `import`, `plan`, `read`, `place`, `compile`, `warm`.",
    "phase",
)
_HOST_FREE = _gauge("sd35_host_memory_free_bytes", "Memory that the system or the container leaves to this process.")
_READINGS: dict[MetricDescription, Read] = {
    _gauge("sd35_engine_images", "Images in the engine: `waiting` or `running`.", "state"): _engine_images,
    _gauge("sd35_engine_images_limit", "Maximum number of images in the engine (`max_in_flight`)."): (
        _reader_of_status(lambda status: status.limits.max_in_flight)
    ),
    _gauge("sd35_engine_backlog_seconds", "Estimated time to finish all images in the engine."): (
        _reader_of_status(lambda status: status.backlog_s)
    ),
    _gauge("sd35_engine_memory_used_bytes", "Working memory that the running images use."): (
        _reader_of_status(lambda status: status.used_bytes)
    ),
    _gauge("sd35_engine_memory_limit_bytes", "Working memory that images may use (`memory_mb`)."): (
        _reader_of_status(lambda status: status.limits.memory_bytes)
    ),
    _gauge(
        "sd35_device_memory_bytes", "Memory of the first model's device: `held` by this process, or `free`.", "state"
    ): _device_memory,
    _counter(
        "sd35_embedding_cache_total", "Lookups of prompts in the embedding cache: `hit` or `miss`.", "result"
    ): _embedding_cache_lookups,
    _gauge("sd35_embedding_cache_bytes", "Size of the embedding cache."): (
        _reader_of_status(lambda status: status.prompt_cache_bytes)
    ),
    _counter(
        "sd35_numerical_failures_total",
        "Generations of images that failed numerically: `not_finite` values, or `uniform` (one colour).",
        "kind",
    ): (lambda service: _by_label(service.status.numerical_failures)),
    _counter(
        "sd35_retried_images_total", "Images that were generated again in a wider precision after a numerical failure."
    ): _reader_of_status(lambda status: status.retried),
    _gauge("sd35_model_info", "Always 1: the models in use.", "model", "revision", "backend", "precision"): _model_info,
    _gauge("sd35_retention_paused", "1 while retention by age is paused because the clock cannot be trusted."): (
        lambda service: _unlabelled(service.sweeper.is_paused)
    ),
    _gauge("sd35_fallback_active", "1 while graphs or engines are built or loaded, and a fallback generates images."): (
        _reader_of_builder(lambda builder: builder.is_running)
    ),
    _gauge(
        "sd35_build_seconds", "Time since the builds of graphs and engines began, or their total after their end."
    ): (_reader_of_builder(lambda builder: builder.took_s)),
    _counter("sd35_build_failures_total", "Builds of graphs or engines that failed."): (
        _reader_of_builder(lambda builder: builder.failures)
    ),
}


def metric_descriptions() -> list[MetricDescription]:
    """Return the descriptions of all metrics, sorted by name, without `prometheus_client`'s metrics of the process."""
    own = [_READY, _BUILD, _STARTUP, _HOST_FREE, _JOBS, _JOB_STORE_UP, *_READINGS]
    return sorted([*own, *Metrics().descriptions])
