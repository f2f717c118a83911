"""How large networks are, by their files' headers and by what is known of the real ones."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sd35.checkpoints import network_sizes
from sd35.checkpoints.architectures import ARCHITECTURES
from sd35.checkpoints.network_sizes import NETWORKS, network_sizes_by_name, network_sizes_on_disk
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED, RegisteredCheckpoint, load_registry
from sd35.compile.synth import parameters
from sd35.errors import CheckpointError


def test_numbers_are_those_of_the_files():
    """Values, bytes and number format, as the safetensors library reads them; no layer is larger than is said."""
    checkpoint = open_checkpoint(EMBEDDED)
    found = network_sizes_on_disk(checkpoint)
    assert found.has_graphs
    for name in NETWORKS:
        (file,) = (checkpoint.directory / name).glob("*.safetensors")
        tensors = load_file(file)
        network = found.networks[name]
        assert network.values == sum(tensor.numel() for tensor in tensors.values())
        assert network.stored_bytes == sum(tensor.nbytes for tensor in tensors.values())
        assert network.stored_as == "float16"
        weights = (tensor for key, tensor in tensors.items() if key != "pos_embed.pos_embed")
        assert network.largest_layer >= max(tensor.numel() for tensor in weights)


@pytest.mark.parametrize("name", ["sd3.5-large", "sd3.5-medium"])
def test_what_is_known_by_name_is_what_the_architecture_has(name: str):
    """The registry's sizes, halved to numbers, are those of the networks that Diffusers builds, to 1 %."""
    found = network_sizes_by_name(load_registry(None)[name])
    for network, count in parameters(ARCHITECTURES[name]).items():
        assert found.networks[network].values == pytest.approx(count, rel=1e-2)


@pytest.mark.parametrize("name", ["sd3.5-large", "sd3.5-medium"])
def test_a_transformer_is_counted_by_its_shapes(name: str):
    """As NVIDIA's graphs are, whose files do not tell: to 1 % of what Diffusers builds."""
    architecture = ARCHITECTURES[name]
    counted = network_sizes._transformer_values(architecture.transformer)  # noqa: SLF001
    assert counted == pytest.approx(parameters(architecture)["transformer"], rel=1e-2)


def test_a_variant_of_unknown_shapes_has_to_be_fetched():
    """What the registry cannot tell is not guessed."""
    with pytest.raises(CheckpointError, match="sd35 pull mine"):
        network_sizes_by_name(RegisteredCheckpoint("mine", "me/mine", "0" * 40))


def test_a_broken_file_is_named(tmp_path: Path):
    """The error has the file."""
    broken = tmp_path / "broken"
    shutil.copytree(open_checkpoint(EMBEDDED).directory, broken)
    (broken / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match=r"vae.diffusion_pytorch_model\.safetensors"):
        network_sizes_on_disk(replace(open_checkpoint(EMBEDDED), directory=broken))
