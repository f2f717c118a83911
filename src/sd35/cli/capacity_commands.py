"""The commands about what a machine can hold and bear: `sd35 plan`, `measure`, `simulate`."""

from pathlib import Path
from typing import Annotated

import typer

from sd35.cli import options

app = typer.Typer(rich_markup_mode="rich")


@app.command(epilog=options.EPILOG)
def measure(
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("step-times.json"),
    size: Annotated[
        list[str] | None, typer.Option(help="WIDTHxHEIGHT in pixels; may be repeated. Default: the model's.")
    ] = None,
    checkpoint: options.Checkpoints = None,
    weights: options.Weights = None,
    registry: options.Variants = None,
    base_checkpoint: options.BaseCheckpoint = None,
    transformer: options.Transformer = None,
    backend: options.Backend = None,
    precision: options.Precision = None,
    device: options.Device = None,
    offload: options.Offload = None,
    tiled_decode: options.TiledDecode = None,
    torch_compile: options.TorchCompile = None,
    vram: options.Vram = None,
    ram: options.Ram = None,
    threads: options.Threads = None,
    max_pixels: options.MaxPixels = None,
    max_batch_rows: options.MaxBatchRows = None,
    cache_dir: options.CacheDir = None,
    config: options.Config = None,
) -> None:
    """Time a model's steps on this machine, by rows and size, for `sd35 simulate`.

    It is the first checkpoint that is timed, with 1, 2, 4, ... rows, up to the most that a batch may have.

    [bold]Examples[/bold]

      sd35 measure
      sd35 measure --checkpoint ~/models/stable-diffusion-3.5-medium --size 1024x1024 --size 768x1344 -o h100.json
    """
    settings = options.settings_of(locals())
    from sd35.cli.capacity import measure as run

    run(settings, size or [], output)


@app.command(epilog=options.EPILOG)
def simulate(
    *,
    rps: Annotated[float, typer.Option(help="Requests a second, in the mean; they come at random.")],
    step_times: Annotated[Path, typer.Option(help="What `sd35 measure` wrote.")],
    devices: Annotated[int, typer.Option(min=1, max=10_000, help="How many such devices.")] = 1,
    requests: Annotated[int, typer.Option(min=1, max=10_000_000, help="How many requests.")] = 10_000,
    steps: Annotated[
        list[int] | None, typer.Option(min=1, max=150, help="Steps, drawn by chance if repeated. Default: the model's.")
    ] = None,
    guidance_scale: Annotated[
        list[float] | None, typer.Option(min=0, max=30, help="The same, of guidance. Default: the model's.")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="The same, of WIDTHxHEIGHT. Default: all that were measured.")
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="How many clients the requests come from.")] = 100,
    seed: Annotated[int, typer.Option(help="Of chance: the same seed, the same result.")] = 0,
    as_json: options.AsJson = False,
    max_in_flight: options.MaxInFlight = None,
    max_wait_s: options.MaxWait = None,
    max_batch_rows: options.MaxBatchRows = None,
    memory_mb: options.MemoryMb = None,
    config: options.Config = None,
) -> None:
    """Tell latency, utilisation and refusals of a load, by the real scheduler on simulated devices.

    An image's latency is from its arrival to its pixels. Each image goes to the least busy of a few devices.

    [bold]Examples[/bold]

      sd35 simulate --rps 3 --step-times step-times.json
      sd35 simulate --rps 900 --step-times h100.json --devices 1000 --steps 4 --steps 28 --json
    """
    settings = options.settings_of(locals())
    from sd35.cli.capacity import run_simulation
    from sd35.engine.scheduling.simulation import Load

    load = Load(rps, requests, steps or [], guidance_scale or [], [], clients, seed)
    run_simulation(settings, step_times, load, size or [], devices, as_json=as_json)


@app.command(epilog=options.EPILOG)
def plan(
    *,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16. Default: the model's.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16. Default: the model's.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Transformer rows in a step. Default: those of one image.")
    ] = None,
    as_json: options.AsJson = False,
    checkpoint: options.Checkpoints = None,
    weights: options.Weights = None,
    registry: options.Variants = None,
    base_checkpoint: options.BaseCheckpoint = None,
    transformer: options.Transformer = None,
    offline: options.Offline = None,
    backend: options.Backend = None,
    precision: options.Precision = None,
    device: options.Device = None,
    offload: options.Offload = None,
    tiled_decode: options.TiledDecode = None,
    vram: options.Vram = None,
    ram: options.Ram = None,
    max_pixels: options.MaxPixels = None,
    config: options.Config = None,
) -> None:
    """Tell where each part of a checkpoint would live, the peak of memory that follows, and the alternatives.

    It needs neither the weights nor the device: --vram plans for a CUDA device of that size. Where no backend is named,
    it is the one that reads the checkpoint there. Exits with 1 where nothing fits; `serve` then refuses to start.

    [bold]Examples[/bold]

      sd35 plan --checkpoint sd3.5-large --vram 12GiB
      sd35 plan --checkpoint sd3.5-medium --ram 24GiB --precision bfloat16 --json
    """
    settings = options.settings_of(locals())
    from sd35.cli.plan import plan as run

    run(settings, width, height, rows, as_json=as_json)
