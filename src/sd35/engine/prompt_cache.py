"""What prompts were encoded to, kept while there is room: most clients ask for a few prompts again and again."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping

from sd35.backends.base import TextEmbedding


class EmbeddingCache:
    """The embeddings used last, of positive and negative prompts alike, in at most `max_bytes`. Not safe for threads.

    `hits` and `misses` count the lookups.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = self.hits = self.misses = 0
        self._kept: OrderedDict[tuple[Hashable, str], TextEmbedding] = OrderedDict()

    def get(
        self, pipeline: Hashable, prompts: Iterable[str], encode: Callable[[list[str]], Mapping[str, TextEmbedding]]
    ) -> dict[str, TextEmbedding]:
        """The prompts' embeddings by a pipeline; `encode` is called once, with each that is missing once.

        What `encode` leaves out is left out here.
        """
        wanted = list(dict.fromkeys(prompts))
        found = {prompt: self._kept[pipeline, prompt] for prompt in wanted if (pipeline, prompt) in self._kept}
        for prompt in found:
            self._kept.move_to_end((pipeline, prompt))
        missing = [prompt for prompt in wanted if prompt not in found]
        self.hits += len(found)
        self.misses += len(missing)
        if missing:
            for prompt, embedding in encode(missing).items():
                found[prompt] = embedding
                self._keep((pipeline, prompt), embedding)
        return found

    def _keep(self, key: tuple[Hashable, str], embedding: TextEmbedding) -> None:
        if embedding.nbytes > self.max_bytes:
            return  # for it, all others would have to go
        self._kept[key] = embedding
        self.used_bytes += embedding.nbytes
        while self.used_bytes > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.used_bytes -= dropped.nbytes
