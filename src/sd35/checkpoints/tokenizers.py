"""The three tokenizers of a checkpoint. Their token ids are equal to those of Diffusers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int32
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from sd35.checkpoints.checkpoint import Checkpoint
from sd35.errors import CheckpointError
from sd35.parsing import shown

_Array: TypeAlias = np.ndarray[Any, Any]
_CLIP_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_PROBE = "a cat \N{SNOWMAN}"  # a text to test a tokenizer: words, and a character that is in few vocabularies
_REMEDY = "download or copy its files again"
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class TokenIds(NamedTuple):
    """The token ids of prompts, padded and truncated to the input length of each text encoder."""

    clip_l: Int32[_Array, "prompts clip"]
    clip_g: Int32[_Array, "prompts clip"]
    t5: Int32[_Array, "prompts t5"]


class Tokenizers:
    """The tokenizers of one checkpoint: `tokenizer` (CLIP-L), `tokenizer_2` (CLIP-G), `tokenizer_3` (T5)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Read the tokenizers. Raises CheckpointError if a file is missing or cannot be read."""
        clip_length = _settings_of(checkpoint, "tokenizer").get("model_max_length", 77)
        self._clip_l = _open(checkpoint, "tokenizer", clip_length)
        self._clip_g = _open(checkpoint, "tokenizer_2", clip_length)  # Diffusers uses the length of the first for both
        self._t5 = _open(checkpoint, "tokenizer_3", checkpoint.card.max_sequence_length)

    def encode(self, prompts: Sequence[str]) -> TokenIds:
        """Tokenize prompts for the three text encoders."""
        return TokenIds(_ids(self._clip_l, prompts), _ids(self._clip_g, prompts), _ids(self._t5, prompts))

    def is_truncated(self, prompt: str) -> bool:
        """Return whether a prompt is longer than the input of T5, which is the longest of the three inputs."""
        return bool(self._t5.encode(prompt).overflowing)

    def tokens(self, prompt: str) -> int:
        """Count the tokens of a prompt that T5 reads, including the end token."""
        return sum(self._t5.encode(prompt).attention_mask)


def _ids(tokenizer: Tokenizer, prompts: Sequence[str]) -> Int32[_Array, "prompts length"]:
    """Return the token ids of each prompt, padded and truncated."""
    return np.array([encoding.ids for encoding in tokenizer.encode_batch(list(prompts))], np.int32)


def _open(checkpoint: Checkpoint, part: str, length: int) -> Tokenizer:
    """Read a tokenizer that pads and truncates to `length` tokens. Raises CheckpointError if it cannot be read."""
    directory, settings = checkpoint.directory / part, _settings_of(checkpoint, part)
    try:
        return _read(directory, settings, length)
    except CheckpointError:
        raise
    except BaseException as error:
        # The library raises plain Exception for all errors. Its panics derive only from BaseException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{directory}: the tokenizer cannot be read ({error}); {_REMEDY}") from error


def _read(directory: Path, settings: dict[str, Any], length: int) -> Tokenizer:
    """Read the files of a tokenizer, and encode a text to test it. Raises any error of the library."""
    if (directory / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    else:
        tokenizer = _clip_from_vocabulary(directory, settings)
    tokenizer.add_special_tokens(_added_tokens(settings))
    pad = _content(settings["pad_token"])
    pad_id = tokenizer.token_to_id(pad)
    if pad_id is None:
        raise CheckpointError(f"{directory}: the pad_token {shown(pad)} is not in the vocabulary; {_REMEDY}")
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=pad_id, pad_token=pad)
    tokenizer.encode(_PROBE)  # some invalid files only fail when a text is encoded
    return tokenizer


def _clip_from_vocabulary(directory: Path, settings: dict[str, Any]) -> Tokenizer:
    """Build CLIP's byte-level BPE from `vocab.json` and `merges.txt`, as `transformers.CLIPTokenizer` does."""
    bos, eos, unk = (_content(settings[name]) for name in ("bos_token", "eos_token", "unk_token"))
    vocabulary, merges = models.BPE.read_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
    bpe = models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=unk)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.post_processor = processors.RobertaProcessing(
        (eos, vocabulary[eos]), (bos, vocabulary[bos]), trim_offsets=False, add_prefix_space=False
    )
    return tokenizer


def _settings_of(checkpoint: Checkpoint, part: str) -> dict[str, Any]:
    """Read a tokenizer's settings. In the oldest checkpoints, a separate file lists the special tokens.

    Raises CheckpointError if a file cannot be read or the settings have no `pad_token`.
    """
    settings = checkpoint.config(part, "tokenizer_config.json")
    special_tokens_map = checkpoint.directory / part / "special_tokens_map.json"
    if "added_tokens_decoder" not in settings and special_tokens_map.exists():
        settings |= checkpoint.config(part, special_tokens_map.name)
    if "pad_token" not in settings:
        raise CheckpointError(f"{checkpoint.directory / part}: tokenizer_config.json has no pad_token; {_REMEDY}")
    return settings


def _added_tokens(settings: dict[str, Any]) -> list[AddedToken]:
    """Return the special tokens, which are matched in a text before anything else.

    The pad token is one of them. The pad token of CLIP-G is "!", so a "!" in a prompt becomes padding, as in Diffusers.
    """
    specified = settings.get("added_tokens_decoder", {}).values()
    options_by_text = {options["content"]: options for options in specified}
    for name in _SPECIAL_TOKENS:
        if name in settings:
            token = settings[name]
            options = token if isinstance(token, dict) else {"content": token, "normalized": False}
            options_by_text.setdefault(_content(token), options)
    names = ("content", "single_word", "lstrip", "rstrip", "normalized")  # the options that the library knows
    return [
        AddedToken(**{name: options[name] for name in names if name in options}, special=True)
        for options in options_by_text.values()
    ]


def _content(token: str | dict[str, Any]) -> str:
    """Return the text of a token in a tokenizer's settings: a string, or an object with the text and options."""
    return token if isinstance(token, str) else str(token["content"])
