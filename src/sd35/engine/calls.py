"""The engine's calls of a backend: prompts are encoded, steps made, and errors kept to the pictures that have them."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from sd35.backends.contract import Memory, TextEmbedding
from sd35.engine.embeddings import EmbeddingCache
from sd35.engine.picture import Picture, Pixels

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stepped(NamedTuple):
    """What came of a batch's step: each failed picture's error, and what the backend took, if it was called."""

    errors: dict[Picture, Exception]
    took_s: float | None
    peak_bytes: int | None  # None too where it was not measured


class Calls:
    """Calls a backend with many prompts or pictures at once; with `reproducible`, with one at a time."""

    def __init__(self, embeddings: EmbeddingCache, *, reproducible: bool) -> None:
        self._embeddings, self._one_by_one = embeddings, reproducible
        self._measuring = threading.Lock()  # one call at a time, for the peak is the whole process's

    def step(self, pictures: Sequence[Picture], *, measure: bool) -> Stepped:
        """One step of pictures of one model and shape; measured, if that is asked for, in bytes too."""
        errors = self._begin([picture for picture in pictures if not picture.has_begun])
        rows = {picture: picture.row() for picture in pictures if picture not in errors}
        if not rows:
            return Stepped(errors, None, None)
        backend = pictures[0].painter.backend
        began_s = time.monotonic()
        latents, peak_bytes = self._measured(
            backend.memory, lambda: self._each(backend.denoise_step, list(rows.values())), measure=measure
        )
        took_s = time.monotonic() - began_s
        for picture, latent in zip(rows, latents, strict=True):
            error = latent if isinstance(latent, Exception) else picture.advance(latent)
            if error:
                errors[picture] = error
        return Stepped(errors, took_s, peak_bytes)

    def decode(self, picture: Picture, *, measure: bool) -> tuple[Pixels, int | None]:
        """A picture's pixels, and the bytes it took, if that is asked for. Raises what the backend raises."""
        backend = picture.painter.backend
        (pixels,), peak_bytes = self._measured(
            backend.memory, lambda: backend.decode_latents([picture.latent]), measure=measure
        )
        return pixels, peak_bytes

    def _begin(self, pictures: Sequence[Picture]) -> dict[Picture, Exception]:
        """Give pictures their embeddings and noise; answers with the errors of those whose prompts have none."""
        if not pictures:
            return {}
        backend = pictures[0].painter.backend
        errors: dict[str, Exception] = {}

        def encode(prompts: list[str]) -> dict[str, TextEmbedding]:
            found = {}
            for prompt, embedding in zip(prompts, self._each(backend.encode_text, prompts), strict=True):
                if isinstance(embedding, Exception):
                    errors[prompt] = embedding
                else:
                    found[prompt] = embedding
            return found

        prompts = [prompt for picture in pictures for prompt in picture.task.prompts]
        embeddings = self._embeddings.get(pictures[0].task.request.model, prompts, encode)
        now_s = time.monotonic()
        failed = {}
        for picture in pictures:
            lacking = [prompt for prompt in picture.task.prompts if prompt in errors]
            if lacking:
                failed[picture] = errors[lacking[0]]
            else:
                picture.begin([embeddings[prompt] for prompt in picture.task.prompts], now_s)
        return failed

    def _each(
        self, call: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
    ) -> list[Result | Exception]:
        """What `call` makes of each item, or its error: where a call of several fails, each is tried alone."""
        if len(items) == 1 or not self._one_by_one:
            try:
                return list(call(items))
            except Exception as error:  # noqa: BLE001  whatever a runtime raises is one picture's end, no one else's
                if len(items) == 1:
                    return [error]
        return [result for item in items for result in self._each(call, [item])]

    def _measured(self, memory: Memory, call: Callable[[], Result], *, measure: bool) -> tuple[Result, int | None]:
        """What a call gives, and its peak of memory, unless another call is being measured right now."""
        if not measure or not self._measuring.acquire(blocking=False):
            return call(), None
        try:
            memory.watch()
            return call(), memory.peak_bytes()
        finally:
            self._measuring.release()
