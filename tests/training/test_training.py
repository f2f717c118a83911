"""Parts of the training where an error would go unnoticed: the optimizer's update, saving, and loading."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from training.autoencoder import CONFIG
from training.model import load_checkpoint, make_text, make_transformer, position_table, save_checkpoint
from training.optimizer import orthogonalise, schedule
from training.transformer import Networks


@settings(deadline=None)
@given(shape=st.sampled_from([(64, 64), (64, 256), (256, 64)]), seed=st.integers(0, 1000))
def test_an_update_has_singular_values_near_one(shape: tuple[int, int], seed: int):
    """At least nine of ten singular values are from 0.1 to 2. The singular vectors stay the same."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    update = orthogonalise(matrix[None])[0]
    values = torch.linalg.svdvals(update)
    assert values.max() < 2
    assert (values > 0.1).float().mean() >= 0.9
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    core = u.T @ update @ vh.T
    assert (core - core.diag().diag()).abs().max() < 1e-3


def test_the_embedded_checkpoint_has_the_tokenizers_of_the_recipe():
    """So the recipe makes equal tokenizers in each process."""
    directory = open_checkpoint(EMBEDDED).directory
    for name, made in zip(("tokenizer", "tokenizer_2", "tokenizer_3"), make_text().tokenizers, strict=True):
        shipped = json.loads((directory / name / "tokenizer.json").read_text())
        assert shipped["model"] == json.loads(made.backend_tokenizer.to_str())["model"]


def test_the_embedded_checkpoint_has_the_position_table_of_the_recipe():
    """It is rounded to FP16."""
    weights = load_file(open_checkpoint(EMBEDDED).directory / "transformer" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(weights["pos_embed.pos_embed"], position_table(256, 16).half())


def test_the_position_table_distinguishes_all_patches():
    """Any two of the 256 positions differ by more than a tenth of the mean norm."""
    table = make_transformer().pos_embed.pos_embed[0]
    assert torch.equal(table[None], position_table(256, 16))
    distances = torch.cdist(table, table) + 1e3 * torch.eye(256)
    assert distances.min() > 0.1 * table.norm(dim=1).mean()


def test_the_learning_rate_rises_stays_constant_and_falls_to_zero():
    """It falls linearly, and reaches zero at the last step."""
    factors = [schedule(step, 100, 10, 0.6) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert set(factors[10:60]) == {1.0}
    assert factors[80] == pytest.approx(0.5)
    assert factors[100] == 0


def test_a_saved_checkpoint_is_loaded_into_the_networks(tmp_path: Path):
    """The weights of text encoders and transformer are those that were saved, rounded to FP16."""
    text, transformer = make_text(), make_transformer()
    before = {name: weight.clone() for name, weight in Networks(text, transformer).state_dict().items()}
    save_checkpoint(tmp_path, text, transformer, AutoencoderKL(**CONFIG))
    text, transformer = make_text(), make_transformer()
    load_checkpoint(tmp_path, text, transformer)
    for name, weight in Networks(text, transformer).state_dict().items():
        torch.testing.assert_close(weight, before[name].half().float(), rtol=0, atol=0)
