"""The command `sd35 models`."""

import json
from dataclasses import asdict

import typer
from rich.console import Console

from sd35.checkpoints.card import Card
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
    """List the checkpoints that have a name: size, licence, and whether they are on disk.

    Downloaded checkpoints are in the cache of Hugging Face (HF_HOME), which other programs share.

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
    console.print(f"[bold]{EMBEDDED}[/bold]  part of the package; {embedded.card.licence}")
    console.print(f"    {_defaults(embedded.card)}", markup=False)
    for registered in registry:
        console.print(f"[bold]{registered.name}[/bold]  {_state(registered)}; {registered.card.licence}")
        console.print(
            f"    {registered.repository}, revision {registered.revision[:12]}; {_defaults(registered.card)}",
            markup=False,
        )


def _defaults(card: Card) -> str:
    """Return the default size, steps and guidance scale in a card, as text."""
    return f"{card.width}x{card.height}, {card.steps} steps, guidance {card.guidance_scale:g}"


def _as_dict(registered: RegisteredCheckpoint) -> dict[str, object]:
    """Return the state of a registered checkpoint and the fields of its card, for --json.

    `on_disk` is "whole", "part" or "no".
    """
    status = cache.cache_status(registered)
    stored = "part" if status.stored_bytes else "no"
    return {
        "name": registered.name,
        "on_disk": "whole" if status.is_complete else stored,
        "directory": str(status.directory),
        "stored_bytes": status.stored_bytes,
        "size_bytes": registered.size_bytes,
        "repository": registered.repository,
        "revision": registered.revision,
        **asdict(registered.card),
    }


def _state(registered: RegisteredCheckpoint) -> str:
    """Return whether a checkpoint is on disk, and its size, with Rich's markup."""
    status = cache.cache_status(registered)
    if status.is_complete:
        return f"[green]on disk[/green], {gigabytes(status.stored_bytes)}"
    size = gigabytes(registered.size_bytes) if registered.size_bytes else "unknown size"
    if status.stored_bytes:
        return f"[yellow]partly on disk[/yellow], {gigabytes(status.stored_bytes)} of {size}"
    return f"not on disk, {size}"
