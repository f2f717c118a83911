"""The command `sd35 verify`."""

import sys
from typing import Annotated

import typer

from sd35.checkpoints.hub import cache
from sd35.checkpoints.hub.verify import verify_checkpoint
from sd35.cli.options import with_settings
from sd35.cli.progress import byte_bar
from sd35.cli.registered import Name, find_downloadable
from sd35.settings import Settings

app = typer.Typer()


@app.command()
@with_settings("registry", "offline")
def verify(
    name: Name,
    *,
    discard: Annotated[
        bool, typer.Option("--discard", help="Delete damaged files, so that `sd35 pull` downloads them again.")
    ] = False,
    settings: Settings,
) -> None:
    """Check the files of a downloaded checkpoint against the checksums of the hub.

    With --offline, checks them against the checksums recorded at the download. Exits with 1 if a file is damaged,
    missing or cannot be checked.

    [bold]Examples[/bold]

      sd35 verify sd3.5-medium
      sd35 verify sd3.5-medium --offline --discard
    """
    registered = find_downloadable(name, settings)
    status = cache.cache_status(registered)
    with byte_bar() as progress:
        bar = progress.add_task(name, total=status.stored_bytes)
        result = verify_checkpoint(
            registered, offline=settings.offline, on_bytes=lambda more: progress.advance(bar, more)
        )
    for state, paths in (
        ("damaged", result.damaged),
        ("missing", result.missing),
        ("not checked, because its checksum is unknown", result.unknown),
    ):
        for path in paths:
            print(f"{name}: {path} is {state}")
    print(f"{name}: intact files: {len(result.intact)}")
    if discard:
        with cache.disk_errors(registered, "cleared of damaged files"):
            for path in result.damaged:
                cache.discard(status.directory / path)
    elif result.damaged:
        print(f"{name}: delete damaged files with: sd35 verify {name} --discard")
    if result.damaged or result.missing:
        print(f"{name}: download missing files with: sd35 pull {name}")
    if result.damaged or result.missing or result.unknown:
        sys.exit(1)
