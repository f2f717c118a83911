"""The files that make up a checkpoint in a directory or a repository in the Diffusers layout.

Repositories hold other files too: the same weights as `.fp16` files, as one file for other programs, or as pickles,
which execute code when they are loaded. Such files are never downloaded and do not affect a checkpoint's revision.
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


def checkpoint_files(paths: Iterable[str]) -> list[str]:
    """Select the paths that belong to a checkpoint, sorted.

    If a part has both a single weight file and shards (numbered files with a part of the weights each), only the single
    file is selected, as in Diffusers and Transformers.
    """
    files = sorted(path for path in paths if _is_of_checkpoint(PurePosixPath(path)))
    unsharded = {folder for folder, stem in _WEIGHTS.items() if f"{folder}/{stem}.safetensors" in files}
    return [path for path in files if not (_is_sharded(path) and str(PurePosixPath(path).parent) in unsharded)]


def missing_files(directory: Path) -> list[str]:
    """List the files that a directory lacks for a complete checkpoint, as relative paths."""
    required = ["model_index.json", "scheduler/scheduler_config.json"]
    required += [f"{folder}/config.json" for folder in _WEIGHTS]
    required += [f"{folder}/tokenizer_config.json" for folder in _TOKENIZERS]
    weights = [path for folder in _WEIGHTS for path in weight_files(directory, folder)]
    return [path for path in (*required, *weights) if not (directory / path).is_file()]


def _is_of_checkpoint(path: PurePosixPath) -> bool:
    """Return whether a checkpoint can contain a file with this relative path.

    Of weight files and indexes, only those with the standard names count, not variants such as `.fp16`.
    """
    folder = str(path.parent)
    if folder == ".":
        return path.name in {"model_index.json", CARD_FILE}
    if folder not in (*PARTS, *_TOKENIZERS) or path.suffix not in _SUFFIXES:
        return False
    if ".safetensors" not in path.name:  # a configuration, a file of a tokenizer, or a graph: any name counts
        return True
    stem = _WEIGHTS.get(folder)
    return stem is not None and _SHARD.sub(".safetensors", path.name) in {f"{stem}.safetensors", stem + _INDEX}


def _is_sharded(path: str) -> bool:
    """Return whether a path is a shard, or the index that lists the shards."""
    return path.endswith(_INDEX) or _SHARD.search(path) is not None


def weight_files(directory: Path, folder: str) -> list[str]:
    """List a part's weight files as relative paths. They may not exist.

    If the part's index is not valid, its shards are unknown. The only path then has `*` in place of the numbers.
    """
    try:
        shards = weight_map(directory, folder)
    except CheckpointError:
        return [f"{folder}/{_WEIGHTS[folder]}-*.safetensors"]
    if shards is None:
        return [f"{folder}/{_WEIGHTS[folder]}.safetensors"]
    return sorted(f"{folder}/{shard}" for shard in set(shards.values()))


def weight_map(directory: Path, folder: str) -> dict[str, str] | None:
    """Return the file (shard) of each parameter from a part's index, or None if the part has a single weight file.

    Raises CheckpointError if the index is not valid.
    """
    stem = _WEIGHTS[folder]
    index = directory / folder / (stem + _INDEX)
    if (directory / folder / f"{stem}.safetensors").is_file() or not index.is_file():
        return None
    try:
        content = read_json(index)
    except OSError as error:
        raise CheckpointError(f"{index} cannot be read: {error.strerror or error}; check its permissions") from error
    except ValueError as error:
        raise CheckpointError(f"{index} is not valid JSON: {error}; download or copy the file again") from error
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict):
        raise CheckpointError(
            f"{index}: expected a JSON object weight_map, found {shown(shards)}; download or copy the file again"
        )
    for name, shard in shards.items():
        # A file of another name would not be part of the checkpoint's revision, and could be outside its directory.
        if not (isinstance(shard, str) and _SHARD.sub("", shard) == stem):
            allowed = f"file names such as {stem}-00001-of-00002.safetensors. Download or copy the index again"
            raise CheckpointError(f"{index}, weight_map, {shown(name)}: got {shown(shard)}; allowed: {allowed}")
    return shards
