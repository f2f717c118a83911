"""Measure the size of FP8 weights on disk and in memory, and the quality of their images.

The sizes are compared with those of BF16 and float32, and the images with those of float32. Runs only when named,
because compiling the graphs into build/fp8 takes minutes.
"""

from pathlib import Path
from typing import Any

from benchmarks.outcome import Bar, Outcome
from benchmarks.processes import ROOT, run_module
from sd35.backends.options import Options
from sd35.backends.registry import backend_module, open_backend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.compiled import GRAPH_PRECISIONS
from sd35.checkpoints.open import open_checkpoint

CACHE = ROOT / "build" / "fp8"
_IN_MEMORY = {
    "onnx": ("float32", "bfloat16", "fp8"),
    "diffusers": ("float32", "bfloat16", "fp8-weights", "fp8-storage"),
}
_COMPARED = ("bfloat16", "fp8-weights", "fp8-storage")
_MAX_RATIO = 0.55  # of the size in BF16: layers in FP8 take half, the other layers as much as before
_MIN_DB = 25.0  # PSNR against float32


def measure(directory: Path, rounds: int) -> Outcome:  # noqa: ARG001  sizes vary only by a few MB
    """Measure each size and each image once."""
    checkpoint = open_checkpoint(str(directory))
    on_disk = _on_disk(checkpoint)
    in_memory = {
        f"{backend} {precision}": run_module("benchmarks.hold_once", backend, precision, str(directory), str(CACHE))
        for backend, precisions in _IN_MEMORY.items()
        for precision in precisions
    }
    quality = _quality(checkpoint)
    weights = {name: in_memory[f"diffusers {name}"]["transformer_bytes"] for name in _IN_MEMORY["diffusers"]}
    bars = [Bar("transformer's files, FP8 / BF16", on_disk["fp8"] / on_disk["bf16"], "x", "<=", _MAX_RATIO)]
    for precision in ("fp8-weights", "fp8-storage"):
        ratio = weights[precision] / weights["bfloat16"]
        bars.append(Bar(f"transformer in memory, {precision} / BF16", ratio, "x", "<=", _MAX_RATIO))
        bars.append(Bar(f"images in {precision} against float32's", quality[precision]["mean_db"], "dB", ">=", _MIN_DB))
    notes = [f"transformer's graph and weights on disk, {name}: {_mb(size)}" for name, size in on_disk.items()]
    notes += [
        f"{name}: resident memory {_mb(memory['rise_bytes'])}, beyond {_mb(memory['libraries_bytes'])} of the libraries"
        for name, memory in in_memory.items()
    ]
    notes += [f"transformer in memory, PyTorch, {name}: {_mb(size)}" for name, size in weights.items()]
    notes += [
        f"images in {precision}: {psnr['mean_db']:.1f} dB on average, {min(psnr['psnr_db']):.1f} for the worst"
        for precision, psnr in quality.items()
    ]
    return Outcome(bars, notes, {"on_disk_bytes": on_disk, "held": in_memory, "drawn": quality})


def _on_disk(checkpoint: Checkpoint) -> dict[str, int]:
    """Compile the graphs in each precision. Returns the bytes of the transformer's graph and weights by precision."""
    backend_module("diffusers")
    from sd35.compile.calibration_run import CalibrationRequest
    from sd35.compile.fp8 import build_fp8
    from sd35.compile.graphs import build_graphs
    from sd35.compile.prompts import calibration_prompts, evaluation_prompts
    from sd35.compile.reference_sampling import recipe_of
    from sd35.compile.stages import Stages

    stages = Stages(lambda *_: None)
    sizes: dict[str, int] = {}
    for precision in GRAPH_PRECISIONS.values():
        graphs = build_graphs(checkpoint, precision, CACHE, stages)
        if precision == "fp8":
            prompts = calibration_prompts(checkpoint), evaluation_prompts(checkpoint)
            build_fp8(
                checkpoint, graphs, CalibrationRequest(recipe_of(checkpoint), *prompts, with_sensitivity=False), stages
            )
        graph = graphs.path("transformer")
        sizes[precision] = sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*"))
    return sizes


def _quality(checkpoint: Checkpoint) -> dict[str, Any]:
    """Compare the images of each precision in PyTorch with those of float32, for the prompts of `sd35 compile`.

    The text encoders also compute in the precision.

    Returns:
        By precision: the mean PSNR as `mean_db`, and the PSNR of each image as `psnr_db`.
    """
    from sd35.compile.prompts import evaluation_prompts
    from sd35.compile.quality_gate import compare, generate_images
    from sd35.compile.reference_sampling import recipe_of

    expected, qualities = None, {}
    for precision in ("float32", *_COMPARED):
        options = Options(precision=precision, device="cpu", threads=1)  # type: ignore[arg-type]
        backend = open_backend("diffusers", checkpoint, options)
        negative, *positive = backend.encode_text(["", *evaluation_prompts(checkpoint)])
        images = generate_images(backend, recipe_of(checkpoint), [(text, negative) for text in positive], lambda: None)
        if expected is not None:
            quality = compare(images, expected)
            qualities[precision] = {"mean_db": quality.mean_db, "psnr_db": quality.psnr_db}
        expected = expected or images  # the first images are in float32
    return qualities


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
