"""A small checkpoint in the layout of NVIDIA's SD3.5 repositories, exported as their demo exports: for tests.

Legacy exporter, opset 19, BF16; the same inputs, outputs and dynamic axes (`demo/Diffusion` of NVIDIA/TensorRT 10.13).
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from sd35.checkpoints.checkpoint import Checkpoint

CONTROLNET_LAYERS = 19
FILE = "model_optimized.onnx"
_WEIGHTS = "fe820521-6e4b-11f0-805c-79ad8d380ae8"  # `onnx.save_model` makes up such a name


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
    """The weights of `source`, rounded to BF16, as `directory/ONNX/...`; returns `directory`."""
    clip = source.config("text_encoder")["max_position_embeddings"]
    tokens = source.card.max_sequence_length
    for part, folder in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        ids = torch.zeros(1, clip, dtype=torch.int32)
        _export(
            _Clip(_load(CLIPTextModelWithProjection, source.directory / part)), (ids, torch.ones_like(ids)),
            directory / "ONNX" / folder, ["input_ids", "attention_mask"], ["text_embeddings", "hidden_states"],
            {name: {0: "B"} for name in ("input_ids", "attention_mask", "text_embeddings")},
        )  # fmt: skip
        _edit(directory / "ONNX" / folder, lambda model: model.graph.output.pop())  # TensorRT marks it while it builds
    _export(
        _T5(_load(T5EncoderModel, source.directory / "text_encoder_3")), (torch.zeros(1, tokens, dtype=torch.int32),),
        directory / "ONNX" / "t5", ["input_ids"], ["text_embeddings"],
        {name: {0: "B"} for name in ("input_ids", "text_embeddings")},
    )  # fmt: skip
    transformer = _load(SD3Transformer2DModel, source.directory / "transformer")
    sizes, space = transformer.config, {2: "H", 3: "W"}
    inputs = ["hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"]
    _export(
        _Transformer(transformer),
        (
            torch.randn(2, 16, 8, 8).bfloat16(),
            torch.randn(2, clip + tokens, sizes.joint_attention_dim).bfloat16(),
            torch.randn(2, sizes.pooled_projection_dim).bfloat16(),
            torch.randn(2),
            torch.randn(CONTROLNET_LAYERS, 2, 16, sizes.num_attention_heads * sizes.attention_head_dim).bfloat16(),
        ),
        directory / "ONNX" / "transformer" / "bf16", [*inputs, "block_controlnet_hidden_states"], ["latent"],
        {
            **{name: {0: "2B"} for name in inputs[1:]}, "hidden_states": {0: "2B", **space},
            "latent": {0: "2B", **space}, "block_controlnet_hidden_states": {1: "2B", 2: "latent_dim"},
        },
        outside=True,
    )  # fmt: skip
    _export(
        _Decoder(_load(AutoencoderKL, source.directory / "vae")), (torch.randn(1, 16, 8, 8).bfloat16(),),
        directory / "ONNX" / "vae", ["latent"], ["images"],
        {"latent": {0: "B", **space}, "images": {0: "B", 2: "8H", 3: "8W"}},
    )  # fmt: skip
    return directory


def _load(kind: Any, directory: Path) -> Any:
    eager = {"attn_implementation": "eager"} if "text" in directory.name else {}
    return kind.from_pretrained(directory, dtype=torch.bfloat16, local_files_only=True, **eager).eval()


def _edit(folder: Path, change: Any) -> None:
    model = onnx.load(folder / FILE)
    change(model)
    onnx.save(model, folder / FILE)


def _export(
    network: nn.Module, inputs: tuple[Tensor, ...], folder: Path, names: Sequence[str], outputs: Sequence[str],
    axes: dict[str, dict[int, str]], *, outside: bool = False,
) -> None:  # fmt: skip
    folder.mkdir(parents=True)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, inputs, str(folder / FILE), dynamo=False, opset_version=19,
            input_names=names, output_names=outputs, dynamic_axes=axes,
        )  # fmt: skip
    if outside:
        model = onnx.load(folder / FILE)
        onnx.save_model(model, folder / FILE, save_as_external_data=True, location=_WEIGHTS)
