"""Run one stage of `benchmarks.real_size`: `python -m benchmarks.real_size_stage STAGE FOLDER`.

Each stage reads the results of earlier stages from the folder, writes its own result there, and prints its figures as
JSON.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from sd35.backends.base import DenoiseRow
from sd35.backends.diffusers.backend import DiffusersBackend
from sd35.backends.diffusers.disk_offload import bytes_of, weights_of
from sd35.backends.options import Options
from sd35.backends.registry import open_backend
from sd35.backends.tensorrt.buckets import buckets_of
from sd35.backends.tensorrt.flavour import find_flavour
from sd35.checkpoints.architectures import ARCHITECTURES
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.nvidia import GRAPH_FILE, OfficialGraphs
from sd35.checkpoints.open import open_checkpoint
from sd35.compile.calibration import calibrate
from sd35.compile.engines import EngineBuilder, EngineShapes, targets_of
from sd35.compile.graphs import export_graph, save
from sd35.compile.networks import graphs_of
from sd35.compile.quantise import quantise, sizes_of
from sd35.compile.reference_sampling import Recipe, recipe_of
from sd35.compile.synth import synthesise
from sd35.host import HostMemory
from sd35.sampling.noise import initial_noise
from sd35.settings import Precision

SIDE_PX = 256  # the smallest size of the checkpoint, because calibration runs on a CPU
GPU = "sm89"
ROWS = 2  # of the engine's batch: one image with guidance
_LARGEST = "largest.json"  # the result of the calibration


def synth(folder: Path) -> dict[str, Any]:
    """Create SD3.5 Medium with random weights. The text encoders have only one layer, because they are not compiled."""
    medium = ARCHITECTURES["sd3.5-medium"]
    one_layer = {"num_hidden_layers": 1}
    architecture = replace(
        medium,
        text_encoder={**medium.text_encoder, **one_layer},
        text_encoder_2={**medium.text_encoder_2, **one_layer},
        text_encoder_3={**medium.text_encoder_3, "num_layers": 1},
    )
    synthesise(architecture, folder / "checkpoint", "bfloat16", lambda *_: None)
    return {"file_bytes": _bytes_in(folder / "checkpoint" / "transformer")}


def export(folder: Path) -> dict[str, Any]:
    """Export the transformer's graph in BF16."""
    checkpoint = _checkpoint(folder)
    graph = next(graph for graph in graphs_of(checkpoint) if graph.part == "transformer")
    model = export_graph(checkpoint, graph, "bf16")
    return _save(model, folder / "bf16")


def run_calibration(folder: Path) -> dict[str, Any]:
    """Find the largest input of each layer, with one prompt, two steps and PyTorch in float32."""
    checkpoint = _checkpoint(folder)
    backend = open_backend("diffusers", checkpoint, Options(precision="float32", device="cpu", offload="encoders"))
    assert isinstance(backend, DiffusersBackend)
    positive, negative = backend.encode_text(["a cat", ""])
    calibration = calibrate(backend, _recipe(checkpoint), [(positive, negative)], lambda: None)
    (folder / _LARGEST).write_text(json.dumps(calibration.largest_inputs))
    return {"layers": len(calibration.largest_inputs)}


def run_quantisation(folder: Path) -> dict[str, Any]:
    """Quantise the BF16 graph to FP8."""
    model = ir.load(folder / "bf16" / GRAPH_FILE)
    quantise(model, json.loads((folder / _LARGEST).read_text()))
    return {**_save(model, folder / "fp8"), **asdict(sizes_of(model))}


def measure_memory(precision: Precision, folder: Path) -> dict[str, Any]:
    """Measure the memory of this process after one step with guidance in PyTorch.

    This includes mapped pages, and the decoder.
    """
    checkpoint, memory = _checkpoint(folder), HostMemory()
    before_bytes = memory.held_bytes()
    backend = open_backend("diffusers", checkpoint, Options(precision=precision, device="cpu", offload="encoders"))
    assert isinstance(backend, DiffusersBackend)
    positive, negative = backend.encode_text(["a cat", ""])
    latent = initial_noise(0, (16, SIDE_PX // 8, SIDE_PX // 8))
    backend.predict_velocity([DenoiseRow(latent, positive, negative, 1.0, 4.5)])
    held_bytes = memory.held_bytes() - before_bytes
    return {
        "held_bytes": held_bytes,
        "weights_bytes": bytes_of(weights_of(backend.transformer)),
    }


def build_engine(precision: Literal["bf16", "fp8"], folder: Path) -> dict[str, Any]:
    """Build a TensorRT-RTX engine from the graph of a precision, for images of the native size."""
    checkpoint, flavour = _checkpoint(folder), find_flavour()
    graphs = OfficialGraphs(folder, precision, transformer_at=folder / precision)
    card = checkpoint.card
    native = next(bucket for bucket in buckets_of("", card) if bucket.contains((card.width, card.height)))
    builder = EngineBuilder(checkpoint, graphs, EngineShapes([native], ROWS), flavour)
    (target,) = targets_of(flavour, [GPU])
    built = builder.build("transformer", target)
    return {"file_bytes": memoryview(built).nbytes, "target": str(target), "bucket": str(native)}


def _recipe(checkpoint: Checkpoint) -> Recipe:
    """Return how to generate images for the calibration: small, and in two steps."""
    return replace(recipe_of(checkpoint), width_px=SIDE_PX, height_px=SIDE_PX, steps=2)


def _save(model: ir.Model, folder: Path) -> dict[str, Any]:
    """Write a graph and its weights to a folder, and return the figures of the stage."""
    folder.mkdir(exist_ok=True)
    save(model, folder)
    return {"file_bytes": _bytes_in(folder)}


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(str(folder / "checkpoint"))


STAGES: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "synth": synth,
    "export": export,
    "calibrate": run_calibration,
    "quantise": run_quantisation,
    "hold-float32": partial(measure_memory, "float32"),
    "hold-bfloat16": partial(measure_memory, "bfloat16"),
    "hold-fp8-weights": partial(measure_memory, "fp8-weights"),
    "hold-fp8-storage": partial(measure_memory, "fp8-storage"),
    "engine-bf16": partial(build_engine, "bf16"),
    "engine-fp8": partial(build_engine, "fp8"),
}


def main() -> None:
    """Run the stage and print its figures as JSON."""
    name, folder = sys.argv[1:]
    with suppress(OSError):  # if memory runs out, the system should kill this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    logging.basicConfig(level=logging.WARNING)  # shows TensorRT's messages if it fails
    began_s = time.perf_counter()
    figures = STAGES[name](Path(folder))
    print(json.dumps({"took_s": time.perf_counter() - began_s, "resident_bytes": HostMemory().peak_bytes(), **figures}))


if __name__ == "__main__":
    main()
