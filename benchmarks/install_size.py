"""The size of the installation on disk, with the user interface and without it.

The size with the user interface is that of the environment of `make run`, and of the package itself. For the size
without it, the packages that only requirements/ui.txt lists, and not requirements/default.txt, are subtracted.
"""

import re
import shutil
import subprocess
from importlib.metadata import distributions
from pathlib import Path

from benchmarks.outcome import Bar, CannotRun, Outcome
from benchmarks.processes import ROOT

MAX_MB, MAX_WITH_UI_MB = 550.0, 750.0
_MB, _MIB = 10**6, 2**20
_LARGEST = 5  # number of packages in the notes


def default_environment() -> Path:
    """Create or update the virtual environment of `make run`, and return its directory.

    Raises CannotRun without `make`.
    """
    make = shutil.which("make")
    if not make:
        raise CannotRun("make is not installed, but it creates the environment that is measured; install it")
    subprocess.run([make, ".venv/.package"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return ROOT / ".venv"


def measure(_checkpoint: Path, _rounds: int) -> Outcome:
    """Measure the sizes once, in blocks on disk like `du`. A file with several hard links counts once."""
    environment = default_environment()
    # The installation is editable, so the package with the embedded model is not inside the environment.
    parts = {"environment": disk_bytes(environment), "package": disk_bytes(ROOT / "src" / "sd35")}
    total = sum(parts.values())
    site = next(environment.glob("lib/python*/site-packages"))
    parts["ui"] = sum(_distribution_bytes(site, name) for name in locked("ui") - locked("default"))
    packages = {path.name: disk_bytes(path) for path in site.iterdir() if path.is_dir()}
    largest = sorted(packages, key=lambda name: packages[name], reverse=True)[:_LARGEST]
    return Outcome(
        [
            Bar("installation without the user interface", (total - parts["ui"]) / _MB, "MB", "<=", MAX_MB),
            Bar("installation of `make run`", total / _MB, "MB", "<=", MAX_WITH_UI_MB),
        ],
        [
            f"{total / _MB:.0f} MB of 10^6 bytes ({total / _MIB:.0f} MiB), including pip and bytecode",
            ", ".join(f"{name} {size / _MB:.0f} MB" for name, size in parts.items()),
            "largest: " + ", ".join(f"{name} {packages[name] / _MB:.0f} MB" for name in largest),
        ],
        {"bytes": parts},
    )


def locked(name: str) -> set[str]:
    """Return the names of the packages in a lock file."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z0-9._-]+)==", lines, re.MULTILINE))


def _distribution_bytes(site: Path, name: str) -> int:
    """Return the bytes on disk of a package in `site`, with its bytecode. Returns 0 if it is not installed."""
    blocks = 0
    for distribution in distributions(name=name, path=[str(site)]):
        paths = {Path(str(distribution.locate_file(file))) for file in distribution.files or ()}
        blocks += sum(path.lstat().st_blocks for path in paths if path.exists())
    return 512 * blocks  # `st_blocks` counts blocks of 512 bytes


def disk_bytes(directory: Path) -> int:
    """Return the size of a directory on disk in bytes. Symbolic links are not followed."""
    entries = [path.lstat() for path in (directory, *directory.rglob("*"))]
    blocks = {(entry.st_dev, entry.st_ino): entry.st_blocks for entry in entries}  # each file once
    return 512 * sum(blocks.values())
