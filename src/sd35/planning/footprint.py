"""The memory that weights take, and the sizes of the largest tensors of each call, from the networks' shapes.

A formula counts the values in one tensor at a network's widest layer. A backend's spec has measured factors: the number
of such tensors that are alive at the same time, including the runtime's own memory.
docs/benchmarks/history/memory.md says where each factor was measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sd35.backends.options import TILE_PX
from sd35.backends.spec import BackendSpec
from sd35.checkpoints.network_sizes import Network, blocks_values
from sd35.tensors import LATENT_PX

_CLIP_TOKENS = "max_position_embeddings"


@dataclass(frozen=True)
class Workload:
    """The work that must fit in memory: a step with `rows` transformer rows, and decoding one image."""

    width_px: int
    height_px: int
    rows: int


def weights_bytes(spec: BackendSpec, precision: str, name: str, network: Network) -> int:
    """Return the size of a network's weights in a backend, in bytes."""
    in_fp8 = fp8_values(spec, precision, name, network.config)
    in_other = network.values - in_fp8
    return in_fp8 + in_other * spec.bytes_per_value(precision) + spec.extra_bytes(name, network, precision)


def fp8_values(spec: BackendSpec, precision: str, name: str, config: Mapping[str, Any]) -> int:
    """Return the number of a network's parameters that are in FP8 by the rule of `fp8_layers`, without scales."""
    if not spec.has_fp8(precision):
        return 0
    if name == "transformer":
        return blocks_values(config)
    if (name, precision) != ("text_encoder_3", "fp8-storage"):
        return 0
    attention, inner = 4 * config["num_heads"] * config["d_kv"], 2 * config["d_ff"]
    return int(config["num_layers"] * config["d_model"] * (attention + inner))


def encode_values(networks: Mapping[str, Mapping[str, Any]], text_tokens: int) -> int:
    """Count the values at T5's widest layers for one prompt: a feed-forward layer and the attention scores."""
    t5 = networks["text_encoder_3"]
    return int(text_tokens * (t5["d_ff"] + t5["num_heads"] * text_tokens))


def step_values(networks: Mapping[str, Mapping[str, Any]], text_tokens: int, work: Workload) -> int:
    """Count the values of one tensor with the tokens of all rows, at the transformer's width.

    The tensor inside a feed-forward layer is four times as large. The measured factors include this.
    """
    transformer = networks["transformer"]
    patch_px = LATENT_PX * transformer["patch_size"]
    tokens = work.width_px * work.height_px // patch_px**2 + networks["text_encoder"][_CLIP_TOKENS] + text_tokens
    return int(work.rows * tokens * transformer["num_attention_heads"] * transformer["attention_head_dim"])


def decode_values(networks: Mapping[str, Mapping[str, Any]], work: Workload, *, tiled: bool) -> int:
    """Count the values of the decoder's largest tensor, for the whole image or for one tile.

    This is the tensor at full resolution before the last block reduces its channels.
    """
    channels = networks["vae"]["block_out_channels"]
    width_px, height_px = (min(side, TILE_PX) if tiled else side for side in (work.width_px, work.height_px))
    return int(channels[min(1, len(channels) - 1)] * width_px * height_px)


def tiles_values(work: Workload) -> int:
    """Count the values that tiled decoding keeps in addition to the tensors of one tile.

    These are the pixels of all tiles, which overlap by a quarter, and two copies of the image.
    """
    return int(3 * work.width_px * work.height_px * (1 / 0.75**2 + 2))
