"""The commands and their help. What a command does is imported when it runs, so that help and start-up are quick."""

import os
from pathlib import Path
from typing import Annotated

import typer

from sd35.cli import (
    bench_commands,
    capacity_commands,
    compile_command,
    key_commands,
    model_commands,
    options,
    page_command,
    storage_commands,
)
from sd35.cli.ending import errors_as_lines, exit_when_interrupted
from sd35.errors import InvalidSetting

app = typer.Typer(
    name="sd35",
    help="Stable Diffusion 3.5 as a service: images from text, over HTTP or right here.",
    epilog=options.EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(capacity_commands.app)
app.add_typer(bench_commands.app)
app.add_typer(model_commands.app)
app.add_typer(compile_command.app)
app.add_typer(key_commands.app)
app.add_typer(storage_commands.app)
app.add_typer(page_command.app)


def main() -> None:
    """Run the command line; errors become one line and an exit code, see `sd35.cli.ending`."""
    os.environ.setdefault(
        "TRANSFORMERS_VERBOSITY", "error"
    )  # else it warns of image processors, which nothing here has
    with exit_when_interrupted(), errors_as_lines():
        app(prog_name="sd35")


@app.callback()
def _version(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version.", callback=options.print_version)
    ] = False,
) -> None:
    pass


@app.command(epilog=options.EPILOG)
def serve(
    *,
    host: options.Host = None,
    port: options.Port = None,
    ui: options.Ui = None,
    root_path: options.RootPath = None,
    trusted_proxies: options.TrustedProxies = None,
    allowed_hosts: options.AllowedHosts = None,
    cors_origins: options.CorsOrigins = None,
    cors_private_network: options.CorsPrivateNetwork = None,
    body_timeout_s: options.BodyTimeout = None,
    requests_per_minute: options.RequestsPerMinute = None,
    concurrency: options.Concurrency = None,
    pixels_per_hour: options.PixelsPerHour = None,
    metrics_need_admin: options.MetricsNeedAdmin = None,
    checkpoint: options.Checkpoints = None,
    weights: options.Weights = None,
    registry: options.Variants = None,
    base_checkpoint: options.BaseCheckpoint = None,
    transformer: options.Transformer = None,
    model_aliases: options.ModelAliases = None,
    strict_dialects: options.StrictDialects = None,
    offline: options.Offline = None,
    backend: options.Backend = None,
    precision: options.Precision = None,
    fallback: options.Fallback = None,
    device: options.Device = None,
    offload: options.Offload = None,
    tiled_decode: options.TiledDecode = None,
    torch_compile: options.TorchCompile = None,
    vram: options.Vram = None,
    ram: options.Ram = None,
    threads: options.Threads = None,
    max_pixels: options.MaxPixels = None,
    max_in_flight: options.MaxInFlight = None,
    max_wait_s: options.MaxWait = None,
    max_batch_rows: options.MaxBatchRows = None,
    reproducible: options.Reproducible = None,
    memory_mb: options.MemoryMb = None,
    embedding_cache_mb: options.EmbeddingCacheMb = None,
    image_store: options.ImageStore = None,
    retention_days: options.RetentionDays = None,
    retention_gb: options.RetentionGb = None,
    public_url: options.PublicUrl = None,
    log_format: options.LogFormat = None,
    log_prompts: options.LogPrompts = None,
    cache_dir: options.CacheDir = None,
    data_dir: options.DataDir = None,
    keep_metadata: options.KeepMetadata = None,
    content_filter: options.ContentFilter = None,
    redirect_images: options.RedirectImages = None,
    max_jobs: options.MaxJobs = None,
    shutdown_grace_s: options.ShutdownGrace = None,
    database: options.Database = None,
    webhook_allow_private: options.WebhookAllowPrivate = None,
    config: options.Config = None,
) -> None:
    """Serve images over HTTP until Ctrl-C or SIGTERM, which let running images finish.

    A page for people is at the address it prints, where the extra `ui` is installed; the API is described at its /docs.

    [bold]Examples[/bold]

      sd35 serve
      sd35 serve --host 0.0.0.0 --port 80
      sd35 serve --precision fp8 --fallback onnx/float32
      sd35 serve --checkpoint sd35-mini --checkpoint sd3.5-medium --checkpoint ~/models/mine
    """
    settings = options.settings_of(locals())
    from sd35.api.server import serve as run

    run(settings)


@app.command(epilog=options.EPILOG)
def generate(
    prompt: Annotated[str, typer.Argument(help="What the images show.")],
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write, replaced if it exists; out-1.png, ... with -n.")
    ] = Path("out.png"),
    count: Annotated[
        int, typer.Option("-n", "--count", min=1, max=10_000, help="How many; seeds follow each other.")
    ] = 1,
    negative_prompt: Annotated[str, typer.Option(help="What to keep out of it.")] = "",
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16. Default: the model's.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16. Default: the model's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps, 1 to 150. Default: the model's.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How closely to follow the prompt, 0 to 30. Default: the model's.")
    ] = None,
    skip_layer_scale: Annotated[
        float | None, typer.Option(help="Skip-layer guidance, 0 (off) to 10. Default: the model's, if it is for it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="0 to 4294967295. Default: random, and printed.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of one of the checkpoints. Default: the first.")] = None,
    as_json: options.AsJson = False,
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
    cache_dir: options.CacheDir = None,
    config: options.Config = None,
) -> None:
    """Make images from text, here, without a server.

    Each file carries what made it: `sd35 replay` makes it again.

    [bold]Examples[/bold]

      sd35 generate "a cat on a blue background"
      sd35 generate "a cat above a dog on a red background" -o pets.png -n 4 --seed 7
      sd35 generate "a rocket" --width 1024 --height 512 --json | jq -r .file
    """
    settings = options.settings_of(locals())
    if output.suffix.lower() != ".png":
        raise InvalidSetting(f"--output: got {str(output)!r}; allowed: a name that ends in .png")
    if not output.absolute().parent.is_dir():
        raise InvalidSetting(f"--output: {output.absolute().parent} is not a directory")
    from sd35.cli.generate import generate as run
    from sd35.generation.params import GenerationParams

    wanted = GenerationParams(
        prompt, negative_prompt, width, height, steps, guidance_scale, seed, model, skip_layer_scale
    )
    run(settings, wanted, output, count, as_json=as_json)


@app.command(epilog=options.EPILOG)
def replay(
    file: Annotated[Path, typer.Argument(help="A PNG file that this project wrote; other formats are not exact.")],
    *,
    as_json: options.AsJson = False,
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
    cache_dir: options.CacheDir = None,
    config: options.Config = None,
) -> None:
    """Make an image again from what its file says, and tell whether it is the same, and if not, why.

    "same bytes", or "same image": no pixel differs by more than 2 of 255, nor all by more than 0.1 on average; both
    exit with 0. "different" exits with 1, a file that does not say what made it with 2. The backend and precision are
    those of the file unless named.

    [bold]Examples[/bold]

      sd35 replay out.png
      sd35 replay out.png --backend diffusers --json
    """
    given = locals()
    from sd35.cli.replay import replay as run

    run(file, lambda recorded: options.settings_of(given, recorded), as_json=as_json)


@app.command(epilog=options.EPILOG)
def doctor(
    *,
    as_json: options.AsJson = False,
    checkpoint: options.Checkpoints = None,
    weights: options.Weights = None,
    registry: options.Variants = None,
    base_checkpoint: options.BaseCheckpoint = None,
    transformer: options.Transformer = None,
    cache_dir: options.CacheDir = None,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Tell what this machine has, which backends can run on it, and why the others cannot.

    Exits with 1 where the chosen backend or a checkpoint cannot be used.

    [bold]Examples[/bold]

      sd35 doctor
      sd35 doctor --json
    """
    settings = options.settings_of(locals())
    from sd35.cli.doctor import doctor as run

    run(settings, as_json=as_json)
