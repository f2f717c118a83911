"""NVIDIA's graphs in the `onnx` backend: images match Diffusers, and invalid graphs are refused."""

import os
import pickle
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from onnx import TensorProto

from sd35.backends.onnx.backend import graphs_of
from sd35.backends.options import Options
from sd35.backends.registry import open_backend
from sd35.backends.tensorrt.buckets import buckets_of
from sd35.backends.tensorrt.flavour import find_flavour
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.network_sizes import network_sizes_on_disk
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.compile.engines import EngineBuilder, EngineShapes, targets_of
from sd35.errors import BackendUnavailable, CheckpointError
from sd35.request import Request
from tests.support import nvidia_layout
from tests.support.direct_generation import generate_directly
from tests.support.nvidia_layout import FILE

PROMPT, SEED = "a cat to the left of a Dog on a blue background!", 7
BF16 = f"transformer/bf16/{FILE}"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded checkpoint in NVIDIA's layout with both transformers, and an FP8 one with ONNX's own operators."""
    directory = nvidia_layout.write(open_checkpoint(EMBEDDED), tmp_path_factory.mktemp("nvidia"))
    folder = directory / "ONNX" / "transformer"
    for name, custom in (("fp8", True), ("standard", False)):
        nvidia_layout.quantise(folder / "bf16", folder / name, custom=custom)
    return directory


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """A copy to damage. It consists of hard links, so replace files instead of writing to them."""
    shutil.copytree(written, tmp_path / "copy", copy_function=os.link)
    return tmp_path / "copy"


def opened(directory: Path, transformer: Any = "auto") -> Checkpoint:
    """Open a directory with the embedded checkpoint as its base."""
    return open_checkpoint(str(directory), base_checkpoint=EMBEDDED, transformer=transformer)


def replace_file(file: Path, content: bytes) -> None:
    """Replace a file by another of the same name."""
    file.unlink()
    file.write_bytes(content)


def request(steps: int, guidance: float, negative: str, width: int, height: int) -> Request:
    """Return a request with the same prompt and seed each time."""
    return Request(PROMPT, negative, width, height, steps, guidance, SEED, "model", "revision", "profile")


@pytest.mark.parametrize("transformer", ["bf16", "fp8"])
def test_the_size_of_a_graph_is_counted(written: Path, transformer: Any):
    """The number of the transformer's parameters agrees with the exported checkpoint to 5 %."""
    exported, graphs = (
        network_sizes_on_disk(each) for each in (open_checkpoint(EMBEDDED), opened(written, transformer))
    )
    expected = exported.networks["transformer"].values
    assert graphs.networks["transformer"].values == pytest.approx(expected, rel=0.05)
    assert graphs.has_graphs


@pytest.fixture(scope="module")
def reference_pipeline() -> StableDiffusion3Pipeline:
    """Diffusers' own pipeline in float32, with weights that were rounded to BF16."""
    directory = open_checkpoint(EMBEDDED).directory
    plain = StableDiffusion3Pipeline.from_pretrained(directory, dtype=torch.bfloat16).to(torch.float32)
    plain.set_progress_bar_config(disable=True)
    return plain


@pytest.mark.parametrize(
    "wanted",
    [request(1, 0.0, "", 96, 64), request(4, 4.5, "a red dog", 80, 112), request(8, 7.0, "", 128, 128)],
    ids=["one step", "guided", "square"],
)
def test_the_same_seed_gives_the_image_of_diffusers(
    written: Path, reference_pipeline: StableDiffusion3Pipeline, wanted: Request
) -> None:
    """An image differs from Diffusers' by at most 2/255 at any pixel, and by 0.1/255 on average."""
    checkpoint = opened(written)
    ours = generate_directly(open_backend("onnx", checkpoint, Options()), checkpoint, wanted)
    theirs = reference_pipeline(
        PROMPT, negative_prompt=wanted.negative_prompt, width=wanted.width, height=wanted.height,
        num_inference_steps=wanted.steps, guidance_scale=wanted.guidance_scale,
        max_sequence_length=checkpoint.card.max_sequence_length, generator=torch.Generator("cpu").manual_seed(SEED),
    ).images[0]  # fmt: skip
    difference = abs(ours.astype(int) - np.asarray(theirs))
    assert difference.max() <= 2
    assert difference.mean() <= 0.1


def test_prompts_in_one_call_do_not_affect_each_other(written: Path) -> None:
    """The attention mask that replaces the graphs' input has a row for each prompt."""
    backend = open_backend("onnx", opened(written), Options())
    prompts = ["a cat", "", "a dog above a castle"]
    for prompt, together in zip(prompts, backend.encode_text(prompts), strict=True):
        np.testing.assert_allclose(together.tokens, backend.encode_text([prompt])[0].tokens, atol=2e-5)


@pytest.mark.parametrize("operators", ["TensorRT's", "ONNX's"])
def test_an_fp8_graph_rounds_like_pytorch(copy: Path, operators: str) -> None:
    """The velocity matches PyTorch with the same values rounded to E4M3, for TensorRT's and for ONNX's operators."""
    folder = copy / "ONNX" / "transformer"
    (folder / "fp8").rename(folder / "custom")
    (folder / {"TensorRT's": "custom", "ONNX's": "standard"}[operators]).rename(folder / "fp8")
    checkpoint = opened(copy, "fp8")
    config = checkpoint.config("transformer")
    torch.manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(2, 16, 8, 12),
        "encoder_hidden_states": torch.randn(2, 36, config["joint_attention_dim"]),
        "pooled_projections": torch.randn(2, config["pooled_projection_dim"]),
        "timestep": torch.tensor([1000.0, 300.0]),
    }
    weights = checkpoint.directory / "transformer"
    network: Any = SD3Transformer2DModel.from_pretrained(weights, dtype=torch.bfloat16).to(torch.float32)
    with torch.no_grad():
        plain = network(**inputs, return_dict=False)[0].numpy()
        round_to_fp8(network)
        expected = network(**inputs, return_dict=False)[0].numpy()
    graph = graphs_of(checkpoint, Options()).open("transformer", 1)
    (found,) = graph.run(["latent"], {name: tensor.numpy() for name, tensor in inputs.items()})
    assert abs(found - expected).mean() < abs(plain - expected).mean() / 10


def round_to_fp8(network: Any) -> None:
    """Round the same values as `nvidia_layout.quantise`."""

    def rounded(values: torch.Tensor, scale: float) -> torch.Tensor:
        return (values / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear) and ".ff" in name:
            module.weight.copy_(rounded(module.weight, nvidia_layout.weight_scale(module.weight.abs().max().item())))
            if name == nvidia_layout.ROUNDED:
                module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0], nvidia_layout.INPUT_SCALE),))


def test_links_in_hugging_faces_cache_are_followed(written: Path, tmp_path: Path) -> None:
    """Each file is a link to a file with another name in another folder."""
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(path for path in written.rglob("*") if path.is_file()):
        link = tmp_path / "snapshot" / path.relative_to(written)
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, tmp_path / "blobs" / str(number))
        link.symlink_to(tmp_path / "blobs" / str(number))
    assert open_backend("onnx", opened(tmp_path / "snapshot"), Options()).encode_text(["a cat"])


def edited(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    """Return a function that changes a graph in a file."""

    def damage(file: Path) -> None:
        model = onnx.load(file, load_external_data=False)
        change(model)
        replace_file(file, model.SerializeToString())

    return damage


def make_static(model: onnx.ModelProto) -> None:
    """Fix the batch of the first input to one."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def make_fp16(model: onnx.ModelProto) -> None:
    """Change the type of the first input to FP16."""
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def escape(model: onnx.ModelProto) -> None:
    """Let a weight refer to a file outside of the folder."""
    weight = next(each for each in model.graph.initializer if each.external_data)
    next(entry for entry in weight.external_data if entry.key == "location").value = "../secret"


def shorten(model: onnx.ModelProto) -> None:
    """Remove a byte of a weight inside the graph."""
    weight = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    weight.raw_data = weight.raw_data[:-1]


def make_unsupported(model: onnx.ModelProto) -> None:
    """Change the domain of an operator to an unknown one."""
    model.graph.node[0].domain = "somewhere"


@pytest.mark.parametrize(
    ("file", "damage", "why"),
    [
        (BF16, lambda file: replace_file(file, file.read_bytes()[:-1000]), "expected an ONNX graph, found"),
        (BF16, lambda file: replace_file(file, b""), "expected an ONNX graph, found none in its 0 bytes"),
        (f"clip_l/{FILE}", lambda file: replace_file(file, pickle.dumps({"a": 1})), "expected an ONNX graph, found"),
        (BF16, lambda file: replace_file(file, file.parents[2].joinpath("vae", FILE).read_bytes()),
         "expected inputs (hidden_states, encoder_hidden_states, pooled_projections, timestep), found (latent)"),
        (f"vae/{FILE}", lambda file: replace_file(file, file.parents[1].joinpath("t5", FILE).read_bytes()),
         "expected inputs (latent), found (input_ids)"),
        (f"clip_g/{FILE}", lambda file: replace_file(file, file.parents[1].joinpath("t5", FILE).read_bytes()),
         "expected outputs (text_embeddings, hidden_states), found (text_embeddings)"),
        (f"t5/{FILE}", lambda file: replace_file(file, file.parents[1].joinpath("clip_l", FILE).read_bytes()),
         "input input_ids: expected INT32 [any, 20], found INT32 [B, 16]"),
        (f"vae/{FILE}", edited(make_static), "BFLOAT16 [any, 16, any, any], found BFLOAT16 [1, 16, H, W]"),
        (f"vae/{FILE}", edited(make_fp16), "found FLOAT16 [B, 16, H, W]"),
        (f"vae/{FILE}", edited(shorten), "expected 165888 bytes, found 165887"),
        (f"vae/{FILE}", edited(make_unsupported), "cannot be loaded"),
        (BF16, edited(escape), "expected the name of a file next to the graph, found '../secret'"),
    ],
)  # fmt: skip
def test_an_invalid_graph_is_refused(copy: Path, file: str, damage: Callable[[Path], None], why: str) -> None:
    """The error names the file, and says what was expected and what was found."""
    damage(copy / "ONNX" / file)
    with pytest.raises(CheckpointError) as refused:
        open_backend("onnx", opened(copy), Options())
    assert str(refused.value).startswith(str(copy / "ONNX" / file))
    assert why in str(refused.value)


@pytest.mark.parametrize(("keep", "why"), [(0, "is missing; "), (1000, "bytes, found 1000; it is truncated")])
def test_missing_or_truncated_weights_are_refused(copy: Path, keep: int, why: str) -> None:
    """The error names the weight file."""
    (weights,) = (path for path in (copy / "ONNX" / "transformer" / "bf16").iterdir() if path.name != FILE)
    content = weights.read_bytes()[:keep]
    weights.unlink()
    if keep:
        weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=why) as refused:
        open_backend("onnx", opened(copy), Options())
    assert str(weights) in str(refused.value)


def test_swapped_transformers_are_refused(copy: Path) -> None:
    """A BF16 graph in the folder for FP8, or the other way round, is detected by its content."""
    folder = copy / "ONNX" / "transformer"
    (folder / "bf16").rename(folder / "other")
    (folder / "fp8").rename(folder / "bf16")
    (folder / "other").rename(folder / "fp8")
    for transformer, why in (("bf16", "expected no FP8 operators"), ("fp8", "expected FP8 operators")):
        with pytest.raises(CheckpointError, match=f"{transformer}/{FILE}: {why}"):
            open_backend("onnx", opened(copy, transformer), Options())


def test_a_missing_library_is_named_with_the_remedy(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading these graphs needs the package `onnx`, which is optional."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendUnavailable, match=r"needs the package onnx, .*sd35-fp8-mirror\[graphs\]"):
        open_backend("onnx", opened(written), Options())


def test_the_diffusers_backend_refuses_graphs(written: Path) -> None:
    """It does not use the base checkpoint's weights instead."""
    with pytest.raises(CheckpointError, match="which the onnx and tensorrt backends read"):
        open_backend("diffusers", opened(written), Options(device="cpu"))


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="no TensorRT-RTX for it")
@pytest.mark.parametrize("operators", ["none", "custom", "standard"])
def test_tensorrt_builds_engines_from_them(copy: Path, operators: str) -> None:
    """This holds for both kinds of FP8 operators. Masks and ControlNet's inputs are no inputs of the engine."""
    if operators == "standard":
        shutil.rmtree(copy / "ONNX" / "transformer" / "fp8")
        (copy / "ONNX" / "transformer" / "standard").rename(copy / "ONNX" / "transformer" / "fp8")
    checkpoint = opened(copy, "bf16" if operators == "none" else "fp8")
    assert checkpoint.graphs
    flavour = find_flavour()
    builder = EngineBuilder(
        checkpoint, checkpoint.graphs, EngineShapes(buckets_of("", checkpoint.card)[-1:], 8), flavour
    )
    (target,) = targets_of(flavour, ["sm89"])
    network, parser = builder.network("transformer")
    names = [network.get_input(index).name for index in range(network.num_inputs)]
    assert sorted(names) == ["encoder_hidden_states", "hidden_states", "pooled_projections", "timestep"]
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    trt: Any = flavour.trt
    rounded = [layer for layer in layers if layer.type == trt.LayerType.DEQUANTIZE]
    stored = [tensor.dtype for layer in rounded if (tensor := layer.get_input(0))]
    assert set(stored) == (set() if operators == "none" else {trt.DataType.FP8})
    del parser
    if operators == "custom":
        assert builder.build("transformer", target)
    if operators == "none":
        network, parser = builder.network("text_encoder")
        assert [network.get_input(index).name for index in range(network.num_inputs)] == ["input_ids"]
        given = {network.get_output(index).name for index in range(network.num_outputs)}
        assert given == {"text_embeddings", "hidden_states"}
        del parser
        assert all(builder.build(part, target) for part in ("text_encoder", "text_encoder_3", "vae"))
