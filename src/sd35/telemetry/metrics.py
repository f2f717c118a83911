"""What the service counts and times, as metrics in Prometheus' data model; what it only looks up is in `readings`.

Labels are of few values, all known beforehand: never a prompt, an id, a key or a path.
"""

import asyncio
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from sd35.content_filter import Decision
from sd35.engine.base import Stage
from sd35.errors import Sd35Error
from sd35.storage.jobs import Status

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram
    from prometheus_client.metrics import MetricWrapperBase

STAGES = ("queue", "encode", "denoise", "decode", "png", "store")
_LAG_PERIOD_S = 0.025
_NO_MEMORY = re.compile(r"MemoryError|out ?of ?memory|allocate memory|bad_alloc", re.IGNORECASE)
_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LONG_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
_LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
ImageEnd: TypeAlias = Literal["made", "failed", "refused", "cancelled"]
WebhookEnd: TypeAlias = Literal["delivered", "postponed", "given_up"]


class MetricDescription(NamedTuple):
    """A metric as the documentation names it."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str


class Metrics:
    """Counters and histograms in a `registry` of their own; an engine's `Observer`. Safe for threads.

    `max_rows`: transformer rows that a batch may have. What the process holds and uses is in the registry too, under
    Prometheus' own names (`process_...`), which `described` leaves out.
    """

    def __init__(self, max_rows: int = 1) -> None:
        from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics

        disable_created_metrics()  # a series of its own for each counter's birth, which Prometheus does not read
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.described: list[MetricDescription] = []
        self.max_rows = max_rows
        self._of_requests()
        self._of_images()
        self._of_engine()
        self._of_jobs()
        self._lag = self._histogram("sd35_event_loop_lag_seconds", "How late the event loop came to a timer.", _LAG_S)

    # What the API tells.

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request as one in progress."""
        with self._in_progress.track_inprogress():
            yield

    def answered(self, dialect: str, route: str, method: str, status: int, took_s: float) -> None:
        """A request got its answer, or as much of it as could be sent."""
        self._requests.labels(dialect, route, method, str(status)).inc()
        self._request_s.labels(dialect, route).observe(took_s)

    def refused(self, error: Sd35Error) -> None:
        """A request was answered with an error of this project's."""
        self._errors.labels(type(error).__name__).inc()

    def output_dropped(self) -> None:
        """Count text for standard output or error that could not be written."""
        self._dropped.inc()

    async def watch_loop(self) -> None:
        """Measure how late the event loop is, until cancelled."""
        while True:
            due_s = time.monotonic() + _LAG_PERIOD_S
            await asyncio.sleep(_LAG_PERIOD_S)
            self._lag.observe(max(0.0, time.monotonic() - due_s))

    # What the generation service tells.

    def given(self, cache: Literal["hit", "shared", "miss"]) -> None:
        """Someone got an image."""
        self._results.labels(cache).inc()

    def ended(self, end: ImageEnd, stages: Iterable[Stage] = ()) -> None:
        """An image that was not there ended; `stages` of one that was made."""
        self._images.labels(end).inc()
        for stage in stages:
            self._stage_s.labels(stage.name).observe(stage.took_s)

    def decided(self, subject: Literal["prompt", "image"], decision: Decision) -> None:
        """The content filter spoke."""
        self._decisions.labels(subject, decision).inc()

    def not_stored(self) -> None:
        """An image could not be written to the store."""
        self._not_stored.inc()

    def damaged(self) -> None:
        """A stored image was read, and its file is damaged."""
        self._damaged.inc()

    # What jobs and webhooks tell.

    def job_ended(self, status: Status, took_s: float) -> None:
        """A job that ran here ended, so long after it was accepted."""
        self._job_s.labels(status).observe(took_s)

    def webhook(self, end: WebhookEnd) -> None:
        """A webhook was tried."""
        self._webhooks.labels(end).inc()

    # What the engine tells: see `sd35.engine.base.Observer`.

    def encoded(self, prompts: int, took_s: float) -> None:
        """Prompts were encoded."""
        self._encoded.inc(prompts)
        self._encode_s.observe(took_s)

    def on_step_done(self, images: int, rows: int, took_s: float) -> None:
        """A batch made its step."""
        self._steps.inc(images)
        self._row_steps.inc(rows)
        self._batch_s.observe(took_s)
        self._occupancy.observe(rows / self.max_rows)

    def failed(self, error: str, *, was_split: bool) -> None:
        """A call of the backend raised. Runtimes have errors of their own, so the message tells what it was."""
        is_memory = _NO_MEMORY.search(error)
        self._failures.labels("out_of_memory" if is_memory else "other").inc()
        if was_split:
            self._splits.inc()

    def _of_requests(self) -> None:
        self._requests = self._counter(
            "sd35_http_requests_total", "Requests answered.", "dialect", "route", "method", "status"
        )
        self._request_s = self._histogram(
            "sd35_http_request_duration_seconds",
            "From a request's head to its answer's end.",
            _LONG_S,
            "dialect",
            "route",
        )
        self._in_progress = self._gauge("sd35_http_requests_in_progress", "Requests that are being answered.")
        self._errors = self._counter(
            "sd35_errors_total", "Requests answered with an error of the service's, also limits' refusals.", "error"
        )

        self._dropped = self._counter(
            "sd35_output_dropped_total", "Log lines and messages that standard output or error did not take."
        )

    def _of_images(self) -> None:
        self._images = self._counter("sd35_images_total", "Images that were begun, by how they ended.", "end")
        self._stage_s = self._histogram(
            "sd35_stage_duration_seconds", "How long each stage of an image that was made took.", _LONG_S, "stage"
        )
        self._results = self._counter(
            "sd35_result_cache_total", "Images given: there before, made for another, or made.", "result"
        )
        self._decisions = self._counter("sd35_filter_decisions_total", "What the filter said.", "subject", "decision")
        self._not_stored = self._counter("sd35_unstored_images_total", "Images that the store did not take.")
        self._damaged = self._counter(
            "sd35_damaged_images_total", "Reads of stored images whose file is damaged: such a one is made again."
        )
        _begin_at_0(self._images, ["made", "failed", "refused", "cancelled"])
        _begin_at_0(self._stage_s, STAGES)
        _begin_at_0(self._results, ["hit", "shared", "miss"])
        for subject in ("prompt", "image"):
            for decision in Decision:
                self._decisions.labels(subject, decision)

    def _of_engine(self) -> None:
        self._steps = self._counter("sd35_engine_steps_total", "Steps, each of one image.")
        self._row_steps = self._counter("sd35_engine_row_steps_total", "Transformer rows in all steps: work done.")
        self._batch_s = self._histogram(
            "sd35_engine_batch_duration_seconds", "How long a step of a batch took.", _SHORT_S
        )
        self._occupancy = self._histogram(
            "sd35_engine_batch_occupancy_ratio", "Transformer rows of a batch over `max_batch_rows`.", _SHARES
        )
        self._splits = self._counter("sd35_engine_splits_total", "Calls of several that failed: each was tried alone.")
        self._failures = self._counter(
            "sd35_engine_backend_failures_total", "Calls of the backend that failed.", "kind"
        )
        self._encoded = self._counter("sd35_engine_encoded_prompts_total", "Prompts that were encoded.")
        self._encode_s = self._histogram(
            "sd35_engine_encode_duration_seconds", "How long calls that encode prompts took.", _SHORT_S
        )
        _begin_at_0(self._failures, ["out_of_memory", "other"])

    def _of_jobs(self) -> None:
        self._job_s = self._histogram(
            "sd35_job_duration_seconds", "From a job's acceptance to its end in this process.", _LONG_S, "status"
        )
        self._webhooks = self._counter("sd35_webhooks_total", "Webhooks that were sent, by what came of it.", "result")
        _begin_at_0(self._job_s, [status for status in Status if status.is_end])
        _begin_at_0(self._webhooks, ["delivered", "postponed", "given_up"])

    def _counter(self, name: str, meaning: str, *labels: str) -> "Counter":
        from prometheus_client import Counter

        self.described.append(MetricDescription(name, "counter", labels, meaning))
        return Counter(name, meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str) -> "Gauge":
        from prometheus_client import Gauge

        self.described.append(MetricDescription(name, "gauge", (), meaning))
        return Gauge(name, meaning, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float], *labels: str) -> "Histogram":
        from prometheus_client import Histogram

        self.described.append(MetricDescription(name, "histogram", labels, meaning))
        return Histogram(name, meaning, labels, buckets=buckets, registry=self.registry)


def _begin_at_0(metric: "MetricWrapperBase", values: Iterable[str]) -> None:
    """Show what has not happened yet: a rate over a series that begins at 1 would miss the first."""
    for value in values:
        metric.labels(value)
