"""The settings of `sd35 replay`: those that the profile of the image names."""

import sys
from pathlib import Path

import numpy as np
import pytest

from sd35.cli.main import main
from sd35.errors import CheckpointError
from sd35.images.png import write_png
from sd35.images.record import Maker, Record
from sd35.request import Request
from sd35.settings import Settings


@pytest.fixture
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An image whose profile ends with the parameter of the test."""
    profile = f"diffusers/bfloat16{request.param}"
    record = Record(
        Request("a cat", "", 16, 16, 1, 0.0, 1, "model", "revision", profile),
        Maker("revision", "diffusers", "bfloat16", {}, 16, 16, []),
    )
    path = tmp_path / "cat.png"
    path.write_bytes(write_png(np.zeros((16, 16, 3), np.uint8), record.to_text()))
    return path


def settings_of_replay(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> Settings:
    """Run `sd35 replay` until it opens checkpoints, and return its settings."""
    opened: list[Settings] = []

    def stop(settings: Settings) -> None:
        opened.append(settings)
        raise CheckpointError("stop here")

    monkeypatch.setattr("sd35.cli.commands.replay.open_checkpoints", stop)
    monkeypatch.setattr(sys, "argv", ["sd35", "replay", *map(str, arguments)])
    with pytest.raises(SystemExit):
        main()
    return opened[0]


@pytest.mark.parametrize(
    ("file", "compiled", "tiled"),
    [("", False, "off"), ("/compiled", True, "off"), ("/tiled", False, "on"), ("/compiled/tiled", True, "on")],
    indirect=["file"],
)
def test_replay_uses_the_settings_of_the_profile(
    monkeypatch: pytest.MonkeyPatch, file: Path, compiled: object, tiled: str
):
    """Backend, precision, compiling and tiling."""
    settings = settings_of_replay(monkeypatch, file)
    assert (settings.backend, settings.precision) == ("diffusers", "bfloat16")
    assert (settings.torch_compile, settings.tiled_decode) == (compiled, tiled)


@pytest.mark.parametrize("file", [""], indirect=True)
def test_flags_override_the_settings_of_the_profile(monkeypatch: pytest.MonkeyPatch, file: Path):
    """Each flag overrides one setting."""
    settings = settings_of_replay(monkeypatch, file, "--backend", "onnx", "--precision", "float32")
    assert (settings.backend, settings.precision, settings.tiled_decode) == ("onnx", "float32", "off")
