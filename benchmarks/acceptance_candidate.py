"""Generate images with one candidate of `benchmarks.gpu_acceptance`, and print times and memory as JSON.

`python -m benchmarks.acceptance_candidate TASK`, with a `CandidateTask` as JSON. If the candidate cannot run, prints an
`error` instead. If an engine or a graph must be built first, also prints the arguments of the `sd35` command that
builds it, as `build`.
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

from sd35.backends.base import Backend, Memory
from sd35.backends.options import Offload, Options
from sd35.backends.registry import memory_of, open_backend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.open import open_checkpoint
from sd35.compile.prompts import evaluation_prompts
from sd35.compile.reference_sampling import Recipe, rows_of
from sd35.errors import NotCompiled
from sd35.host import HostMemory
from sd35.sampling.sigmas import sigma_schedule_of
from sd35.settings import Precision
from sd35.tensors import Array, to_numpy

INTERVAL_S = 0.01  # between two samples of the device's memory
WARM_UP_STEPS = 3  # engines also record their CUDA graphs in these steps


@dataclass(frozen=True)
class CandidateTask:
    """A candidate, the images to generate, and the `folder` for their files.

    `images` is the number of images. All have guidance, so the transformer computes two rows at each step.
    """

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
    """Samples the free memory of a device, to find how much all libraries use after the creation of this object."""

    memory: Memory

    def __post_init__(self) -> None:
        self._free_bytes = self._min_free_bytes = self.memory.free_bytes()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Sample in a thread while the context is open."""
        ended = threading.Event()

        def sample_until_ended() -> None:
            while not ended.wait(INTERVAL_S):
                self.sample()

        thread = threading.Thread(target=sample_until_ended, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.sample()

    def sample(self) -> None:
        """Take one sample."""
        self._min_free_bytes = min(self._min_free_bytes, self.memory.free_bytes())

    @property
    def peak_bytes(self) -> int:
        """The peak in bytes, beyond the memory in use at the creation of this object."""
        return self._free_bytes - self._min_free_bytes


def measure(task: CandidateTask) -> dict[str, Any]:
    """Open the candidate, generate a warm-up image and the timed images, and write the timed images as PNG files.

    Returns:
        The device's name, the seconds to open the backend, the seconds of each step and of each image, the peak memory
        in bytes, and the versions of libraries. Keys as in `Row` of `benchmarks.acceptance_report`.
    """
    checkpoint = open_checkpoint(task.checkpoint)
    kind, memory = memory_of(task.backend, task.device)
    device = DeviceMemory(memory)
    options = Options(
        precision=task.precision,
        device=task.device,
        offload=task.offload,
        threads=task.threads,
        torch_compile=task.torch_compile,
        cache_dir=Path(task.cache_dir),
    )
    began_s = time.perf_counter()
    with device.watched():
        backend = open_backend(task.backend, checkpoint, options)
        opened_s = time.perf_counter() - began_s
        prompts = (list(evaluation_prompts(checkpoint)) * task.images)[: task.images]  # repeated if too few
        _generate(backend, checkpoint, task, prompts[0], 0, steps=WARM_UP_STEPS)
        images = [
            _generate(backend, checkpoint, task, prompt, seed, steps=task.steps) for seed, prompt in enumerate(prompts)
        ]
    for seed, (pixels, _, _) in enumerate(images):
        Image.fromarray(pixels).save(Path(task.folder) / f"{seed}.png")
    return {
        "device": _device_name(kind),
        "opened_s": opened_s,
        "steps_s": [seconds for _, steps_s, _ in images for seconds in steps_s],
        "images_s": [seconds for _, _, seconds in images],
        "peak_bytes": device.peak_bytes if kind == "cuda" else HostMemory().peak_bytes(),
        "versions": backend.versions,
    }


def _generate(
    backend: Backend, checkpoint: Checkpoint, task: CandidateTask, prompt: str, seed: int, *, steps: int
) -> tuple[Array, list[float], float]:
    """Generate an image. Returns its pixels, the seconds of each step, and the seconds of the image.

    The time of a step includes copying the latent to the host. The time of the image includes encoding its text and
    decoding its latent.
    """
    recipe = Recipe(task.width_px, task.height_px, steps, task.guidance, sigma_schedule_of(checkpoint))
    began_s = time.perf_counter()
    positive, negative = backend.encode_text([prompt, ""])
    moments_s = []
    for row in rows_of(backend, recipe, (positive, negative), seed):
        to_numpy(row.latent)  # waits until the device has computed the step
        moments_s.append(time.perf_counter())
    (pixels,) = backend.decode_latents([row.latent])
    ended_s = time.perf_counter()
    return pixels, [after - before for before, after in pairwise(moments_s)], ended_s - began_s


def _device_name(kind: str) -> str:
    """Return the name of the GPU if `kind` is "cuda", or a description of the CPU if it is "cpu"."""
    if kind == "cpu":
        return f"a CPU ({platform.machine()})"
    import torch

    return torch.cuda.get_device_name()


def main() -> None:
    """Run the task and print the result. An error is printed as a result, so that the other candidates still run."""
    task = CandidateTask(**json.loads(sys.argv[1]))
    result: dict[str, Any]
    try:
        result = measure(task)
    except NotCompiled as error:
        result = {"error": str(error), "build": error.arguments}
    except Exception as error:  # noqa: BLE001  out of memory, an error of a library, ...
        lines = str(error).strip().splitlines() or [type(error).__name__]
        result = {"error": lines[0]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
