"""The commands about checkpoints that are known by name: `sd35 models`, `pull`, `verify`, `remove`, `synth`."""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from sd35.cli import options

app = typer.Typer(rich_markup_mode="rich")

_Name: TypeAlias = Annotated[str, typer.Argument(help="A name that `sd35 models` lists.")]


@app.command(epilog=options.EPILOG)
def models(
    *, as_json: options.AsJson = False, registry: options.Variants = None, config: options.Config = None
) -> None:
    """List the checkpoints that are known by name: licence, what is on disk, and what each takes.

    They lie in Hugging Face's own cache (HF_HOME), so that other programs share them.

    [bold]Examples[/bold]

      sd35 models
      sd35 models --json
    """
    settings = options.settings_of(locals())
    from sd35.cli.models import models as run

    run(settings, as_json=as_json)


@app.command(epilog=options.EPILOG)
def pull(
    name: _Name,
    *,
    registry: options.Variants = None,
    offline: options.Offline = None,
    config: options.Config = None,
) -> None:
    """Fetch a checkpoint from the Hugging Face hub, check it, and keep it for every command.

    What is on disk is not fetched again; after an interruption it goes on where it stopped. The SD3.5 models need a
    token: accept the licence on the model's page, then give the token with HF_TOKEN or `hf auth login`.

    [bold]Examples[/bold]

      sd35 pull sd3.5-medium
      HF_HOME=/data/huggingface sd35 pull sd3.5-large
    """
    settings = options.settings_of(locals())
    from sd35.cli.models import pull as run

    run(settings, name)


@app.command(epilog=options.EPILOG)
def verify(
    name: _Name,
    *,
    discard: Annotated[bool, typer.Option("--discard", help="Delete damaged files; pull fetches them again.")] = False,
    registry: options.Variants = None,
    offline: options.Offline = None,
    config: options.Config = None,
) -> None:
    """Compare the checksum of each file with the hub's; offline, with those that were noted when it was fetched.

    Exits with 1 where a file is damaged, missing or cannot be checked.

    [bold]Examples[/bold]

      sd35 verify sd3.5-medium
      sd35 verify sd3.5-medium --offline --discard
    """
    settings = options.settings_of(locals())
    from sd35.cli.models import verify as run

    run(settings, name, discard=discard)


@app.command(epilog=options.EPILOG)
def remove(name: _Name, *, registry: options.Variants = None, config: options.Config = None) -> None:
    """Delete a checkpoint's files and tell how much room that made.

    Only the revision that `sd35 models` names goes; what other programs fetched at other revisions stays.

    [bold]Examples[/bold]

      sd35 remove sd3.5-large
      sd35 remove my-finetune --registry my-registry.toml
    """
    settings = options.settings_of(locals())
    from sd35.cli.models import remove as run

    run(settings, name)


@app.command(epilog=options.EPILOG)
def synth(
    name: Annotated[str, typer.Argument(help="sd3.5-large, sd3.5-large-turbo or sd3.5-medium.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; it must not exist.")],
    precision: Annotated[
        Literal["bfloat16", "float16", "float32"], typer.Option(help="Number format of the weights.")
    ] = "bfloat16",
) -> None:
    """Write a checkpoint of a real model's shapes with random weights, to measure hardware before any licence.

    It draws noise. In bfloat16, sd3.5-medium takes 16 GB of disk, sd3.5-large 28 GB. Needs the diffusers extra.

    [bold]Examples[/bold]

      sd35 synth sd3.5-medium -o /models/noise
      sd35 measure --checkpoint /models/noise --backend diffusers
    """
    from sd35.cli.synth import synth as run

    run(name, output, precision)
