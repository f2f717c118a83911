"""Measure how long a model's steps take on this machine, by batch size and image size, for `sd35 simulate`.

The batch size counts transformer rows: one for each image, or two with guidance.
"""

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

_TIMED_CALLS = 5  # of each kind, after a first one to warm up
Result = TypeVar("Result")


def row_counts(max_rows: int) -> list[int]:
    """Return the numbers of rows to time: the powers of two below `max_rows`, and `max_rows`."""
    return sorted({*takewhile(lambda rows: rows < max_rows, (2**power for power in range(32))), max_rows})


def measure(
    pipeline: Pipeline, sizes_px: Sequence[tuple[int, int]], max_rows: int, on_call: Callable[[], None] = lambda: None
) -> StepTimes:
    """Measure a model at `sizes_px`, each (width, height), with 1 to `max_rows` transformer rows.

    `on_call` shows progress. It is called after encoding, each number of rows, and decoding have been measured.
    """
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
    """Measure the steps of each of `row_counts`, and decoding, at one size (width, height)."""
    width_px, height_px = size_px
    rows = list(_unguided_rows(backend, size_px, max_rows))
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


def _unguided_rows(backend: Backend, size_px: tuple[int, int], count: int) -> Iterator[DenoiseRow]:
    """Yield rows of one size (width, height) with different prompts, noise and sigmas.

    Without guidance, each row is one row of the transformer.
    """
    width_px, height_px = size_px
    shape = LATENT_CHANNELS, height_px // LATENT_PX, width_px // LATENT_PX
    for index in range(count):
        (embedding,) = backend.encode_text([f"image {index}"])
        noise = initial_noise(index, shape)
        yield DenoiseRow(noise, embedding, negative=None, sigma=(index + 1) / count, guidance=0.0)


def _timed(backend: Backend, call: Callable[[], Result]) -> tuple[float, int]:
    """Return the median seconds of a call, and the peak memory in bytes of its first run, which is not timed."""
    backend.memory.watch()
    call()
    peak_bytes = backend.memory.peak_bytes()
    samples_s = []
    for _ in range(_TIMED_CALLS):
        began_s = time.perf_counter()
        call()
        samples_s.append(time.perf_counter() - began_s)
    return median(samples_s), peak_bytes
