"""`sd35 compile`: building engines from the embedded checkpoint or from NVIDIA's graphs, and invalid flags."""

import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.cli.main import main

needs_rtx = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="TensorRT-RTX is for Linux on x86-64"
)
PARTS = ["clip_l", "clip_g", "t5", "transformer", "vae"]


@pytest.fixture(autouse=True)
def home(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory of each command, with the graphs of the embedded checkpoint."""
    monkeypatch.setenv("SD35_CACHE_DIR", str(compiled))
    return compiled


def compile_(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process. Return the exit code."""
    monkeypatch.setattr(sys, "argv", ["sd35", "compile", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def build(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Build, and return the command's JSON output for the one checkpoint."""
    assert compile_(monkeypatch, *arguments, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


@needs_rtx
def test_engines_are_built_from_the_graphs_in_the_cache(monkeypatch, capsys, home: Path):
    """One for each network, for the given architecture, sizes and rows. A second run builds nothing."""
    arguments = ["--target", "tensorrt", "--gpu", "sm86", "--shapes", "64x64..256x256", "--rows", "2"]
    found = build(monkeypatch, capsys, *arguments)
    (gpu, engines), *others = found["engines"].items()
    assert (gpu, others) == ("sm86", [])
    assert [Path(folder).name for folder in engines] == [f"{part}-bf16" for part in PARTS]
    for folder, size in engines.items():
        assert Path(folder).is_relative_to(home)
        assert (Path(folder) / "model.engine").stat().st_size == size
    manifest = json.loads((Path(list(engines)[3]) / "manifest.json").read_text())
    assert (manifest["key"]["shapes"], manifest["key"]["batch"]) == ("64x64..256x256", 2)
    built_at = [(Path(folder) / "model.engine").stat().st_mtime_ns for folder in engines]
    assert build(monkeypatch, capsys, *arguments)["engines"] == found["engines"]
    assert [(Path(folder) / "model.engine").stat().st_mtime_ns for folder in engines] == built_at


@needs_rtx
def test_engines_are_built_from_nvidias_graphs(monkeypatch, capsys, home: Path, tmp_path: Path):
    """Without PyTorch and without calibration. `--precision` selects one of NVIDIA's transformers."""
    embedded = open_checkpoint(EMBEDDED)
    graphs = home / "compiled" / f"{EMBEDDED}-{embedded.revision[:16]}" / "bf16"
    official = tmp_path / "official"
    shutil.copytree(graphs, official)
    shutil.copy(embedded.directory / "sd35.json", official)
    arguments = ["--checkpoint", str(official), "--base-checkpoint", EMBEDDED, "--target", "tensorrt", "--gpu", "sm89"]
    monkeypatch.setattr("sd35.cli.commands.compile.backend_module", lambda _: pytest.fail("PyTorch was imported"))
    shapes = ["--shapes", "64x64..256x256"]
    found = build(monkeypatch, capsys, *arguments, *shapes, "--precision", "fp8")
    folders = list(found["engines"]["sm89"])
    assert [Path(folder).name for folder in folders] == [
        f"{part}-{'fp8' if part == 'transformer' else 'bf16'}" for part in PARTS
    ]
    assert all("compiled/official-" in folder for folder in folders)
    assert compile_(monkeypatch, *arguments, "--precision", "fp32") == 2
    assert "precision: got fp32" in capsys.readouterr().err
    assert compile_(monkeypatch, *arguments, "--precision", "fp8", "--steps", "4") == 2
    assert "are already calibrated; leave out these options" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "sm89"], "--gpu, --shapes, --rows: allowed only with --target tensorrt"),
        (["--steps", "3"], "--size, --steps, --prompts: allowed only with --precision fp8"),
        (["--precision", "fp8", "--size", "100x100"], "--size: got '100x100'; allowed: WIDTHxHEIGHT"),
        pytest.param(["--target", "tensorrt", "--gpu", "sm90"], "gpu: got sm90", marks=needs_rtx),
        pytest.param(
            ["--target", "tensorrt", "--gpu", "sm89", "--shapes", "9x9"], "shapes: got '9x9'", marks=needs_rtx
        ),
    ],
)
def test_invalid_flags_are_refused_before_anything_is_built(monkeypatch, capsys, arguments: list[str], message: str):
    monkeypatch.setattr("sd35.compile.graphs.build_graphs", lambda *_: pytest.fail("it started to build"))
    assert compile_(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err
