"""`sd35 models`, `pull`, `verify` and `remove`: checkpoints that are known by name."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from sd35.checkpoints.hub import cache, download
from sd35.checkpoints.hub.plan import plan_download
from sd35.checkpoints.hub.verify import verify_checkpoint
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED, RegisteredCheckpoint, find_registered, load_registry
from sd35.errors import DownloadFailed, InvalidSetting
from sd35.settings import Settings

_IN_THE_PACKAGE = f"{EMBEDDED} is a part of sd35 itself"


def models(settings: Settings, *, as_json: bool) -> None:
    """Print what is known by name, the embedded checkpoint first."""
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


def pull(settings: Settings, name: str) -> None:
    """Fetch a registered checkpoint, with a progress bar on a terminal.

    Raises InvalidSetting, DownloadFailed, CheckpointError.
    """
    if name == EMBEDDED:
        print(f"{_IN_THE_PACKAGE}: nothing to fetch")
        return
    registered = find_registered(name, settings.registry)
    if settings.offline:
        holding = cache.cache_status(registered)
        if not holding.is_complete:
            raise DownloadFailed(f"{name} is not whole on disk, and SD35_OFFLINE is set: unset it to fetch the rest")
        print(f"{name}: on disk in {holding.directory}")
        return
    plan = plan_download(registered)
    if not plan.missing:
        print(f"{name}: on disk in {cache.cache_paths(registered).snapshot}")
        return
    print(
        f"{name}: fetching {len(plan.missing)} of {len(plan.files)} files, {_gigabytes(plan.missing_bytes)};"
        f" {registered.card.licence}",
        flush=True,
    )
    try:
        with _progress(name, plan.missing_bytes) as on_bytes:
            directory = download.fetch(plan, on_bytes)
    except KeyboardInterrupt:
        print(f"sd35: interrupted; what has arrived is kept: sd35 pull {name} goes on with it", file=sys.stderr)
        raise
    print(f"{name}: ready in {directory}")


def verify(settings: Settings, name: str, *, discard: bool) -> None:
    """Check a registered checkpoint's files; exit with 1 where one is not as it should be."""
    registered = _fetched(settings, name)
    holding = cache.cache_status(registered)
    with _progress(name, holding.stored_bytes) as on_bytes:
        found = verify_checkpoint(registered, offline=settings.offline, on_bytes=on_bytes)
    for title, paths in (
        ("damaged", found.damaged),
        ("missing", found.missing),
        ("not checked, as no checksum is noted", found.unknown),
    ):
        for path in paths:
            print(f"{name}: {path} is {title}")
    print(f"{name}: {len(found.intact)} files are as the hub has them")
    if discard:
        with cache.disk_errors(registered, "cleared of damaged files"):
            for path in found.damaged:
                cache.discard(holding.directory / path)
    elif found.damaged:
        print(f"{name}: `sd35 verify {name} --discard` deletes what is damaged")
    if found.damaged or found.missing:
        print(f"{name}: `sd35 pull {name}` fetches what is missing")
    if found.damaged or found.missing or found.unknown:
        sys.exit(1)


def remove(settings: Settings, name: str) -> None:
    """Delete a registered checkpoint's files. Raises InvalidSetting, CheckpointError."""
    print(f"{name}: removed, {_gigabytes(cache.remove(_fetched(settings, name)))} are free again")


def _fetched(settings: Settings, name: str) -> RegisteredCheckpoint:
    if name == EMBEDDED:
        raise InvalidSetting(f"NAME: {_IN_THE_PACKAGE}; allowed: {', '.join(load_registry(settings.registry))}")
    return find_registered(name, settings.registry)


def _as_dict(registered: RegisteredCheckpoint) -> dict[str, object]:
    holding = cache.cache_status(registered)
    return {
        "name": registered.name,
        "on_disk": "whole" if holding.is_complete else "part" if holding.stored_bytes else "no",
        "directory": str(holding.directory),
        "stored_bytes": holding.stored_bytes,
        "size_bytes": registered.size_bytes,
        "repository": registered.repository,
        "revision": registered.revision,
        **asdict(registered.card),
    }


def _state(registered: RegisteredCheckpoint) -> str:
    holding = cache.cache_status(registered)
    if holding.is_complete:
        return f"[green]on disk[/green], {_gigabytes(holding.stored_bytes)}"
    takes = f"takes {_gigabytes(registered.size_bytes)}" if registered.size_bytes else "the hub knows its size"
    return f"{_gigabytes(holding.stored_bytes)} on disk, {takes}" if holding.stored_bytes else f"not on disk, {takes}"


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"


@contextmanager
def _progress(name: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal; it leaves nothing behind. Yields what to tell of more bytes."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with progress:
        task = progress.add_task(name, total=total_bytes)
        yield lambda more: progress.advance(task, more)
