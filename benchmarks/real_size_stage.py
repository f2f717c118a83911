"""One stage of `benchmarks.real_size`, in a process of its own: `python -m benchmarks.real_size_stage STAGE FOLDER`."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from benchmarks.worker import peak_bytes
from sd35.backends.diffusers import DiffusersBackend
from sd35.backends.options import Options
from sd35.backends.table import open_backend
from sd35.checkpoints.architectures import ARCHITECTURES
from sd35.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sd35.checkpoints.tensorrt_onnx import GRAPH_FILE
from sd35.compile.calibration import calibrate
from sd35.compile.drawing import recipe_of
from sd35.compile.graphs import exported, save
from sd35.compile.networks import graphs_of
from sd35.compile.quantise import quantise
from sd35.compile.sizes import sizes_of
from sd35.compile.synth import synthesise

SIDE_PX = 256  # the smallest that the checkpoint draws: what calibrating takes, a CPU has to compute
_LARGEST = "largest.json"


def synth(folder: Path) -> dict[str, Any]:
    """SD3.5 Medium's transformer and autoencoder with random weights, and encoders of its widths with one layer."""
    medium = ARCHITECTURES["sd3.5-medium"]
    one = {"num_hidden_layers": 1}
    architecture = replace(
        medium,
        text_encoder={**medium.text_encoder, **one},
        text_encoder_2={**medium.text_encoder_2, **one},
        text_encoder_3={**medium.text_encoder_3, "num_layers": 1},
    )
    synthesise(architecture, folder / "checkpoint", "bfloat16", lambda *_: None)
    return {}


def export(folder: Path) -> dict[str, Any]:
    """The transformer's graph in BF16, its weights beside."""
    checkpoint = _checkpoint(folder)
    graph = next(each for each in graphs_of(checkpoint) if each.part == "transformer")
    model = exported(checkpoint, graph, "bf16")
    return _saved(model, folder / "bf16")


def calibration(folder: Path) -> dict[str, Any]:
    """The largest inputs over one prompt and two steps, by PyTorch in float32."""
    checkpoint = _checkpoint(folder)
    backend = open_backend("diffusers", checkpoint, Options(precision="float32", device="cpu", offload="encoders"))
    assert isinstance(backend, DiffusersBackend)
    positive, negative = backend.encode_text(["a cat", ""])
    recipe = replace(recipe_of(checkpoint), width_px=SIDE_PX, height_px=SIDE_PX, steps=2)
    found = calibrate(backend, recipe, [(positive, negative)], lambda: None)
    (folder / _LARGEST).write_text(json.dumps(found.largest))
    return {"layers": len(found.largest)}


def quantisation(folder: Path) -> dict[str, Any]:
    """The graph in FP8, from the one in BF16."""
    model = ir.load(folder / "bf16" / GRAPH_FILE)
    quantise(model, json.loads((folder / _LARGEST).read_text()))
    return {**_saved(model, folder / "fp8"), **asdict(sizes_of(model))}


def _saved(model: ir.Model, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    save(model, folder)
    return {"file_bytes": sum(path.stat().st_size for path in folder.iterdir())}


def _checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(str(folder / "checkpoint"))


STAGES: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "synth": synth,
    "export": export,
    "calibrate": calibration,
    "quantise": quantisation,
}


def main() -> None:
    """Run the stage, then print its figures as JSON."""
    name, folder = sys.argv[1:]
    began_s = time.perf_counter()
    found = STAGES[name](Path(folder))
    print(json.dumps({"took_s": time.perf_counter() - began_s, "peak_bytes": peak_bytes(), **found}))


if __name__ == "__main__":
    main()
