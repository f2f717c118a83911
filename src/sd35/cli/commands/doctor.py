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

    Exits with 1 if the selected backend, the fallback or a checkpoint cannot be used.

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
            role = _roles(report).get(finding.name, "") if title == "Backends" else ""
            console.print(f"  {'[green]ok[/green]' if finding.is_usable else '[red]no[/red]'}  ", end="")
            console.print(f"{finding.name}{role}: {finding.detail}", markup=False)
    console.print()
    if report.can_serve:
        console.print("`sd35 serve` can run here.", markup=False)
    else:
        console.print(
            "`sd35 serve` cannot run with these settings: see the backends and checkpoints above.", markup=False
        )


def _roles(report: DoctorReport) -> dict[str | None, str]:
    """Return a note on the backends that the settings name."""
    return {report.fallback: " (fallback)", report.backend: " (selected)"}
