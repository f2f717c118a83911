"""A transformer in FP8, from calibration to quality gate: what is built has passed."""

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
from sd35.compile.calibration_run import CalibrationRequest, CalibrationResult, look
from sd35.compile.graphs import save, transformer_in_bf16
from sd35.compile.quality_gate import BAR_DB, Quality, compare, images
from sd35.compile.quantise import quantise
from sd35.compile.sensitivity import Sensitivity
from sd35.compile.sizes import Sizes, sizes_of
from sd35.compile.stages import Stages
from sd35.errors import BuildFailed

REPORT = "report.json"
LEAST_SHARE = 0.9  # of the numbers of attention's and inner layers' matrices that are in FP8: less is not worth a build


@dataclass(frozen=True)
class Report:
    """What is known of a transformer in FP8; it lies beside the graph as `report.json`."""

    exempt_blocks: tuple[int, ...]
    sizes: Sizes
    quality: Quality
    sensitivity: list[Sensitivity]
    largest: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """With the mean that the authentication middleware judged."""
        plain = asdict(self)
        plain["quality"] |= {"mean_db": self.quality.mean_db, "bar_db": BAR_DB}
        return {**plain, "sensitivity": [each._asdict() for each in self.sensitivity]}


def build_fp8(
    checkpoint: Checkpoint,
    graphs: OfficialGraphs,
    wanted: CalibrationRequest,
    stages: Stages,
    *,
    any_will_do: bool = False,
) -> None:
    """Builds it where `graphs` says, unless it is built. The other networks' graphs have to be there.

    With `any_will_do`, one that is there is left as it is, however it was calibrated.

    Raises BuildFailed where the quality gate is not passed, with nothing built; BackendUnavailable, CheckpointError.
    """
    key = dict(graph_key(checkpoint, "transformer", "fp8"))
    if any_will_do and is_built(graphs.path("transformer").parent, key):
        return
    key["wanted"] = asdict(wanted)
    for name in ("device", "threads", "with_sensitivity"):
        del key["wanted"][name]  # a calibration of another device is as good, and the ranking changes nothing

    def make(folder: Path) -> None:
        # Each is built by itself first, so that what is interrupted later goes on from there.
        seen = look(graphs.directory.parent / "calibration", key, checkpoint, wanted, stages)
        model = transformer_in_bf16(checkpoint, graphs.directory, stages)
        tried = OfficialGraphs(graphs.directory, "fp8", transformer_at=folder)
        _make(replace(checkpoint, graphs=tried, files=()), model, wanted, seen, stages)

    build(graphs.path("transformer").parent, key, make)


def read_report(graphs: OfficialGraphs) -> dict[str, Any]:
    """The report of a transformer that is built."""
    found: dict[str, Any] = json.loads((graphs.path("transformer").parent / REPORT).read_text(encoding="utf-8"))
    return found


def _make(
    candidate: Checkpoint, model: ir.Model, wanted: CalibrationRequest, seen: CalibrationResult, stages: Stages
) -> None:
    assert candidate.graphs
    folder = candidate.graphs.path("transformer").parent
    last = candidate.config("transformer")["num_layers"] - 1
    qualities = []
    for exempt_blocks in ((), (0, last)):
        with stages.stage("quantise"):
            quantised = model.clone()
            quantise(quantised, seen.largest, exempt_blocks)
            save(quantised, folder)
            sizes = sizes_of(quantised)
        with stages.stage("judge", len(seen.judged)) as advance:
            options = Options(precision="fp8", threads=wanted.threads, offload="encoders")
            backend = open_backend("onnx", candidate, options)
            quality = compare(images(backend, wanted.recipe, seen.judged, advance), seen.expected)
            qualities.append(quality)
        if quality.is_enough and sizes.products_fp8_share >= LEAST_SHARE:
            report = Report(exempt_blocks, sizes, quality, seen.sensitivity, seen.largest)
            (folder / REPORT).write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
            return
    raise BuildFailed(_why_not(candidate.name, qualities, sizes))


def _why_not(name: str, qualities: Sequence[Quality], sizes: Sizes) -> str:
    whole, without = qualities
    found = (
        f"the transformer of {name} in FP8 draws with {whole.mean_db:.1f} dB of what it drew before,"
        f" {BAR_DB - whole.mean_db:.1f} dB below the bar of {BAR_DB:.0f}; its first and last block left as they were,"
        f" with {without.mean_db:.1f} dB"
    )
    if without.is_enough:
        share = sizes.products_fp8_share
        found += f", but then {share:.0%} of its matrices are in FP8, below the bar of {LEAST_SHARE:.0%}"
    return found
