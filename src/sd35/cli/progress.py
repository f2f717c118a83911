"""Progress bars on stderr. They appear only on a terminal, and disappear at the end."""

import sys

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
    """Return a bar with a description before it and `columns` after it."""
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
