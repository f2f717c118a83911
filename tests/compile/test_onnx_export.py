"""Exported graphs match PyTorch, and read their weights from the safetensors files."""

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sd35.checkpoints.open import open_checkpoint
from sd35.compile.onnx_export import export, stored_tensors
from sd35.errors import CheckpointError

GRAPHS = {
    "text_encoder/model.onnx": (["input_ids"], ["text_embeddings", "hidden_states"]),
    "text_encoder_2/model.onnx": (["input_ids"], ["text_embeddings", "hidden_states"]),
    "text_encoder_3/model.onnx": (["input_ids"], ["text_embeddings"]),
    "transformer/model.onnx": (
        ["hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"],
        ["latent"],
    ),
    "vae/decoder.onnx": (["latent"], ["images"]),
}


@pytest.fixture(scope="module")
def embedded() -> Path:
    """The embedded checkpoint, or the one at the path in `TEST_CHECKPOINT`."""
    return open_checkpoint(os.environ.get("TEST_CHECKPOINT", "sd35-mini")).directory


@pytest.fixture(scope="module")
def medium(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported checkpoint: the embedded one with a tiny transformer like Medium's, in BF16 and several shards."""
    directory = tmp_path_factory.mktemp("medium")
    shutil.copytree(embedded, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("transformer", "*.onnx"))
    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, num_layers=2, num_attention_heads=2, attention_head_dim=16,
        joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=8, pos_embed_max_size=24,
        qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    network.to(torch.bfloat16).save_pretrained(directory / "transformer", max_shard_size="60KB")
    assert len(list((directory / "transformer").glob("*.safetensors"))) > 1
    export(open_checkpoint(str(directory)))
    return directory


@pytest.mark.parametrize("size", [(1, 8, 8, 5), (3, 20, 14, 33), (2, 6, 48, 7)], ids=str)
def test_an_exported_transformer_equals_pytorch(medium: Path, size: tuple[int, int, int, int]) -> None:
    """Batches, sizes and text lengths differ from the traced ones."""
    batch, height, width, text = size
    network = SD3Transformer2DModel.from_pretrained(medium / "transformer", dtype=torch.float32)
    inputs = {
        "hidden_states": torch.randn(batch, 16, height, width),
        "encoder_hidden_states": torch.randn(batch, text, 24),
        "pooled_projections": torch.randn(batch, 8),
        "timestep": torch.rand(batch) * 1000,
    }
    with torch.inference_mode():
        expected = network(**inputs, return_dict=False)[0].numpy()
    session = onnxruntime.InferenceSession(medium / "transformer" / "model.onnx", providers=["CPUExecutionProvider"])
    (latent,) = session.run(["latent"], {name: tensor.numpy() for name, tensor in inputs.items()})
    np.testing.assert_allclose(latent, expected, atol=1e-5)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("fixture", ["embedded", "medium"])
def test_weights_are_read_from_the_safetensors_files(request: pytest.FixtureRequest, fixture: str, graph: str) -> None:
    """Each weight refers to the bytes of its tensor. Graphs contain only small constants."""
    path = request.getfixturevalue(fixture) / graph
    model = onnx.load(path, load_external_data=False)
    references = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert references
    for tensor in references:
        place = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = int(place["offset"]), int(place["length"])
        stored = (path.parent / place["location"]).read_bytes()[offset : offset + length]
        with safe_open(path.parent / place["location"], "pt") as file:
            assert stored == file.get_tensor(tensor.name).view(torch.uint8).numpy().tobytes(), tensor.name
    inline = [tensor for tensor in model.graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    assert sum(len(tensor.raw_data) for tensor in inline) < 16_384


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("fixture", ["embedded", "medium"])
def test_tensors_have_nvidias_names_and_no_paths(request: pytest.FixtureRequest, fixture: str, graph: str) -> None:
    """Inputs and outputs have the names of NVIDIA's graphs, and the files contain no local paths."""
    path = request.getfixturevalue(fixture) / graph
    model = onnx.load(path, load_external_data=False)
    inputs, outputs = GRAPHS[graph]
    assert [value.name for value in model.graph.input] == inputs
    assert [value.name for value in model.graph.output] == outputs
    content = path.read_bytes()
    assert b"site-packages" not in content
    assert b'File "' not in content


def test_tied_weights_have_the_name_in_the_file(embedded: Path) -> None:
    """T5's embedding has two names in the network and one in the file."""
    model = onnx.load(embedded / "text_encoder_3" / "model.onnx", load_external_data=False)
    assert "shared.weight" in {tensor.name for tensor in model.graph.initializer}


def test_offsets_count_from_the_start_of_the_file(tmp_path: Path) -> None:
    """Integer tensors are not weights and are skipped."""
    part = tmp_path / "text_encoder"
    part.mkdir()
    save_file({"b": torch.arange(6.0).reshape(2, 3), "a": torch.arange(3, dtype=torch.float16), "i": torch.arange(2)},
              part / "model.safetensors")  # fmt: skip
    tensors = stored_tensors(part)
    assert tensors.keys() == {"a", "b"}
    assert tensors["a"].numpy().tolist() == [0, 1, 2]
    assert tensors["b"].numpy().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_weights_that_differ_from_the_network_are_refused(medium: Path, tmp_path: Path) -> None:
    """A graph must compute with the values in the files."""
    directory = tmp_path / "changed"
    shutil.copytree(medium, directory)
    weights = load_file(directory / "text_encoder" / "model.safetensors")
    del weights["text_model.final_layer_norm.bias"]
    save_file(weights, directory / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"final_layer_norm\.bias"):
        export(open_checkpoint(str(directory)))


@pytest.mark.parametrize("content", [None, b"short", b"\xff" * 64])
def test_unreadable_weights_are_refused(tmp_path: Path, content: bytes | None) -> None:
    """A missing or damaged safetensors file raises CheckpointError."""
    part = tmp_path / "text_encoder"
    part.mkdir()
    if content is not None:
        (part / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="safetensors"):
        stored_tensors(part)


def test_links_out_of_the_directory_are_refused(tmp_path: Path) -> None:
    """Hugging Face's cache has links, which ONNX Runtime does not follow. The error says how to copy."""
    part = tmp_path / "text_encoder"
    part.mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "blob")
    (part / "model.safetensors").symlink_to(tmp_path / "blob")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a link, .* cp -rL"):
        stored_tensors(part)
