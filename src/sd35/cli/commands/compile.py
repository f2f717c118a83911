"""The command `sd35 compile`."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sd35.backends.registry import backend_module
from sd35.backends.tensorrt.buckets import buckets_of
from sd35.backends.tensorrt.flavour import find_flavour
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.compiled import ENGINE_FILE, GraphPrecision
from sd35.checkpoints.graphs.nvidia import OfficialGraphs
from sd35.cli.options import AsJson, with_settings
from sd35.compile.stages import Stages
from sd35.errors import InvalidSetting
from sd35.planning.report import size_text
from sd35.request import SIZE_MULTIPLE_PX, STEPS
from sd35.settings import Settings
from sd35.startup import open_checkpoints

if TYPE_CHECKING:
    from sd35.compile.calibration_run import CalibrationRequest  # imports torch

_SHOWN_LAYERS = 10
_MIN_PROMPTS = 12  # a third of them evaluate the result
app = typer.Typer()


@dataclass(frozen=True)
class CompileOptions:
    """The options of a build.

    `size`, `steps` and `prompts` are those of calibrating and evaluating FP8; None stands for the model's defaults.
    `gpus`, `shapes` and `rows` are those of TensorRT engines; None stands for the GPUs of this machine, the model's
    sizes, and `DEFAULT_ROWS`.
    """

    precision: GraphPrecision
    target: Literal["onnx", "tensorrt"]
    size: str | None
    steps: int | None
    prompts: Path | None
    with_sensitivity: bool
    gpus: str | None
    shapes: str | None
    rows: int | None

    @property
    def calibrates(self) -> bool:
        """Whether an option of the calibration was given."""
        return any(option is not None for option in (self.size, self.steps, self.prompts))

    def check(self) -> None:
        """Raise InvalidSetting for options that exclude each other."""
        if self.target == "onnx" and (self.gpus, self.shapes, self.rows) != (None, None, None):
            raise InvalidSetting("--gpu, --shapes, --rows: options of engines; allowed: only with --target tensorrt")
        if self.precision != "fp8" and self.calibrates:
            raise InvalidSetting(
                "--size, --steps, --prompts: options of the calibration; allowed: only with --precision fp8"
            )


@app.command("compile")
@with_settings(*("checkpoints", "weights", "registry", "base_checkpoint", "offline", "device", "threads", "cache_dir"))
def compile_(
    *,
    graph_precision: Annotated[
        Literal["fp32", "bf16", "fp8"],
        typer.Option("--precision", help="Number format of the transformer. With fp8, the other networks are in bf16."),
    ] = "bf16",
    target: Annotated[
        Literal["onnx", "tensorrt"],
        typer.Option(help="What to build: ONNX graphs, or TensorRT engines with the graphs that they are built from."),
    ] = "onnx",
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="SM,...",
            help="GPU architectures to build engines for, such as sm89,sm120.",
            show_default="those of this machine",
        ),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE,...",
            help="Sizes at which engines are fastest, such as 1024x1024,512x512..1024x1024. Other sizes work too.",
            show_default="the model's",
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            metavar="ROWS",
            min=1,
            max=64,
            help="Largest batch of a transformer engine, in rows; an image with guidance takes two. \\[default: 8]",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="Size of the calibration images.", show_default="the model's"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT",
            min=STEPS[0],
            max=STEPS[1],
            help="Steps of the calibration images.",
            show_default="the model's",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text file of at least 12 prompts, one per line. Two of three calibrate, every third one evaluates.",
            show_default="prompts of the package",
        ),
    ] = None,
    sensitivity: Annotated[
        bool,
        typer.Option(help="Rank the layers by the error that FP8 adds in each; on by default.", show_default=False),
    ] = True,
    as_json: AsJson = False,
    settings: Settings,
) -> None:
    """Build ONNX graphs or TensorRT engines of a checkpoint, in FP32, BF16 or FP8.

    FP8 is calibrated with real prompts over all steps, then evaluated: if images change too much, the build fails.
    The results are stored in the cache directory, and existing ones are not built again. Needs PyTorch, except for
    engines of NVIDIA's ONNX graphs. TensorRT-RTX can build engines on a machine without a GPU.

    [bold]Examples[/bold]

      sd35 compile --precision fp8
      sd35 compile --checkpoint sd3.5-medium --precision fp8 --size 512x512 --json
      sd35 compile --checkpoint sd3.5-large --precision fp8 --target tensorrt --gpu sm89,sm120
    """
    options = CompileOptions(
        graph_precision, target, size, steps, prompts, with_sensitivity=sensitivity, gpus=gpu, shapes=shapes, rows=rows
    )
    options.check()
    if options.precision != "fp32" and settings.transformer == "auto":  # of NVIDIA's graphs, the requested one
        settings = settings.model_copy(update={"transformer": options.precision})
    checkpoints = open_checkpoints(settings)
    with _progress() as on_progress:
        reports = [_compile(checkpoint, settings, options, Stages(on_progress)) for checkpoint in checkpoints]
    print(json.dumps(reports, indent=2) if as_json else "\n\n".join(map(_as_text, reports)))


def _compile(checkpoint: Checkpoint, settings: Settings, options: CompileOptions, stages: Stages) -> dict[str, Any]:
    build = _engine_builder(checkpoint, settings, options) if options.target == "tensorrt" else None
    graphs, report = _graphs(checkpoint, settings, options, stages)
    engines = build(graphs, stages) if build else {}
    return {
        "checkpoint": checkpoint.name,
        "precision": options.precision,
        "directory": str(graphs.directory),
        "bytes": {name: path.stat().st_size for name, path in sorted(graphs.files().items())},
        **({"engines": engines} if engines else {}),
        "took_s": {name: round(took_s, 2) for name, took_s in stages.seconds.items()},
        **report,
    }


def _graphs(
    checkpoint: Checkpoint, settings: Settings, options: CompileOptions, stages: Stages
) -> tuple[OfficialGraphs, dict[str, Any]]:
    """Return the graphs, and the report of FP8. Builds the graphs unless the checkpoint has its own."""
    if graphs := checkpoint.graphs:
        if options.target == "onnx":
            raise InvalidSetting(
                f"--checkpoint: {graphs.directory} already contains graphs; allowed: checkpoints with weights"
            )
        if options.calibrates:
            raise InvalidSetting(
                f"--size, --steps, --prompts: the graphs in {graphs.directory} are already calibrated; leave them out"
            )
        if graphs.transformer != options.precision:
            raise InvalidSetting(
                f"--precision: got {options.precision}; allowed: {graphs.transformer}, as in {graphs.directory}"
            )
        return graphs, {}
    backend_module("diffusers")
    from sd35.compile.fp8 import build_fp8, read_report
    from sd35.compile.graphs import build_graphs

    request = _calibration_request(checkpoint, settings, options)
    graphs = build_graphs(checkpoint, options.precision, settings.cache_dir, stages)
    if options.precision != "fp8":
        return graphs, {}
    build_fp8(checkpoint, graphs, request, stages, reuse_existing=not options.calibrates)
    return graphs, read_report(graphs)


def _engine_builder(
    checkpoint: Checkpoint, settings: Settings, options: CompileOptions
) -> Callable[[OfficialGraphs, Stages], dict[str, dict[str, int]]]:
    """Return a function that builds engines from graphs and returns the size of each, by architecture and directory.

    Raises InvalidSetting for invalid options before anything is built, and BackendUnavailable without TensorRT.
    """
    from sd35.compile.engines import DEFAULT_ROWS, EngineBuilder, EngineShapes, build_engines, targets_of

    flavour = find_flavour()
    targets = targets_of(flavour, [gpu.strip() for gpu in (options.gpus or "").split(",") if gpu.strip()])
    shapes = EngineShapes(buckets_of(options.shapes or "", checkpoint.card), options.rows or DEFAULT_ROWS)

    def build(graphs: OfficialGraphs, stages: Stages) -> dict[str, dict[str, int]]:
        builder = EngineBuilder(checkpoint, graphs, shapes, flavour)
        sizes = {}
        for target in targets:
            folders = build_engines(builder, target, settings.cache_dir, stages)
            sizes[target.gpu] = {str(folder): (folder / ENGINE_FILE).stat().st_size for folder in folders}
        return sizes

    return build


def _calibration_request(checkpoint: Checkpoint, settings: Settings, options: CompileOptions) -> "CalibrationRequest":
    from sd35.compile.calibration_run import CalibrationRequest
    from sd35.compile.prompts import calibration_prompts, evaluation_prompts
    from sd35.compile.reference_sampling import recipe_of

    recipe = recipe_of(checkpoint)
    if options.size:
        width_px, height_px = _size(options.size, checkpoint)
        recipe = replace(recipe, width_px=width_px, height_px=height_px)
    if options.steps is not None:
        recipe = replace(recipe, steps=options.steps)
    calibrating, judging = calibration_prompts(checkpoint), evaluation_prompts(checkpoint)
    if options.prompts:
        calibrating, judging = _read_prompts(options.prompts)
    return CalibrationRequest(recipe, calibrating, judging, settings.device, settings.threads, options.with_sensitivity)


def _size(text: str, checkpoint: Checkpoint) -> tuple[int, int]:
    low, high = checkpoint.card.side_px
    sides = [int(side) for side in text.split("x") if side.isdecimal()]
    if len(sides) != 2 or any(side % SIZE_MULTIPLE_PX or not low <= side <= high for side in sides):
        allowed = f"WIDTHxHEIGHT, each a multiple of {SIZE_MULTIPLE_PX} from {low} to {high}"
        raise InvalidSetting(f"--size: got {text!r}; allowed: {allowed}")
    return sides[0], sides[1]


def _read_prompts(path: Path) -> tuple[list[str], list[str]]:
    """Return the lines of a file: two thirds for calibrating, and every third line for evaluating."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise InvalidSetting(f"--prompts: {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidSetting(f"--prompts: {path} cannot be read: {error}") from error
    if len(lines) < _MIN_PROMPTS:
        raise InvalidSetting(
            f"--prompts: got {len(lines)} in {path}; allowed: {_MIN_PROMPTS} or more prompts, one per line"
        )
    judging = lines[2::3]
    return [line for index, line in enumerate(lines) if index % 3 != 2], judging


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show the progress of each stage on stderr: a bar on a terminal, otherwise a line at its end."""
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


def _as_text(report: dict[str, Any]) -> str:
    lines = [f"{report['checkpoint']} in {report['precision']}: {report['directory']}"]
    lines.append(f"  {size_text(sum(report['bytes'].values()))} in {len(report['bytes'])} files")
    for gpu, engines in report.get("engines", {}).items():
        lines.append(f"  engines for {gpu}, {size_text(sum(engines.values()))}: {Path(next(iter(engines))).parent}")
    if "quality" in report:
        quality, sizes = report["quality"], report["sizes"]
        lines.append(
            f"  PSNR of {len(quality['psnr_db'])} images against unquantized ones: mean {quality['mean_db']:.1f} dB"
            f" (required: {quality['bar_db']:.0f}), lowest {min(quality['psnr_db']):.1f} dB"
        )
        lines.append(
            f"  {sizes['products_fp8_share']:.1%} of the weights of attention and inner layers are in FP8; the"
            f" transformer has {sizes['total_bytes'] / sizes['total_bf16_bytes']:.2f} times its size in BF16"
        )
        if report["exempt_blocks"]:
            lines.append(f"  not in FP8, for quality: blocks {', '.join(map(str, report['exempt_blocks']))}")
        if report["sensitivity"]:
            lines.append("  most sensitive layers, by the error of the velocity with only this layer in FP8:")
            lines += [f"    {each['error']:.4f}  {each['layer']}" for each in report["sensitivity"][:_SHOWN_LAYERS]]
    if report["took_s"]:
        lines.append("  took: " + ", ".join(f"{name} {took_s:.1f} s" for name, took_s in report["took_s"].items()))
    return "\n".join(lines)
