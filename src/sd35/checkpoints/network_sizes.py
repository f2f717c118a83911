"""The sizes of a checkpoint's networks: from file headers, or from the registry if the checkpoint is not on disk."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from sd35.checkpoints.architectures import ARCHITECTURES, Config
from sd35.checkpoints.card import Card
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.embedded import has_embedded_graphs
from sd35.checkpoints.graphs.nvidia import OfficialGraphs
from sd35.checkpoints.registry import RegisteredCheckpoint
from sd35.errors import CheckpointError

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
NETWORKS = (*TEXT_ENCODERS, "transformer", "vae")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Network:
    """The size of a network.

    Attributes:
        values: The number of parameters.
        largest_layer: The number of parameters in the largest layer.
        stored_bytes: The size of the weights on disk.
        stored_as: The number format of the files: "float32", "float16", "bfloat16", another safetensors type such as
            "F8_E4M3", or "an ONNX graph".
        config: The network's configuration.
    """

    values: int
    largest_layer: int
    stored_bytes: int
    stored_as: str
    config: Config


@dataclass(frozen=True)
class NetworkSizes:
    """The sizes of a checkpoint's networks.

    Attributes:
        networks: The sizes by the name of the network's directory, one for each of `NETWORKS`.
        has_graphs: Whether the checkpoint has ONNX graphs, which some backends need.
    """

    name: str
    card: Card
    networks: Mapping[str, Network]
    has_graphs: bool = False


def network_sizes_on_disk(checkpoint: Checkpoint) -> NetworkSizes:
    """Measure a checkpoint on disk from its file headers. Raises CheckpointError if a file is missing or damaged."""
    if graphs := checkpoint.graphs:
        networks = {name: _network_of_graph(checkpoint, graphs, name) for name in NETWORKS}
        return NetworkSizes(checkpoint.name, checkpoint.card, networks, has_graphs=True)
    networks = {name: _network_on_disk(checkpoint, name) for name in NETWORKS}
    return NetworkSizes(checkpoint.name, checkpoint.card, networks, has_embedded_graphs(checkpoint))


def network_sizes_by_name(entry: RegisteredCheckpoint) -> NetworkSizes:
    """Return the sizes of a checkpoint that is not on disk, from its architecture and the file sizes in the registry.

    Raises CheckpointError if the architecture or the file sizes are unknown.
    """
    if entry.name not in ARCHITECTURES or not entry.files:
        raise CheckpointError(
            f"{entry.name} is not on disk, so the sizes of its networks are unknown; download it with:"
            f" sd35 pull {entry.name}"
        )
    architecture, networks = ARCHITECTURES[entry.name], {}
    for name in NETWORKS:
        stored = sum(size for path, size in entry.files.items() if path.startswith(f"{name}/"))
        config: Config = getattr(architecture, name)
        stored_as = "bfloat16" if name in {"transformer", "vae"} else "float16"
        # All published weights have 16 bits, so a parameter takes two bytes.
        networks[name] = Network(stored // 2, _largest_layer(name, config), stored, stored_as, config)
    return NetworkSizes(entry.name, entry.card, networks)


def _network_of_graph(checkpoint: Checkpoint, graphs: OfficialGraphs, name: str) -> Network:
    """Return the size of one of NVIDIA's graphs. Counts a parameter for every two bytes of its files.

    The transformer's parameters are computed from its configuration instead, because in FP8 some take one byte.
    """
    config = checkpoint.config(name)
    stored = sum(path.stat().st_size for path in graphs.path(name).parent.iterdir() if path.is_file())
    values = _transformer_values(config) if name == "transformer" else stored // 2
    return Network(values, _largest_layer(name, config), stored, "an ONNX graph", config)


def blocks_values(config: Mapping[str, Any]) -> int:
    """Count the parameters in the matrices of an MMDiT's blocks (SD3 paper, section 4).

    The numbers below are multiples of the squared width. For each stream (image and text), a block has 6 for
    modulation, 4 for attention (q, k, v, output) and 8 for the feed-forward layer. The text stream of the last block
    ends in the attention: it has 2 for modulation and 3 for q, k and v. A second attention adds 3 for modulation and 4
    for itself.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    stream = 6 + 4 + 8
    last_block, block, second_attention = stream + 2 + 3, 2 * stream, 3 + 4
    squares = (config["num_layers"] - 1) * block + last_block
    squares += second_attention * len(config.get("dual_attention_layers", ()))
    return int(squares * width**2)


def _transformer_values(config: Mapping[str, Any]) -> int:
    """Count the parameters in the matrices of an MMDiT. They are 99 % of all its parameters.

    Besides the blocks, the embeddings of time and text and the last norm have about 4 times the squared width.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    inputs = config["pos_embed_max_size"] ** 2 + config["joint_attention_dim"] + config["pooled_projection_dim"]
    return int(blocks_values(config) + 4 * width**2 + inputs * width)


def _network_on_disk(checkpoint: Checkpoint, name: str) -> Network:
    """Measure a network from the headers of its weight files. Raises CheckpointError if they contain no weights."""
    config, weights = checkpoint.config(name), checkpoint.weights(name)
    if "shared.weight" in weights:
        # Some files of T5 store its embedding twice, under two names. It is one parameter.
        weights = {key: weight for key, weight in weights.items() if key != "encoder.embed_tokens.weight"}
    values, stored, by_tag = 0, 0, Counter[str]()
    for weight in weights.values():
        count = prod(weight.stored.shape) // weight.of  # `of` parameters share the stored tensor
        values += count
        stored += weight.stored.nbytes // weight.of
        by_tag[weight.stored.dtype] += count
    if not values:
        raise CheckpointError(f"{checkpoint.directory / name} contains no weights; download or copy its files again")
    ((tag, _),) = by_tag.most_common(1)  # the type of most parameters
    return Network(values, _largest_layer(name, config), stored, _DTYPES.get(tag, tag), config)


def _largest_layer(name: str, config: Mapping[str, Any]) -> int:
    """Count the parameters of a network's largest layer. The offload `sequential` needs memory for one layer."""
    if name == "vae":
        return int(max(config["block_out_channels"]) ** 2 * 9)  # a convolution of 3 x 3
    if name == "transformer":
        width = config["num_attention_heads"] * config["attention_head_dim"]
        # The modulation layer of a block outputs 6 vectors of its width, or 9 for a block with two attentions.
        return int(width**2 * (9 if config.get("dual_attention_layers") else 6))
    width = config["d_model"] if name == "text_encoder_3" else config["hidden_size"]
    inner = config["d_ff"] if name == "text_encoder_3" else config["intermediate_size"]
    return int(width * max(config["vocab_size"], inner))
