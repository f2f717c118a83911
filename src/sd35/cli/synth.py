"""`sd35 synth`: a checkpoint of the real shapes with random weights."""

from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from sd35.backends.registry import check_available
from sd35.checkpoints.architectures import ARCHITECTURES
from sd35.errors import InvalidSetting


def synth(name: str, output: Path, precision: Literal["bfloat16", "float16", "float32"]) -> None:
    """Write it. Raises InvalidSetting for an unknown name or a place it cannot be written to, BackendUnavailable."""
    if name not in ARCHITECTURES:
        raise InvalidSetting(f"NAME: got {name!r}; allowed: {', '.join(ARCHITECTURES)}")
    check_available("diffusers")  # it takes what that backend takes
    from sd35.compile.synth import synthesise

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task(output.name, total=None)
        synthesise(
            ARCHITECTURES[name],
            output,
            precision,
            lambda written, total: progress.update(bar, completed=written, total=total),
        )
    print(f"{output}: {name} with random weights; it draws noise, as quickly as the real one draws images")
