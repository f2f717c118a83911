"""`sd35 doctor`: what is here, what can run, and what to do about the rest."""

import json
import sys
from dataclasses import asdict

from rich.console import Console

from sd35.doctor import DoctorReport, examine
from sd35.settings import Settings


def doctor(settings: Settings, *, as_json: bool) -> None:
    """Print what was found; exit with 1 where the settings in force cannot serve."""
    checkup = examine(settings)
    if as_json:
        print(json.dumps({**asdict(checkup), "can_serve": checkup.can_serve}, indent=2))
    else:
        _show(checkup)
    if not checkup.can_serve:
        sys.exit(1)


def _show(checkup: DoctorReport) -> None:
    console = Console(highlight=False, soft_wrap=True)
    facts = {
        "version": f"{checkup.version} on Python {checkup.python}",
        "system": checkup.system,
        "processor": f"{checkup.processor}, {checkup.cores} cores",
        "memory": f"{checkup.memory_bytes / 2**30:.1f} GiB",
        "GPU": "; ".join(checkup.gpus) or "none found (nvidia-smi lists none)",
    }
    for name, value in facts.items():
        console.print(f"{name:<12}", value, markup=False)
    for title, findings in (
        ("Backends", checkup.backends),
        ("Checkpoints", checkup.checkpoints),
        ("Directories", checkup.directories),
    ):
        console.print(f"\n[bold]{title}[/bold]")
        for finding in findings:
            mark = "[green]ok[/green]  " if finding.is_usable else "[red]no[/red]  "
            console.print(f"  {mark}", end="")
            console.print(f"{finding.name}: {finding.detail}", markup=False)
