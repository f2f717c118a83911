"""Draws an order's images with one candidate: `python -m benchmarks.acceptance_candidate ORDER`, which is JSON.

Prints JSON: what it took, or the trouble in words, and where something has to be built first, the command's arguments.
"""

import json
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.worker import peak_bytes
from sd35.backends.base import Backend, Memory
from sd35.backends.options import Offload, Options
from sd35.backends.registry import memory_of, open_backend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.open import open_checkpoint
from sd35.compile.prompts import evaluation_prompts
from sd35.compile.reference_sampling import Recipe, rows_of
from sd35.errors import NotCompiled
from sd35.sampling.sigmas import sigma_schedule_of
from sd35.settings import Precision
from sd35.tensors import Array, to_numpy

EVERY_S = 0.01
WARM_STEPS = 3  # an engine's graph is recorded at the second


@dataclass(frozen=True)
class Order:
    """What to draw and with what. `images` of so many prompts, of `steps`, guided, so of two rows a step."""

    backend: str
    precision: Precision
    torch_compile: bool
    checkpoint: str
    device: str
    offload: Offload
    threads: int
    images: int
    width_px: int
    height_px: int
    steps: int
    guidance: float
    cache_dir: str
    folder: str


@dataclass
class DeviceMemory:
    """The most of a device's memory that was taken since this was made, by whatever library: looked at now and then."""

    memory: Memory

    def __post_init__(self) -> None:
        self._free_bytes = self._least_bytes = self.memory.free_bytes()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look, inside."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(EVERY_S):
                self.look()

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.look()

    def look(self) -> None:
        """Once."""
        self._least_bytes = min(self._least_bytes, self.memory.free_bytes())

    @property
    def peak_bytes(self) -> int:
        """In bytes."""
        return self._free_bytes - self._least_bytes


def measured(order: Order) -> dict[str, Any]:
    """Opens the candidate, draws each image, and writes it. Raises what backends raise."""
    checkpoint = open_checkpoint(order.checkpoint)
    kind, memory = memory_of(order.backend, order.device)
    device = DeviceMemory(memory)
    options = Options(
        precision=order.precision,
        device=order.device,
        offload=order.offload,
        threads=order.threads,
        torch_compile=order.torch_compile,
        cache_dir=Path(order.cache_dir),
    )
    began_s = time.perf_counter()
    with device.watched():
        backend = open_backend(order.backend, checkpoint, options)
        opened_s = time.perf_counter() - began_s
        prompts = (list(evaluation_prompts(checkpoint)) * order.images)[: order.images]
        _draw(backend, checkpoint, order, prompts[0], 0, steps=WARM_STEPS)
        drawn = [
            _draw(backend, checkpoint, order, prompt, seed, steps=order.steps) for seed, prompt in enumerate(prompts)
        ]
    for seed, (pixels, _, _) in enumerate(drawn):
        Image.fromarray(pixels).save(Path(order.folder) / f"{seed}.png")
    return {
        "device": _device_name(kind),
        "opened_s": opened_s,
        "steps_s": [seconds for _, steps_s, _ in drawn for seconds in steps_s],
        "images_s": [seconds for _, _, seconds in drawn],
        "peak_bytes": device.peak_bytes if kind == "cuda" else peak_bytes(),
        "versions": backend.versions,
    }


def _draw(
    backend: Backend, checkpoint: Checkpoint, order: Order, prompt: str, seed: int, *, steps: int
) -> tuple[Array, list[float], float]:
    """An image, the seconds of each step until its latent came to the host, and those of all, from text to pixels."""
    recipe = Recipe(order.width_px, order.height_px, steps, order.guidance, sigma_schedule_of(checkpoint))
    began_s = time.perf_counter()
    positive, negative = backend.encode_text([prompt, ""])
    moments_s = []
    for row in rows_of(backend, recipe, (positive, negative), seed):
        to_numpy(row.latent)  # waits for the device
        moments_s.append(time.perf_counter())
    (pixels,) = backend.decode_latents([row.latent])
    ended_s = time.perf_counter()
    return pixels, [after - before for before, after in pairwise(moments_s)], ended_s - began_s


def _device_name(kind: str) -> str:
    if kind == "cpu":
        return f"a CPU ({platform.machine()})"
    import torch

    return torch.cuda.get_device_name()


def main() -> None:
    """Print what was found; all that can go wrong is trouble of this candidate alone."""
    order = Order(**json.loads(sys.argv[1]))
    found: dict[str, Any]
    try:
        found = measured(order)
    except NotCompiled as error:
        found = {"trouble": str(error), "build": error.arguments}
    except Exception as error:  # noqa: BLE001  memory that runs out, a library that fails: a row says so
        words = str(error).strip().splitlines() or [type(error).__name__]
        found = {"trouble": words[0]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
