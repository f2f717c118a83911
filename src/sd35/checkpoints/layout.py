"""Which files of a directory, or of a repository, in the Diffusers layout make a checkpoint.

Repositories hold more than that: the same weights again as `.fp16` files, in one file for other programs, or as
pickles, which run code when they are read. Those are never fetched, and are no part of a checkpoint's identity.
"""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from sd35.errors import CheckpointError
from sd35.parsing import read_json, shown

CARD_FILE = "sd35.json"
PARTS = ("scheduler", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae")
_TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
_WEIGHTS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "text_encoder_3": "model",
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
_SUFFIXES = {".json", ".txt", ".model", ".onnx", ".safetensors"}
_INDEX = ".safetensors.index.json"
_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}\.safetensors\Z")


def needed(paths: Iterable[str]) -> list[str]:
    """Those of the paths that a checkpoint consists of, sorted; each part's weights once.

    Where a part has both one file of weights and shards, Diffusers and Transformers read the one file.
    """
    read = sorted(path for path in paths if _is_read(PurePosixPath(path)))
    whole = {folder for folder, stem in _WEIGHTS.items() if f"{folder}/{stem}.safetensors" in read}
    return [path for path in read if not (_is_sharding(path) and str(PurePosixPath(path).parent) in whole)]


def missing(directory: Path) -> list[str]:
    """What a directory lacks to be a whole checkpoint, as paths in it; weights are known by their shards' index."""
    always = ["model_index.json", "scheduler/scheduler_config.json"]
    always += [f"{folder}/config.json" for folder in _WEIGHTS]
    always += [f"{folder}/tokenizer_config.json" for folder in _TOKENIZERS]
    weights = [path for folder in _WEIGHTS for path in weight_files(directory, folder)]
    return [path for path in (*always, *weights) if not (directory / path).is_file()]


def _is_read(path: PurePosixPath) -> bool:
    folder = str(path.parent)
    if folder == ".":
        return path.name in {"model_index.json", CARD_FILE}
    if folder not in (*PARTS, *_TOKENIZERS) or path.suffix not in _SUFFIXES:
        return False
    if ".safetensors" not in path.name:
        return True
    stem = _WEIGHTS.get(folder)
    return stem is not None and _SHARD.sub(".safetensors", path.name) in {f"{stem}.safetensors", stem + _INDEX}


def _is_sharding(path: str) -> bool:
    return path.endswith(_INDEX) or _SHARD.search(path) is not None


def weight_files(directory: Path, folder: str) -> list[str]:
    """The files that hold a part's weights, as paths in the directory, whether they are there or not.

    A part whose index cannot be used has shards whose names are not known, `*` in their place.
    """
    try:
        shards = weight_map(directory, folder)
    except CheckpointError:
        return [f"{folder}/{_WEIGHTS[folder]}-*.safetensors"]
    if shards is None:
        return [f"{folder}/{_WEIGHTS[folder]}.safetensors"]
    return sorted(f"{folder}/{shard}" for shard in set(shards.values()))


def weight_map(directory: Path, folder: str) -> dict[str, str] | None:
    """The shard of each parameter by the part's index; None if all lie in one file.

    Raises CheckpointError if the index cannot be used.
    """
    stem = _WEIGHTS[folder]
    index = directory / folder / (stem + _INDEX)
    if (directory / folder / f"{stem}.safetensors").is_file() or not index.is_file():
        return None
    try:
        content = read_json(index)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{index} cannot be read: {error}") from error
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise CheckpointError(f"{index}: expected a weight_map of names and shards, found {shown(found)}")
    for name, shard in found.items():
        # Any other name would be no part of the checkpoint's identity, and could lead out of its directory.
        if not (isinstance(shard, str) and _SHARD.sub("", shard) == stem):
            allowed = f"{stem}-00001-of-00002.safetensors and the like"
            raise CheckpointError(f"{index}: weight_map: {shown(name)}: got {shown(shard)}; allowed: {allowed}")
    return found
