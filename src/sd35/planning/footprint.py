"""What an image's calls take beside the weights: formulas of the networks' shapes, with one measured factor each.

A formula counts the tensors of the network's widest place, in values; the factor says how many of them are alive there
at once with what the runtime keeps beside. docs/architecture/12-memory-and-start-up.md says where each was measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sd35.backends.options import TILE_PX, DeviceKind, Offload, has_second
from sd35.checkpoints.network_sizes import blocks_values
from sd35.tensors import LATENT_PX

BETWEEN_FP8 = "bfloat16"  # what is computed in where weights are in FP8
_BYTES_OF = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2})
_CLIP_TOKENS = "max_position_embeddings"


@dataclass(frozen=True)
class Runtime:
    """What is particular to a backend on a kind of device.

    `library_bytes`: what the process, or on CUDA the device, holds before any weight. `encode`, `step`, `decode`: the
    factors. `offloads`, the fastest first, and `tiles`: what of the options it can do. `precisions`: what it computes
    in. `needs_graphs`: it reads nothing else. `casts_aside`: its reading holds no file beside what it makes of it.
    `widens_fp8`: multiplying takes the largest layer's weights in a wider format beside those in FP8.
    """

    library_bytes: int
    encode: float
    step: float
    decode: float
    offloads: tuple[Offload, ...]
    precisions: tuple[str, ...]
    tiles: bool = False
    needs_graphs: bool = False
    casts_aside: bool = False
    widens_fp8: bool = False


_PLAIN = ("float32", "bfloat16", "float16")
_GRAPHS = ("float32", "bfloat16", "fp8")


RUNTIMES: Mapping[tuple[str, DeviceKind], Runtime] = MappingProxyType(
    {
        ("onnx", "cpu"): Runtime(
            187_000_000, 8, 14, 4, ("none", "encoders"), _GRAPHS, needs_graphs=True, casts_aside=True
        ),
        ("openvino", "cpu"): Runtime(
            286_000_000, 8, 70, 5, ("none", "encoders"), ("float32", "bfloat16"), needs_graphs=True, casts_aside=True
        ),
        ("diffusers", "cpu"): Runtime(
            512_000_000,
            8,
            14,
            5,
            ("none", "encoders", "model"),
            (*_PLAIN, "fp8", "fp8-weights", "fp8-storage"),
            tiles=True,
            widens_fp8=True,
        ),
        ("diffusers", "cuda"): Runtime(  # its factors are not measured
            600_000_000,
            8,
            14,
            4,
            ("none", "encoders", "model", "sequential"),
            (*_PLAIN, "fp8", "fp8-dynamic", "fp8-weights", "fp8-storage"),
            tiles=True,
            widens_fp8=True,
        ),
        # Nor are these. Engines stream what weights have no room.
        ("tensorrt", "cuda"): Runtime(600_000_000, 8, 14, 4, ("none", "sequential"), _GRAPHS),
    }
)


def computed_in(backend: str, precision: str) -> str:
    """The format of what is between matrices. On a CPU, ONNX Runtime makes float32 of all weights while it loads."""
    if backend == "onnx":
        return "float32"
    return BETWEEN_FP8 if precision.startswith("fp8") else precision


def bytes_of(backend: str, precision: str) -> int:
    """Bytes of a number of that format."""
    return _BYTES_OF[computed_in(backend, precision)]


def fp8_values(backend: str, precision: str, network: str, config: Mapping[str, Any]) -> int:
    """Of a network's numbers those that are in FP8, a byte each, by the rule of `fp8_layers`; but for scales."""
    if backend == "onnx" or not precision.startswith("fp8"):
        return 0
    if network == "transformer":
        return blocks_values(config)
    if (network, precision) != ("text_encoder_3", "fp8-storage"):
        return 0
    attention, inner = 4 * config["num_heads"] * config["d_kv"], 2 * config["d_ff"]
    return int(config["num_layers"] * config["d_model"] * (attention + inner))


def beside_bytes(backend: str, network: str, values: int, size_bytes: int) -> int:
    """What a backend holds of a network beside its weights: OpenVINO those it packed them from, and all of it twice."""
    if backend != "openvino":
        return 0
    packed_from = values * _BYTES_OF["float32"]
    return packed_from + (packed_from + size_bytes if has_second(backend, network, values) else 0)


@dataclass(frozen=True)
class Workload:
    """What is to fit: one step of so many transformer rows, and one decoding, at a size in pixels."""

    width_px: int
    height_px: int
    rows: int


def encode_values(networks: Mapping[str, Mapping[str, Any]], text_tokens: int) -> int:
    """Values of T5's widest place for one prompt: its gated inner layer, and its attention's products."""
    t5 = networks["text_encoder_3"]
    return int(text_tokens * (t5["d_ff"] + t5["num_heads"] * text_tokens))


def step_values(networks: Mapping[str, Mapping[str, Any]], text_tokens: int, work: Workload) -> int:
    """Values of one tensor of all tokens at the transformer's width, of all rows; the inner layer has four of them."""
    transformer = networks["transformer"]
    patch_px = LATENT_PX * transformer["patch_size"]
    tokens = work.width_px * work.height_px // patch_px**2 + networks["text_encoder"][_CLIP_TOKENS] + text_tokens
    return int(work.rows * tokens * transformer["num_attention_heads"] * transformer["attention_head_dim"])


def decode_values(networks: Mapping[str, Mapping[str, Any]], work: Workload, *, tiled: bool) -> int:
    """Values of the decoder's widest tensor: at full size, before its last block narrows it; of one tile, if tiled."""
    channels = networks["vae"]["block_out_channels"]
    width_px, height_px = (min(side, TILE_PX) if tiled else side for side in (work.width_px, work.height_px))
    return int(channels[min(1, len(channels) - 1)] * width_px * height_px)


def tiles_values(work: Workload) -> int:
    """Values that tiled decoding keeps beside a tile's: all tiles, overlapping by a quarter, and the image twice."""
    return int(3 * work.width_px * work.height_px * (1 / 0.75**2 + 2))
