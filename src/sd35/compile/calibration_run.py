"""The part of an FP8 build that needs PyTorch: calibration, the ranking of layers, and reference images.

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

    Attributes:
        recipe: The sampling parameters of all images.
        calibration_prompts: The prompts to find the largest inputs with.
        evaluation_prompts: The prompts of the images that are compared with reference images.
        device: The device of the `diffusers` backend.
        threads: The number of processor threads. 0 means one per core.
        with_sensitivity: Whether to rank the layers too. This takes one call of the transformer for each layer.
    """

    recipe: Recipe
    calibration_prompts: Sequence[str]
    evaluation_prompts: Sequence[str]
    device: str = "auto"
    threads: int = 0
    with_sensitivity: bool = True


@dataclass(frozen=True)
class CalibrationResult:
    """The result of `run_calibration`, which all later parts of an FP8 build use.

    Attributes:
        largest_inputs: The largest input magnitude by layer.
        sensitivity: The ranking of the layers. Empty if it was not requested.
        evaluation_texts: The embeddings of the evaluation prompts.
        reference_images: The images of the evaluation prompts without FP8, uint8 `[height, width, 3]`.
    """

    largest_inputs: Mapping[str, float]
    sensitivity: list[Sensitivity]
    evaluation_texts: list[Guided]
    reference_images: list[Array]


def run_calibration(
    folder: Path, key: Key, checkpoint: Checkpoint, request: CalibrationRequest, stages: Stages
) -> CalibrationResult:
    """Calibrate and store the result in `folder`, or read it from there if it was built with the same key.

    `key` is the key of the FP8 transformer in the build cache, which names everything that determines its content.

    Raises:
        InvalidSetting: The `diffusers` backend does not support the device.
        BackendUnavailable: PyTorch or the device is missing.
        CheckpointError: The checkpoint cannot be loaded.
        BuildFailed: The folder cannot be written.
    """
    build(folder, {**key, "ranked": request.with_sensitivity}, partial(_calibrate, checkpoint, request, stages))
    calibration = json.loads((folder / _CALIBRATION).read_text(encoding="utf-8"))
    with np.load(folder / _ARRAYS) as arrays:
        count = len(request.evaluation_prompts)
        negative, *texts = [_load_text(arrays, index) for index in range(count + 1)]
        images = [arrays[f"image {index}"] for index in range(count)]
    ranking = [Sensitivity(**layer) for layer in calibration["sensitivity"]]
    return CalibrationResult(calibration["largest_inputs"], ranking, [(text, negative) for text in texts], images)


def _calibrate(checkpoint: Checkpoint, request: CalibrationRequest, stages: Stages, folder: Path) -> None:
    """Calibrate, rank the layers, generate the reference images, and write the results to `folder`."""
    with stages.stage("load PyTorch's networks"):
        options = Options(device=request.device, threads=request.threads, offload="encoders")
        backend = open_backend("diffusers", checkpoint, options)
        assert isinstance(backend, DiffusersBackend)
        negative, *positive = backend.encode_text(["", *request.calibration_prompts, *request.evaluation_prompts])
    texts, count = [(embedding, negative) for embedding in positive], len(request.calibration_prompts)
    calibration_texts, evaluation_texts = texts[:count], texts[count:]
    with stages.stage("calibrate", count * request.recipe.steps) as advance:
        calibration = calibrate(backend, request.recipe, calibration_texts, advance)
    ranking = []
    if request.with_sensitivity:
        with stages.stage("rank layers", len(fp8_layers(backend.transformer))) as advance:
            ranking = rank(backend, calibration, advance)
    with stages.stage("generate reference images", len(evaluation_texts)) as advance:
        images = generate_images(backend, request.recipe, evaluation_texts, advance)
    result = {"largest_inputs": calibration.largest_inputs, "sensitivity": [layer._asdict() for layer in ranking]}
    (folder / _CALIBRATION).write_text(json.dumps(result), encoding="utf-8")
    arrays = {f"image {index}": image for index, image in enumerate(images)}
    # Index 0 is the negative prompt, which all texts share. The evaluation prompts follow, as `_load_text` expects.
    for index, embedding in enumerate((negative, *(prompt for prompt, _ in evaluation_texts))):
        array, _ = as_arrays((embedding, embedding))
        arrays |= {f"tokens {index}": array.tokens, f"pooled {index}": array.pooled}
    np.savez(folder / _ARRAYS, allow_pickle=False, **arrays)


def _load_text(arrays: Mapping[str, Array], index: int) -> TextEmbedding:
    """Return the embedding that `_calibrate` stored under an index."""
    tokens, pooled = arrays[f"tokens {index}"], arrays[f"pooled {index}"]
    return TextEmbedding(tokens, pooled, tokens.nbytes + pooled.nbytes)
