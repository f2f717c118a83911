"""One image while the engine generates it: its solver, its waiting callers, its progress, its numerical failures."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from sd35.backends.base import DenoiseRow, Skip, TextEmbedding
from sd35.engine.base import Handle, OnProgress, Pixels, Progress, Stage, Work
from sd35.engine.local.pipeline import Pipeline
from sd35.engine.scheduling.backlog import WorkItem
from sd35.engine.scheduling.cost_model import Shape
from sd35.errors import GenerationFailed, InvalidRequest, NumericalFailure, NumericalFailureKind, Sd35Error
from sd35.sampling.noise import initial_noise
from sd35.sampling.solvers.base import Solver
from sd35.sampling.solvers.euler import Euler
from sd35.tensors import LATENT_CHANNELS, LATENT_PX, Tensor, to_numpy

# All pixels have one colour if the values of each channel, 0 to 255, differ by at most this. NaN is decoded to zeros.
# Of 720 images of plain backgrounds by the embedded model, the values of the flattest image differ by 17.
UNIFORM = 1


@dataclass(eq=False)
class Waiter:
    """A caller that has waited for a generation since `accepted_s`, and whether its callback gets previews."""

    handle: Handle
    on_progress: OnProgress | None
    accepted_s: float
    previews: bool


class Generation:
    """Work between submission and pixels. Only the denoising thread advances it.

    Attributes:
        submitted_digest: The digest of the submitted request. A retry's request has another profile and digest.
        first_failure: The error that ended the first attempt. None if this is the first attempt.
        evaluations: Evaluations of the transformer so far, out of `all_evaluations`.
    """

    def __init__(self, work: Work, pipeline: Pipeline) -> None:
        self.work, self.pipeline = work, pipeline
        self.submitted_digest = work.request.digest
        self.first_failure: NumericalFailure | None = None
        self.waiters: list[Waiter] = []
        self.evaluations, self.all_evaluations = 0, Euler.evaluations(work.request.steps)
        # Times by `time.monotonic`; infinite until they are known.
        self.encoding_s = self.started_s = math.inf  # when encoding and the steps began, in the first attempt
        self.denoised_s = self.decoding_s = math.inf  # when the last step ended, and when decoding began
        self.previewed_s = -math.inf  # when the newest preview was computed
        self._embeddings: list[TextEmbedding] = []
        self._solver: Solver | None = None

    @property
    def shape(self) -> Shape:
        """The latent shape. Generations of one shape can share a batch."""
        return Shape(self.pipeline.info.key, self.work.height_px // LATENT_PX, self.work.width_px // LATENT_PX)

    @property
    def item(self) -> WorkItem:
        """The generation as the scheduler sees it."""
        work, is_guided = self.work, len(self.work.prompts) == 2
        return WorkItem(work.client, self.shape, self.all_evaluations, 2 if is_guided else 1, work.priority)

    @property
    def has_begun(self) -> bool:
        """Whether the generation has its embeddings and noise, and can make a step."""
        return self._solver is not None

    @property
    def solver(self) -> Solver:
        """The solver. Available after `begin`."""
        assert self._solver, "the generation has not begun"
        return self._solver

    @property
    def latent(self) -> Tensor:
        """The latent so far. Available after `begin`."""
        return self.solver.latent

    def begin(self, embeddings: list[TextEmbedding], encoding_s: float, now_s: float) -> None:
        """Draw the noise, and store the embeddings of the prompts, which were encoded from `encoding_s` to `now_s`."""
        request, shape = self.work.request, self.shape
        noise = initial_noise(request.seed, (LATENT_CHANNELS, shape.height, shape.width))
        self._solver = Euler(self.pipeline.sigmas(request.steps), noise, request.seed)
        self._embeddings = embeddings
        self.encoding_s, self.started_s = min(self.encoding_s, encoding_s), min(self.started_s, now_s)

    def row(self) -> DenoiseRow:
        """Return the backend's input for the next evaluation of the transformer."""
        positive, *negative = self._embeddings
        solver, guidance = self.solver, self.work.request.guidance_scale
        return DenoiseRow(
            solver.latent, positive, negative[0] if negative else None, solver.sigma, guidance, self._skip_of_step()
        )

    def advance(self, velocity: Tensor) -> NumericalFailure | None:
        """Advance the latent by the velocity of an evaluation. Return an error if it is no longer finite, else None."""
        solver = self.solver
        solver.advance(velocity)
        self.evaluations += 1
        latent = solver.latent
        # The sum is the quickest test: if it is finite, so are all values. A sum in float16 can overflow although all
        # values are finite, so the second test decides.
        if not math.isfinite(float(latent.sum())) and not math.isfinite(float(abs(latent).max())):
            return self.numerical_failure("not_finite", f"at step {solver.step} of {self.work.request.steps}")
        return None

    def retry_with(self, pipelines: Iterable[Pipeline], error: NumericalFailure) -> "Generation | None":
        """Return a new generation of the same work in the model's widest precision.

        Return None if no wider precision is loaded, or if the widest one cannot generate the request. A retry is in the
        widest precision, so it is never retried again.
        """
        info, work = self.pipeline.info, self.work
        same_model = [pipeline for pipeline in pipelines if pipeline.info.name == info.name]
        wider = [pipeline for pipeline in same_model if pipeline.info.narrowness < info.narrowness]
        if not wider:
            return None
        widest = min(wider, key=lambda pipeline: (pipeline.info.narrowness, pipeline.info.profile))
        work = replace(work, request=replace(work.request, profile=widest.info.profile))
        try:
            widest.info.check(work.request, work.width_px, work.height_px)
        except InvalidRequest:  # its backend cannot skip layers, but the request has skip-layer guidance
            return None
        retry = Generation(work, widest)
        retry.submitted_digest, retry.first_failure = self.submitted_digest, error
        retry.encoding_s, retry.started_s = self.encoding_s, self.started_s
        return retry

    def numerical_failure(self, kind: NumericalFailureKind, where: str) -> NumericalFailure:
        """Return the error for a numerical failure, with a remedy. `where` says at which step or stage it occurred."""
        info = self.pipeline.info
        symptom = "values are no longer finite" if kind == "not_finite" else "all pixels have one colour"
        happened = f"{symptom} in {info.precision} {where}"
        if self.first_failure:
            first = self.first_failure.happened
            remedy = f"the first attempt failed too ({first}), so try another seed or other values"
        elif info.narrowness:
            remedy = "set a wider `precision`, or a `fallback` in a wider one, or try another seed"
        else:
            remedy = "try another seed or other values"
        return NumericalFailure(kind, happened, remedy)

    def stages(self, accepted_s: float, ended_s: float) -> tuple[Stage, ...]:
        """Return the stages of a generation that ended at `ended_s`, for a caller that submitted it at `accepted_s`.

        A caller may join an image in flight. The stages that ended before then take 0 s.
        """
        times_s = [self.encoding_s, self.started_s, self.denoised_s, self.decoding_s, ended_s]
        encoding_s, started_s, denoised_s, decoding_s, ended_s = (max(accepted_s, time_s) for time_s in times_s)
        return (
            Stage("queue", accepted_s, encoding_s),
            Stage("encode", encoding_s, started_s),
            Stage("denoise", started_s, denoised_s),
            Stage("decode", decoding_s, ended_s),  # the wait for the decoding thread is in no stage
        )

    def progress(self) -> Progress:
        """Return the progress, without a preview."""
        return Progress(self.evaluations, self.all_evaluations)

    def preview(self) -> Pixels:
        """Return the image that the newest evaluation predicts, one pixel for each latent position."""
        return self.pipeline.preview.to_rgb(to_numpy(self.solver.denoised()))

    def _skip_of_step(self) -> Skip | None:
        """Return the skip-layer guidance of the next step, or None. It is on at the same steps as in Diffusers."""
        request, card = self.work.request, self.pipeline.info.card.skip_layers
        if card is None or not request.skip_layer_scale or request.guidance_scale <= 1:
            return None
        is_on = request.steps * card.start < self.solver.step < request.steps * card.stop
        return Skip(card.layers, request.skip_layer_scale) if is_on else None


def is_uniform(pixels: Pixels) -> bool:
    """Return whether all pixels have one colour, within rounding. This shows that NaN was decoded."""
    return all(int(channel.max()) - int(channel.min()) <= UNIFORM for channel in np.moveaxis(pixels, -1, 0))


def as_sd35_error(error: Exception) -> Sd35Error:
    """Return the error that callers get: the error itself, or GenerationFailed in place of an error of a library."""
    if isinstance(error, Sd35Error):
        return error
    reason = f"{type(error).__name__}: {error}"
    failure = GenerationFailed(f"the image failed ({reason}); try again, and read the server's log if it fails again")
    failure.__cause__ = error
    return failure
