"""Open a checkpoint and print its memory use: `python -m benchmarks.hold_once BACKEND PRECISION DIRECTORY CACHE`.

One step runs before the measurement, because weights mapped from files are in memory only after their first use.
"""

import ctypes
import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

from sd35.backends.base import Backend, DenoiseRow
from sd35.backends.options import Options
from sd35.backends.registry import backend_module, open_backend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.compiled import GRAPH_PRECISIONS, compiled_graphs
from sd35.checkpoints.open import open_checkpoint
from sd35.host import HostMemory
from sd35.sampling.noise import initial_noise
from sd35.tensors import LATENT_CHANNELS, LATENT_PX


def held_bytes() -> int:
    """Return the memory of this process in bytes, without memory that its allocator could return to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # returns free memory to the system; a function of the GNU C library
    return HostMemory().held_bytes()


def transformer_bytes(backend: Backend) -> int:
    """Return the size of the transformer's weights in PyTorch, in bytes."""
    from sd35.backends.diffusers.backend import DiffusersBackend
    from sd35.backends.diffusers.disk_offload import bytes_of, weights_of

    assert isinstance(backend, DiffusersBackend)
    return bytes_of(weights_of(backend.transformer))


def open_with_graphs(name: str, directory: str, precision: str, cache_dir: Path) -> Checkpoint:
    """Open the checkpoint. For the backend `onnx`, use the compiled graphs of the precision in `cache_dir`."""
    checkpoint = open_checkpoint(directory)
    if name != "onnx":
        return checkpoint
    import onnx  # noqa: F401  before the measurement, so that the library does not count

    return replace(checkpoint, graphs=compiled_graphs(cache_dir, checkpoint, GRAPH_PRECISIONS[precision]))


def main() -> None:
    """Open the backend, run one step, and print the figures as JSON."""
    name, precision, directory, cache_dir = sys.argv[1:]
    checkpoint = open_with_graphs(name, directory, precision, Path(cache_dir))
    backend_module(name)
    if precision.startswith("fp8") and name == "diffusers":
        import torchao.quantization  # noqa: F401  before the measurement, so that the library does not count
    before_bytes = held_bytes()
    requested = "auto" if checkpoint.graphs else precision  # the graphs determine the precision
    backend = open_backend(name, checkpoint, Options(precision=requested, device="cpu", threads=1))  # type: ignore[arg-type]
    (text,) = backend.encode_text(["a cat"])
    side = checkpoint.card.side_px[0] // LATENT_PX
    backend.predict_velocity([DenoiseRow(initial_noise(1, (LATENT_CHANNELS, side, side)), text, None, 1.0, 0.0)])
    figures = {"libraries_bytes": before_bytes, "rise_bytes": held_bytes() - before_bytes}
    if name == "diffusers":
        figures |= {"transformer_bytes": transformer_bytes(backend)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
