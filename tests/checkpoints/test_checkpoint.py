"""Opening a checkpoint validates its files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from sd35.backends.options import Options
from sd35.backends.registry import open_backend
from sd35.checkpoints.card import SkipLayers
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.errors import CheckpointError

SKIP_LAYERS = {"layers": [2, 3], "scale": 2.8, "start": 0.01, "stop": 0.2}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the embedded checkpoint, to be damaged."""
    shutil.copytree(open_checkpoint(EMBEDDED).directory, tmp_path / "copy")
    return tmp_path / "copy"


def test_the_revision_covers_card_weights_and_configurations(copy: Path):
    """Graphs, the name, and other files in the directory do not change the revision."""
    revision = open_checkpoint(EMBEDDED).revision
    (copy / "README.md").write_text("something else")
    (copy / "transformer" / "model.onnx").unlink()
    assert open_checkpoint(str(copy)).revision == revision
    for changed in ("sd35.json", "scheduler/scheduler_config.json"):
        before = (copy / changed).read_text()
        content = json.loads(before)
        content |= {"max_sequence_length": 19} if changed == "sd35.json" else {"shift": 2.0}
        (copy / changed).write_text(json.dumps(content))
        assert open_checkpoint(str(copy)).revision != revision
        (copy / changed).write_text(before)
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    assert open_checkpoint(str(copy)).revision != revision


@pytest.mark.parametrize(
    ("card", "why"),
    [
        ({"side_px": "ab"}, "side_px: got 'ab'"),
        ({"side_px": [64]}, "side_px.1: got"),
        ({"steps": 0}, "steps: got 0"),
        ({"width": 100}, "width: got 100"),
        ({"stepz": 4}, "stepz: got 4"),
        ({"enlarges": "maybe"}, "enlarges: got 'maybe'"),
        ({"skip_layers": [7, 8, 9]}, "skip_layers: got [7, 8, 9]"),
        ({"skip_layers": {**SKIP_LAYERS, "layers": []}}, "skip_layers.layers: got []"),
        ({"skip_layers": {**SKIP_LAYERS, "layers": [-1]}}, "skip_layers.layers.0: got -1"),
        ({"skip_layers": {**SKIP_LAYERS, "scale": 10.5}}, "skip_layers.scale: got 10.5"),
        ({"skip_layers": {**SKIP_LAYERS, "stop": 20}}, "skip_layers.stop: got 20"),
        ({"skip_layers": {**SKIP_LAYERS, "begin": 0}}, "skip_layers.begin: got 0"),
    ],
)
def test_an_invalid_card_is_refused(copy: Path, card: dict[str, Any], why: str):
    """The error names the file, the field and the value."""
    (copy / "sd35.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(str(copy))
    assert f"{copy / 'sd35.json'}: {why}" in str(refused.value)


def test_the_card_defines_skip_layer_guidance(copy: Path):
    """Layers that the transformer does not have are refused."""
    (copy / "sd35.json").write_text(json.dumps({"skip_layers": SKIP_LAYERS}))
    assert open_checkpoint(str(copy)).card.skip_layers == SkipLayers((2, 3), 2.8, 0.01, 0.2)
    (copy / "sd35.json").write_text(json.dumps({"skip_layers": {**SKIP_LAYERS, "layers": [5, 6]}}))
    with pytest.raises(CheckpointError, match="contains 6; allowed: 0 to 5"):
        open_backend("diffusers", open_checkpoint(str(copy)), Options(precision="float32", device="cpu"))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("transformer/config.json", "{}"),
        ("vae/config.json", '{"scaling_factor": "much", "shift_factor": 0}'),
        ("tokenizer_3/tokenizer.json", "{}"),
        ("transformer/diffusion_pytorch_model.safetensors", "short"),
    ],
)
@pytest.mark.parametrize("backend", ["onnx", "diffusers"])
def test_a_damaged_part_raises_checkpoint_error(copy: Path, backend: str, file: str, content: str):
    """The error names the checkpoint. Libraries raise different errors."""
    (copy / file).write_text(content)
    with pytest.raises(CheckpointError, match="copy"):
        open_backend(backend, open_checkpoint(str(copy)), Options(precision="float32", device="cpu"))


@pytest.mark.parametrize("path", ["x" * 5_000, "~nobody-of-this-name/x", "loop"])
def test_an_unusable_path_is_refused_in_one_short_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str):
    """The path is too long, in the home directory of an unknown user, or a link to itself."""
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(
        CheckpointError, match=rf"^checkpoint: (got )?'{path[:20]}.*(cannot be opened: |; allowed: )"
    ) as raised:
        open_checkpoint(path)
    assert len(str(raised.value)) < 300


def test_graphs_are_refused_for_rewritten_weights(copy: Path):
    """A graph refers to its weights by their offsets, so a longer header invalidates it."""
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(weights), weights, metadata={"note": "a longer header"})
    with pytest.raises(CheckpointError, match="were rewritten; export the graphs again: "):
        open_backend("onnx", open_checkpoint(str(copy)), Options())
