"""The engine's calls of a backend: prompts are encoded, steps made, and errors kept to the images that have them."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from sd35.backends.base import Memory, TextEmbedding
from sd35.engine.generation import Generation, Pixels, is_uniform
from sd35.engine.observer import Observer, Unobserved
from sd35.engine.prompt_cache import EmbeddingCache

Item = TypeVar("Item")
Result = TypeVar("Result")


class StepResult(NamedTuple):
    """What came of a batch's step: each failed image's error, and what the step took.

    `took_s` and `peak_bytes` are None where they say nothing of the batch: no call, or several, or another beside it.
    """

    errors: dict[Generation, Exception]
    took_s: float | None
    peak_bytes: int | None
    was_split: bool  # a call of all failed, and each was tried alone


class BatchExecutor:
    """Calls a backend with many prompts or images at once; with `reproducible`, with one at a time."""

    def __init__(self, embeddings: EmbeddingCache, *, reproducible: bool) -> None:
        self._embeddings, self._one_by_one = embeddings, reproducible
        self.observer: Observer = Unobserved()
        self._counting = threading.Lock()
        self._begun = self._running = 0  # calls of the backend

    def step(self, generations: Sequence[Generation], *, measure: bool) -> StepResult:
        """One step of images of one pipeline and shape; measured, if that is asked for, in bytes too."""
        errors = self._begin([generation for generation in generations if not generation.has_begun])
        rows = {generation: generation.row() for generation in generations if generation not in errors}
        if not rows:
            return StepResult(errors, None, None, was_split=False)
        backend = generations[0].pipeline.backend
        began_s = time.monotonic()
        (latents, was_split), peak_bytes = self._measured(
            backend.memory, lambda: self._each(backend.denoise_step, list(rows.values())), measure=measure
        )
        for generation, latent in zip(rows, latents, strict=True):
            error = latent if isinstance(latent, Exception) else _error_of(lambda: generation.advance(latent))  # noqa: B023
            if error:
                errors[generation] = error
        # After a look at each latent: before it, a GPU may not have computed them.
        took_s = time.monotonic() - began_s
        self.observer.on_step_done(len(rows), sum(1 if row.negative is None else 2 for row in rows.values()), took_s)
        says_nothing = was_split or measure
        return StepResult(errors, None if says_nothing else took_s, None if was_split else peak_bytes, was_split)

    def decode(self, generation: Generation, *, measure: bool) -> tuple[Pixels, int | None]:
        """An image's pixels, and the bytes it took, if that is asked for.

        Raises NumericalFailure where they are none, and what the backend raises.
        """
        backend = generation.pipeline.backend
        try:
            (pixels,), peak_bytes = self._measured(
                backend.memory, lambda: backend.decode_latents([generation.latent]), measure=measure
            )
        except FloatingPointError as error:
            raise generation.numerical_failures("not_finite", "in decoding") from error
        except Exception as error:
            self.observer.failed(error, was_split=False)
            raise
        if is_uniform(pixels):
            raise generation.numerical_failures("uniform", "after decoding")
        return pixels, peak_bytes

    def _begin(self, generations: Sequence[Generation]) -> dict[Generation, Exception]:
        """Give images their embeddings and noise; answers with the errors of those whose prompts have none."""
        if not generations:
            return {}
        backend = generations[0].pipeline.backend
        errors: dict[str, Exception] = {}

        def encode(prompts: list[str]) -> dict[str, TextEmbedding]:
            found = {}
            encoding_s = time.monotonic()
            results, _ = self._each(backend.encode_text, prompts)
            self.observer.encoded(len(prompts), time.monotonic() - encoding_s)
            for prompt, embedding in zip(prompts, results, strict=True):
                if isinstance(embedding, Exception):
                    errors[prompt] = embedding
                else:
                    found[prompt] = embedding
            return found

        began_s = time.monotonic()
        prompts = [prompt for generation in generations for prompt in generation.task.prompts]
        embeddings = self._embeddings.get(generations[0].task.pipeline, prompts, encode)
        now_s = time.monotonic()
        failed = {}
        for generation in generations:
            lacking = [errors[prompt] for prompt in generation.task.prompts if prompt in errors]
            found = [embeddings[prompt] for prompt in generation.task.prompts if prompt in embeddings]
            error = lacking[0] if lacking else _error_of(lambda: generation.begin(found, began_s, now_s))  # noqa: B023
            if error:
                failed[generation] = error
        return failed

    def _each(
        self, call: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
    ) -> tuple[list[Result | Exception], bool]:
        """What `call` makes of each item, or its error: where a call of several fails, each is tried alone.

        And whether it was so.
        """
        if len(items) == 1 or not self._one_by_one:
            try:
                results: list[Result | Exception] = list(call(items))
                if len(results) != len(items):
                    raise RuntimeError(f"the backend answered {len(results)} of {len(items)}")  # noqa: TRY301
                return results, False  # noqa: TRY300
            except Exception as error:  # noqa: BLE001  whatever a runtime raises is one image's end, no one else's
                self.observer.failed(error, was_split=len(items) > 1)
                if len(items) == 1:
                    return [error], False
        return [result for item in items for result in self._each(call, [item])[0]], not self._one_by_one

    def _measured(self, memory: Memory, call: Callable[[], Result], *, measure: bool) -> tuple[Result, int | None]:
        """What a call gives, and its peak of memory if no other call ran beside it, for the peak is the process's."""
        with self._counting:
            self._begun += 1
            self._running += 1
            begun, is_alone = self._begun, self._running == 1
        try:
            if not (measure and is_alone):
                return call(), None
            memory.watch()
            result, peak_bytes = call(), memory.peak_bytes()
            return result, peak_bytes if self._begun == begun else None
        finally:
            with self._counting:
                self._running -= 1


def _error_of(call: Callable[[], Exception | None]) -> Exception | None:
    """What a call answers with or raises."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001  see `BatchExecutor._each`
        return error
