"""Packaging: the locks match pyproject.toml, and the wheel contains the embedded model."""

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
    """Return the versions in `requirements/<name>.txt` by package."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    pins = [Requirement(line.removesuffix("\\")) for line in lines if line and not line.startswith((" ", "#"))]
    return {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}


def missing(lock: dict[str, str], requirements: list[str]) -> list[str]:
    """Return the requirements that no locked version satisfies."""
    parsed = map(Requirement, requirements)
    return [str(one) for one in parsed if not one.specifier.contains(lock.get(canonicalize_name(one.name), "0"))]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """The project's wheel, built without a package index."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return ZipFile(next(folder.glob("*.whl")))


def test_default_lock_satisfies_the_default_dependencies() -> None:
    """Each dependency is locked in a version that pyproject.toml allows."""
    assert missing(locked("default"), PROJECT["dependencies"]) == []


def test_test_lock_satisfies_the_extras() -> None:
    """PyTorch is an exception, because pip chooses its build for the machine."""
    extras = [one for extra in PROJECT["optional-dependencies"].values() for one in extra]
    assert missing(locked("test"), [one for one in extras if not one.startswith((PROJECT["name"], "torch=="))]) == []


def test_default_and_test_lock_have_the_same_versions() -> None:
    """So tests run the packages that serve."""
    default, test = locked("default"), locked("test")
    assert {name: test.get(name) for name in default} == default


@pytest.mark.parametrize("lock", ["default", "build", "test"])
def test_locks_contain_neither_pytorch_nor_cuda(lock: str) -> None:
    """The CUDA packages of PyTorch take gigabytes."""
    found = [name for name in locked(lock) if name.startswith(("torch", "triton", "nvidia", "cuda"))]
    assert [name for name in found if name not in {"torchao", "nvidia-ml-py"}] == []  # two small ones


def test_makefile_and_extra_have_the_same_pytorch() -> None:
    """`make test` installs the PyTorch that the `diffusers` extra pins."""
    pin = next(one for one in PROJECT["optional-dependencies"]["diffusers"] if one.startswith("torch=="))
    assert f" {pin}\n" in (ROOT / "Makefile").read_text()


def test_wheel_contains_every_file_of_the_package(wheel: ZipFile) -> None:
    """These are the code, the embedded model, its tokenizers, and py.typed."""
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert {name for name in files if "__pycache__" not in name} <= set(wheel.namelist())
    assert [name for name in files if name.startswith(EMBEDDED) and name.endswith(".safetensors")]


def test_wheel_metadata_names_licence_and_command(wheel: ZipFile) -> None:
    """The wheel also contains LICENSE, and NOTICE, which names the font of the training images."""
    info = f"sd35_fp8_mirror-{PROJECT['version']}.dist-info"
    metadata = message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= set(wheel.namelist())
    assert "sd35 = sd35.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_layers_above_the_backends_do_not_name_a_backend():
    """No string there equals the name of a backend. Differences between backends are in their specs."""
    layers = [ROOT / "src" / "sd35" / layer for layer in ("api", "service", "jobs", "generation", "planning", "engine")]
    for path in (path for layer in layers for path in layer.rglob("*.py")):
        strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not strings & BACKENDS.keys(), path
