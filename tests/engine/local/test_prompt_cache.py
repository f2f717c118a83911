"""The cache of encoded prompts: limited in bytes, with counts of hits and misses."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sd35.backends.base import TextEmbedding
from sd35.engine.local.prompt_cache import EmbeddingCache


class Encoder:
    """Encodes a prompt to as many bytes as it has characters, and records the calls."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, prompts: list[str]) -> dict[str, TextEmbedding]:
        """Encode all prompts without an exclamation mark."""
        self.calls.append(prompts)
        return {prompt: TextEmbedding(prompt, np.zeros(0), len(prompt)) for prompt in prompts if "!" not in prompt}


def test_a_lookup_encodes_each_missing_prompt_once():
    """Each distinct prompt of a lookup is one hit or one miss."""
    cache, encode = EmbeddingCache(100), Encoder()
    assert cache.get("mini", ["a cat", "", "a cat"], encode).keys() == {"a cat", ""}
    assert cache.get("mini", ["", "a dog"], encode).keys() == {"", "a dog"}
    assert encode.calls == [["a cat", ""], ["a dog"]]
    assert (cache.hits, cache.misses) == (1, 3)


def test_models_do_not_share_embeddings():
    cache, encode = EmbeddingCache(100), Encoder()
    for model in ("mini", "large"):
        cache.get(model, ["a cat"], encode)
    assert encode.calls == [["a cat"], ["a cat"]]


def test_prompts_that_fail_to_encode_are_left_out():
    """They are encoded again at the next lookup."""
    cache, encode = EmbeddingCache(100), Encoder()
    for _ in range(2):
        assert cache.get("mini", ["no!", "yes"], encode).keys() == {"yes"}
    assert encode.calls == [["no!", "yes"], ["no!"]]


@given(
    max_bytes=st.integers(0, 30),
    lookups=st.lists(st.lists(st.text("ab", min_size=1, max_size=8), max_size=4), max_size=20),
)
def test_the_cache_never_exceeds_its_size(max_bytes: int, lookups: Sequence[list[str]]):
    """Every lookup returns all its prompts, and the latest prompt that fits stays in the cache."""
    cache, encode = EmbeddingCache(max_bytes), Encoder()
    for prompts in lookups:
        found = cache.get("mini", prompts, encode)
        assert {prompt: embedding.tokens for prompt, embedding in found.items()} == {
            prompt: prompt for prompt in prompts
        }
        assert cache.used_bytes <= max_bytes
        latest = prompts[-1:] if prompts and len(prompts[-1]) <= max_bytes else []
        calls = len(encode.calls)
        if len(set(prompts)) == 1:
            cache.get("mini", latest, encode)
            assert len(encode.calls) == calls
    assert cache.hits + cache.misses >= sum(len(set(prompts)) for prompts in lookups)
