"""Counters and histograms of the service for Prometheus. `MetricsCollector` has the gauges of the current state.

Labels have few values, all known in advance: never a prompt, an ID, a key or a path.
"""

import asyncio
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from sd35.content_filter import Decision
from sd35.engine.base import Stage
from sd35.errors import Sd35Error
from sd35.storage.jobs import Status

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram
    from prometheus_client.metrics import MetricWrapperBase

STAGES = ("queue", "encode", "denoise", "decode", "png", "store")  # of an image, in order
_LAG_INTERVAL_S = 0.025
# The texts of errors of all runtimes, because each has its own exception types.
_OUT_OF_MEMORY = re.compile(r"MemoryError|out ?of ?memory|allocate memory|bad_alloc", re.IGNORECASE)
# Upper bounds of the histograms' buckets.
_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LONG_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
_LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_RATIOS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
ImageResult: TypeAlias = Literal["generated", "failed", "refused", "cancelled"]
CacheResult: TypeAlias = Literal["hit", "shared", "miss"]
WebhookResult: TypeAlias = Literal["delivered", "postponed", "given_up"]


class MetricDescription(NamedTuple):
    """A metric as `/metrics` and docs/reference/metrics.md describe it."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str


class Metrics:
    """Counters and histograms, in one registry. An `Observer` of the engine. Thread-safe.

    The registry also has the metrics of the process under the usual names of Prometheus (`process_...`). They are not
    in `descriptions`.

    Args:
        max_rows: Maximum number of transformer rows of a batch.
    """

    def __init__(self, max_rows: int = 1) -> None:
        from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics

        # By default, each counter has a second series with its time of creation, which Prometheus ignores.
        disable_created_metrics()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.descriptions: list[MetricDescription] = []
        self.max_rows = max_rows
        self._add_request_metrics()
        self._add_image_metrics()
        self._add_engine_metrics()
        self._add_job_metrics()
        self._lag = self._histogram("sd35_event_loop_lag_seconds", "Delay of timers on the event loop.", _LAG_S)

    # Called by the API.

    def request_in_progress(self) -> AbstractContextManager[None]:
        """Count a request as in progress until the block ends."""
        return self._in_progress.track_inprogress()

    def request_ended(self, dialect: str, route: str, method: str, status: int, took_s: float) -> None:
        """Count a request whose response was sent, completely or until the connection broke."""
        self._requests.labels(dialect, route, method, str(status)).inc()
        self._request_s.labels(dialect, route).observe(took_s)

    def error_returned(self, error: Sd35Error) -> None:
        """Count a response with an error, by the name of its class."""
        self._errors.labels(type(error).__name__).inc()

    def output_dropped(self) -> None:
        """Count a log line or message that could not be written to standard output or standard error."""
        self._dropped.inc()

    async def measure_loop_lag(self) -> None:
        """Measure the delay of timers on the event loop, until the task is cancelled."""
        while True:
            due_s = time.monotonic() + _LAG_INTERVAL_S
            await asyncio.sleep(_LAG_INTERVAL_S)
            self._lag.observe(max(0.0, time.monotonic() - due_s))

    # Called by the generation service.

    def image_returned(self, cache: CacheResult) -> None:
        """Count an image that was returned to a caller."""
        self._results.labels(cache).inc()

    def image_ended(self, result: ImageResult, stages: Iterable[Stage] = ()) -> None:
        """Count an image that was not cached. `stages` are the stages of a generated image, with their durations."""
        self._images.labels(result).inc()
        for stage in stages:
            self._stage_s.labels(stage.name).observe(stage.took_s)

    def filter_decided(self, subject: Literal["prompt", "image"], decision: Decision) -> None:
        """Count a decision of the content filter."""
        self._decisions.labels(subject, decision).inc()

    def image_not_stored(self) -> None:
        """Count an image that could not be written to the store."""
        self._not_stored.inc()

    def image_damaged(self) -> None:
        """Count a read of a stored image whose file is damaged."""
        self._damaged.inc()

    # Called by jobs and webhooks.

    def job_ended(self, status: Status, took_s: float) -> None:
        """Count a job that ran in this process. `took_s` counts from its acceptance."""
        self._job_s.labels(status).observe(took_s)

    def webhook_attempted(self, result: WebhookResult) -> None:
        """Count an attempt to deliver a webhook."""
        self._webhooks.labels(result).inc()

    # Called by the engine, see `sd35.engine.base.Observer`.

    def encoded(self, prompts: int, took_s: float) -> None:
        """Count prompts that were encoded."""
        self._encoded.inc(prompts)
        self._encode_s.observe(took_s)

    def on_step_done(self, images: int, rows: int, took_s: float) -> None:
        """Count a step of a batch."""
        self._steps.inc(images)
        self._row_steps.inc(rows)
        self._batch_s.observe(took_s)
        self._occupancy.observe(rows / self.max_rows)

    def failed(self, error: str, *, was_split: bool) -> None:
        """Count a failed call of the backend. The text of the error shows whether the memory was too small.

        `was_split` says whether the call was for several images, which are now retried one by one.
        """
        is_out_of_memory = _OUT_OF_MEMORY.search(error)
        self._failures.labels("out_of_memory" if is_out_of_memory else "other").inc()
        if was_split:
            self._splits.inc()

    def _add_request_metrics(self) -> None:
        """Create the metrics of HTTP requests and of output."""
        labels = "dialect", "route", "method", "status"
        self._requests = self._counter("sd35_http_requests_total", "HTTP requests.", *labels)
        text = "Time from the head of a request to the end of its response."
        self._request_s = self._histogram("sd35_http_request_duration_seconds", text, _LONG_S, *labels[:2])
        self._in_progress = self._gauge("sd35_http_requests_in_progress", "HTTP requests in progress.")
        self._errors = self._counter(
            "sd35_errors_total", "Error responses, including rate limits, by the name of the error.", "error"
        )
        self._dropped = self._counter(
            "sd35_output_dropped_total", "Log lines and messages that could not be written to stdout or stderr."
        )

    def _add_image_metrics(self) -> None:
        """Create the metrics of images, of the content filter and of the image store."""
        text = "Images that were not cached: `generated`, `failed`, `refused` or `cancelled`."
        self._images = self._counter("sd35_images_total", text, "result")
        self._stage_s = self._histogram(
            "sd35_stage_duration_seconds",
            "Duration of the stages: `queue`, `encode`, `denoise`, `decode`, `png`, `store`.",
            _LONG_S,
            "stage",
        )
        text = "Images returned: cached (`hit`), `shared` with a simultaneous request, or generated (`miss`)."
        self._results = self._counter("sd35_result_cache_total", text, "result")
        text = "Decisions of the content filter on a `prompt` or an `image`: `allow`, `blur` or `refuse`."
        self._decisions = self._counter("sd35_filter_decisions_total", text, "subject", "decision")
        self._not_stored = self._counter("sd35_unstored_images_total", "Images that could not be stored.")
        self._damaged = self._counter(
            "sd35_damaged_images_total", "Reads of damaged image files. The next request generates the image again."
        )
        _start_at_0(self._images, ["generated", "failed", "refused", "cancelled"])
        _start_at_0(self._stage_s, STAGES)
        _start_at_0(self._results, ["hit", "shared", "miss"])
        for subject in ("prompt", "image"):
            for decision in Decision:
                self._decisions.labels(subject, decision)

    def _add_engine_metrics(self) -> None:
        """Create the metrics of the engine: steps, batches, encoded prompts and failed calls of the backend."""
        self._steps = self._counter("sd35_engine_steps_total", "Denoising steps, counted per image.")
        self._row_steps = self._counter("sd35_engine_row_steps_total", "Denoising steps, counted per transformer row.")
        self._batch_s = self._histogram(
            "sd35_engine_batch_duration_seconds", "Duration of a denoising step of a batch.", _SHORT_S
        )
        self._occupancy = self._histogram(
            "sd35_engine_batch_occupancy_ratio", "Transformer rows of a batch, relative to `max_batch_rows`.", _RATIOS
        )
        self._splits = self._counter(
            "sd35_engine_splits_total", "Failed backend calls for several images, which were retried one by one."
        )
        text = "Failed calls of the backend: `out_of_memory` or `other`."
        self._failures = self._counter("sd35_engine_backend_failures_total", text, "kind")
        self._encoded = self._counter("sd35_engine_encoded_prompts_total", "Prompts that were encoded.")
        self._encode_s = self._histogram(
            "sd35_engine_encode_duration_seconds", "Duration of calls that encode prompts.", _SHORT_S
        )
        _start_at_0(self._failures, ["out_of_memory", "other"])

    def _add_job_metrics(self) -> None:
        """Create the metrics of jobs and webhooks."""
        text = "For jobs that ran in this process: time from their acceptance to their end."
        self._job_s = self._histogram("sd35_job_duration_seconds", text, _LONG_S, "status")
        text = "Attempts to deliver webhooks: `delivered`, `postponed` or `given_up`."
        self._webhooks = self._counter("sd35_webhooks_total", text, "result")
        _start_at_0(self._job_s, [status for status in Status if status.is_end])
        _start_at_0(self._webhooks, ["delivered", "postponed", "given_up"])

    def _counter(self, name: str, text: str, *labels: str) -> "Counter":
        """Create a counter and describe it in `descriptions`."""
        from prometheus_client import Counter

        self.descriptions.append(MetricDescription(name, "counter", labels, text))
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> "Gauge":
        """Create a gauge and describe it in `descriptions`."""
        from prometheus_client import Gauge

        self.descriptions.append(MetricDescription(name, "gauge", (), text))
        return Gauge(name, text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> "Histogram":
        """Create a histogram and describe it in `descriptions`. `buckets` are upper bounds."""
        from prometheus_client import Histogram

        self.descriptions.append(MetricDescription(name, "histogram", labels, text))
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


def _start_at_0(metric: "MetricWrapperBase", values: Iterable[str]) -> None:
    """Create the series of all values of a label, with the value 0.

    Without it, a series would begin at 1 with its first event, and Prometheus' `rate` would miss that event.
    """
    for value in values:
        metric.labels(value)
