"""What FP8 saves and what it costs: bytes on disk and in memory against BF16 and float32, images against float32's.

Measured only when it is named: graphs that are not in build/fp8 yet are compiled, which takes minutes.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.outcome import Bar, Outcome
from benchmarks.processes import ROOT, clean_environment
from sd35.backends.options import Options
from sd35.backends.registry import backend_module, open_backend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.compiled import GRAPH_PRECISIONS
from sd35.checkpoints.open import open_checkpoint

CACHE = ROOT / "build" / "fp8"
_HELD = {
    "onnx": ("float32", "bfloat16", "fp8"),
    "diffusers": ("float32", "bfloat16", "fp8-weights", "fp8-storage"),
}
_DRAWN = ("bfloat16", "fp8-weights", "fp8-storage")
_MOST = 0.55  # of BF16: most is half, the rest of the transformer is as it was
_LEAST_DB = 25.0


def measure(directory: Path, rounds: int) -> Outcome:  # noqa: ARG001  bytes are the same each time but for a few MB
    """Each file, each process and each image once."""
    checkpoint = open_checkpoint(str(directory))
    on_disk = _on_disk(checkpoint)
    held = {
        f"{backend} {precision}": _held(backend, precision, directory)
        for backend, precisions in _HELD.items()
        for precision in precisions
    }
    drawn = _drawn(checkpoint)
    weights = {precision: held[f"diffusers {precision}"]["transformer_bytes"] for precision in _HELD["diffusers"]}
    bars = [Bar("transformer's files, FP8 / BF16", on_disk["fp8"] / on_disk["bf16"], "x", "<=", _MOST)]
    for precision in ("fp8-weights", "fp8-storage"):
        ratio = weights[precision] / weights["bfloat16"]
        bars.append(Bar(f"transformer in memory, {precision} / BF16", ratio, "x", "<=", _MOST))
        bars.append(Bar(f"images in {precision} against float32's", drawn[precision]["mean_db"], "dB", ">=", _LEAST_DB))
    notes = [f"transformer's graph and weights on disk, {name}: {_mb(size)}" for name, size in on_disk.items()]
    notes += [
        f"{name}: resident {_mb(found['rise_bytes'])} over the libraries' {_mb(found['libraries_bytes'])}"
        for name, found in held.items()
    ]
    notes += [f"transformer in memory, PyTorch, {name}: {_mb(size)}" for name, size in weights.items()]
    notes += [
        f"images in {precision}: {found['mean_db']:.1f} dB on the mean, {min(found['psnr_db']):.1f} the least"
        for precision, found in drawn.items()
    ]
    return Outcome(bars, notes, {"on_disk_bytes": on_disk, "held": held, "drawn": drawn})


def _on_disk(checkpoint: Checkpoint) -> dict[str, int]:
    """The transformer's graph and the file of its weights, in each precision that is compiled."""
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


def _held(backend: str, precision: str, directory: Path) -> dict[str, Any]:
    """What a process holds that opened it; see `benchmarks.hold_once`."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.hold_once",
        backend,
        precision,
        str(directory),
        str(CACHE),
    ]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{backend} in {precision} ended with {done.returncode}; it said:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _drawn(checkpoint: Checkpoint) -> dict[str, Any]:
    """The judge's images in PyTorch, each precision with its own text encoders, against float32's."""
    from sd35.compile.prompts import evaluation_prompts
    from sd35.compile.quality_gate import compare, generate_images
    from sd35.compile.reference_sampling import recipe_of

    expected, found = None, {}
    for precision in ("float32", *_DRAWN):
        options = Options(precision=precision, device="cpu", threads=1)  # type: ignore[arg-type]
        backend = open_backend("diffusers", checkpoint, options)
        negative, *positive = backend.encode_text(["", *evaluation_prompts(checkpoint)])
        drawn = generate_images(backend, recipe_of(checkpoint), [(each, negative) for each in positive], lambda: None)
        if expected is not None:
            quality = compare(drawn, expected)
            found[precision] = {"mean_db": quality.mean_db, "psnr_db": quality.psnr_db}
        expected = expected or drawn
    return found


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
