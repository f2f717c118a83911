"""The commands that measure a server: `sd35 bench`, `sd35 bench compare`."""

from pathlib import Path
from typing import Annotated

import typer

from sd35.cli import options
from sd35.errors import InvalidSetting

_LOAD, _QUALITY, _MATRIX = "Load", "Quality", "Matrix"
_bench = typer.Typer(invoke_without_command=True, rich_markup_mode="rich")
app = typer.Typer()
app.add_typer(_bench, name="bench")


@_bench.callback(epilog=options.EPILOG)
def bench(
    context: typer.Context,
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="DIRECTORY", help="Where bench.json and bench.html are written.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A server that runs already. Default: `sd35 serve` is started, on a free port.")
    ] = None,
    dialect: Annotated[
        str, typer.Option(help="How it is asked: sd35, openai, a1111, stability, or plain, benchmarks/'s own.")
    ] = "sd35",
    workload: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML or JSON: docs/benchmarking.md. Default: 4, 12 and 28 steps, mixed."),
    ] = None,
    as_json: options.AsJson = False,
    clients: Annotated[
        int, typer.Option(min=1, max=1000, help="Clients of the closed loop.", rich_help_panel=_LOAD)
    ] = 8,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            help="Requests a second of the open loop; may be repeated. Default: 0.5, 0.8 and 1.2 of what the closed"
            " loop reached.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=100, help="How often each load is measured.", rich_help_panel=_LOAD)
    ] = 4,
    seconds: Annotated[float, typer.Option(help="Seconds of each load in a round.", rich_help_panel=_LOAD)] = 5.0,
    warm_up: Annotated[float, typer.Option(help="Seconds of load before it counts.", rich_help_panel=_LOAD)] = 6.0,
    reference: Annotated[
        str,
        typer.Option(
            help="Backend whose images the server's are compared with: onnx, openvino, diffusers or tensorrt; none"
            " for no comparison.",
            rich_help_panel=_QUALITY,
        ),
    ] = "onnx",
    judged: Annotated[
        int, typer.Option(min=1, max=1000, help="Images that are compared.", rich_help_panel=_QUALITY)
    ] = 16,
    matrix: Annotated[
        bool,
        typer.Option("--matrix", help="Every backend, precision and batch that runs here.", rich_help_panel=_MATRIX),
    ] = False,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Most rows in a step, may be repeated. Default: 2 and 8.", rich_help_panel=_MATRIX),
    ] = None,
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
    torch_compile: options.TorchCompile = None,
    vram: options.Vram = None,
    ram: options.Ram = None,
    threads: options.Threads = None,
    max_pixels: options.MaxPixels = None,
    max_in_flight: options.MaxInFlight = None,
    max_batch_rows: options.MaxBatchRows = None,
    reproducible: options.Reproducible = None,
    cache_dir: options.CacheDir = None,
    config: options.Config = None,
) -> None:
    """Measure a server: images a second, latency, memory, start-up, and how good its images are.

    Without arguments it takes about two minutes: the embedded model, on a server that is started for it, in a data
    directory of its own. A server that needs an API key gets the one in the variable BENCH_API_KEY.

    [bold]Examples[/bold]

      sd35 bench --out report
      sd35 bench --url http://127.0.0.1:7860 --dialect a1111 --clients 2 --rate 0.5 --reference none
      sd35 bench --matrix --out matrix
      sd35 bench compare before/bench.json after/bench.json
    """
    if context.invoked_subcommand:
        return
    settings = options.settings_of(locals())
    if url and (backend or precision):
        raise InvalidSetting("--backend, --precision: are of a server that is started; allowed: without --url")
    if batch and not matrix:
        raise InvalidSetting("--batch: is of the matrix; allowed: with --matrix; else --max-batch-rows")
    from sd35.cli.bench import BenchOptions
    from sd35.cli.bench import bench as run
    from sd35.cli.bench import matrix as run_matrix

    bench_options = BenchOptions(
        out=out,
        url=url,
        dialect=dialect,
        workload=workload,
        clients=clients,
        rates=tuple(rate or ()),
        rounds=rounds,
        seconds=seconds,
        warmup_s=warm_up,
        reference=reference,
        judged=judged,
        as_json=as_json,
    )
    if matrix:
        run_matrix(settings, bench_options, tuple(batch or ()))
    else:
        run(settings, bench_options)


@_bench.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="What `sd35 bench --out` wrote.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="Another of these.")],
    *,
    different_workloads: Annotated[
        bool, typer.Option("--different-workloads", help="Compare although they asked for different things.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Tell what is different between two runs, as ratios, and whether that is more than chance.

    A difference counts where the confidence intervals of the two do not overlap.

    [bold]Examples[/bold]

      sd35 bench compare before/bench.json after/bench.json
    """
    from sd35.cli.bench import compare as run

    run(before, after, different_workloads=different_workloads, as_json=as_json)
