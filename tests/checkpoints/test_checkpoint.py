"""What a directory says of itself is checked before it is believed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from sd35.backends.options import Options
from sd35.backends.table import open_backend
from sd35.checkpoints.checkpoint import EMBEDDED, open_checkpoint
from sd35.errors import CheckpointError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the embedded checkpoint, to be damaged."""
    shutil.copytree(open_checkpoint(EMBEDDED).directory, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("card", "why"),
    [
        ({"side_px": "ab"}, "side_px: got 'ab'"),
        ({"side_px": [64]}, "side_px.1: got"),
        ({"steps": 0}, "steps: got 0"),
        ({"width": 100}, "width: got 100"),
        ({"stepz": 4}, "stepz: got 4"),
        ({"enlarges": "maybe"}, "enlarges: got 'maybe'"),
    ],
)
def test_a_card_of_nonsense_is_refused_by_name(copy: Path, card: dict[str, Any], why: str):
    """The file, the field and what came are named."""
    (copy / "sd35.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(str(copy))
    assert f"{copy / 'sd35.json'}: {why}" in str(refused.value)


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
def test_a_damaged_part_is_one_clear_error(copy: Path, backend: str, file: str, content: str):
    """Whatever a library makes of it, the user reads which checkpoint cannot be loaded."""
    (copy / file).write_text(content)
    with pytest.raises(CheckpointError, match="copy"):
        open_backend(backend, open_checkpoint(str(copy)), Options(precision="float32", device="cpu"))


def test_graphs_are_not_run_on_weights_that_were_written_anew(copy: Path):
    """A graph points into its file by offsets; after the file was saved with another header, it is refused."""
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(weights), weights, metadata={"note": "a longer header"})
    with pytest.raises(CheckpointError, match="written anew; make the graphs again with"):
        open_backend("onnx", open_checkpoint(str(copy)), Options())
