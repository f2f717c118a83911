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
    """Download a checkpoint from the Hugging Face hub and verify its checksums.

    Files on disk are not downloaded again, and an interrupted download resumes. The SD3.5 models need a token: accept
    the licence on the model's page, then set HF_TOKEN or run `hf auth login`.

    [bold]Examples[/bold]

      sd35 pull sd3.5-medium
      HF_HOME=/data/huggingface sd35 pull sd3.5-large
    """
    if name == EMBEDDED:
        print(f"{IN_THE_PACKAGE}; there is nothing to download")
        return
    registered = find_registered(name, settings.registry)
    if settings.offline:
        status = cache.cache_status(registered)
        if not status.is_complete:
            state, rest = ("only partly", "the rest") if status.stored_bytes else ("not", "it")
            raise DownloadFailed(
                f"{name} is {state} on disk, and the setting offline is on; set offline to false to download {rest}"
            )
        print(f"{name}: on disk in {status.directory}")
        return
    _download(registered)


def _download(registered: RegisteredCheckpoint) -> None:
    """Download the missing files of a checkpoint, with a progress bar."""
    name, plan = registered.name, plan_download(registered)
    if not plan.missing:
        print(f"{name}: on disk in {cache.cache_paths(registered).snapshot}")
        return
    print(
        f"{name}: downloading {len(plan.missing)} of {len(plan.files)} files, {gigabytes(plan.missing_bytes)}"
        f" (licence: {registered.card.licence})",
        flush=True,
    )
    try:
        with byte_bar() as progress:
            bar = progress.add_task(name, total=plan.missing_bytes)
            directory = download.fetch(plan, lambda more: progress.advance(bar, more))
    except KeyboardInterrupt:
        print(f"sd35: interrupted; `sd35 pull {name}` resumes the download", file=sys.stderr)
        raise
    print(f"{name}: ready in {directory}")
