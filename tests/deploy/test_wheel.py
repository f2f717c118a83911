"""The wheel, installed with the locked packages into an empty environment, runs the README's Python example."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 600  # installs, and perhaps downloads, 280 MB of packages


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without the paths and settings of this process, and return its output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SD35_"))}
    result = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with only the wheel and the default lock."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder, cwd=ROOT)
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    install = (python, "-m", "pip", "--disable-pip-version-check", "install", "--no-compile", "--no-deps")
    run(*install, "--require-hashes", "-r", ROOT / "requirements" / "default.txt", cwd=folder)
    run(*install, next(folder.glob("*.whl")), cwd=folder)
    return python


def test_the_readme_example_runs_in_an_empty_environment(python: Path, tmp_path: Path):
    """`sd35 replay` then generates the same bytes."""
    (block,) = re.findall(r"(?ms)^```python\n(from sd35 import .*?)^```", (ROOT / "README.md").read_text())
    run(python, "-c", block, cwd=tmp_path)
    assert run(python.with_name("sd35"), "replay", "cat.png", cwd=tmp_path).startswith("cat.png: same bytes\n")


def test_the_installed_package_is_the_one_that_runs(python: Path, tmp_path: Path):
    """It is not imported from the sources. It has py.typed."""
    (package,) = run(python, "-c", "import sd35; print(sd35.__path__[0])", cwd=tmp_path).splitlines()
    assert Path(package).is_relative_to(python.parents[1])
    assert (Path(package) / "py.typed").exists()
