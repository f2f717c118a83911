"""The command `sd35 models`."""

import json
from dataclasses import asdict

import typer
from rich.console import Console

from sd35.checkpoints.hub import cache
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED, RegisteredCheckpoint, load_registry
from sd35.cli.options import AsJson, with_settings
from sd35.cli.registered import gigabytes
from sd35.settings import Settings

app = typer.Typer()


@app.command()
@with_settings("registry")
def models(*, as_json: AsJson = False, settings: Settings) -> None:
    """List the registered checkpoints: licence, what is on disk, and their sizes.

    They are stored in Hugging Face's own cache (HF_HOME), which other programs share.

    [bold]Examples[/bold]

      sd35 models
      sd35 models --json
    """
    embedded = open_checkpoint(EMBEDDED)
    registry = load_registry(settings.registry).values()
    if as_json:
        first = {"name": EMBEDDED, "on_disk": "whole", "directory": str(embedded.directory), **asdict(embedded.card)}
        print(json.dumps([first, *map(_as_dict, registry)], indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{EMBEDDED}[/bold]  in the package; {embedded.card.licence}")
    for registered in registry:
        console.print(f"[bold]{registered.name}[/bold]  {_state(registered)}; {registered.card.licence}")
        card = registered.card
        console.print(
            f"    {registered.repository} at {registered.revision[:12]}; {card.width}x{card.height},"
            f" {card.steps} steps, guidance {card.guidance_scale:g}",
            markup=False,
        )


def _as_dict(registered: RegisteredCheckpoint) -> dict[str, object]:
    status = cache.cache_status(registered)
    return {
        "name": registered.name,
        "on_disk": "whole" if status.is_complete else "part" if status.stored_bytes else "no",
        "directory": str(status.directory),
        "stored_bytes": status.stored_bytes,
        "size_bytes": registered.size_bytes,
        "repository": registered.repository,
        "revision": registered.revision,
        **asdict(registered.card),
    }


def _state(registered: RegisteredCheckpoint) -> str:
    status = cache.cache_status(registered)
    if status.is_complete:
        return f"[green]on disk[/green], {gigabytes(status.stored_bytes)}"
    takes = f"takes {gigabytes(registered.size_bytes)}" if registered.size_bytes else "the hub knows its size"
    return f"{gigabytes(status.stored_bytes)} on disk, {takes}" if status.stored_bytes else f"not on disk, {takes}"
