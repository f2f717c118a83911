"""The cache of encoded prompts: bounded in bytes, counted, and never asked twice for one prompt."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sd35.backends.base import TextEmbedding
from sd35.engine.local.prompt_cache import EmbeddingCache


class Encoder:
    """Encodes a prompt to as many bytes as it has characters, and keeps a record."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, prompts: list[str]) -> dict[str, TextEmbedding]:
        """All but what has an exclamation mark."""
        self.calls.append(prompts)
        return {prompt: TextEmbedding(prompt, np.zeros(0), len(prompt)) for prompt in prompts if "!" not in prompt}


def test_a_lookup_encodes_each_missing_prompt_once():
    """Doubled prompts are encoded once, known ones not at all, and each lookup is a hit or a miss."""
    cache, encode = EmbeddingCache(100), Encoder()
    assert cache.get("mini", ["a cat", "", "a cat"], encode).keys() == {"a cat", ""}
    assert cache.get("mini", ["", "a dog"], encode).keys() == {"", "a dog"}
    assert encode.calls == [["a cat", ""], ["a dog"]]
    assert (cache.hits, cache.misses) == (1, 3)


def test_models_do_not_share_embeddings():
    """The same words in another model are encoded by that model."""
    cache, encode = EmbeddingCache(100), Encoder()
    for model in ("mini", "large"):
        cache.get(model, ["a cat"], encode)
    assert encode.calls == [["a cat"], ["a cat"]]


def test_prompts_that_fail_to_encode_are_left_out():
    """The others are there, and it is tried again the next time."""
    cache, encode = EmbeddingCache(100), Encoder()
    for _ in range(2):
        assert cache.get("mini", ["no!", "yes"], encode).keys() == {"yes"}
    assert encode.calls == [["no!", "yes"], ["no!"]]


@given(
    max_bytes=st.integers(0, 30),
    asked=st.lists(st.lists(st.text("ab", min_size=1, max_size=8), max_size=4), max_size=20),
)
def test_the_cache_never_exceeds_its_size(max_bytes: int, asked: Sequence[list[str]]):
    """Whatever is asked for is answered, and what is kept stays within the bound, the latest first."""
    cache, encode = EmbeddingCache(max_bytes), Encoder()
    for prompts in asked:
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
    assert cache.hits + cache.misses >= sum(len(set(prompts)) for prompts in asked)
