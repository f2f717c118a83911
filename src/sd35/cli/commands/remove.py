"""The command `sd35 remove`."""

import typer

from sd35.checkpoints.hub import cache
from sd35.cli.options import with_settings
from sd35.cli.registered import Name, find_downloadable, gigabytes
from sd35.settings import Settings

app = typer.Typer()


@app.command()
@with_settings("registry")
def remove(name: Name, *, settings: Settings) -> None:
    """Delete the files of a checkpoint and print how much disk space this freed.

    Deletes only the revision (commit on the hub) that `sd35 models` shows. Other revisions stay in the cache, because
    other programs may use them.

    [bold]Examples[/bold]

      sd35 remove sd3.5-large
      sd35 remove my-finetune --registry my-registry.toml
    """
    print(f"{name}: removed, {gigabytes(cache.remove(find_downloadable(name, settings)))} freed")
