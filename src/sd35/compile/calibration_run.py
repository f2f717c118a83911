"""What PyTorch's networks tell before they leave memory: calibration, ranking, and what they draw for the judge.

It is kept as a built folder of its own, so that a build that was interrupted later does not look again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sd35.backends.base import TextEmbedding
from sd35.backends.diffusers.backend import DiffusersBackend
from sd35.backends.options import Options
from sd35.backends.registry import open_backend
from sd35.checkpoints.build_cache import Key, build
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.compile.calibration import calibrate, fp8_layers
from sd35.compile.quality_gate import images
from sd35.compile.reference_sampling import Guided, Recipe, as_arrays
from sd35.compile.sensitivity import Sensitivity, rank
from sd35.compile.stages import Stages
from sd35.tensors import Array

_FOUND, _ARRAYS = "found.json", "arrays.npz"


@dataclass(frozen=True)
class CalibrationRequest:
    """How it is calibrated and judged. `with_sensitivity`: whether the layers are ranked, one step for each."""

    recipe: Recipe
    calibration_prompts: Sequence[str]
    judged_prompts: Sequence[str]
    device: str = "auto"
    threads: int = 0
    with_sensitivity: bool = True


@dataclass(frozen=True)
class CalibrationResult:
    """`largest`: each layer's largest input. `judged`: embeddings of the judge's prompts, `expected` their images."""

    largest: Mapping[str, float]
    sensitivity: list[Sensitivity]
    judged: list[Guided]
    expected: list[Array]


def look(
    folder: Path, key: Key, checkpoint: Checkpoint, wanted: CalibrationRequest, stages: Stages
) -> CalibrationResult:
    """What is kept in the folder under the key, or what is seen now. Raises BackendUnavailable, CheckpointError."""
    key = {**key, "ranked": wanted.with_sensitivity}
    build(folder, key, partial(_look, checkpoint, wanted, stages))
    found = json.loads((folder / _FOUND).read_text(encoding="utf-8"))
    with np.load(folder / _ARRAYS) as arrays:
        texts = [_text(arrays, index) for index in range(len(wanted.judged_prompts) + 1)]
        expected = [arrays[f"image {index}"] for index in range(len(wanted.judged_prompts))]
    negative, *judged = texts
    ranking = [Sensitivity(**each) for each in found["sensitivity"]]
    return CalibrationResult(found["largest"], ranking, [(text, negative) for text in judged], expected)


def _look(checkpoint: Checkpoint, wanted: CalibrationRequest, stages: Stages, folder: Path) -> None:
    with stages.stage("load PyTorch's networks"):
        options = Options(device=wanted.device, threads=wanted.threads, offload="encoders")
        backend = open_backend("diffusers", checkpoint, options)
        assert isinstance(backend, DiffusersBackend)
        negative, *found = backend.encode_text(["", *wanted.calibration_prompts, *wanted.judged_prompts])
    texts = [(each, negative) for each in found]
    calibrating, judging = texts[: len(wanted.calibration_prompts)], texts[len(wanted.calibration_prompts) :]
    with stages.stage("calibrate", len(calibrating) * wanted.recipe.steps) as advance:
        calibration = calibrate(backend, wanted.recipe, calibrating, advance)
    sensitivity = []
    if wanted.with_sensitivity:
        with stages.stage("rank layers", len(fp8_layers(backend.transformer))) as advance:
            sensitivity = rank(backend, calibration, advance)
    with stages.stage("draw before", len(judging)) as advance:
        expected = images(backend, wanted.recipe, judging, advance)
    told = {"largest": calibration.largest, "sensitivity": [each._asdict() for each in sensitivity]}
    (folder / _FOUND).write_text(json.dumps(told), encoding="utf-8")
    kept = {f"image {index}": image for index, image in enumerate(expected)}
    for index, text in enumerate((negative, *(positive for positive, _ in judging))):
        array, _ = as_arrays((text, text))
        kept |= {f"tokens {index}": array.tokens, f"pooled {index}": array.pooled}
    np.savez(folder / _ARRAYS, allow_pickle=False, **kept)


def _text(arrays: Mapping[str, Array], index: int) -> TextEmbedding:
    tokens, pooled = arrays[f"tokens {index}"], arrays[f"pooled {index}"]
    return TextEmbedding(tokens, pooled, tokens.nbytes + pooled.nbytes)
