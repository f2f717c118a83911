"""Invalid JSON files of a checkpoint raise CheckpointError with the name of the file."""

import json
import shutil
from pathlib import Path

import pytest

from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.network_sizes import network_sizes_on_disk
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.checkpoints.tokenizers import Tokenizers
from sd35.errors import CheckpointError
from sd35.sampling.sigmas import sigma_schedule_of

FILES = (
    "sd35.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder_3/config.json",
    "transformer/config.json",
    "vae/config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_3/tokenizer.json",
)
NONSENSE = (
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b'{"num_layers": ' + b"9" * 5000 + b"}",
    b'{"num_layers": NaN}',
    b"[]",
    b"3",
    b'{"\xff": 1}',
    b"",
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the embedded checkpoint, to be damaged."""
    shutil.copytree(open_checkpoint(EMBEDDED).directory, tmp_path / "copy")
    return tmp_path / "copy"


def read(checkpoint: Checkpoint) -> None:
    """Call all readers of a checkpoint's JSON files, without a backend."""
    sigma_schedule_of(checkpoint)
    Tokenizers(checkpoint)
    network_sizes_on_disk(checkpoint)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", NONSENSE, ids=range(len(NONSENSE)))
def test_an_invalid_json_file_is_refused_in_one_short_line(copy: Path, file: str, content: bytes):
    """The error names the file; for a tokenizer, its directory."""
    (copy / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=str(copy / file).removesuffix("/tokenizer.json")) as refused:
        read(open_checkpoint(str(copy)))
    assert len(str(refused.value)) < 500
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("file", "changed", "says"),
    [
        ("transformer/config.json", {"num_layers": "6"}, "num_layers: got '6'; allowed: a valid integer"),
        ("transformer/config.json", {"num_layers": 0}, "num_layers: got 0; allowed: greater than or equal to 1"),
        ("transformer/config.json", {"num_layers": 10**40}, "num_layers: got 1000000"),
        ("transformer/config.json", {"num_layers": None}, "num_layers: got None"),
        ("transformer/config.json", {"attention_head_dim": ...}, "attention_head_dim is missing"),
        ("vae/config.json", {"block_out_channels": []}, "block_out_channels: got \\[\\]; List should have at least 1"),
        ("vae/config.json", {"block_out_channels": ...}, "block_out_channels is missing"),
        ("text_encoder/config.json", {"vocab_size": [1]}, "vocab_size: got \\[1\\]"),
        ("text_encoder_3/config.json", {"d_model": ...}, "d_model is missing"),
        ("scheduler/scheduler_config.json", {"shift": "much"}, "shift: got 'much'"),
        ("scheduler/scheduler_config.json", {"shift": None}, "shift: got None"),
        ("tokenizer/tokenizer_config.json", {"pad_token": 3}, "cannot be read"),
        ("tokenizer/tokenizer_config.json", {"added_tokens_decoder": [3]}, "cannot be read"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "long"}, "cannot be read"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": -1}, "cannot be read"),
    ],
)
def test_an_invalid_or_missing_field_is_named(copy: Path, file: str, changed: dict[str, object], says: str):
    """The error has the file, the field, the value and the allowed values."""
    content = json.loads((copy / file).read_text()) | changed
    (copy / file).write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))
    with pytest.raises(CheckpointError, match=rf"{Path(file).parent}.*{says}"):
        read(open_checkpoint(str(copy)))


@pytest.mark.parametrize("field", ["unk_id", "post_processor"])
def test_a_tokenizer_that_cannot_encode_is_refused_on_opening(copy: Path, field: str):
    """The library loads such files, and raises or panics when it encodes."""
    content = json.loads((copy / "tokenizer_3/tokenizer.json").read_text())
    if field == "unk_id":
        content["model"]["unk_id"] = None
    else:
        del content["post_processor"]["special_tokens"]["</s>"]
    (copy / "tokenizer_3/tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer_3: the tokenizer cannot be read"):
        Tokenizers(open_checkpoint(str(copy)))


def test_the_revision_names_an_unreadable_file(copy: Path, monkeypatch: pytest.MonkeyPatch):
    """The revision reads every file of a checkpoint."""
    checkpoint = open_checkpoint(str(copy))
    (copy / "vae/config.json").unlink()
    (copy / "vae/config.json").symlink_to(copy / "vae/config.json")  # a loop, which even root cannot read
    monkeypatch.setattr(Path, "is_file", lambda path: path.suffix == ".json")
    with pytest.raises(CheckpointError, match=r"vae/config\.json cannot be read: "):
        _ = checkpoint.revision
