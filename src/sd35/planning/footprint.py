"""Compute the memory of weights, and the size of the tensors of each network, from the networks' shapes.

The arguments `networks` have the configuration (`config.json`) of each network, by the network's name.

`encode_values`, `step_values` and `decode_values` count the numbers in the tensors that dominate a network's memory.
A backend holds several times as many numbers. `MemoryUse` in its spec has this factor, which was measured and includes
the runtime's own memory: see docs/benchmarks/history/memory.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sd35.backends.options import TILE_PX
from sd35.backends.spec import BackendSpec
from sd35.checkpoints.network_sizes import Network, blocks_values
from sd35.tensors import LATENT_PX

_CLIP_TOKENS = "max_position_embeddings"  # the key of a CLIP configuration with the number of tokens


@dataclass(frozen=True)
class Workload:
    """The work that must fit in memory: a denoising step with `rows` rows, and decoding one image.

    A row is one image's share of the transformer's batch. An image with guidance takes two.
    """

    width_px: int
    height_px: int
    rows: int


def weights_bytes(spec: BackendSpec, precision: str, name: str, network: Network) -> int:
    """Return the size of a network's weights in a backend, in bytes."""
    in_fp8 = fp8_values(spec, precision, name, network.config)  # one byte each
    in_other_formats = network.values - in_fp8
    return in_fp8 + in_other_formats * spec.bytes_per_value(precision) + spec.extra_bytes(name, network, precision)


def fp8_values(spec: BackendSpec, precision: str, name: str, config: Mapping[str, Any]) -> int:
    """Count the parameters of a network that are in FP8. `sd35.backends.fp8_layers` selects the layers.

    The scales of the layers are not counted.
    """
    if not spec.has_fp8(precision):
        return 0
    if name == "transformer":
        return blocks_values(config)
    if (name, precision) != ("text_encoder_3", "fp8-storage"):
        return 0
    # The matrices of a layer in FP8: q, k, v and o of the attention, and two of the three of the feed-forward
    # layer. The third, `wo`, keeps its precision.
    attention, feed_forward = 4 * config["num_heads"] * config["d_kv"], 2 * config["d_ff"]
    return int(config["num_layers"] * config["d_model"] * (attention + feed_forward))


def encode_values(networks: Mapping[str, Mapping[str, Any]], t5_tokens: int) -> int:
    """Count the values of T5's two largest tensors for one prompt: a feed-forward layer's and the attention scores."""
    t5 = networks["text_encoder_3"]
    return int(t5_tokens * (t5["d_ff"] + t5["num_heads"] * t5_tokens))


def step_values(networks: Mapping[str, Mapping[str, Any]], t5_tokens: int, work: Workload) -> int:
    """Count the values of the transformer's hidden states: all tokens of all rows, at its hidden width.

    The tensor inside a feed-forward layer is four times as large. The measured factor `MemoryUse.step` includes that.
    """
    transformer = networks["transformer"]
    patch_px = LATENT_PX * transformer["patch_size"]
    tokens = work.width_px * work.height_px // patch_px**2 + networks["text_encoder"][_CLIP_TOKENS] + t5_tokens
    return int(work.rows * tokens * transformer["num_attention_heads"] * transformer["attention_head_dim"])


def decode_values(networks: Mapping[str, Mapping[str, Any]], work: Workload, *, tiled: bool) -> int:
    """Count the values of the decoder's largest tensor, for the whole image or for one tile.

    This tensor has the full resolution, and the channels of the decoder's second-to-last block: the last block
    reduces them.
    """
    channels = networks["vae"]["block_out_channels"]  # in the order of the encoder: the decoder uses it backwards
    widest = channels[min(1, len(channels) - 1)]
    width_px, height_px = (min(side, TILE_PX) if tiled else side for side in (work.width_px, work.height_px))
    return int(widest * width_px * height_px)


def tiles_values(work: Workload) -> int:
    """Count the values that tiled decoding keeps in addition to the tensors of one tile.

    These are the pixels of all tiles, which overlap by a quarter, and two copies of the image.
    """
    return int(3 * work.width_px * work.height_px * (1 / 0.75**2 + 2))
