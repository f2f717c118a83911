"""How large a checkpoint's networks are: by its files' headers, or where it is not on disk, by what is known of it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from sd35.checkpoints.architectures import ARCHITECTURES, Config
from sd35.checkpoints.checkpoint import Card, Checkpoint
from sd35.checkpoints.graphs.embedded import are_there
from sd35.checkpoints.graphs.nvidia import OfficialGraphs
from sd35.checkpoints.registry import RegisteredCheckpoint
from sd35.errors import CheckpointError

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
NETWORKS = (*TEXT_ENCODERS, "transformer", "vae")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Network:
    """A network: how many numbers its weights are, those of its largest layer, and what its files hold them in.

    `stored_as` is a precision's name; where that is none of ours, a safetensors tag or "an ONNX graph".
    """

    values: int
    largest_layer: int
    stored_bytes: int
    stored_as: str
    config: Config


@dataclass(frozen=True)
class NetworkSizes:
    """A checkpoint's networks by the names of their directories. `has_graphs`: the onnx backend finds what it reads."""

    name: str
    card: Card
    networks: Mapping[str, Network]
    has_graphs: bool = False


def network_sizes_on_disk(checkpoint: Checkpoint) -> NetworkSizes:
    """Of a checkpoint that is there: the numbers are counted in its files' headers. Raises CheckpointError."""
    if graphs := checkpoint.graphs:
        networks = {name: _network_of_graph(checkpoint, graphs, name) for name in NETWORKS}
        return NetworkSizes(checkpoint.name, checkpoint.card, networks, has_graphs=True)
    networks = {name: _network_on_disk(checkpoint, name) for name in NETWORKS}
    return NetworkSizes(checkpoint.name, checkpoint.card, networks, are_there(checkpoint))


def network_sizes_by_name(registered: RegisteredCheckpoint) -> NetworkSizes:
    """Return the sizes of a registered checkpoint that is not on disk. Raises CheckpointError if they are not known."""
    if registered.name not in ARCHITECTURES or not registered.files:
        raise CheckpointError(
            f"{registered.name} is not on disk, and its shapes are not known; fetch it with:"
            f" sd35 pull {registered.name}"
        )
    architecture, networks = ARCHITECTURES[registered.name], {}
    for name in NETWORKS:
        stored = sum(size for path, size in registered.files.items() if path.startswith(f"{name}/"))
        config: Config = getattr(architecture, name)
        stored_as = "bfloat16" if name in {"transformer", "vae"} else "float16"
        networks[name] = Network(stored // 2, _largest_layer(name, config), stored, stored_as, config)
    return NetworkSizes(registered.name, registered.card, networks)


def _network_of_graph(checkpoint: Checkpoint, graphs: OfficialGraphs, name: str) -> Network:
    """By the size of its files, which hold little else than numbers of two bytes; the transformer by its shapes.

    For in FP8, some of its numbers have one byte.
    """
    config = checkpoint.config(name)
    stored = sum(path.stat().st_size for path in graphs.path(name).parent.iterdir() if path.is_file())
    values = _transformer_values(config) if name == "transformer" else stored // 2
    return Network(values, _largest_layer(name, config), stored, "an ONNX graph", config)


def blocks_values(config: Mapping[str, Any]) -> int:
    """Numbers in the matrices of an MMDiT's blocks (SD3 paper, section 4), in squares of its width.

    A block has for image and text each 6 to modulate it, 4 of attention, 8 of its inner layer; a second attention is
    3 and 4 more; the last block's text ends in its attention.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    last, each, dual = 6 + 4 + 8 + 2 + 3, 36, 7
    squares = (config["num_layers"] - 1) * each + last + dual * len(config.get("dual_attention_layers", ()))
    return int(squares * width**2)


def _transformer_values(config: Mapping[str, Any]) -> int:
    """Numbers in all matrices of an MMDiT, which are 99 % of all. Time, text and the last norm take about 4 squares."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    wide = config["pos_embed_max_size"] ** 2 + config["joint_attention_dim"] + config["pooled_projection_dim"]
    return int(blocks_values(config) + 4 * width**2 + wide * width)


def _network_on_disk(checkpoint: Checkpoint, name: str) -> Network:
    config, weights = checkpoint.config(name), checkpoint.weights(name)
    if "shared.weight" in weights:
        weights = {key: weight for key, weight in weights.items() if key != "encoder.embed_tokens.weight"}  # the same
    values, stored, by_tag = 0, 0, Counter[str]()
    for weight in weights.values():
        numbers = prod(weight.stored.shape) // weight.of
        values += numbers
        stored += weight.stored.nbytes // weight.of
        by_tag[weight.stored.dtype] += numbers
    if not values:
        raise CheckpointError(f"{checkpoint.directory / name} holds no weights")
    ((tag, _),) = by_tag.most_common(1)
    return Network(values, _largest_layer(name, config), stored, _DTYPES.get(tag, tag), config)


def _largest_layer(name: str, config: Mapping[str, Any]) -> int:
    """Numbers in the weight of the largest layer: what has to be on the device at once where layers come singly."""
    if name == "vae":
        return int(max(config["block_out_channels"]) ** 2 * 9)  # a convolution of 3 x 3
    if name == "transformer":
        width = config["num_attention_heads"] * config["attention_head_dim"]
        # The layer that modulates a block gives 6 vectors of its width, or 9 where it has two attentions.
        return int(width**2 * (9 if config.get("dual_attention_layers") else 6))
    width = config["d_model"] if name == "text_encoder_3" else config["hidden_size"]
    inner = config["d_ff"] if name == "text_encoder_3" else config["intermediate_size"]
    return int(width * max(config["vocab_size"], inner))
