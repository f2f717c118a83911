"""Measure a model's step times on this machine, by transformer rows and image size, for `sd35 simulate`."""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from statistics import median
from typing import TypeVar

from sd35.backends.base import Backend, DenoiseRow
from sd35.engine.local.pipeline import Pipeline
from sd35.engine.scheduling.step_times import ShapeTimes, StepTimes
from sd35.sampling.noise import initial_noise
from sd35.tensors import LATENT_CHANNELS, LATENT_PX

_TIMED_CALLS = 5  # of each kind, after one to warm up
Result = TypeVar("Result")


def row_counts(max_rows: int) -> list[int]:
    """Return the numbers of rows to time: the powers of two below `max_rows`, and `max_rows`."""
    return sorted({*takewhile(lambda rows: rows < max_rows, (2**power for power in range(32))), max_rows})


def measure(
    pipeline: Pipeline, sizes_px: Sequence[tuple[int, int]], max_rows: int, on_call: Callable[[], None] = lambda: None
) -> StepTimes:
    """Measure a model at `sizes_px`, each (width, height). `on_call` is called after each kind of call is measured."""
    backend, model = pipeline.backend, pipeline.info
    memory_bytes = backend.memory.free_bytes()
    prompts = (f"{number} {model.name}" for number in range(1000))  # all different, in case a backend has a cache
    encode_s, _ = _timed(backend, lambda: backend.encode_text([next(prompts)]))
    on_call()
    return StepTimes(
        model=model.name,
        profile=model.profile,
        machine=f"{platform.platform()}, {platform.processor() or platform.machine()}",
        memory_bytes=memory_bytes,
        steps=model.card.steps,
        guidance_scale=model.card.guidance_scale,
        encode_s=encode_s,
        shapes=[_shape_times(backend, size_px, max_rows, on_call) for size_px in sizes_px],
    )


def _shape_times(backend: Backend, size_px: tuple[int, int], max_rows: int, on_call: Callable[[], None]) -> ShapeTimes:
    width_px, height_px = size_px
    rows = list(_rows(backend, size_px, max_rows))
    step_s, row_bytes = {}, 0.0
    for count in row_counts(max_rows):
        step_s[count], peak_bytes = _timed(backend, lambda count=count: backend.predict_velocity(rows[:count]))  # type: ignore[misc]
        row_bytes = max(row_bytes, peak_bytes / count)
        on_call()
    decode_s, decode_bytes = _timed(backend, lambda: backend.decode_latents([rows[0].latent]))
    on_call()
    return ShapeTimes(
        width_px=width_px,
        height_px=height_px,
        step_s=step_s,
        decode_s=decode_s,
        row_bytes=int(row_bytes),
        decode_bytes=decode_bytes,
    )


def _rows(backend: Backend, size_px: tuple[int, int], count: int) -> Iterator[DenoiseRow]:
    """Yield rows that differ in everything but their shape. They are unguided, so each is one transformer row."""
    width_px, height_px = size_px
    shape = LATENT_CHANNELS, height_px // LATENT_PX, width_px // LATENT_PX
    for index in range(count):
        (embedding,) = backend.encode_text([f"image {index}"])
        sigma = (index + 1) / count
        yield DenoiseRow(initial_noise(index, shape), embedding, None, sigma, 0.0)


def _timed(backend: Backend, call: Callable[[], Result]) -> tuple[float, int]:
    """Return the median seconds of a call, and the peak bytes of its first run."""
    backend.memory.watch()
    call()
    peak_bytes = backend.memory.peak_bytes()
    samples_s = []
    for _ in range(_TIMED_CALLS):
        began_s = time.perf_counter()
        call()
        samples_s.append(time.perf_counter() - began_s)
    return median(samples_s), peak_bytes
