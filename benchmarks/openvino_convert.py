"""Convert a checkpoint for OpenVINO GenAI: `python -m benchmarks.openvino_convert CHECKPOINT DIRECTORY`.

The files are like those of Optimum Intel: Diffusers' networks and the tokenizers as OpenVINO graphs. The tensors have
the same names, and the outputs of CLIP the same order. All networks are in float32 and accept any size and text length.
"""

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import openvino
import torch
from diffusers import StableDiffusion3Pipeline
from openvino_tokenizers import convert_tokenizer
from torch import Tensor, nn

ANY = -1  # a dimension of any length, in a shape
_NETWORKS = ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae")
Inputs: TypeAlias = Mapping[str, tuple[Tensor, list[int]]]
"""An example tensor and the shape of each input of a network, by name."""


class _Adapter(nn.Module):
    """A network that OpenVINO can trace, with tensors by position as arguments. `call` calls the real network."""

    def __init__(self, network: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.network = network
        self._call = call

    def forward(self, *arguments: Tensor) -> Any:  # noqa: ANN401  a tensor or several
        return self._call(self.network, *arguments)


def convert(checkpoint: Path, directory: Path) -> None:
    """Write the graphs of five networks and three tokenizers, and the configuration files that GenAI reads."""
    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(checkpoint, dtype=torch.float32)
    shutil.copy(checkpoint / "model_index.json", directory)
    shutil.copytree(checkpoint / "scheduler", directory / "scheduler")
    for part in ("text_encoder", "text_encoder_2"):
        ids = torch.ones(2, getattr(pipeline, part).config.max_position_embeddings, dtype=torch.int64)
        _write(getattr(pipeline, part), _clip, {"input_ids": (ids, [ANY, ids.shape[1]])}, directory / part)
    ids = torch.ones(2, 20, dtype=torch.int64)
    _write(pipeline.text_encoder_3, _t5, {"input_ids": (ids, [ANY, ANY])}, directory / "text_encoder_3")
    _write(pipeline.transformer, _velocity, _transformer_inputs(pipeline.transformer), directory / "transformer")
    channels = pipeline.vae.config.latent_channels
    latent = {"latent_sample": (torch.zeros(1, channels, 16, 16), [ANY, channels, ANY, ANY])}
    _write(pipeline.vae, _decode, latent, directory / "vae_decoder")
    for part in _NETWORKS:
        shutil.copy(checkpoint / part / "config.json", directory / part.replace("vae", "vae_decoder"))
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        tokenizer = getattr(pipeline, name)
        tokenizer.save_pretrained(directory / name)
        openvino.save_model(
            convert_tokenizer(tokenizer, with_detokenizer=False), directory / name / "openvino_tokenizer.xml"
        )


def _clip(network: Any, input_ids: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401  Transformers' types are too loose
    """Return the outputs of a CLIP text encoder: pooled, last hidden state, and all hidden states."""
    output = network(input_ids, output_hidden_states=True)
    return output.text_embeds, output.last_hidden_state, *output.hidden_states


def _t5(network: Any, input_ids: Tensor) -> Tensor:  # noqa: ANN401  see above
    """Return the last hidden state of the T5 text encoder."""
    return network(input_ids).last_hidden_state


def _velocity(network: Any, *inputs: Tensor) -> Tensor:  # noqa: ANN401  see above
    """Return the velocity that the transformer predicts."""
    return network(*inputs, return_dict=False)[0]


def _decode(network: Any, latent: Tensor) -> Tensor:  # noqa: ANN401  see above
    """Return the pixels of a latent."""
    return network.decode(latent, return_dict=False)[0]


def _transformer_inputs(network: Any) -> Inputs:  # noqa: ANN401  see above
    """Return the inputs of the transformer in the order of its parameters, which traced networks keep."""
    channels, text, pooled = (
        network.config[name] for name in ("in_channels", "joint_attention_dim", "pooled_projection_dim")
    )
    return {
        "hidden_states": (torch.zeros(2, channels, 16, 16), [ANY, channels, ANY, ANY]),
        "encoder_hidden_states": (torch.zeros(2, 36, text), [ANY, ANY, text]),
        "pooled_projections": (torch.zeros(2, pooled), [ANY, pooled]),
        "timestep": (torch.ones(1), [ANY]),
    }


def _write(network: Any, call: Callable[..., Any], inputs: Inputs, folder: Path) -> None:  # noqa: ANN401  see above
    """Convert a network, called with `call`, to an OpenVINO graph with named inputs, and write it to a new folder."""
    with torch.no_grad():
        graph = openvino.convert_model(
            _Adapter(network.eval(), call),
            example_input=tuple(example for example, _ in inputs.values()),
            input=[shape for _, shape in inputs.values()],
        )
    for port, name in zip(graph.inputs, inputs, strict=True):
        port.get_tensor().set_names({name})
    folder.mkdir()
    openvino.save_model(graph, folder / "openvino_model.xml", compress_to_fp16=False)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
