"""The command `sd35 generate`."""

import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from sd35.checkpoints.checkpoint import Checkpoint
from sd35.cli.options import PIPELINE, AsJson, with_settings
from sd35.cli.progress import count_bar
from sd35.errors import InvalidSetting, UnknownModel
from sd35.generation.model_pool import EncodedImage, ModelPool
from sd35.generation.params import GenerationParams, draw_seed
from sd35.request import SEED
from sd35.settings import Settings
from sd35.startup import open_checkpoints, open_model_pool

app = typer.Typer()


@app.command()
@with_settings(*PIPELINE)
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the images should show.")],
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="PNG file to write; an existing file is replaced. With -n above 1: out-1.png, out-2.png, ...",
        ),
    ] = Path("out.png"),
    count: Annotated[
        int,
        typer.Option(
            "-n", "--count", metavar="COUNT", min=1, max=10_000, help="Number of images, with consecutive seeds."
        ),
    ] = 1,
    negative_prompt: Annotated[str, typer.Option(metavar="PROMPT", help="What the images should not show.")] = "",
    width: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Width in pixels, a multiple of 16.", show_default="the model's"),
    ] = None,
    height: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Height in pixels, a multiple of 16.", show_default="the model's"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="COUNT", help="Number of denoising steps, 1 to 150.", show_default="the model's"),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            metavar="SCALE", help="How closely to follow the prompt (CFG), 0 to 30.", show_default="the model's"
        ),
    ] = None,
    skip_layer_scale: Annotated[
        float | None,
        typer.Option(
            metavar="SCALE",
            help="Skip-layer guidance, 0 (off) to 10, for models that support it.",
            show_default="the model's",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="SEED", help="Seed of the first image, 0 to 4294967295.", show_default="random; the output shows it"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the checkpoint to use.", show_default="the first")
    ] = None,
    as_json: AsJson = False,
    settings: Settings,
) -> None:
    """Generate images from text on this machine, without a server.

    Each file records how it was generated, so that `sd35 replay` can generate it again.

    [bold]Examples[/bold]

      sd35 generate "a cat on a blue background"
      sd35 generate "a cat above a dog on a red background" -o pets.png -n 4 --seed 7
      sd35 generate "a rocket" --width 1024 --height 512 --json | jq -r .file
    """
    _check_output(output)
    params = GenerationParams(
        prompt, negative_prompt, width, height, steps, guidance_scale, seed, model, skip_layer_scale
    )
    checkpoint = _find_checkpoint(open_checkpoints(settings), model)
    with count_bar() as progress:
        loading = progress.add_task("loading the model", total=None)
        with open_model_pool(settings, [checkpoint]) as pool:
            first = pool.resolve(replace(params, seed=draw_seed() if seed is None else seed)).seed
            progress.remove_task(loading)
            for index in range(count):
                path = output if count == 1 else output.with_stem(f"{output.stem}-{index + 1}")
                seeded = replace(params, seed=(first + index) % (SEED[1] + 1))
                image, took_s = _generate(pool, seeded, progress, path.name)
                _write(path, image.png)
                print(_as_json(path, image, took_s) if as_json else _as_text(path, image, took_s), flush=True)


def _check_output(output: Path) -> None:
    """Raise InvalidSetting if the output is not a PNG file in an existing directory."""
    if output.suffix.lower() != ".png":
        raise InvalidSetting(f"--output: got {str(output)!r}; allowed: a file name that ends in .png")
    if not output.absolute().parent.is_dir():
        raise InvalidSetting(f"--output: {output.absolute().parent} is not a directory; create it first")


def _find_checkpoint(checkpoints: list[Checkpoint], model: str | None) -> Checkpoint:
    """Return the checkpoint with the name `model`, or the first for None. Raises UnknownModel for other names."""
    by_name = {checkpoint.name: checkpoint for checkpoint in checkpoints}
    if model is not None and model not in by_name:
        raise UnknownModel(model, list(by_name))
    return checkpoints[0] if model is None else by_name[model]


def _generate(pool: ModelPool, params: GenerationParams, progress: Progress, name: str) -> tuple[EncodedImage, float]:
    """Generate one image, with a bar called `name`. Return the image and the time that it took, in seconds."""
    request = pool.resolve(params)
    bar = progress.add_task(name, total=request.steps)
    generated = pool.submit(request, lambda now: progress.update(bar, completed=now.step)).future.result()
    progress.remove_task(bar)
    return pool.encode(generated), generated.took_s


def _write(path: Path, content: bytes) -> None:
    """Write a file completely or not at all. Raises InvalidSetting if it cannot be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise InvalidSetting(f"--output: cannot write {path} ({error.strerror or error}); use another file") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _as_json(path: Path, image: EncodedImage, took_s: float) -> str:
    """Return the line that --json prints for an image."""
    request, maker = image.record.request, image.record.maker
    return json.dumps(
        {
            "file": str(path),
            "digest": request.digest,
            "request": json.loads(request.canonical),
            "generated_width": maker.drawn_width,
            "generated_height": maker.drawn_height,
            "truncated": maker.cut_off,
            "took_ms": round(1000 * took_s),
        }
    )


def _as_text(path: Path, image: EncodedImage, took_s: float) -> str:
    """Return the line that is printed for an image without --json."""
    request, maker = image.record.request, image.record.maker
    notes = [f"{path}: seed {request.seed}, {request.width}x{request.height}, {took_s:.1f} s"]
    if image.is_enlarged:
        notes.append(f"generated at {maker.drawn_width}x{maker.drawn_height} and enlarged")
    if maker.cut_off:
        notes.append(f"truncated by the text encoders: {', '.join(maker.cut_off)}")
    return "; ".join(notes)
