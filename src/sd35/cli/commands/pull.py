"""The command `sd35 pull`."""

import sys

import typer

from sd35.checkpoints.hub import cache, download
from sd35.checkpoints.hub.plan import plan_download
from sd35.checkpoints.registry import EMBEDDED, RegisteredCheckpoint, find_registered
from sd35.cli.options import with_settings
from sd35.cli.progress import byte_bar
from sd35.cli.registered import IN_THE_PACKAGE, Name, gigabytes
from sd35.errors import DownloadFailed
from sd35.settings import Settings

app = typer.Typer()


@app.command()
@with_settings("registry", "offline")
def pull(name: Name, *, settings: Settings) -> None:
    """Download a checkpoint from the Hugging Face hub, verify it, and store it for every command.

    Files on disk are not downloaded again; an interrupted download continues. The SD3.5 models need a token: accept
    the licence on the model's page, then provide the token with HF_TOKEN or `hf auth login`.

    [bold]Examples[/bold]

      sd35 pull sd3.5-medium
      HF_HOME=/data/huggingface sd35 pull sd3.5-large
    """
    if name == EMBEDDED:
        print(f"{IN_THE_PACKAGE}: nothing to fetch")
        return
    registered = find_registered(name, settings.registry)
    if settings.offline:
        status = cache.cache_status(registered)
        if not status.is_complete:
            raise DownloadFailed(f"{name} is not whole on disk, and SD35_OFFLINE is set: unset it to fetch the rest")
        print(f"{name}: on disk in {status.directory}")
        return
    _download(registered)


def _download(registered: RegisteredCheckpoint) -> None:
    name, plan = registered.name, plan_download(registered)
    if not plan.missing:
        print(f"{name}: on disk in {cache.cache_paths(registered).snapshot}")
        return
    print(
        f"{name}: fetching {len(plan.missing)} of {len(plan.files)} files, {gigabytes(plan.missing_bytes)};"
        f" {registered.card.licence}",
        flush=True,
    )
    try:
        with byte_bar() as progress:
            bar = progress.add_task(name, total=plan.missing_bytes)
            directory = download.fetch(plan, lambda more: progress.advance(bar, more))
    except KeyboardInterrupt:
        print(f"sd35: interrupted; what has arrived is kept: sd35 pull {name} goes on with it", file=sys.stderr)
        raise
    print(f"{name}: ready in {directory}")
