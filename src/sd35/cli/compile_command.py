"""The command about graphs and engines: `sd35 compile`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sd35.cli import options
from sd35.request import STEPS

app = typer.Typer(rich_markup_mode="rich")


@app.command("compile", epilog=options.EPILOG)
def compile_(
    *,
    graph_precision: Annotated[
        Literal["fp32", "bf16", "fp8"],
        typer.Option("--precision", help="Number format of the transformer; the rest is in BF16 where it is in FP8."),
    ] = "bf16",
    target: Annotated[
        Literal["onnx", "tensorrt"],
        typer.Option(help="What to build: ONNX graphs, or of these TensorRT's engines too."),
    ] = "onnx",
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="SM,...", help="Architectures to build engines for, as sm89,sm120. Default: this machine's GPUs."
        ),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE,...",
            help="Sizes that engines are fastest at, as 1024x1024,512x512..1024x1024; others are served as well."
            " Default: the model's.",
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="Most rows of a transformer's engine at once; a guided image is two. [default: 8]"
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Of the images for calibrating. Default: the model's.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=STEPS[0], max=STEPS[1], help="Of the same images. Default: the model's.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="File of 12 or more prompts for calibrating, a line each; every third is for the judge."),
    ] = None,
    sensitivity: Annotated[bool, typer.Option(help="Rank the layers by the error that each adds.")] = True,
    as_json: options.AsJson = False,
    checkpoint: options.Checkpoints = None,
    weights: options.Weights = None,
    registry: options.Variants = None,
    base_checkpoint: options.BaseCheckpoint = None,
    offline: options.Offline = None,
    device: options.Device = None,
    threads: options.Threads = None,
    cache_dir: options.CacheDir = None,
    config: options.Config = None,
) -> None:
    """Build a checkpoint's networks as graphs, in FP32, BF16, or with the transformer in FP8, and TensorRT's engines.

    FP8 is calibrated over real prompts and all steps, and judged: what draws other images than before is not built.
    What is built already is not built again; it lies in the cache directory. Needs PyTorch; engines of NVIDIA's ONNX
    graphs do not, and TensorRT-RTX builds engines on machines without a GPU.

    [bold]Examples[/bold]

      sd35 compile --precision fp8
      sd35 compile --checkpoint sd3.5-medium --precision fp8 --size 512x512 --json
      sd35 compile --checkpoint sd3.5-large --precision fp8 --target tensorrt --gpu sm89,sm120 --shapes 1024x1024
    """
    settings = options.settings_of(locals())
    from sd35.cli.compile import CompileOptions, EngineOptions, compile_checkpoints

    engines = EngineOptions(gpu, shapes, rows)
    order = CompileOptions(graph_precision, target, size, steps, prompts, with_sensitivity=sensitivity, engines=engines)
    compile_checkpoints(settings, order, as_json=as_json)
