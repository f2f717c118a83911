"""What is installed: the locks agree with pyproject.toml, and the wheel carries the embedded model."""

import ast
import subprocess
import sys
import tomllib
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sd35.backends.registry import BACKENDS

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EMBEDDED = "sd35/checkpoints/embedded/"


def locked(name: str) -> dict[str, str]:
    """Package -> version, of `requirements/<name>.txt`."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    pins = [Requirement(line.removesuffix("\\")) for line in lines if line and not line.startswith((" ", "#"))]
    return {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}


def missing(lock: dict[str, str], requirements: list[str]) -> list[str]:
    """The requirements that no locked version satisfies."""
    wanted = map(Requirement, requirements)
    return [str(one) for one in wanted if not one.specifier.contains(lock.get(canonicalize_name(one.name), "0"))]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """The project's wheel, built without a package index."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return ZipFile(next(folder.glob("*.whl")))


def test_default_lock_satisfies_the_default_dependencies() -> None:
    """Every default dependency is in the default lock, in a version that pyproject.toml allows."""
    assert missing(locked("default"), PROJECT["dependencies"]) == []


def test_test_lock_satisfies_the_extras() -> None:
    """The test lock holds what each extra asks for, PyTorch excepted, which pip chooses for the machine."""
    extras = [one for extra in PROJECT["optional-dependencies"].values() for one in extra]
    assert missing(locked("test"), [one for one in extras if not one.startswith((PROJECT["name"], "torch=="))]) == []


def test_tests_run_what_is_served() -> None:
    """A package of the default lock has the same version in the test lock."""
    default, test = locked("default"), locked("test")
    assert {name: test.get(name) for name in default} == default


@pytest.mark.parametrize("lock", ["default", "build", "test"])
def test_locks_hold_no_pytorch_and_no_cuda(lock: str) -> None:
    """No lock names PyTorch or one of the packages, gigabytes of them, that its CUDA builds pull in."""
    found = [name for name in locked(lock) if name.startswith(("torch", "triton", "nvidia", "cuda"))]
    assert [name for name in found if name not in {"torchao", "nvidia-ml-py"}] == []  # two that are small


def test_makefile_and_extra_name_one_pytorch() -> None:
    """`make test` installs the PyTorch that the `diffusers` extra pins."""
    pin = next(one for one in PROJECT["optional-dependencies"]["diffusers"] if one.startswith("torch=="))
    assert f" {pin}\n" in (ROOT / "Makefile").read_text()


def test_wheel_carries_every_file_of_the_package(wheel: ZipFile) -> None:
    """The wheel holds each file under src/: the embedded model, its tokenizers and py.typed as well as the code."""
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert {name for name in files if "__pycache__" not in name} <= set(wheel.namelist())
    assert [name for name in files if name.startswith(EMBEDDED) and name.endswith(".safetensors")]


def test_wheel_metadata_names_licence_and_command(wheel: ZipFile) -> None:
    """The wheel carries the licence, the notice of what the model was trained on, and the command `sd35`."""
    info = f"sd35_fp8_mirror-{PROJECT['version']}.dist-info"
    metadata = message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= set(wheel.namelist())
    assert "sd35 = sd35.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_who_swaps_the_backend_changes_nothing_above_it():
    """No string above the backends is a backend's name; its spec says what is particular to it."""
    floors = [ROOT / "src" / "sd35" / floor for floor in ("api", "service", "jobs", "generation", "planning", "engine")]
    for path in (path for floor in floors for path in floor.rglob("*.py")):
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not words & BACKENDS.keys(), path
