"""Progress bars on stderr. They appear only if stderr is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


def progress_bar(*columns: ProgressColumn) -> Progress:
    """Return a bar with a description before it and `columns` after it. It disappears at the end."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def count_bar() -> Progress:
    """Return a bar that counts steps."""
    return progress_bar(MofNCompleteColumn(), TimeElapsedColumn())


def byte_bar() -> Progress:
    """Return a bar that counts bytes."""
    return progress_bar(DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())


@contextmanager
def show_stages() -> Iterator[Callable[[str, int, int], None]]:
    """Show the progress of each stage of a build on stderr: a bar on a terminal, otherwise a line when it is done.

    Yields a function that takes the name of a stage, the number of its finished steps, and the number of all steps.
    """

    def print_when_done(name: str, done: int, total: int) -> None:
        if done >= total:
            print(f"{name}: done", file=sys.stderr, flush=True)

    console = Console(stderr=True)
    if not console.is_terminal:
        yield print_when_done
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        bars: dict[str, Any] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name)
            progress.update(bars[name], completed=done, total=total)

        yield show
