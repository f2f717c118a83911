"""The command `sd35 synth`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sd35.backends.registry import check_available
from sd35.checkpoints.architectures import ARCHITECTURES
from sd35.cli.progress import byte_bar
from sd35.errors import InvalidSetting

app = typer.Typer()


@app.command()
def synth(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Model to imitate: sd3.5-large, sd3.5-large-turbo or sd3.5-medium.")
    ],
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIRECTORY", help="Directory to create; it must not exist.")
    ],
    precision: Annotated[
        Literal["bfloat16", "float16", "float32"], typer.Option(help="Number format of the weights.")
    ] = "bfloat16",
) -> None:
    """Create a checkpoint with a real model's shapes and random weights, to measure speed.

    The checkpoint needs no licence, and its images are noise. In bfloat16, sd3.5-medium takes 16 GB of disk,
    sd3.5-large 28 GB. Needs the extra `diffusers`.

    [bold]Examples[/bold]

      sd35 synth sd3.5-medium -o /models/noise
      sd35 measure --checkpoint /models/noise --backend diffusers
    """
    if name not in ARCHITECTURES:
        raise InvalidSetting(f"NAME: got {name!r}; allowed: {', '.join(ARCHITECTURES)}")
    check_available("diffusers")  # `synthesise` needs the same packages as that backend
    from sd35.compile.synth import synthesise  # imports torch

    with byte_bar() as progress:
        bar = progress.add_task(output.name, total=None)
        synthesise(
            ARCHITECTURES[name],
            output,
            precision,
            lambda written, total: progress.update(bar, completed=written, total=total),
        )
    print(f"Wrote {output}: {name} with random weights. It is as fast as the real model, but its images are noise.")
