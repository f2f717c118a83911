"""Three small tokenizers with one token per known word: two like CLIP (byte-level BPE) and one like T5 (Unigram)."""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, T5TokenizerFast

from sd35.bench.quality.judge import BACKGROUNDS
from training.scenes import PLACES, RELATIONS
from training.vocabulary import FILLERS, OBJECTS

CLIP_TOKENS = 16
T5_TOKENS = 20
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def known_words() -> list[str]:
    """Return all words of captions and fillers, in a fixed order."""
    phrases = [*OBJECTS, *BACKGROUNDS, *FILLERS]
    phrases += [phrase for group in (RELATIONS, PLACES) for variants in group.values() for phrase in variants]
    phrases.append("a an the big large small tiny on background ground picture of in front with middle grey")
    return sorted({word for phrase in phrases for word in re.findall(r"[a-z]+|[0-9]", phrase)})


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Learn the merges of byte-pair encoding (Sennrich et al., 2016) until each word is one token.

    Pairs that are equally frequent are merged in alphabetical order. The trainer of the library merges them in a
    different order in each process, so token ids would change.
    """
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for word in pieces for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [_merged(word, best) for word in pieces]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for piece in word:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def make_clip_tokenizer(pad: str) -> CLIPTokenizer:
    """Make a byte-level BPE tokenizer like CLIP's, with merges for the known words. `pad` is the padding token."""
    merges = learn_merges(known_words())
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["!", *letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), BOS, EOS]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=CLIP_TOKENS)


def make_t5_tokenizer() -> T5TokenizerFast:
    """Make a Unigram tokenizer of whole words. Unknown words become `<unk>`."""
    words = [w for word in known_words() for w in dict.fromkeys((f"▁{word}", f"▁{word.capitalize()}"))]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(word, -2.0) for word in words] + [(mark, -3.0) for mark in ",.!?"]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=T5_TOKENS)


def save_tokenizers(directory: Path) -> None:
    """Write the folders `tokenizer`, `tokenizer_2` and `tokenizer_3`."""
    make_clip_tokenizer(EOS).save_pretrained(directory / "tokenizer")
    make_clip_tokenizer("!").save_pretrained(directory / "tokenizer_2")
    make_t5_tokenizer().save_pretrained(directory / "tokenizer_3")
