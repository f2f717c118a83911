"""Sharded weight files and their index, and the scales of FP8 weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sd35.checkpoints.layout import missing_files
from sd35.checkpoints.weights.parameters import weights_in, weights_of_file
from sd35.errors import CheckpointError

FIRST, SECOND = (f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2))
INDEX = "diffusion_pytorch_model.safetensors.index.json"


def write_shards(
    directory: Path, weight_map: dict[str, Any], first: dict[str, Tensor], second: dict[str, Tensor]
) -> None:
    """Write a transformer with two shards and an index."""
    part = directory / "transformer"
    part.mkdir()
    save_file(first, part / FIRST)
    save_file(second, part / SECOND)
    (part / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("shard", [FIRST, SECOND])
def test_a_tensor_in_two_shards_comes_from_the_shard_in_the_index(tmp_path: Path, shard: str):
    """Both shards are tried."""
    write_shards(
        tmp_path,
        {"both": shard, "a": FIRST, "b": SECOND},
        {"both": torch.zeros(2), "a": torch.zeros(1)},
        {"both": torch.ones(2), "b": torch.zeros(1)},
    )
    stored = weights_in(tmp_path, "transformer")["both"].stored
    assert stored.file.name == shard
    content = stored.file.read_bytes()[stored.start : stored.start + stored.nbytes]
    assert np.frombuffer(content, np.float32).tolist() == ([0, 0] if shard == FIRST else [1, 1])


def test_a_tensor_missing_from_the_index_is_found_if_one_shard_has_it(tmp_path: Path):
    """Transformers does the same. If both shards have it, that is an error."""
    write_shards(tmp_path, {"a": FIRST, "b": SECOND}, {"a": torch.ones(1), "c": torch.ones(1)}, {"b": torch.ones(1)})
    assert weights_in(tmp_path, "transformer")["c"].stored.file.name == FIRST
    save_file({"b": torch.ones(1), "c": torch.ones(1)}, tmp_path / "transformer" / SECOND)
    with pytest.raises(CheckpointError, match=rf"'c' is in both {FIRST} and {SECOND}, and the index does not list it"):
        weights_in(tmp_path, "transformer")


def test_a_shard_without_an_indexed_tensor_is_refused(tmp_path: Path):
    """The error names the shard and the tensor."""
    write_shards(tmp_path, {"a": SECOND, "b": SECOND}, {"a": torch.ones(1)}, {"b": torch.ones(1)})
    with pytest.raises(CheckpointError, match=rf"{SECOND}: expected 'a', which the index lists in this file"):
        weights_in(tmp_path, "transformer")


def test_a_missing_shard_is_named(tmp_path: Path):
    """It is listed as missing, and reading the weights is an error."""
    write_shards(tmp_path, {"a": FIRST, "b": SECOND}, {"a": torch.ones(1)}, {"b": torch.ones(1)})
    (tmp_path / "transformer" / SECOND).unlink()
    assert f"transformer/{SECOND}" in missing_files(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{SECOND} cannot be read as safetensors: .*No such file"):
        weights_in(tmp_path, "transformer")


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        f"../{FIRST}",
        f"/etc/{FIRST}",
        f"x/{FIRST}",
        "",
        ".",
        "other.safetensors",
        FIRST + "\n",
        3,
        None,
    ],
)
def test_an_index_with_an_invalid_shard_name_is_refused(tmp_path: Path, shard: object):
    """Otherwise files outside the part's directory could be read, or files that the revision does not cover."""
    write_shards(tmp_path, {"a": shard}, {"a": torch.ones(1)}, {"a": torch.ones(1)})
    (tmp_path / "secret.safetensors").write_bytes((tmp_path / "transformer" / FIRST).read_bytes())
    with pytest.raises(
        CheckpointError, match=rf"{INDEX}, weight_map, 'a': got .*; allowed: .*-00001-of-00002"
    ) as raised:
        weights_in(tmp_path, "transformer")
    assert "\n" not in str(raised.value)
    assert "transformer/diffusion_pytorch_model-*.safetensors" in missing_files(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b'{"weight_map": {"a": ' + b"9" * 5000 + b"}}",
        b"[]",
        b"{}",
        b'{"weight_map": []}',
        b"\xff",
        b"NaN",
    ],
)
def test_an_invalid_index_is_named(tmp_path: Path, content: bytes):
    """Reading weights raises an error, but missing files can still be listed."""
    write_shards(tmp_path, {}, {"a": torch.ones(1)}, {"b": torch.ones(1)})
    (tmp_path / "transformer" / INDEX).write_bytes(content)
    with pytest.raises(CheckpointError, match=INDEX):
        weights_in(tmp_path, "transformer")
    assert "transformer/diffusion_pytorch_model-*.safetensors" in missing_files(tmp_path)


WEIGHT = "encoder.block.0.layer.0.SelfAttention.q"
ROWS, COLUMNS = 4, 4


def scaled_file(directory: Path, scale: Tensor, spelling: str) -> Path:
    """Write a T5 with one square FP8 weight and a scale."""
    state = {f"{WEIGHT}.weight": torch.ones(ROWS, COLUMNS).to(torch.float8_e4m3fn), f"{WEIGHT}.{spelling}": scale}
    save_file(state, directory / "t5.safetensors")
    return directory / "t5.safetensors"


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (ROWS,), (ROWS, 1), (ROWS, 1, 1)])
def test_scales_per_tensor_or_per_row_are_accepted(tmp_path: Path, shape: tuple[int, ...]):
    """These are the shapes that occur in files."""
    file = scaled_file(tmp_path, torch.ones(shape), "scale_weight")
    scale = weights_of_file(file)["text_encoder_3"][f"{WEIGHT}.weight"].scale
    assert scale is not None
    assert scale.shape == shape


@pytest.mark.parametrize("spelling", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("shape", [(1, COLUMNS), (2, 2), (ROWS, COLUMNS), (2,), (0,), (ROWS, 2)])
def test_scales_per_column_or_block_are_refused(tmp_path: Path, shape: tuple[int, ...], spelling: str):
    """Column scales of a square weight could be mistaken for row scales."""
    file = scaled_file(tmp_path, torch.ones(shape), spelling)
    with pytest.raises(CheckpointError) as refused:
        weights_of_file(file)
    assert str(refused.value) == (
        f"{file}: {WEIGHT}.{spelling} has the shape {list(shape)}, and its weight {WEIGHT}.weight has [4, 4]; allowed:"
        " one scale, or one for each row; use another file"
    )


def test_integer_scales_are_refused(tmp_path: Path):
    """Exponents of a block format would be misread as numbers."""
    file = scaled_file(tmp_path, torch.ones((), dtype=torch.uint8), "weight_scale")
    with pytest.raises(CheckpointError, match=rf"{WEIGHT}\.weight_scale has type U8; allowed: F32, F16, BF16"):
        weights_of_file(file)
