"""The memory that weights take, and the sizes of the largest tensors of each call, from the networks' shapes.

A formula counts the numbers in one tensor at a network's widest place. A backend's spec has the measured factors: how
many such tensors are alive at once, with what the runtime keeps in addition.
docs/architecture/12-memory-and-start-up.md says where each factor was measured.
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
    """The work that must fit: a step of `rows` transformer rows, and one decoding, at a size in pixels."""

    width_px: int
    height_px: int
    rows: int


def weights_bytes(spec: BackendSpec, precision: str, name: str, network: Network) -> int:
    """Return the memory that a network's weights take in a backend."""
    in_fp8 = fp8_values(spec, precision, name, network.config)
    in_other = network.values - in_fp8
    return in_fp8 + in_other * spec.bytes_per_value(precision) + spec.extra_bytes(name, network, precision)


def fp8_values(spec: BackendSpec, precision: str, name: str, config: Mapping[str, Any]) -> int:
    """Return how many of a network's numbers are in FP8, one byte each, by the rule of `fp8_layers`.

    Scales are not counted.
    """
    if not spec.has_fp8(precision):
        return 0
    if name == "transformer":
        return blocks_values(config)
    if (name, precision) != ("text_encoder_3", "fp8-storage"):
        return 0
    attention, inner = 4 * config["num_heads"] * config["d_kv"], 2 * config["d_ff"]
    return int(config["num_layers"] * config["d_model"] * (attention + inner))


def encode_values(networks: Mapping[str, Mapping[str, Any]], text_tokens: int) -> int:
    """Return the numbers at T5's widest place for one prompt: its gated inner layer and its attention's products."""
    t5 = networks["text_encoder_3"]
    return int(text_tokens * (t5["d_ff"] + t5["num_heads"] * text_tokens))


def step_values(networks: Mapping[str, Mapping[str, Any]], text_tokens: int, work: Workload) -> int:
    """Return the numbers of one tensor of all rows' tokens at the transformer's width.

    The tensor of the inner layer is four times as large; the factors include that.
    """
    transformer = networks["transformer"]
    patch_px = LATENT_PX * transformer["patch_size"]
    tokens = work.width_px * work.height_px // patch_px**2 + networks["text_encoder"][_CLIP_TOKENS] + text_tokens
    return int(work.rows * tokens * transformer["num_attention_heads"] * transformer["attention_head_dim"])


def decode_values(networks: Mapping[str, Mapping[str, Any]], work: Workload, *, tiled: bool) -> int:
    """Return the numbers of the decoder's widest tensor, of the whole image or of one tile.

    The tensor has the full size in pixels, before the last block reduces its channels.
    """
    channels = networks["vae"]["block_out_channels"]
    width_px, height_px = (min(side, TILE_PX) if tiled else side for side in (work.width_px, work.height_px))
    return int(channels[min(1, len(channels) - 1)] * width_px * height_px)


def tiles_values(work: Workload) -> int:
    """Return the numbers that tiled decoding keeps besides a tile's tensors.

    These are all tiles, which overlap by a quarter, and the image twice.
    """
    return int(3 * work.width_px * work.height_px * (1 / 0.75**2 + 2))
