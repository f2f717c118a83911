"""Build a transformer in FP8: calibrate, quantise, and check the quality. Only a graph that passes is stored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from sd35.backends.options import Options
from sd35.backends.registry import open_backend
from sd35.checkpoints.build_cache import build, is_built
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.compiled import graph_key
from sd35.checkpoints.graphs.nvidia import OfficialGraphs
from sd35.compile.calibration import Sensitivity
from sd35.compile.calibration_run import CalibrationRequest, CalibrationResult, run_calibration
from sd35.compile.graphs import save, transformer_in_bf16
from sd35.compile.quality_gate import MIN_MEAN_DB, Quality, compare, generate_images
from sd35.compile.quantise import Sizes, quantise, sizes_of
from sd35.compile.stages import Stages
from sd35.errors import BuildFailed

REPORT = "report.json"
MIN_FP8_SHARE = 0.9  # share of the parameters in attention and feed-forward layers; with less, FP8 saves too little


@dataclass(frozen=True)
class Report:
    """The report of an FP8 transformer, stored next to the graph as `report.json`.

    Attributes:
        exempt_blocks: The indices of the blocks that stay in BF16.
        sizes: The sizes of the graph's weights.
        quality: How close the transformer's images are to the reference images.
        sensitivity: The layers and the error that FP8 adds in each, the largest first. Empty if not measured.
        largest_inputs: The largest input magnitude of each layer with FP8 weights, from the calibration.
    """

    exempt_blocks: tuple[int, ...]
    sizes: Sizes
    quality: Quality
    sensitivity: list[Sensitivity]
    largest_inputs: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values, including the mean quality and its minimum."""
        plain = asdict(self)
        plain["quality"] |= {"mean_db": self.quality.mean_db, "bar_db": MIN_MEAN_DB}
        return {**plain, "sensitivity": [layer._asdict() for layer in self.sensitivity]}


def build_fp8(
    checkpoint: Checkpoint,
    graphs: OfficialGraphs,
    request: CalibrationRequest,
    stages: Stages,
    *,
    reuse_existing: bool = False,
) -> None:
    """Build the FP8 transformer of `graphs`, unless it is already built. The graphs of the other networks must exist.

    With `reuse_existing`, an existing FP8 transformer is kept even if it was calibrated with other parameters.

    Raises:
        BuildFailed: The images differ too much from the reference images, or too few weights are in FP8. Then the
            transformer is not stored. Or the cache cannot be written.
        InvalidSetting, BackendUnavailable, CheckpointError: As in `run_calibration`.
    """
    key = dict(graph_key(checkpoint, "transformer", "fp8"))
    if reuse_existing and is_built(graphs.path("transformer").parent, key):
        return
    key["request"] = asdict(request)
    for name in ("device", "threads", "with_sensitivity"):
        del key["request"][name]  # these do not affect the graph

    def write(folder: Path) -> None:
        """Build the transformer in a temporary folder of the build cache."""
        # Calibration and the BF16 graph are cached separately, so that an interrupted build does not repeat them.
        calibration = run_calibration(graphs.directory.parent / "calibration", key, checkpoint, request, stages)
        model = transformer_in_bf16(checkpoint, graphs.directory, stages)
        candidate = OfficialGraphs(graphs.directory, "fp8", transformer_at=folder)
        _quantise_and_evaluate(replace(checkpoint, graphs=candidate, files=()), model, request, calibration, stages)

    build(graphs.path("transformer").parent, key, write)


def read_report(graphs: OfficialGraphs) -> dict[str, Any]:
    """Read the report of an FP8 transformer that was built, as in `Report.to_json`."""
    report: dict[str, Any] = json.loads((graphs.path("transformer").parent / REPORT).read_text(encoding="utf-8"))
    return report


def _quantise_and_evaluate(
    candidate: Checkpoint, model: ir.Model, request: CalibrationRequest, calibration: CalibrationResult, stages: Stages
) -> None:
    """Write an FP8 transformer to the folder of `candidate`, check the quality of its images, and write the report.

    All blocks are quantised first. If the quality is too low, the first and the last block stay in BF16. Raises
    BuildFailed if the quality is then still too low, or too few parameters are in FP8.
    """
    assert candidate.graphs
    folder = candidate.graphs.path("transformer").parent
    last = candidate.config("transformer")["num_layers"] - 1
    qualities = []
    for exempt_blocks in ((), (0, last)):
        with stages.stage("quantise"):
            quantised = model.clone()
            quantise(quantised, calibration.largest_inputs, exempt_blocks)
            save(quantised, folder)
            sizes = sizes_of(quantised)
        texts = calibration.evaluation_texts
        with stages.stage("evaluate", len(texts)) as advance:
            backend = open_backend("onnx", candidate, Options("fp8", threads=request.threads, offload="encoders"))
            images = generate_images(backend, request.recipe, texts, advance)
            quality = compare(images, calibration.reference_images)
            qualities.append(quality)
        if quality.is_sufficient and sizes.products_fp8_share >= MIN_FP8_SHARE:
            report = Report(exempt_blocks, sizes, quality, calibration.sensitivity, calibration.largest_inputs)
            (folder / REPORT).write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
            return
    raise BuildFailed(_failure_message(candidate.name, qualities, sizes))


def _failure_message(name: str, qualities: Sequence[Quality], sizes: Sizes) -> str:
    """Explain why neither attempt was good enough. `sizes` are those of the second attempt."""
    all_blocks, inner_blocks = qualities
    message = (
        f"the images of {name} with an FP8 transformer differ too much from the reference images: their mean PSNR is"
        f" {all_blocks.mean_db:.1f} dB, {MIN_MEAN_DB - all_blocks.mean_db:.1f} dB below the minimum of"
        f" {MIN_MEAN_DB:.0f}. With the first and the last block in BF16, it is {inner_blocks.mean_db:.1f} dB"
    )
    if inner_blocks.is_sufficient:
        in_fp8 = f"only {sizes.products_fp8_share:.0%} of the attention and feed-forward weights are in FP8"
        message += f", but then {in_fp8}, below the minimum of {MIN_FP8_SHARE:.0%}"
    return f"{message}. Use --precision bf16 instead"
