"""A cache of encoded prompts, because most clients repeat a few prompts."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping

from sd35.backends.base import TextEmbedding


class EmbeddingCache:
    """The most recently used embeddings, which are encoded positive and negative prompts, in at most `max_bytes`.

    `hits` and `misses` count lookups. Not thread-safe.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = self.hits = self.misses = 0
        self._embeddings: OrderedDict[tuple[Hashable, str], TextEmbedding] = OrderedDict()

    def get(
        self, pipeline: Hashable, prompts: Iterable[str], encode: Callable[[list[str]], Mapping[str, TextEmbedding]]
    ) -> dict[str, TextEmbedding]:
        """Return the embeddings of prompts, by prompt. `encode` is called at most once, with all missing prompts.

        `pipeline` is the key of the pipeline that uses the embeddings. The result lacks the prompts that `encode` does
        not return.
        """
        distinct = list(dict.fromkeys(prompts))
        embeddings = {
            prompt: self._embeddings[pipeline, prompt] for prompt in distinct if (pipeline, prompt) in self._embeddings
        }
        for prompt in embeddings:
            self._embeddings.move_to_end((pipeline, prompt))
        missing = [prompt for prompt in distinct if prompt not in embeddings]
        self.hits += len(embeddings)
        self.misses += len(missing)
        if missing:
            for prompt, embedding in encode(missing).items():
                embeddings[prompt] = embedding
                self._store((pipeline, prompt), embedding)
        return embeddings

    def _store(self, key: tuple[Hashable, str], embedding: TextEmbedding) -> None:
        """Add an embedding, and drop the least recently used ones that no longer fit."""
        if embedding.nbytes > self.max_bytes:
            return  # it would replace all others and still not fit
        self._embeddings[key] = embedding
        self.used_bytes += embedding.nbytes
        while self.used_bytes > self.max_bytes:
            _, dropped = self._embeddings.popitem(last=False)
            self.used_bytes -= dropped.nbytes
