"""Token ids equal those of Transformers' tokenizers."""

import json
import os
import shutil
from pathlib import Path

import pytest
from transformers import CLIPTokenizer, PreTrainedTokenizerBase, T5TokenizerFast

from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.tokenizers import Tokenizers
from sd35.errors import CheckpointError

PROMPTS = [
    "",
    "a cat on a blue background",
    "A CAT, on a BLUE background!",
    "hello!! world !",
    "!",
    "café naïve ÅNGSTRÖM Å ﬁ ß İ",
    "🐱 cat 🚀🚀 👩‍🚀",
    "猫在蓝色背景上 кот на синем",
    "lots \t of\n\n\u00a0space  ",
    "it's we're I'LL don't 1234 5,6.7",
    "\u200b\ufeff\x00",
    "<|endoftext|> a <|startoftext|> b <pad> </s>cat <unk> <extra_id_0>",
    "a cat and a dog, " * 60,
    "x" * 500,
]
PARTS: dict[str, type[PreTrainedTokenizerBase]] = {
    "tokenizer": CLIPTokenizer,
    "tokenizer_2": CLIPTokenizer,
    "tokenizer_3": T5TokenizerFast,
}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """The embedded checkpoint, or the one at the path in `TEST_CHECKPOINT`."""
    return open_checkpoint(os.environ.get("TEST_CHECKPOINT", "sd35-mini"))


@pytest.fixture(params=["flags", "map"])
def old_layout(request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path: Path) -> Checkpoint:
    """The checkpoint with CLIP's tokenizers in two files, as in older versions of Transformers and in SD3.5.

    With "flags", special tokens are in the configuration, with flags. With "map", they are in a separate file.
    """
    for part in PARTS:
        shutil.copytree(checkpoint.directory / part, tmp_path / part)
    for part in ("tokenizer", "tokenizer_2"):
        directory = tmp_path / part
        whole = json.loads((directory / "tokenizer.json").read_text())
        (directory / "tokenizer.json").unlink()
        (directory / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
        merges = "\n".join(" ".join(pair) for pair in whole["model"]["merges"])
        (directory / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
        config = json.loads((directory / "tokenizer_config.json").read_text())
        flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        if request.param == "flags":
            config["added_tokens_decoder"] = {
                str(token["id"]): {**flags, "content": token["content"], "special": True}
                for token in whole["added_tokens"]
            }
        else:
            special: dict[str, object] = {name: config.pop(name) for name in ("bos_token", "unk_token", "pad_token")}
            special["eos_token"] = {**flags, "content": config.pop("eos_token")}
            (directory / "special_tokens_map.json").write_text(json.dumps(special))
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return Checkpoint(checkpoint.name, tmp_path, checkpoint.card)


def assert_equal_to_transformers(checkpoint: Checkpoint) -> None:
    """Compare the ids of each prompt with those of Transformers' tokenizers, as Diffusers calls them."""
    tokenizers = Tokenizers(checkpoint)
    clip_length = CLIPTokenizer.from_pretrained(checkpoint.directory / "tokenizer").model_max_length
    lengths = (clip_length, clip_length, checkpoint.card.max_sequence_length)
    all_ids = tokenizers.encode(PROMPTS)
    for (part, kind), length, ids in zip(PARTS.items(), lengths, all_ids, strict=True):
        reference = kind.from_pretrained(checkpoint.directory / part)
        for prompt, row in zip(PROMPTS, ids.tolist(), strict=True):
            expected = reference(prompt, padding="max_length", max_length=length, truncation=True).input_ids
            assert row == expected, (part, prompt[:40])


def test_ids_equal_transformers(checkpoint: Checkpoint) -> None:
    """Padding, truncation, special tokens, scripts and symbols give the same ids for all three tokenizers."""
    assert_equal_to_transformers(checkpoint)


def test_ids_equal_transformers_from_vocabulary_and_merges(old_layout: Checkpoint) -> None:
    """CLIP's tokenizers from `vocab.json` and `merges.txt` give the same ids."""
    assert_equal_to_transformers(old_layout)


def test_a_prompt_is_truncated_if_it_exceeds_t5s_length(checkpoint: Checkpoint) -> None:
    """The end token counts as well."""
    tokenizers = Tokenizers(checkpoint)
    reference = T5TokenizerFast.from_pretrained(checkpoint.directory / "tokenizer_3")
    length = checkpoint.card.max_sequence_length
    fits = "cat " * (length - 1)
    assert len(reference(fits).input_ids) == length
    for prompt in (*PROMPTS, fits, fits + "cat"):
        assert tokenizers.is_truncated(prompt) == (len(reference(prompt, verbose=False).input_ids) > length)


def test_token_counts_match_t5(checkpoint: Checkpoint) -> None:
    """The end token counts; padding and truncated tokens do not."""
    tokenizers = Tokenizers(checkpoint)
    reference = T5TokenizerFast.from_pretrained(checkpoint.directory / "tokenizer_3")
    length = checkpoint.card.max_sequence_length
    for prompt in PROMPTS:
        read = reference(prompt, max_length=length, truncation=True).input_ids
        assert tokenizers.tokens(prompt) == len(read), prompt[:40]


def test_a_missing_tokenizer_raises_checkpoint_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The error names the directory."""
    for part in PARTS:
        (tmp_path / part).mkdir()
        shutil.copy(checkpoint.directory / part / "tokenizer_config.json", tmp_path / part)
    with pytest.raises(CheckpointError, match="tokenizer cannot be read"):
        Tokenizers(Checkpoint(checkpoint.name, tmp_path, checkpoint.card))
