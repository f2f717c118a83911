"""One image in the making: what it starts from, where it is, who waits for it, and whether its values are sound."""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import UInt8

from sd35.backends.base import Backend, DenoiseRow, Skip, TextEmbedding
from sd35.checkpoints.card import SkipLayers
from sd35.engine.cost_model import Shape
from sd35.engine.observer import Stage
from sd35.engine.preview import PreviewMap
from sd35.errors import InvalidRequest, NumericalFailure, NumericalFailureKind
from sd35.request import SIZE_MULTIPLE_PX, Request
from sd35.sampling.noise import initial_noise
from sd35.sampling.sigmas import SigmaSchedule
from sd35.tensors import LATENT_CHANNELS, LATENT_PX, Array, Tensor, to_numpy

Pixels: TypeAlias = UInt8[Array, "h w 3"]
# Of 255, in each channel. NaN is 0 all over; of 720 plain grounds that the embedded model drew, the flattest has 17.
UNIFORM = 1
_WIDEST_FIRST = ("float32", "bfloat16")  # by what they can hold: float16 overflows where bfloat16 does not, as FP8 does


@dataclass(frozen=True)
class Task:
    """A request, and the size to draw it at: the requested one, or a stand-in model's own."""

    request: Request
    width_px: int
    height_px: int

    @property
    def pipeline(self) -> tuple[str, str]:
        """What an engine finds its pipeline by: model and profile. What one of them encoded is nothing to another."""
        return self.request.model, self.request.profile

    @property
    def shape(self) -> Shape:
        """Its latent's."""
        return Shape(self.pipeline, self.height_px // LATENT_PX, self.width_px // LATENT_PX)

    @property
    def prompts(self) -> list[str]:
        """What has to be encoded: the negative prompt only where guidance asks for it."""
        request = self.request
        return [request.prompt, request.negative_prompt] if request.guidance_scale > 1 else [request.prompt]


@dataclass(frozen=True, eq=False)
class Pipeline:
    """What a checkpoint brings to an engine: weights in a backend, a sigma schedule, and what its card says of it."""

    backend: Backend
    sampler: SigmaSchedule
    side_px: tuple[int, int]
    skip_layers: SkipLayers | None = None
    preview: PreviewMap = field(default_factory=lambda: PreviewMap(LATENT_CHANNELS))

    @property
    def narrowness(self) -> int:
        """Of the precision: 0 for what holds the widest range of values."""
        precision = self.backend.precision
        return _WIDEST_FIRST.index(precision) if precision in _WIDEST_FIRST else len(_WIDEST_FIRST)

    def check(self, task: Task) -> None:
        """Raises InvalidRequest for what no latent has or the checkpoint cannot draw: a size, skip-layer guidance."""
        low, high = self.side_px
        for name, side_px in (("width", task.width_px), ("height", task.height_px)):
            if side_px % SIZE_MULTIPLE_PX or not low <= side_px <= high:
                raise InvalidRequest(name, side_px, f"multiples of {SIZE_MULTIPLE_PX} from {low} to {high}")
        if scale := task.request.skip_layer_scale:
            if self.skip_layers is None:
                model = task.request.model
                raise InvalidRequest("skip_layer_scale", scale, f"0, for the card of {model} names no layers to skip")
            if not self.backend.can_skip_layers:
                backend = self.backend.name
                raise InvalidRequest("skip_layer_scale", scale, f"0, for the {backend} backend cannot skip layers")


class Progress(NamedTuple):
    """How far an image is. `preview` computes when it is called: a millisecond or so, unless a filter looks at it."""

    done: int
    steps: int
    preview: Callable[[], Pixels]


class GeneratedImage(NamedTuple):
    """A finished image: what it is of, its pixels at the drawn size, and its stages, for one who waited for it.

    `request` is the one that was submitted, with another profile where that was spoiled and another made it.
    """

    request: Request
    pixels: Pixels
    stages: tuple[Stage, ...]

    @property
    def took_s(self) -> float:
        """From when it did not wait any more to its pixels."""
        return self.stages[-1].ended_s - self.stages[0].ended_s


OnProgress: TypeAlias = Callable[[Progress], None]
"""Called on the device's thread after each step; it must be quick and must not raise."""


class Handle:
    """One caller's wait for an image. `future` ends once: a GeneratedImage, an error, or CancelledError."""

    def __init__(self, generation: "Generation", on_progress: OnProgress | None, accepted_s: float) -> None:
        self.generation = generation
        self.on_progress = on_progress
        self.accepted_s = accepted_s
        self.future: Future[GeneratedImage] = Future()


class Generation:
    """A task on its way from noise to latent. Only the device's thread touches what changes with the steps.

    `asked` is the digest of what was submitted, `before` what spoiled the first attempt where this is the second.
    """

    def __init__(self, task: Task, pipeline: Pipeline) -> None:
        self.task, self.pipeline = task, pipeline
        self.asked = task.request.digest
        self.before: NumericalFailure | None = None
        self.handles: list[Handle] = []
        self.done = 0
        self.encoding_s = self.started_s = math.inf  # when its prompts were encoded, and its steps began, first
        self.drawn_s = self.decoding_s = math.inf  # when its last step was made, and its decoding began
        self.sigmas = _sigmas(pipeline.sampler, task.request.steps)
        self.latent: Tensor = None  # until `begin`
        self._last: Tensor = None  # before the last step
        self._embeddings: list[TextEmbedding] = []

    @property
    def has_begun(self) -> bool:
        """Whether it has all that a step takes."""
        return bool(self._embeddings)

    def begin(self, embeddings: list[TextEmbedding], encoding_s: float, now_s: float) -> None:
        """Take the embeddings of the task's prompts, which began to be encoded at `encoding_s`, and the noise."""
        shape = self.task.shape
        self.latent = initial_noise(self.task.request.seed, (LATENT_CHANNELS, shape.height, shape.width))
        self._embeddings = embeddings
        self.encoding_s, self.started_s = min(self.encoding_s, encoding_s), min(self.started_s, now_s)

    def row(self) -> DenoiseRow:
        """What the backend has to know of the next step."""
        positive, *negative = self._embeddings
        return DenoiseRow(
            self.latent,
            positive,
            negative[0] if negative else None,
            self.sigmas[self.done],
            self.sigmas[self.done + 1],
            self.task.request.guidance_scale,
            self._skip(),
        )

    def advance(self, latent: Tensor) -> NumericalFailure | None:
        """Take a step's result; an error where values stopped being finite."""
        self._last, self.latent = self.latent, latent
        self.done += 1
        # The sum is the quickest look: finite, so is every value. Else it may be float16's sum that went over.
        if not math.isfinite(float(latent.sum())) and not math.isfinite(float(abs(latent).max())):
            return self.numerical_failures("not_finite", f"at step {self.done} of {self.task.request.steps}")
        return None

    def retry_with(self, pipelines: Mapping[tuple[str, str], Pipeline], error: NumericalFailure) -> "Generation | None":
        """The same from its start, by its model's pipeline of the widest precision: so there is no third attempt.

        None where none is wider, or the widest cannot make it.
        """
        request = self.task.request
        wider = [
            (pipeline.narrowness, profile)
            for (model, profile), pipeline in pipelines.items()
            if model == request.model and pipeline.narrowness < self.pipeline.narrowness
        ]
        if not wider:
            return None
        task = replace(self.task, request=replace(request, profile=min(wider)[1]))
        retry_with = Generation(task, pipelines[task.pipeline])
        try:
            retry_with.pipeline.check(task)
        except InvalidRequest:  # skip-layer guidance
            return None
        retry_with.asked, retry_with.before = self.asked, error
        retry_with.encoding_s, retry_with.started_s = self.encoding_s, self.started_s
        return retry_with

    def numerical_failures(self, kind: NumericalFailureKind, where: str) -> NumericalFailure:
        """The error of values that went bad."""
        what = "values stopped being finite" if kind == "not_finite" else "the frame is of one colour"
        happened = f"{what} in {self.pipeline.backend.precision} {where}"
        if self.before:
            return NumericalFailure(kind, happened, f"before that, {self.before.happened}: it was tried twice")
        remedy = "a wider precision may help: as `precision`, or as `fallback`, which then makes such images again"
        return NumericalFailure(
            kind, happened, remedy if self.pipeline.narrowness else "try another seed or other values"
        )

    def _skip(self) -> Skip | None:
        """The next step's skip-layer guidance: on at the very steps that Diffusers' pipeline has it on."""
        request, card = self.task.request, self.pipeline.skip_layers
        if card is None or not request.skip_layer_scale or request.guidance_scale <= 1:
            return None
        is_on = request.steps * card.start < self.done < request.steps * card.stop
        return Skip(card.layers, request.skip_layer_scale) if is_on else None

    def stages(self, accepted_s: float, ended_s: float) -> tuple[Stage, ...]:
        """For who waits since `accepted_s`: what was over by then took no time. It may have waited to be decoded."""
        times_s = [self.encoding_s, self.started_s, self.drawn_s, self.decoding_s, ended_s]
        encoding_s, started_s, drawn_s, decoding_s, ended_s = (max(accepted_s, each_s) for each_s in times_s)
        return (
            Stage("queue", accepted_s, encoding_s),
            Stage("encode", encoding_s, started_s),
            Stage("denoise", started_s, drawn_s),
            Stage("decode", decoding_s, ended_s),
        )

    def progress(self) -> Progress:
        """Where it stands; the preview is of this moment, whenever it is asked for."""
        before, after, sigma, sigma_next = self._last, self.latent, *self.sigmas[self.done - 1 : self.done + 1]

        def preview() -> Pixels:
            start, end = to_numpy(before), to_numpy(after)
            velocity = (end - start) / (sigma_next - sigma)
            return self.pipeline.preview.draw(end - sigma_next * velocity)  # what the model thinks it will be

        return Progress(self.done, self.task.request.steps, preview)


def is_uniform(pixels: Pixels) -> bool:
    """Whether all pixels are of one colour, to within what rounding leaves: what NaN is decoded to, for one."""
    return all(int(channel.max()) - int(channel.min()) <= UNIFORM for channel in np.moveaxis(pixels, -1, 0))


@lru_cache
def _sigmas(sampler: SigmaSchedule, steps: int) -> tuple[float, ...]:
    """See `SigmaSchedule.sigmas`; kept, for they are made on the event loop, and most images have as many steps."""
    return tuple(map(float, sampler.sigmas(steps)))
