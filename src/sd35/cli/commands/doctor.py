"""The command `sd35 doctor`."""

import json
import sys
from dataclasses import asdict

import typer
from rich.console import Console

from sd35.cli.options import CHECKPOINT, AsJson, with_settings
from sd35.doctor import DoctorReport, examine
from sd35.settings import Settings

app = typer.Typer()


@app.command()
@with_settings(*CHECKPOINT, "cache_dir", "data_dir")
def doctor(*, as_json: AsJson = False, settings: Settings) -> None:
    """Check hardware, backends, checkpoints and directories, and print how to fix what is wrong.

    Exits with 1 if the selected backend, the fallback or a checkpoint cannot be used. Directories do not change the
    exit code.

    [bold]Examples[/bold]

      sd35 doctor
      sd35 doctor --json
    """
    report = examine(settings)
    if as_json:
        print(json.dumps({**asdict(report), "can_serve": report.can_serve}, indent=2))
    else:
        _show(report)
    if not report.can_serve:
        sys.exit(1)


def _show(report: DoctorReport) -> None:
    """Print the facts about the machine, a line for each finding, and whether `sd35 serve` can run."""
    console = Console(highlight=False, soft_wrap=True)
    facts = {
        "version": f"{report.version} on Python {report.python}",
        "system": report.system,
        "processor": f"{report.processor}, {report.cores} cores",
        "memory": f"{report.memory_bytes / 2**30:.1f} GiB",
        "GPU": "; ".join(report.gpus) or "none (nvidia-smi is missing or finds none)",
    }
    for name, value in facts.items():
        console.print(f"{name:<12}", value, markup=False)
    for title, findings in (
        ("Backends", report.backends),
        ("Checkpoints", report.checkpoints),
        ("Directories", report.directories),
    ):
        console.print(f"\n[bold]{title}[/bold]")
        for finding in findings:
            role = _role(report, finding.name) if title == "Backends" else ""
            console.print(f"  {'[green]ok[/green]' if finding.is_usable else '[red]no[/red]'}  ", end="")
            console.print(f"{finding.name}{role}: {finding.detail}", markup=False)
    console.print()
    if report.can_serve:
        condition = "" if all(directory.is_usable for directory in report.directories) else " with other directories"
        console.print(f"`sd35 serve` can run here{condition}.", markup=False)
    else:
        reason = "the selected backend, the fallback or a checkpoint has the state `no` above"
        console.print(f"`sd35 serve` cannot run with these settings, because {reason}.", markup=False)


def _role(report: DoctorReport, backend: str) -> str:
    """Return a note for the backends that the settings name, or "" for others."""
    if backend == report.backend:
        return " (selected)"
    return " (fallback)" if backend == report.fallback else ""
