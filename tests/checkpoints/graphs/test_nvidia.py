"""NVIDIA's graphs are recognised by their layout, and completed by a base checkpoint."""

import json
import shutil
from pathlib import Path

import pytest

from sd35.checkpoints.graphs.nvidia import TransformerPrecision
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.errors import CheckpointError

FILE = "model_optimized.onnx"
FOLDERS = ("clip_l", "clip_g", "t5", "vae", "transformer/bf16", "transformer/fp8")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory in NVIDIA's layout, with dummy files."""
    for folder in FOLDERS:
        (tmp_path / "large" / "ONNX" / folder).mkdir(parents=True)
        (tmp_path / "large" / "ONNX" / folder / FILE).write_text(folder)
    return tmp_path / "large"


@pytest.fixture
def base_checkpoint(tmp_path: Path) -> Path:
    """A copy of the embedded checkpoint."""
    shutil.copytree(open_checkpoint(EMBEDDED).directory, tmp_path / "base_checkpoint")
    return tmp_path / "base_checkpoint"


def test_weights_come_from_the_graphs_and_the_rest_from_the_base_checkpoint(
    directory: Path, base_checkpoint: Path
) -> None:
    """The name is that of the graphs. The card is that of the base checkpoint, unless the directory has a card."""
    found = open_checkpoint(str(directory), base_checkpoint=str(base_checkpoint))
    assert found.graphs is not None
    assert found.graphs.path("text_encoder_2") == directory / "ONNX" / "clip_g" / FILE
    assert (found.name, found.directory) == ("large", base_checkpoint)
    assert found.card == open_checkpoint(EMBEDDED).card
    (directory / "sd35.json").write_text(json.dumps({"steps": 5}))
    assert open_checkpoint(str(directory), base_checkpoint=EMBEDDED).card.steps == 5


def test_graphs_without_a_base_checkpoint_are_refused(directory: Path) -> None:
    """The error names the option."""
    with pytest.raises(
        CheckpointError, match=r"no tokenizers or configurations.*--base-checkpoint \(SD35_BASE_CHECKPOINT\)"
    ):
        open_checkpoint(str(directory))


def test_a_missing_graph_is_named(directory: Path) -> None:
    """The error has the path of the graph."""
    (directory / "ONNX" / "t5" / FILE).unlink()
    with pytest.raises(CheckpointError, match=f"{directory} is incomplete: ONNX/t5/{FILE} missing"):
        open_checkpoint(str(directory), base_checkpoint=EMBEDDED)


def test_the_transformer_precision_is_selected(directory: Path) -> None:
    """`auto` prefers BF16 and takes the one that exists; a requested precision that is missing is an error."""

    def chosen(transformer: TransformerPrecision) -> str:
        found = open_checkpoint(str(directory), base_checkpoint=EMBEDDED, transformer=transformer)
        assert found.graphs is not None
        return found.graphs.transformer

    assert [chosen(each) for each in ("auto", "bf16", "fp8")] == ["bf16", "bf16", "fp8"]
    (directory / "ONNX" / "transformer" / "bf16" / FILE).unlink()
    assert chosen("auto") == "fp8"
    with pytest.raises(CheckpointError, match=f"ONNX/transformer/bf16/{FILE} missing"):
        chosen("bf16")


def test_the_revision_covers_the_graphs_and_the_base_checkpoints_files(directory: Path, base_checkpoint: Path) -> None:
    """The weights of the base checkpoint do not count."""

    def revision(transformer: TransformerPrecision = "bf16") -> str:
        return open_checkpoint(str(directory), base_checkpoint=str(base_checkpoint), transformer=transformer).revision

    before = revision()
    for weights in base_checkpoint.rglob("*.safetensors"):
        weights.unlink()
    assert revision() == before
    assert revision("fp8") != before
    (directory / "ONNX" / "vae" / "weights").write_text("another file")
    changed = revision()
    assert changed != before
    (base_checkpoint / "tokenizer_3" / "tokenizer.json").write_text("{}")
    assert revision() not in {before, changed}


def test_the_embedded_name_has_precedence_over_a_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sd35-mini` is the embedded model in every working directory."""
    directory.rename(directory.with_name(EMBEDDED))
    monkeypatch.chdir(directory.parent)
    assert open_checkpoint(EMBEDDED).graphs is None
