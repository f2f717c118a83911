"""Which files of a directory, or of a repository, in the Diffusers layout make a checkpoint.

Repositories hold more than that: the same weights again as `.fp16` files, in one file for other programs, or as
pickles, which run code when they are read. Those are never fetched, and are no part of a checkpoint's identity.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

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
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


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
    """The files that hold a part's weights, as paths in the directory, whether they are there or not."""
    one = f"{folder}/{_WEIGHTS[folder]}.safetensors"
    index = directory / folder / (_WEIGHTS[folder] + _INDEX)
    if (directory / one).is_file() or not index.is_file():
        return [one]
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [f"{folder}/{_WEIGHTS[folder]}-*.safetensors"]
    return sorted(f"{folder}/{shard}" for shard in shards)
