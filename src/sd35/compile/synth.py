"""Write checkpoints with the shapes of a real model and random weights.

They serve to measure hardware before the licence of the real weights is accepted. Such a checkpoint generates noise,
but its speed, memory, files and loading are those of the real model. Needs torch, diffusers and transformers.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from sd35.checkpoints.architectures import Architecture
from sd35.checkpoints.card import Card
from sd35.checkpoints.layout import CARD_FILE
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.errors import InvalidSetting

Precision = Literal["bfloat16", "float16", "float32"]
# The name in safetensors files, and PyTorch's type, of each precision.
_TAGS: Mapping[Precision, tuple[str, torch.dtype]] = {
    "bfloat16": ("BF16", torch.bfloat16),
    "float16": ("F16", torch.float16),
    "float32": ("F32", torch.float32),
}
_BLOCK = 1 << 24  # the number of random values; each tensor reuses them, from another offset
_MARGIN_BYTES = 10**8  # disk space for all files that contain no weights


@dataclass(frozen=True)
class _Part:
    """A network to write: its directory `name`, its weight `file`, and a module with shapes but without weights."""

    name: str
    file: str
    network: Any  # a class of Diffusers or Transformers, on PyTorch's meta device

    def shapes(self) -> dict[str, torch.Size]:
        """Return the shapes of the tensors in the file, by name. Tied weights, such as T5's embedding, occur once."""
        # The private attribute of Transformers has the names of the copies. Diffusers' networks have no tied weights.
        tied = getattr(self.network, "_tied_weights_keys", None) or ()
        return {name: tensor.shape for name, tensor in self.network.state_dict().items() if name not in tied}

    def save_config(self, directory: Path) -> None:
        """Write the network's configuration with its library, Diffusers or Transformers."""
        if isinstance(self.network, ConfigMixin):
            self.network.save_config(directory)
        else:
            self.network.config.save_pretrained(directory)


def synthesise(
    architecture: Architecture, directory: Path, precision: Precision, on_written: Callable[[int, int], None]
) -> None:
    """Write a checkpoint in the Diffusers layout to a new directory.

    Matrices are normally distributed with a variance of 1 / inputs, so that activations stay in range. Norms are one,
    biases zero. The tokenizers are those of the embedded model, with a small vocabulary but the real sequence lengths.
    `on_written` is called with the number of bytes written so far and the total.

    Raises InvalidSetting if the directory exists, its parent does not exist, or the disk has too little space.
    """
    parts = list(_parts(architecture))
    tag, dtype = _TAGS[precision]
    total = sum(shape.numel() for part in parts for shape in part.shapes().values()) * dtype.itemsize
    temporary = _create_temporary(directory, total)
    numbers = torch.from_numpy(np.random.default_rng(0).standard_normal(_BLOCK, np.float32))
    written = 0
    for part in parts:
        (temporary / part.name).mkdir()
        part.save_config(temporary / part.name)
        with (temporary / part.name / part.file).open("wb") as file:
            _write_header(file, part.shapes(), tag, dtype)
            for values in _weights(part.shapes(), numbers):
                file.write(values.to(dtype).view(torch.uint8).numpy().tobytes())
                written += values.numel() * dtype.itemsize
                on_written(written, total)
    _write_other_files(architecture, temporary)
    temporary.rename(directory)


def parameters(architecture: Architecture) -> dict[str, int]:
    """Count the parameters in each network's file, by the name of its directory."""
    return {part.name: sum(shape.numel() for shape in part.shapes().values()) for part in _parts(architecture)}


def _parts(architecture: Architecture) -> Iterator[_Part]:
    """Yield the five networks in the order in which they are written."""
    embedded = open_checkpoint(EMBEDDED)
    clips = {"text_encoder": architecture.text_encoder, "text_encoder_2": architecture.text_encoder_2}
    with torch.device("meta"):
        for name, config in clips.items():
            ends = {key: embedded.config(name)[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
            yield _Part(name, "model.safetensors", CLIPTextModelWithProjection(CLIPTextConfig(**config, **ends)))
        yield _Part("text_encoder_3", "model.safetensors", T5EncoderModel(T5Config(**architecture.text_encoder_3)))
        file = "diffusion_pytorch_model.safetensors"
        yield _Part("transformer", file, SD3Transformer2DModel(**architecture.transformer))
        yield _Part("vae", file, AutoencoderKL(**architecture.vae))


def _create_temporary(directory: Path, weights_bytes: int) -> Path:
    """Check `--output` and the free space. Create and return the directory that is renamed when it is complete."""
    if directory.exists():
        raise InvalidSetting(f"--output: {directory} already exists; allowed: a new directory")
    if not directory.absolute().parent.is_dir():
        raise InvalidSetting(f"--output: {directory.absolute().parent} is not a directory; create it first")
    temporary = directory.with_name(directory.name + ".incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    free = shutil.disk_usage(directory.absolute().parent).free
    if free < weights_bytes + _MARGIN_BYTES:
        raise InvalidSetting(
            f"--output: {directory} needs {weights_bytes / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free; choose"
            " another disk"
        )
    temporary.mkdir()
    return temporary


def _write_header(file: BinaryIO, shapes: Mapping[str, torch.Size], tag: str, dtype: torch.dtype) -> None:
    """Write a safetensors header: its length in 8 bytes, then JSON with the type, shape and offsets of each tensor."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + shape.numel() * dtype.itemsize
        header[name] = {"dtype": tag, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)  # so that the data begins at a multiple of 8 bytes
    file.write(len(text).to_bytes(8, "little") + text)


def _weights(shapes: Mapping[str, torch.Size], numbers: Tensor) -> Iterator[Tensor]:
    """Yield the float32 values of all tensors, in order. A matrix may be several blocks, which follow each other."""
    for index, (name, shape) in enumerate(shapes.items()):
        if len(shape) == 1:
            yield torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
            continue
        remaining = shape.numel()
        scale = (shape[0] / remaining) ** 0.5  # 1 / sqrt(inputs), for a variance of 1 / inputs
        offset = index * 7919 % _BLOCK  # 7919 is a prime, so tensors begin at different values
        while remaining:
            block = numbers[offset : offset + remaining]  # ends at the last number; the next block begins at 0
            yield block * scale
            remaining, offset = remaining - len(block), 0


def _write_other_files(architecture: Architecture, directory: Path) -> None:
    """Write the scheduler, the tokenizers, the card, and `model_index.json`, which lists the parts for Diffusers."""
    embedded = open_checkpoint(EMBEDDED).directory
    FlowMatchEulerDiscreteScheduler(shift=architecture.shift).save_pretrained(directory / "scheduler")
    shutil.copy(embedded / "model_index.json", directory)
    card = {"licence": "random weights: there is nothing to license", **architecture.card}
    tokens = architecture.text_encoder["max_position_embeddings"]
    lengths = {"tokenizer": tokens, "tokenizer_2": tokens, "tokenizer_3": Card(**card).max_sequence_length}
    for name, length in lengths.items():
        shutil.copytree(embedded / name, directory / name)
        settings_file = directory / name / "tokenizer_config.json"
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        settings_file.write_text(json.dumps({**settings, "model_max_length": length}, indent=2) + "\n")
    (directory / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n")
