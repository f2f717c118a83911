"""The sizes of networks, from file headers and from the registry."""

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


def test_sizes_on_disk_match_the_safetensors_library():
    """Parameters, bytes and precision match, and no layer exceeds the reported largest."""
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
def test_sizes_by_name_match_diffusers_networks(name: str):
    """The parameters from the registry's file sizes agree with the networks of Diffusers to 1 %."""
    found = network_sizes_by_name(load_registry(None)[name])
    for network, count in parameters(ARCHITECTURES[name]).items():
        assert found.networks[network].values == pytest.approx(count, rel=1e-2)


@pytest.mark.parametrize("name", ["sd3.5-large", "sd3.5-medium"])
def test_a_transformers_parameters_follow_from_its_shapes(name: str):
    """The result, which is used for NVIDIA's graphs, agrees with Diffusers to 1 %."""
    architecture = ARCHITECTURES[name]
    counted = network_sizes._transformer_values(architecture.transformer)  # noqa: SLF001
    assert counted == pytest.approx(parameters(architecture)["transformer"], rel=1e-2)


def test_sizes_of_an_unknown_checkpoint_require_a_download():
    """The error has the command for the download."""
    with pytest.raises(CheckpointError, match="sd35 pull mine"):
        network_sizes_by_name(RegisteredCheckpoint("mine", "me/mine", "0" * 40))


def test_a_damaged_weight_file_is_named(tmp_path: Path):
    """The error has the path of the file."""
    broken = tmp_path / "broken"
    shutil.copytree(open_checkpoint(EMBEDDED).directory, broken)
    (broken / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match=r"vae.diffusion_pytorch_model\.safetensors"):
        network_sizes_on_disk(replace(open_checkpoint(EMBEDDED), directory=broken))
