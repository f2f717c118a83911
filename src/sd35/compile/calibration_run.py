"""The part of an FP8 build that needs PyTorch: calibration, sensitivity ranking, and reference images.

The result is cached in a separate folder, so that a build that is interrupted later does not repeat this part.
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
from sd35.compile.calibration import Sensitivity, calibrate, fp8_layers, rank
from sd35.compile.quality_gate import generate_images
from sd35.compile.reference_sampling import Guided, Recipe, as_arrays
from sd35.compile.stages import Stages
from sd35.tensors import Array

_CALIBRATION, _ARRAYS = "calibration.json", "arrays.npz"


@dataclass(frozen=True)
class CalibrationRequest:
    """The parameters of calibration and evaluation.

    `with_sensitivity` also ranks the layers, which takes one evaluation for each layer.
    """

    recipe: Recipe
    calibration_prompts: Sequence[str]
    evaluation_prompts: Sequence[str]
    device: str = "auto"
    threads: int = 0
    with_sensitivity: bool = True


@dataclass(frozen=True)
class CalibrationResult:
    """The largest input magnitude by layer, the ranking, and data of the evaluation prompts for the quality gate."""

    largest_inputs: Mapping[str, float]
    sensitivity: list[Sensitivity]
    evaluation_texts: list[Guided]
    reference_images: list[Array]


def run_calibration(
    folder: Path, key: Key, checkpoint: Checkpoint, request: CalibrationRequest, stages: Stages
) -> CalibrationResult:
    """Calibrate, or load the result from the folder if it was built with the same key.

    Raises BackendUnavailable, CheckpointError.
    """
    build(folder, {**key, "ranked": request.with_sensitivity}, partial(_calibrate, checkpoint, request, stages))
    calibration = json.loads((folder / _CALIBRATION).read_text(encoding="utf-8"))
    with np.load(folder / _ARRAYS) as arrays:
        count = len(request.evaluation_prompts)
        negative, *texts = [_load_text(arrays, index) for index in range(count + 1)]
        images = [arrays[f"image {index}"] for index in range(count)]
    ranking = [Sensitivity(**each) for each in calibration["sensitivity"]]
    return CalibrationResult(calibration["largest_inputs"], ranking, [(text, negative) for text in texts], images)


def _calibrate(checkpoint: Checkpoint, request: CalibrationRequest, stages: Stages, folder: Path) -> None:
    with stages.stage("load PyTorch's networks"):
        options = Options(device=request.device, threads=request.threads, offload="encoders")
        backend = open_backend("diffusers", checkpoint, options)
        assert isinstance(backend, DiffusersBackend)
        negative, *positive = backend.encode_text(["", *request.calibration_prompts, *request.evaluation_prompts])
    texts, count = [(each, negative) for each in positive], len(request.calibration_prompts)
    calibration_texts, evaluation_texts = texts[:count], texts[count:]
    with stages.stage("calibrate", count * request.recipe.steps) as advance:
        calibration = calibrate(backend, request.recipe, calibration_texts, advance)
    ranking = []
    if request.with_sensitivity:
        with stages.stage("rank layers", len(fp8_layers(backend.transformer))) as advance:
            ranking = rank(backend, calibration, advance)
    with stages.stage("generate reference images", len(evaluation_texts)) as advance:
        images = generate_images(backend, request.recipe, evaluation_texts, advance)
    result = {"largest_inputs": calibration.largest_inputs, "sensitivity": [each._asdict() for each in ranking]}
    (folder / _CALIBRATION).write_text(json.dumps(result), encoding="utf-8")
    arrays = {f"image {index}": image for index, image in enumerate(images)}
    for index, text in enumerate((negative, *(each for each, _ in evaluation_texts))):
        array, _ = as_arrays((text, text))
        arrays |= {f"tokens {index}": array.tokens, f"pooled {index}": array.pooled}
    np.savez(folder / _ARRAYS, allow_pickle=False, **arrays)


def _load_text(arrays: Mapping[str, Array], index: int) -> TextEmbedding:
    tokens, pooled = arrays[f"tokens {index}"], arrays[f"pooled {index}"]
    return TextEmbedding(tokens, pooled, tokens.nbytes + pooled.nbytes)
