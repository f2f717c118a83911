"""What the installation takes on disk, with the page for people and without.

With it is the environment that `make run` makes, and the package itself; without it, the same less the packages that
requirements/ui.txt locks and requirements/default.txt does not.
"""

import re
import shutil
import subprocess
from importlib.metadata import distributions
from pathlib import Path

from benchmarks.outcome import Bar, Outcome
from benchmarks.processes import ROOT

MOST_MB, MOST_WITH_PAGE_MB = 550.0, 750.0
_MB, _MIB = 10**6, 2**20
_LARGEST = 5


def default_environment() -> Path:
    """The virtual environment of `make run`, made (or made anew) by its own rule where it is missing or out of date."""
    make = shutil.which("make")
    if not make:
        raise SystemExit("make is needed: the environment that is measured is the one it makes")
    subprocess.run([make, ".venv/.package"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return ROOT / ".venv"


def measure(_checkpoint: Path, _rounds: int) -> Outcome:
    """Blocks on disk, as `du` counts them; a file with several names counts once."""
    environment = default_environment()
    # The installation is editable: the package, with the embedded model in it, lies beside the environment.
    parts = {"environment": disk_bytes(environment), "package": disk_bytes(ROOT / "src" / "sd35")}
    total = sum(parts.values())
    site = next(environment.glob("lib/python*/site-packages"))
    parts["page"] = sum(_distribution_bytes(site, name) for name in locked("ui") - locked("default"))
    packages = {path.name: disk_bytes(path) for path in site.iterdir() if path.is_dir()}
    largest = sorted(packages, key=lambda name: packages[name], reverse=True)[:_LARGEST]
    return Outcome(
        [
            Bar("environment and package without the page", (total - parts["page"]) / _MB, "MB", "<=", MOST_MB),
            Bar("environment and package of `make run`", total / _MB, "MB", "<=", MOST_WITH_PAGE_MB),
        ],
        [
            f"{total / _MB:.0f} MB of 10^6 bytes, which is {total / _MIB:.0f} MiB; with pip and bytecode",
            ", ".join(f"{name} {size / _MB:.0f} MB" for name, size in parts.items()),
            "largest: " + ", ".join(f"{name} {packages[name] / _MB:.0f} MB" for name in largest),
        ],
        {"bytes": parts},
    )


def locked(name: str) -> set[str]:
    """The packages of a lock."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z0-9._-]+)==", lines, re.MULTILINE))


def _distribution_bytes(site: Path, name: str) -> int:
    """What the files of an installed package take, its bytecode among them; 0 where it is not for this machine."""
    blocks = 0
    for found in distributions(name=name, path=[str(site)]):
        paths = {Path(str(found.locate_file(file))) for file in found.files or ()}
        blocks += sum(path.lstat().st_blocks for path in paths if path.exists())
    return 512 * blocks


def disk_bytes(directory: Path) -> int:
    """What a directory's files take on disk, in bytes. Links are not followed."""
    found = [path.lstat() for path in (directory, *directory.rglob("*"))]
    blocks = {(entry.st_dev, entry.st_ino): entry.st_blocks for entry in found}
    return 512 * sum(blocks.values())
