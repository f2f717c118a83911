"""The command `sd35 compile`."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sd35.backends.registry import backend_module
from sd35.backends.tensorrt.buckets import buckets_of
from sd35.backends.tensorrt.flavour import find_flavour
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.compiled import ENGINE_FILE, GraphPrecision
from sd35.checkpoints.graphs.nvidia import OfficialGraphs
from sd35.cli.compile_report import report_text
from sd35.cli.options import AsJson, with_settings
from sd35.cli.progress import show_stages
from sd35.compile.stages import Stages
from sd35.errors import InvalidSetting
from sd35.request import SIZE_MULTIPLE_PX, STEPS
from sd35.settings import Settings
from sd35.startup import open_checkpoints

if TYPE_CHECKING:
    from sd35.compile.calibration_run import CalibrationRequest  # imports torch

_MIN_PROMPTS = 12  # a third of them evaluate the result
app = typer.Typer()


@dataclass(frozen=True)
class CompileOptions:
    """The options of a build, as text from the command line.

    `size`, `steps` and `prompts` apply to the images that calibrate and evaluate FP8. Their defaults, for None, are the
    model's size and steps, and the prompts of the package. `gpus`, `shapes` and `rows` apply to TensorRT engines. Their
    defaults are the GPUs of this machine, the model's sizes, and `DEFAULT_ROWS`.
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
    def has_calibration_options(self) -> bool:
        """Whether an option for the calibration of FP8 was given."""
        return any(option is not None for option in (self.size, self.steps, self.prompts))

    def check(self) -> None:
        """Raise InvalidSetting for options that do not apply to the target or to the precision."""
        if self.target == "onnx" and (self.gpus, self.shapes, self.rows) != (None, None, None):
            raise InvalidSetting("--gpu, --shapes, --rows: allowed only with --target tensorrt, which builds engines")
        if self.precision != "fp8" and self.has_calibration_options:
            raise InvalidSetting(
                "--size, --steps, --prompts: allowed only with --precision fp8, which is calibrated with images"
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
        typer.Option(metavar="WIDTHxHEIGHT", help="Size of the images that calibrate FP8.", show_default="the model's"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT",
            min=STEPS[0],
            max=STEPS[1],
            help="Steps of the images that calibrate FP8.",
            show_default="the model's",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text file of at least 12 prompts, one per line. Two of three calibrate FP8; the others evaluate it.",
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
    if options.precision != "fp32" and settings.transformer == "auto":
        # If the checkpoint has NVIDIA's graphs in both precisions, use those of the requested precision.
        settings = settings.model_copy(update={"transformer": options.precision})
    checkpoints = open_checkpoints(settings)
    with show_stages() as on_progress:
        reports = [_build(checkpoint, settings, options, Stages(on_progress)) for checkpoint in checkpoints]
    print(json.dumps(reports, indent=2) if as_json else "\n\n".join(map(report_text, reports)))


def _build(checkpoint: Checkpoint, settings: Settings, options: CompileOptions, stages: Stages) -> dict[str, Any]:
    """Build the graphs or engines of a checkpoint. Return a report for `--json`."""
    build_engines = _engine_builder(checkpoint, settings, options) if options.target == "tensorrt" else None
    graphs, fp8_report = _find_or_build_graphs(checkpoint, settings, options, stages)
    engines = build_engines(graphs, stages) if build_engines else {}
    return {
        "checkpoint": checkpoint.name,
        "precision": options.precision,
        "directory": str(graphs.directory),
        "bytes": {name: path.stat().st_size for name, path in sorted(graphs.files().items())},
        **({"engines": engines} if engines else {}),
        "took_s": {name: round(took_s, 2) for name, took_s in stages.seconds.items()},
        **fp8_report,
    }


def _find_or_build_graphs(
    checkpoint: Checkpoint, settings: Settings, options: CompileOptions, stages: Stages
) -> tuple[OfficialGraphs, dict[str, Any]]:
    """Return NVIDIA's graphs if the checkpoint has them. Otherwise build graphs.

    Also return the report on the quality of FP8, which is empty for NVIDIA's graphs and for other precisions. Raises
    InvalidSetting if an option does not apply to NVIDIA's graphs, BackendUnavailable without PyTorch.
    """
    if graphs := checkpoint.graphs:
        if options.target == "onnx":
            raise InvalidSetting(
                f"--target: got onnx, but {graphs.directory} already contains ONNX graphs; serve them with --backend"
                " onnx, or build engines with --target tensorrt"
            )
        if options.has_calibration_options:
            raise InvalidSetting(
                f"--size, --steps, --prompts: the graphs in {graphs.directory} are already calibrated; leave out these"
                " options"
            )
        if graphs.transformer != options.precision:
            raise InvalidSetting(
                f"--precision: got {options.precision}; allowed: {graphs.transformer}, the precision of the graphs in"
                f" {graphs.directory}"
            )
        return graphs, {}
    backend_module("diffusers")  # raises BackendUnavailable without PyTorch
    from sd35.compile.fp8 import build_fp8, read_report
    from sd35.compile.graphs import build_graphs

    request = _calibration_request(checkpoint, settings, options)
    graphs = build_graphs(checkpoint, options.precision, settings.cache_dir, stages)
    if options.precision != "fp8":
        return graphs, {}
    build_fp8(checkpoint, graphs, request, stages, reuse_existing=not options.has_calibration_options)
    return graphs, read_report(graphs)


def _engine_builder(
    checkpoint: Checkpoint, settings: Settings, options: CompileOptions
) -> Callable[[OfficialGraphs, Stages], dict[str, dict[str, int]]]:
    """Return a function that builds TensorRT engines from graphs.

    The function returns the sizes of the engine files in bytes, by GPU architecture and then by directory. Checks the
    options before anything is built: raises InvalidSetting for an invalid option, BackendUnavailable without TensorRT.
    """
    from sd35.compile.engines import DEFAULT_ROWS, EngineBuilder, EngineShapes, build_engines, targets_of

    flavour = find_flavour()  # TensorRT or TensorRT-RTX, as installed
    targets = targets_of(flavour, [gpu.strip() for gpu in (options.gpus or "").split(",") if gpu.strip()])
    shapes = EngineShapes(buckets_of(options.shapes or "", checkpoint.card), options.rows or DEFAULT_ROWS)

    def build(graphs: OfficialGraphs, stages: Stages) -> dict[str, dict[str, int]]:
        """Build the engines for all targets. Return their sizes, as described above."""
        builder = EngineBuilder(checkpoint, graphs, shapes, flavour)
        sizes = {}
        for target in targets:
            folders = build_engines(builder, target, settings.cache_dir, stages)
            sizes[target.gpu] = {str(folder): (folder / ENGINE_FILE).stat().st_size for folder in folders}
        return sizes

    return build


def _calibration_request(checkpoint: Checkpoint, settings: Settings, options: CompileOptions) -> "CalibrationRequest":
    """Return the prompts, size and steps of the images that calibrate and evaluate FP8.

    They are the model's defaults, changed by the options.
    """
    from sd35.compile.calibration_run import CalibrationRequest
    from sd35.compile.prompts import calibration_prompts, evaluation_prompts
    from sd35.compile.reference_sampling import recipe_of

    recipe = recipe_of(checkpoint)
    if options.size:
        width_px, height_px = _parse_size(options.size, checkpoint)
        recipe = replace(recipe, width_px=width_px, height_px=height_px)
    if options.steps is not None:
        recipe = replace(recipe, steps=options.steps)
    calibrating, evaluating = calibration_prompts(checkpoint), evaluation_prompts(checkpoint)
    if options.prompts:
        calibrating, evaluating = _read_prompts(options.prompts)
    return CalibrationRequest(
        recipe, calibrating, evaluating, settings.device, settings.threads, options.with_sensitivity
    )


def _parse_size(text: str, checkpoint: Checkpoint) -> tuple[int, int]:
    """Return the width and height, in pixels, of `--size`. Raises InvalidSetting if the model cannot generate it."""
    low, high = checkpoint.card.side_px
    sides = [int(side) for side in text.split("x") if side.isdecimal()]
    if len(sides) != 2 or any(side % SIZE_MULTIPLE_PX or not low <= side <= high for side in sides):
        allowed = f"WIDTHxHEIGHT in pixels, each a multiple of {SIZE_MULTIPLE_PX} from {low} to {high}"
        raise InvalidSetting(f"--size: got {text!r}; allowed: {allowed}")
    return sides[0], sides[1]


def _read_prompts(path: Path) -> tuple[list[str], list[str]]:
    """Return the prompts in a file: two of three for calibrating, and every third for evaluating.

    Raises InvalidSetting if the file cannot be read or has too few prompts.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise InvalidSetting(f"--prompts: {path} cannot be read ({error.strerror or error}); check the path") from error
    except UnicodeDecodeError as error:
        raise InvalidSetting(f"--prompts: {path} is not text in UTF-8 ({error}); convert it") from error
    if len(lines) < _MIN_PROMPTS:
        raise InvalidSetting(f"--prompts: got {len(lines)} in {path}; allowed: {_MIN_PROMPTS} or more, one per line")
    evaluating = lines[2::3]
    return [line for index, line in enumerate(lines) if index % 3 != 2], evaluating
