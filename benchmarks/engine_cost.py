"""The cost of the engine itself, measured with networks that compute nothing.

There are two figures: the time of the engine for each step of each image, and the time in which the scheduler chooses
the next batch.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.outcome import Bar, Outcome
from sd35.backends.graphs.backend import GraphBackend
from sd35.backends.options import Options
from sd35.backends.registry import open_backend
from sd35.checkpoints.open import open_checkpoint
from sd35.engine.base import DeviceLimits, Progress, Work
from sd35.engine.local.engine import LocalEngine
from sd35.engine.local.pipeline import Pipeline
from sd35.engine.local.prompt_cache import EmbeddingCache
from sd35.engine.scheduling.backlog import WorkItem
from sd35.engine.scheduling.cost_model import CostModel, Shape
from sd35.engine.scheduling.scheduler import Scheduler
from sd35.request import Request

ROWS, STEPS, SIDE_PX = 32, 100, 128
IN_FLIGHT = (100, 1000)
MAX_ROW_US, MAX_DECISION_US = 60.0, 100.0
_DECISIONS = 500  # per sample
_US = 1e6  # microseconds in a second


class _FreeGraph:
    """A graph that computes nothing. It returns the array that `output` returns for its inputs."""

    def __init__(self, output: Callable[[Mapping[str, Any]], Any]) -> None:
        self._output = output

    def run(self, _names: Sequence[str], inputs: Mapping[str, Any], /) -> list[Any]:
        """Return the array as the only output, like the method of an ONNX graph."""
        return [self._output(inputs)]


def measure(checkpoint: Path, rounds: int) -> Outcome:
    """Measure the two figures as medians over the rounds."""
    engine = _open_engine(checkpoint)
    try:
        row_us = [_row_us(engine, number) for number in range(rounds + 1)][1:]
    finally:
        engine.close()
    decision_us = {count: median(_decision_us(count) for _ in range(rounds)) for count in IN_FLIGHT}
    few, many = IN_FLIGHT
    growth = decision_us[many] / decision_us[few]
    return Outcome(
        [
            Bar(f"the engine's own cost per row and step, {ROWS} rows", median(row_us), "us", "<=", MAX_ROW_US),
            Bar(f"next_batch with {many} images in flight", decision_us[many], "us", "<=", MAX_DECISION_US),
            Bar(f"the same / with {few}", growth, "x", "<=", many / few),
        ],
        [
            f"{ROWS} images of {SIDE_PX} px, {STEPS} steps, each with a callback; networks that compute nothing;",
            f"{min(row_us):.1f}-{max(row_us):.1f} us for scheduling, stacking, the Euler step, checks for NaN, events",
            f"next_batch: 50 clients, 4 shapes, batches of 8 rows; {decision_us[few]:.1f} us with {few} images",
        ],
        {"row_us": row_us, "decision_us": decision_us},
    )


def _open_engine(directory: Path) -> LocalEngine:
    """Open an engine with a transformer and a decoder that compute nothing. The text encoders are real."""
    checkpoint = open_checkpoint(str(directory))
    backend = open_backend("onnx", checkpoint, Options())
    assert isinstance(backend, GraphBackend)
    zeros = np.zeros((2 * ROWS, 16, SIDE_PX // 8, SIDE_PX // 8), np.float32)
    image = np.broadcast_to(np.linspace(-1, 1, SIDE_PX, dtype=np.float32), (1, 3, SIDE_PX, SIDE_PX))
    # Not public: replaces the networks.
    backend._transformer = _FreeGraph(lambda inputs: zeros[: len(inputs["timestep"])])  # noqa: SLF001
    backend._decoder = _FreeGraph(lambda _: image)  # noqa: SLF001
    limits = DeviceLimits(max_rows=ROWS, max_in_flight=10 * ROWS, max_wait_s=1e9, memory_bytes=10**12)
    return LocalEngine([Pipeline(checkpoint, backend)], limits, EmbeddingCache(10**8))


def _row_us(engine: LocalEngine, number: int) -> float:
    """Generate `ROWS` images in `STEPS` steps. Returns the microseconds divided by the number of rows and steps."""
    finished = threading.Semaphore(0)

    def on_progress(progress: Progress) -> None:
        if progress.step == progress.steps:
            finished.release()

    (model,) = engine.models
    requests = [
        Request("a cat", "", SIDE_PX, SIDE_PX, STEPS, 0.0, ROWS * number + seed, model.name, "", model.profile)
        for seed in range(ROWS)
    ]
    works = [Work(request, SIDE_PX, SIDE_PX) for request in requests]
    began_s = time.perf_counter()
    handles = [engine.submit(work, on_progress) for work in works]
    for handle in handles:
        handle.future.result()
    took_s = time.perf_counter() - began_s
    assert all(finished.acquire(blocking=False) for _ in handles)
    return _US * took_s / (ROWS * STEPS)


def _decision_us(in_flight: int) -> float:
    """Return the mean microseconds in which the scheduler chooses a batch, with `in_flight` images to choose from."""
    costs = CostModel()
    shapes = [Shape("model", side, side) for side in (8, 12, 16, 32)]
    for shape in shapes:
        costs.learn_step_time(shape, 1, shape.area * 1e-5)
        costs.learn_step_bytes(shape, 1, 0)
    limits = DeviceLimits(max_rows=8, max_in_flight=2 * in_flight, max_wait_s=1e9, memory_bytes=10**12)
    scheduler: Scheduler[int] = Scheduler(limits, costs)
    for key in range(in_flight):
        scheduler.add(key, WorkItem(key % 50, shapes[key % 4], 150, 2 if key % 3 else 1), key * 1e-3)
    took_s = 0.0
    for _ in range(_DECISIONS):
        began_s = time.perf_counter()
        scheduler.next_batch()
        took_s += time.perf_counter() - began_s
        scheduler.finish()
    return _US * took_s / _DECISIONS
