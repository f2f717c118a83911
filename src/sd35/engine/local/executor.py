"""Call a backend to encode prompts, to evaluate steps, and to decode. An error ends only the affected image."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from sd35.backends.base import Memory, TextEmbedding
from sd35.engine.base import Observer, Pixels
from sd35.engine.local.generation import Generation, is_uniform
from sd35.engine.local.prompt_cache import EmbeddingCache

Item = TypeVar("Item")
Result = TypeVar("Result")


class StepResult(NamedTuple):
    """The result of a batch's step.

    Attributes:
        errors: The error of each generation that failed in this step.
        took_s: Seconds of the step. None if the step was split, if its memory was measured, or if all generations
            failed before it.
        peak_bytes: Peak memory of the step. None if not measured, if the step was split, or if another call of the
            backend ran at the same time.
        was_split: Whether the call with all rows failed, and each row was then tried alone.
    """

    errors: dict[Generation, Exception]
    took_s: float | None
    peak_bytes: int | None
    was_split: bool


class BatchExecutor:
    """Calls a backend with many prompts or images at once, or with one at a time if `reproducible`."""

    def __init__(self, embeddings: EmbeddingCache, *, reproducible: bool) -> None:
        self._embeddings, self._one_by_one = embeddings, reproducible
        self.observer: Observer | None = None
        self._counting = threading.Lock()
        self._begun = self._running = 0  # calls of the backend: begun so far, and running now

    def step(self, generations: Sequence[Generation], *, measure: bool) -> StepResult:
        """Make one step of generations of one pipeline and shape. With `measure`, measure its peak memory."""
        errors = self._begin_all([generation for generation in generations if not generation.has_begun])
        rows = {generation: generation.row() for generation in generations if generation not in errors}
        if not rows:
            return StepResult(errors, None, None, was_split=False)
        backend = generations[0].pipeline.backend
        began_s = time.monotonic()
        (velocities, was_split), peak_bytes = self._measure_call(
            backend.memory, lambda: self._call_with_all(backend.predict_velocity, list(rows.values())), measure=measure
        )
        for generation, velocity in zip(rows, velocities, strict=True):
            error = velocity if isinstance(velocity, Exception) else _error_of(lambda: generation.advance(velocity))  # noqa: B023
            if error:
                errors[generation] = error
        # Read the clock only now, because a GPU may still compute until `advance` reads the latents.
        took_s = time.monotonic() - began_s
        if self.observer:
            transformer_rows = sum(1 if row.negative is None else 2 for row in rows.values())
            self.observer.on_step_done(len(rows), transformer_rows, took_s)
        is_one_call = not was_split and not measure
        return StepResult(errors, took_s if is_one_call else None, None if was_split else peak_bytes, was_split)

    def decode(self, generation: Generation, *, measure: bool) -> tuple[Pixels, int | None]:
        """Return an image's pixels, and the peak memory of decoding in bytes, or None if it was not measured.

        Raises NumericalFailure if values are not finite or all pixels have one colour. Errors of the backend propagate.
        """
        backend = generation.pipeline.backend
        try:
            (pixels,), peak_bytes = self._measure_call(
                backend.memory, lambda: backend.decode_latents([generation.latent]), measure=measure
            )
        except FloatingPointError as error:
            raise generation.numerical_failure("not_finite", "in decoding") from error
        except Exception as error:
            self._report_failure(error, was_split=False)
            raise
        if is_uniform(pixels):
            raise generation.numerical_failure("uniform", "after decoding")
        return pixels, peak_bytes

    def _begin_all(self, generations: Sequence[Generation]) -> dict[Generation, Exception]:
        """Give generations their embeddings and noise. Return the error of each generation that cannot begin."""
        if not generations:
            return {}
        pipeline = generations[0].pipeline
        errors: dict[str, Exception] = {}  # by prompt

        def encode(prompts: list[str]) -> dict[str, TextEmbedding]:
            """Return the embeddings by prompt. Prompts that fail are missing, and their errors are in `errors`."""
            encoding_s = time.monotonic()
            results, _ = self._call_with_all(pipeline.backend.encode_text, prompts)
            if self.observer:
                self.observer.encoded(len(prompts), time.monotonic() - encoding_s)
            by_prompt = dict(zip(prompts, results, strict=True))
            errors.update({prompt: error for prompt, error in by_prompt.items() if isinstance(error, Exception)})
            return {prompt: result for prompt, result in by_prompt.items() if not isinstance(result, Exception)}

        began_s = time.monotonic()
        prompts = [prompt for generation in generations for prompt in generation.work.prompts]
        embeddings = self._embeddings.get(pipeline.info.key, prompts, encode)
        now_s = time.monotonic()
        failed = {}
        for generation in generations:
            own_errors = [errors[prompt] for prompt in generation.work.prompts if prompt in errors]
            own = [embeddings[prompt] for prompt in generation.work.prompts if prompt in embeddings]
            error = own_errors[0] if own_errors else _error_of(lambda: generation.begin(own, began_s, now_s))  # noqa: B023
            if error:
                failed[generation] = error
        return failed

    def _call_with_all(
        self, call: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
    ) -> tuple[list[Result | Exception], bool]:
        """Call the backend with all items at once. If that fails, or if `reproducible`, call it with each item alone.

        Return each item's result or error, and whether a call with several items failed. The RuntimeError below is
        internal: it counts as a failed call.
        """
        if len(items) == 1 or not self._one_by_one:
            try:
                results: list[Result | Exception] = list(call(items))
                if len(results) != len(items):
                    raise RuntimeError(f"the backend returned {len(results)} of {len(items)} results")  # noqa: TRY301
                return results, False  # noqa: TRY300
            except Exception as error:  # noqa: BLE001  an error of a runtime ends one image and no other
                self._report_failure(error, was_split=len(items) > 1)
                if len(items) == 1:
                    return [error], False
        return [result for item in items for result in self._call_with_all(call, [item])[0]], not self._one_by_one

    def _measure_call(self, memory: Memory, call: Callable[[], Result], *, measure: bool) -> tuple[Result, int | None]:
        """Return the result of a call and, if `measure`, its peak memory in bytes.

        The peak is None if another call ran at the same time, because only the memory of all calls together is known.
        """
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

    def _report_failure(self, error: Exception, *, was_split: bool) -> None:
        """Send an exception of the backend to the observer. If `was_split`, each item is now tried alone."""
        if self.observer:
            self.observer.failed(f"{type(error).__name__}: {error}", was_split=was_split)


def _error_of(call: Callable[[], Exception | None]) -> Exception | None:
    """Return the error that a call returns or raises, or None."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001  an error of a runtime ends one image and no other
        return error
