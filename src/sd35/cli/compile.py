"""`sd35 compile`: a checkpoint's networks as graphs, the transformer in FP8 if so wished, and as TensorRT's engines."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sd35.backends.registry import backend_module
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.compiled import GraphPrecision
from sd35.checkpoints.graphs.engines import ENGINE_FILE
from sd35.checkpoints.graphs.nvidia import OfficialGraphs
from sd35.errors import InvalidSetting
from sd35.planning.report import size_text
from sd35.request import SIZE_MULTIPLE_PX
from sd35.service.startup import open_checkpoints
from sd35.settings import Settings

if TYPE_CHECKING:
    from sd35.compile.calibration_run import CalibrationRequest
    from sd35.compile.stages import Stages

_SHOWN_LAYERS = 10
_LEAST_PROMPTS = 12  # a third of them are for the judge


@dataclass(frozen=True)
class EngineOptions:
    """Which of TensorRT's engines to build; None leaves it to this machine, the model, or `DEFAULT_ROWS`."""

    gpus: str | None
    shapes: str | None
    rows: int | None


@dataclass(frozen=True)
class CompileOptions:
    """What to build. `size`, `steps`, `prompts` are for calibrating and judging FP8; None leaves them to the model."""

    precision: GraphPrecision
    target: Literal["onnx", "tensorrt"]
    size: str | None
    steps: int | None
    prompts: Path | None
    with_sensitivity: bool
    engines: EngineOptions

    @property
    def calibrates(self) -> bool:
        """Whether something was said of calibrating."""
        return any(asked is not None for asked in (self.size, self.steps, self.prompts))


def compile_checkpoints(settings: Settings, order: CompileOptions, *, as_json: bool) -> None:
    """Build what is not built yet, and say where it lies.

    Raises InvalidSetting, BackendUnavailable, CheckpointError, BuildFailed.
    """
    if order.target == "onnx" and order.engines != EngineOptions(None, None, None):
        raise InvalidSetting("gpu, shapes, rows: they are of engines; allowed: with --target tensorrt")
    if order.precision != "fp8" and order.calibrates:
        raise InvalidSetting("size, steps, prompts: they are for calibrating; allowed: with --precision fp8")
    if order.precision != "fp32" and settings.transformer == "auto":  # of NVIDIA's graphs, the one that was asked for
        settings = settings.model_copy(update={"transformer": order.precision})
    checkpoints = open_checkpoints(settings)
    from sd35.compile.stages import Stages

    with _progress() as on_progress:
        found = [_compile(checkpoint, settings, order, Stages(on_progress)) for checkpoint in checkpoints]
    print(json.dumps(found, indent=2) if as_json else "\n\n".join(map(_as_text, found)))


def _compile(checkpoint: Checkpoint, settings: Settings, order: CompileOptions, stages: "Stages") -> dict[str, Any]:
    make_engines = _engines(checkpoint, settings, order) if order.target == "tensorrt" else None
    graphs, report = _graphs(checkpoint, settings, order, stages)
    engines = make_engines(graphs, stages) if make_engines else {}
    return {
        "checkpoint": checkpoint.name,
        "precision": order.precision,
        "directory": str(graphs.directory),
        "bytes": {name: path.stat().st_size for name, path in sorted(graphs.files().items())},
        **({"engines": engines} if engines else {}),
        "took_s": {name: round(took_s, 2) for name, took_s in stages.seconds.items()},
        **report,
    }


def _graphs(
    checkpoint: Checkpoint, settings: Settings, order: CompileOptions, stages: "Stages"
) -> tuple[OfficialGraphs, dict[str, Any]]:
    """The graphs, NVIDIA's own where those are the checkpoint, else built; and of FP8 the report."""
    if graphs := checkpoint.graphs:
        if order.target == "onnx":
            raise InvalidSetting(f"checkpoint: {graphs.directory} holds graphs already; allowed: what has weights")
        if order.calibrates:
            raise InvalidSetting(f"size, steps, prompts: {graphs.directory} holds graphs that are calibrated already")
        if graphs.transformer != order.precision:
            raise InvalidSetting(f"precision: got {order.precision}; {graphs.directory} holds {graphs.transformer}")
        return graphs, {}
    backend_module("diffusers")
    from sd35.compile.fp8 import build_fp8, read_report
    from sd35.compile.graphs import build_graphs

    wanted = _wanted(checkpoint, settings, order)
    graphs = build_graphs(checkpoint, order.precision, settings.cache_dir, stages)
    if order.precision != "fp8":
        return graphs, {}
    build_fp8(checkpoint, graphs, wanted, stages, reuse_existing=not order.calibrates)
    return graphs, read_report(graphs)


def _engines(
    checkpoint: Checkpoint, settings: Settings, order: CompileOptions
) -> Callable[[OfficialGraphs, "Stages"], dict[str, dict[str, int]]]:
    """What builds the engines once the graphs are there, each folder's bytes by architecture; wrong asking ends here.

    Raises InvalidSetting, BackendUnavailable where there is no TensorRT.
    """
    from sd35.backends.tensorrt.buckets import buckets_of
    from sd35.backends.tensorrt.flavour import find_flavour
    from sd35.compile.engines import DEFAULT_ROWS, EngineBuilder, EngineShapes, build_engines, targets_of

    flavour, asked = find_flavour(), order.engines
    gpus = [gpu.strip() for gpu in (asked.gpus or "").split(",") if gpu.strip()]
    targets = targets_of(flavour, gpus)
    wanted = EngineShapes(buckets_of(asked.shapes or "", checkpoint.card), asked.rows or DEFAULT_ROWS)

    def build(graphs: OfficialGraphs, stages: "Stages") -> dict[str, dict[str, int]]:
        builder = EngineBuilder(checkpoint, graphs, wanted, flavour)
        found = {}
        for target in targets:
            folders = build_engines(builder, target, settings.cache_dir, stages)
            found[target.gpu] = {str(folder): (folder / ENGINE_FILE).stat().st_size for folder in folders}
        return found

    return build


def _wanted(checkpoint: Checkpoint, settings: Settings, order: CompileOptions) -> "CalibrationRequest":
    from sd35.compile.calibration_run import CalibrationRequest
    from sd35.compile.prompts import calibration_prompts, evaluation_prompts
    from sd35.compile.reference_sampling import recipe_of

    recipe = recipe_of(checkpoint)
    if order.size:
        width_px, height_px = _size(order.size, checkpoint)
        recipe = replace(recipe, width_px=width_px, height_px=height_px)
    if order.steps is not None:
        recipe = replace(recipe, steps=order.steps)
    calibrating, judging = calibration_prompts(checkpoint), evaluation_prompts(checkpoint)
    if order.prompts:
        calibrating, judging = _read_prompts(order.prompts)
    return CalibrationRequest(recipe, calibrating, judging, settings.device, settings.threads, order.with_sensitivity)


def _size(text: str, checkpoint: Checkpoint) -> tuple[int, int]:
    low, high = checkpoint.card.side_px
    sides = [int(side) for side in text.split("x") if side.isdecimal()]
    if len(sides) != 2 or any(side % SIZE_MULTIPLE_PX or not low <= side <= high for side in sides):
        allowed = f"WIDTHxHEIGHT, each a multiple of {SIZE_MULTIPLE_PX} from {low} to {high}"
        raise InvalidSetting(f"--size: got {text!r}; allowed: {allowed}")
    return sides[0], sides[1]


def _read_prompts(path: Path) -> tuple[list[str], list[str]]:
    """The lines of a file: every third is for the judge."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"--prompts: {path} cannot be read: {error}") from error
    if len(lines) < _LEAST_PROMPTS:
        raise InvalidSetting(f"--prompts: {path} holds {len(lines)}; allowed: {_LEAST_PROMPTS} or more, a line each")
    judging = lines[2::3]
    return [line for index, line in enumerate(lines) if index % 3 != 2], judging


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage on a terminal, else a line when it ends; on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda name, done, total: None if done < total else print(f"{name}: done", file=sys.stderr, flush=True)
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        bars: dict[str, Any] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name)
            progress.update(bars[name], completed=done, total=total)

        yield show


def _as_text(found: dict[str, Any]) -> str:
    lines = [f"{found['checkpoint']} in {found['precision']}: {found['directory']}"]
    lines.append(f"  {size_text(sum(found['bytes'].values()))} in {len(found['bytes'])} files")
    for gpu, engines in found.get("engines", {}).items():
        lines.append(f"  engines for {gpu}, {size_text(sum(engines.values()))}: {Path(next(iter(engines))).parent}")
    if "quality" in found:
        quality, sizes = found["quality"], found["sizes"]
        lines.append(
            f"  images against those before: {quality['mean_db']:.1f} dB on the mean of {len(quality['psnr_db'])},"
            f" {min(quality['psnr_db']):.1f} dB the least (bar {quality['bar_db']:.0f} on the mean)"
        )
        lines.append(
            f"  {sizes['products_fp8_share']:.1%} of attention's and inner layers' weights in FP8; the transformer is"
            f" {sizes['total_bytes'] / sizes['total_bf16_bytes']:.2f} of its size in BF16"
        )
        if found["exempt_blocks"]:
            lines.append(f"  left as they were, for quality: blocks {', '.join(map(str, found['exempt_blocks']))}")
        if found["sensitivity"]:
            lines.append("  most sensitive layers, by the error of the velocity with each alone in FP8:")
            lines += [f"    {each['error']:.4f}  {each['layer']}" for each in found["sensitivity"][:_SHOWN_LAYERS]]
    if found["took_s"]:
        lines.append("  " + ", ".join(f"{name} {took_s:.1f} s" for name, took_s in found["took_s"].items()))
    return "\n".join(lines)
