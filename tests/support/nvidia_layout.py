"""A small checkpoint in the layout of NVIDIA's SD3.5 repositories, exported as NVIDIA's demo exports it.

Legacy exporter, opset 19, BF16, with the same inputs, outputs and dynamic axes (`demo/Diffusion` of NVIDIA/TensorRT
10.13).
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from sd35.checkpoints.checkpoint import Checkpoint

CONTROLNET_LAYERS = 19
ROUNDED, INPUT_SCALE = "transformer_blocks.5.ff.net.0.proj", 0.0625
FILE = "model_optimized.onnx"
_CONTROL = "block_controlnet_hidden_states"
_IMAGE = {0: "B", 2: "H", 3: "W"}
_WEIGHTS = "fe820521-6e4b-11f0-805c-79ad8d380ae8"  # a random file name, as `onnx.save_model` chooses it


class _Clip(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        output = self.network(input_ids, attention_mask, output_hidden_states=True)
        return output.text_embeds, output.hidden_states[-2]


class _T5(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.network(input_ids).last_hidden_state


class _Transformer(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, latent: Tensor, text: Tensor, pooled: Tensor, timestep: Tensor, control: Tensor) -> Tensor:
        return self.network(latent, text, pooled, timestep, [*control], return_dict=False)[0]


class _Decoder(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, latent: Tensor) -> Tensor:
        return self.network.decode(latent, return_dict=False)[0]


def write(source: Checkpoint, directory: Path) -> Path:
    """Write the weights of `source`, rounded to BF16, to `directory/ONNX/...`. Return `directory`."""
    folder = directory / "ONNX"
    clip = source.config("text_encoder")["max_position_embeddings"]
    tokens = source.card.max_sequence_length
    ids = torch.zeros(1, clip, dtype=torch.int32)
    for part, name in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        network: nn.Module = _Clip(_load(CLIPTextModelWithProjection, source.directory / part))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        _export(network, inputs, ("text_embeddings", "hidden_states"), folder / name)
        graph = onnx.load(folder / name / FILE)
        graph.graph.output.pop()  # "hidden_states": TensorRT adds this output when it builds
        onnx.save(graph, folder / name / FILE)
    network = _T5(_load(T5EncoderModel, source.directory / "text_encoder_3"))
    _export(network, {"input_ids": torch.zeros(1, tokens, dtype=torch.int32)}, ("text_embeddings",), folder / "t5")
    transformer = _load(SD3Transformer2DModel, source.directory / "transformer")
    sizes = transformer.config
    width = sizes.num_attention_heads * sizes.attention_head_dim
    inputs = {
        "hidden_states": torch.randn(2, 16, 8, 8).bfloat16(),
        "encoder_hidden_states": torch.randn(2, clip + tokens, sizes.joint_attention_dim).bfloat16(),
        "pooled_projections": torch.randn(2, sizes.pooled_projection_dim).bfloat16(),
        "timestep": torch.randn(2),
        _CONTROL: torch.randn(CONTROLNET_LAYERS, 2, 16, width).bfloat16(),
    }
    _export(_Transformer(transformer), inputs, ("latent",), folder / "transformer" / "bf16")
    path = folder / "transformer" / "bf16" / FILE
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location=_WEIGHTS)
    decoder = _Decoder(_load(AutoencoderKL, source.directory / "vae"))
    _export(decoder, {"latent": torch.randn(1, 16, 8, 8).bfloat16()}, ("images",), folder / "vae")
    return directory


def _load(kind: Any, directory: Path) -> Any:
    eager = (
        {"attn_implementation": "eager"} if "text" in directory.name else {}
    )  # the exporter fails for other kinds of attention
    return kind.from_pretrained(directory, dtype=torch.bfloat16, local_files_only=True, **eager).eval()


def _export(network: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str], folder: Path) -> None:
    folder.mkdir(parents=True)
    axes = {name: _IMAGE if name in {"images", "latent"} else {0: "B"} for name in outputs}
    axes |= {name: _IMAGE if tensor.ndim == 4 else {0: "B"} for name, tensor in inputs.items()}
    if _CONTROL in inputs:
        axes[_CONTROL] = {1: "B", 2: "latent_dim"}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, tuple(inputs.values()), str(folder / FILE), dynamo=False, opset_version=19,
            input_names=list(inputs), output_names=list(outputs), dynamic_axes=axes,
        )  # fmt: skip


def quantise(bf16: Path, fp8: Path, *, custom: bool) -> None:
    """Create a folder `transformer/fp8` from `transformer/bf16`, with FP8 quantise and dequantise nodes.

    They are at all feed-forward weights, but at the input of one layer only: inputs differ in the last bit, and a
    single value that is rounded the other way changes all later values. The weights stay stored in BF16. `custom`
    selects TensorRT's own operators, as ModelOpt's exporter writes them, instead of ONNX's.
    """
    model = onnx.load(bf16 / FILE)
    graph, weights = model.graph, {weight.name: weight for weight in model.graph.initializer}
    if custom:
        model.opset_import.append(onnx.helper.make_opsetid("trt", 1))
    else:
        graph.initializer.append(onnx.helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0]))
    nodes = []
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights and "/ff" in node.name:
            amax = float(abs(numpy_helper.to_array(weights[node.input[1]]).astype(np.float32)).max())
            scales = {1: weight_scale(amax)} | ({0: INPUT_SCALE} if ROUNDED in node.name.replace("/", ".") else {})
            for index, scale in scales.items():
                nodes += _round_trip(f"{node.name} {index}", node.input[index], scale, custom=custom)
                node.input[index] = nodes[-1].output[0]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    fp8.mkdir()
    onnx.save_model(model, fp8 / FILE, save_as_external_data=True, location="model.onnx_data")


def weight_scale(amax: float) -> float:
    """Return the least power of two that scales weights into E4M3's range. Dividing by it is exact."""
    return float(2.0 ** np.ceil(np.log2(amax / 448)))


def _round_trip(name: str, value: str, scale: float, *, custom: bool) -> list[onnx.NodeProto]:
    constant = onnx.helper.make_tensor("", TensorProto.BFLOAT16, [], [scale])
    domain, prefix, zero = ("trt", "TRT_FP8", ()) if custom else ("", "", ("zero",))
    make = onnx.helper.make_node
    return [
        make("Constant", [], [f"{name} scale"], value=constant),
        make(f"{prefix}QuantizeLinear", [value, f"{name} scale", *zero], [f"{name} q"], domain=domain),
        make(f"{prefix}DequantizeLinear", [f"{name} q", f"{name} scale", *zero], [f"{name} dq"], domain=domain),
    ]
