"""One image while it is generated: how far it is, who waits for it, and whether its values are sound."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from sd35.backends.base import DenoiseRow, Skip, TextEmbedding
from sd35.engine.base import Handle, OnProgress, Pixels, Progress, Stage, Work
from sd35.engine.local.pipeline import Pipeline
from sd35.engine.scheduling.cost_model import Shape
from sd35.engine.scheduling.scheduler import WorkItem
from sd35.errors import InvalidRequest, NumericalFailure, NumericalFailureKind
from sd35.sampling.noise import initial_noise
from sd35.sampling.solvers.base import Solver
from sd35.sampling.solvers.euler import Euler
from sd35.tensors import LATENT_CHANNELS, LATENT_PX, Tensor, to_numpy

# Of 255, in each channel. NaN is 0 all over; of 720 plain grounds that the embedded model drew, the flattest has 17.
UNIFORM = 1


@dataclass(eq=False)
class Waiter:
    """A caller that waits for a generation since `accepted_s`, and what it wants to hear of it."""

    handle: Handle
    on_progress: OnProgress | None
    accepted_s: float
    previews: bool


class Generation:
    """Work on its way from noise to latent. Only the denoising thread touches what changes with the steps.

    `submitted_digest` is that of the request that was submitted. `first_failure` ended the first attempt, if this is
    the second.
    """

    def __init__(self, work: Work, pipeline: Pipeline) -> None:
        self.work, self.pipeline = work, pipeline
        self.submitted_digest = work.request.digest
        self.first_failure: NumericalFailure | None = None
        self.waiters: list[Waiter] = []
        self.evaluations = 0
        self.encoding_s = self.started_s = math.inf  # when encoding and the steps began, in the first attempt
        self.denoised_s = self.decoding_s = math.inf  # when the last step ended, and when decoding began
        self.previewed_s = -math.inf  # when the newest preview was drawn
        self._embeddings: list[TextEmbedding] = []
        self._solver: Solver | None = None

    @property
    def shape(self) -> Shape:
        """The shape that it shares a batch with."""
        return Shape(self.pipeline.info.key, self.work.height_px // LATENT_PX, self.work.width_px // LATENT_PX)

    @property
    def item(self) -> WorkItem:
        """What the scheduler has to know of it."""
        work, evaluations = self.work, Euler.evaluations(self.work.request.steps)
        return WorkItem(work.client, self.shape, evaluations, 2 if len(work.prompts) == 2 else 1, work.priority)

    @property
    def has_begun(self) -> bool:
        """Whether it can make a step."""
        return self._solver is not None

    @property
    def solver(self) -> Solver:
        """The solver, once it has begun."""
        assert self._solver, "it has not begun"
        return self._solver

    @property
    def latent(self) -> Tensor:
        """The latent, once it has begun."""
        return self.solver.latent

    def begin(self, embeddings: list[TextEmbedding], encoding_s: float, now_s: float) -> None:
        """Take the embeddings of the prompts, whose encoding began at `encoding_s`, and draw the noise."""
        request, shape = self.work.request, self.shape
        noise = initial_noise(request.seed, (LATENT_CHANNELS, shape.height, shape.width))
        self._solver = Euler(self.pipeline.sigmas(request.steps), noise, request.seed)
        self._embeddings = embeddings
        self.encoding_s, self.started_s = min(self.encoding_s, encoding_s), min(self.started_s, now_s)

    def row(self) -> DenoiseRow:
        """What the backend has to evaluate next."""
        positive, *negative = self._embeddings
        solver, guidance = self.solver, self.work.request.guidance_scale
        return DenoiseRow(
            solver.latent, positive, negative[0] if negative else None, solver.sigma, guidance, self._skip()
        )

    def advance(self, velocity: Tensor) -> NumericalFailure | None:
        """Take an evaluation's result. Return the error if values are not finite any more."""
        self.solver.advance(velocity)
        self.evaluations += 1
        latent = self.solver.latent
        # The sum is the quickest test: if it is finite, every value is. If not, it may be too large for float16.
        if not math.isfinite(float(latent.sum())) and not math.isfinite(float(abs(latent).max())):
            return self.numerical_failure("not_finite", f"at step {self.solver.step} of {self.work.request.steps}")
        return None

    def retry_with(self, pipelines: Iterable[Pipeline], error: NumericalFailure) -> "Generation | None":
        """Return the same work from its start, in the widest precision of its model. So there is no third attempt.

        None if no precision is wider, or if the widest cannot do the work.
        """
        info, work = self.pipeline.info, self.work
        others = [each for each in pipelines if each.info.name == info.name and each.info.narrowness < info.narrowness]
        if not others:
            return None
        widest = min(others, key=lambda each: (each.info.narrowness, each.info.profile))
        work = replace(work, request=replace(work.request, profile=widest.info.profile))
        try:
            widest.info.check(work.request, work.width_px, work.height_px)
        except InvalidRequest:  # skip-layer guidance
            return None
        retry = Generation(work, widest)
        retry.submitted_digest, retry.first_failure = self.submitted_digest, error
        retry.encoding_s, retry.started_s = self.encoding_s, self.started_s
        return retry

    def numerical_failure(self, kind: NumericalFailureKind, where: str) -> NumericalFailure:
        """Return the error for values that are not sound."""
        info = self.pipeline.info
        what = "values stopped being finite" if kind == "not_finite" else "the frame is of one colour"
        happened = f"{what} in {info.precision} {where}"
        if self.first_failure:
            return NumericalFailure(kind, happened, f"before that, {self.first_failure.happened}: it was tried twice")
        remedy = "a wider precision may help: as `precision`, or as `fallback`, which then makes such images again"
        return NumericalFailure(kind, happened, remedy if info.narrowness else "try another seed or other values")

    def stages(self, accepted_s: float, ended_s: float) -> tuple[Stage, ...]:
        """Return the stages as a caller saw them who waits since `accepted_s`. What was over by then took no time."""
        times_s = [self.encoding_s, self.started_s, self.denoised_s, self.decoding_s, ended_s]
        encoding_s, started_s, denoised_s, decoding_s, ended_s = (max(accepted_s, each_s) for each_s in times_s)
        return (
            Stage("queue", accepted_s, encoding_s),
            Stage("encode", encoding_s, started_s),
            Stage("denoise", started_s, denoised_s),
            Stage("decode", decoding_s, ended_s),  # it may have waited for the decoder
        )

    def progress(self) -> Progress:
        """Return how far it is."""
        return Progress(self.evaluations, Euler.evaluations(self.work.request.steps))

    def preview(self) -> Pixels:
        """Draw what the model predicts the image to be, one pixel for each latent position."""
        return self.pipeline.preview.draw(to_numpy(self.solver.denoised()))

    def _skip(self) -> Skip | None:
        """Return the next step's skip-layer guidance: on at the very steps that Diffusers' pipeline has it on."""
        request, card = self.work.request, self.pipeline.info.card.skip_layers
        if card is None or not request.skip_layer_scale or request.guidance_scale <= 1:
            return None
        is_on = request.steps * card.start < self.solver.step < request.steps * card.stop
        return Skip(card.layers, request.skip_layer_scale) if is_on else None


def is_uniform(pixels: Pixels) -> bool:
    """Return whether all pixels are of one colour, up to rounding. NaN is decoded to such a frame, for example."""
    return all(int(channel.max()) - int(channel.min()) <= UNIFORM for channel in np.moveaxis(pixels, -1, 0))
