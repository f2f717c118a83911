"""A transformer in FP8, from calibration to quality gate: what is built has passed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sd35.backends.contract import Array
from sd35.backends.diffusers import DiffusersBackend
from sd35.backends.options import Options
from sd35.backends.table import open_backend
from sd35.checkpoints.built import build, is_built
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.compiled_graphs import graph_key
from sd35.checkpoints.tensorrt_onnx import OfficialGraphs
from sd35.compile.calibration import Calibration, calibrate, fp8_layers
from sd35.compile.drawing import Guided, Recipe, as_arrays
from sd35.compile.gate import BAR_DB, Quality, compare, pictures
from sd35.compile.graphs import exported, save
from sd35.compile.networks import graphs_of
from sd35.compile.quantise import quantise
from sd35.compile.sensitivity import Sensitivity, rank
from sd35.compile.sizes import Sizes, sizes_of
from sd35.compile.stages import Stages
from sd35.errors import BuildFailed

REPORT = "report.json"
LEAST_SHARE = 0.9  # of the numbers of attention's and inner layers' matrices that are in FP8: less is not worth a build


@dataclass(frozen=True)
class Wanted:
    """How it is calibrated and judged. `with_sensitivity`: whether the layers are ranked, one step for each."""

    recipe: Recipe
    calibration_prompts: Sequence[str]
    judged_prompts: Sequence[str]
    device: str = "auto"
    threads: int = 0
    with_sensitivity: bool = True


@dataclass(frozen=True)
class Report:
    """What is known of a transformer in FP8; it lies beside the graph as `report.json`."""

    exempt_blocks: tuple[int, ...]
    sizes: Sizes
    quality: Quality
    sensitivity: list[Sensitivity]
    largest: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """With the mean that the gate judged."""
        plain = asdict(self)
        plain["quality"] |= {"mean_db": self.quality.mean_db, "bar_db": BAR_DB}
        return {**plain, "sensitivity": [each._asdict() for each in self.sensitivity]}


def build_fp8(
    checkpoint: Checkpoint, graphs: OfficialGraphs, wanted: Wanted, stages: Stages, *, any_will_do: bool = False
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
    build(graphs.path("transformer").parent, key, partial(_make, checkpoint, graphs, wanted, stages))


def read_report(graphs: OfficialGraphs) -> dict[str, Any]:
    """The report of a transformer that is built."""
    found: dict[str, Any] = json.loads((graphs.path("transformer").parent / REPORT).read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class _Before:
    """What PyTorch's networks tell before they leave memory."""

    calibration: Calibration
    sensitivity: list[Sensitivity]
    judged: list[Guided]
    expected: list[Array]


def _make(checkpoint: Checkpoint, graphs: OfficialGraphs, wanted: Wanted, stages: Stages, folder: Path) -> None:
    before = _look(checkpoint, wanted, stages)
    last = checkpoint.config("transformer")["num_layers"] - 1
    built = replace(checkpoint, graphs=OfficialGraphs(graphs.directory, "fp8", transformer_at=folder), files=())
    with stages.stage("graph of transformer"):
        graph = next(each for each in graphs_of(checkpoint) if each.part == "transformer")
        model = exported(checkpoint, graph, "bf16")
    qualities = []
    for exempt_blocks in ((), (0, last)):
        with stages.stage("quantise"):
            quantised = model.clone()
            quantise(quantised, before.calibration.largest, exempt_blocks)
            save(quantised, folder)
            sizes = sizes_of(quantised)
        with stages.stage("judge", len(before.judged)) as advance:
            options = Options(precision="fp8", threads=wanted.threads, offload="encoders")
            candidate = open_backend("onnx", built, options)
            quality = compare(pictures(candidate, wanted.recipe, before.judged, advance), before.expected)
            qualities.append(quality)
        if quality.is_enough and sizes.products_fp8_share >= LEAST_SHARE:
            report = Report(exempt_blocks, sizes, quality, before.sensitivity, before.calibration.largest)
            (folder / REPORT).write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
            return
    raise BuildFailed(_why_not(checkpoint, qualities, sizes))


def _why_not(checkpoint: Checkpoint, qualities: Sequence[Quality], sizes: Sizes) -> str:
    whole, without = qualities
    found = (
        f"the transformer of {checkpoint.name} in FP8 draws with {whole.mean_db:.1f} dB of what it drew before,"
        f" {BAR_DB - whole.mean_db:.1f} dB below the bar of {BAR_DB:.0f}; its first and last block left as they were,"
        f" with {without.mean_db:.1f} dB"
    )
    if without.is_enough:
        share = sizes.products_fp8_share
        found += f", but then {share:.0%} of its matrices are in FP8, below the bar of {LEAST_SHARE:.0%}"
    return found


def _look(checkpoint: Checkpoint, wanted: Wanted, stages: Stages) -> _Before:
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
        expected = pictures(backend, wanted.recipe, judging, advance)
    return _Before(calibration, sensitivity, [as_arrays(text) for text in judging], expected)
