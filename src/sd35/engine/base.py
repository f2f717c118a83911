"""The engine's interface. Everything that crosses it is plain data that can be pickled.

Callers import only this module and `sd35.engine.model_info`. `sd35.engine.local.engine.LocalEngine` implements the
interface in this process. An engine in another process or on another machine can replace it.
"""

from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

from jaxtyping import UInt8

from sd35.engine.model_info import ModelInfo
from sd35.errors import NumericalFailureKind
from sd35.request import Request
from sd35.tensors import Array

Pixels: TypeAlias = UInt8[Array, "h w 3"]

CLOSING_RETRY_S = 5.0  # the Retry-After of a closing engine: another one may have started by then
PREVIEWS_PER_S = 4.0


@dataclass(frozen=True)
class DeviceLimits:
    """How much work a device accepts.

    Attributes:
        max_rows: The largest number of transformer rows in a batch. An image is one row, or two with guidance. A single
            image runs even if it has more rows.
        max_in_flight: The largest number of accepted images that have not ended.
        max_wait_s: An image is refused if its estimated wait is longer.
        memory_bytes: Working memory for denoising steps and for decoding, without the weights.
        max_slowdown: In lasting overload, an image is refused if images take this many times as long as they would
            alone and its client already has its share of a batch. See `sd35.engine.scheduling.scheduler`.
    """

    max_rows: int
    max_in_flight: int
    max_wait_s: float
    memory_bytes: int
    max_slowdown: float = float("inf")


@dataclass(frozen=True)
class Work:
    """A request, and how to run it.

    Attributes:
        width_px, height_px: The size to generate at. The caller enlarges the result if the requested size is larger.
        client: The client, for fair queueing: clients share the device equally.
        priority: -9 to 9. Among a client's images, a higher priority moves the image forward.
    """

    request: Request
    width_px: int
    height_px: int
    client: Hashable = None
    priority: int = 0

    @property
    def prompts(self) -> list[str]:
        """The prompts to encode: the negative one only if guidance uses it."""
        request = self.request
        return [request.prompt, request.negative_prompt] if request.guidance_scale > 1 else [request.prompt]


class Stage(NamedTuple):
    """When a stage of an image began and ended, by `time.monotonic`.

    The stages of an engine are "queue", "encode", "denoise" and "decode".
    """

    name: str
    began_s: float
    ended_s: float

    @property
    def took_s(self) -> float:
        """The duration in seconds."""
        return self.ended_s - self.began_s


class Progress(NamedTuple):
    """The progress of an image: `step` of `steps` evaluations of the transformer are done.

    `preview` shows the image so far, one pixel for each latent position. It is None if the caller did not request
    previews, if the last preview is too recent (by default, there are at most PREVIEWS_PER_S a second), or if computing
    it failed.
    """

    step: int
    steps: int
    preview: Pixels | None = None


class GeneratedImage(NamedTuple):
    """The pixels of a request, at the size of its `Work`, and the stages since the caller submitted the request.

    `request` is the submitted request. If the engine retried a numerical failure in another profile (a backend and a
    precision), `request.profile` is that profile.
    """

    request: Request
    pixels: Pixels
    stages: tuple[Stage, ...]

    @property
    def took_s(self) -> float:
        """Seconds from the end of the wait in the queue to the pixels."""
        return self.stages[-1].ended_s - self.stages[0].ended_s


OnProgress: TypeAlias = Callable[[Progress], None]
"""Called on an engine's thread after each evaluation, so it must be quick. Its exceptions are logged."""


@dataclass(eq=False)
class Handle:
    """One caller's wait for an image. `future` returns a GeneratedImage, or raises an Sd35Error or CancelledError."""

    future: Future[GeneratedImage] = field(default_factory=Future)


@dataclass(frozen=True)
class EngineStatus:
    """An engine's current load, its limits, and its counts since it was opened.

    Attributes:
        waiting: The number of accepted images before their first step.
        running: The number of images between their first step and their end.
        backlog_s: Estimated seconds of work left in all images in flight.
        used_bytes: Working memory in use, out of `limits.memory_bytes`.
        is_host_memory: Whether `held_bytes` and `free_bytes` describe the host's memory. If False, they describe the
            memory of a device such as a GPU.
        held_bytes: Memory that this process holds.
        free_bytes: Memory that this process could still allocate.
        numerical_failures: Number of numerical failures by kind.
        retried: Number of images that were restarted in a wider precision after a numerical failure.
    """

    waiting: int
    running: int
    backlog_s: float
    used_bytes: int
    limits: DeviceLimits
    is_host_memory: bool
    held_bytes: int
    free_bytes: int
    prompt_cache_hits: int
    prompt_cache_misses: int
    prompt_cache_bytes: int
    numerical_failures: Mapping[NumericalFailureKind, int]
    retried: int


class Observer(Protocol):
    """Receives events of an engine, on the engine's threads. The methods must be quick and must not raise."""

    def encoded(self, prompts: int, took_s: float) -> None:
        """Record how many prompts were encoded, and in how many seconds. Prompts from the cache do not count."""

    def on_step_done(self, images: int, rows: int, took_s: float) -> None:
        """Record how many images and transformer rows the batch of a step had, and how many seconds it took."""

    def failed(self, error: str, *, was_split: bool) -> None:
        """Record an exception of the backend. If `was_split`, the engine now tries each prompt or image alone."""


class Engine(Protocol):
    """Generates images. All methods may be called from any thread."""

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """The loaded models, one entry for each profile. Does not block."""

    @property
    def is_running(self) -> bool:
        """Whether images are accepted. False after `drain` or `close`, and once a thread has failed. Does not block."""

    def submit(self, work: Work, on_progress: OnProgress | None = None, *, previews: bool = False) -> Handle:
        """Accept an image. `on_progress` is called after each evaluation, with previews if requested.

        If the same request is in flight, both callers wait for the same image. The client and the priority of the first
        caller apply to it.

        Raises:
            InvalidRequest: This engine can never generate the image.
            Overloaded: The engine cannot accept the image now.
            NotReady: The engine is closing, or one of its threads has failed.
        """

    def send_previews(self, handle: Handle) -> None:
        """Send previews with this handle's progress from now on."""

    def cancel(self, handle: Handle) -> None:
        """End one caller's wait. If no other caller waits, cancel the image before its next step."""

    def status(self) -> EngineStatus:
        """Return the current load, limits and counts."""

    def observe(self, observer: Observer) -> None:
        """Send events to this observer from now on, instead of the previous one."""

    def drain(self) -> None:
        """Accept no more images, and return when all accepted ones have ended."""

    def close(self) -> None:
        """Accept no more images, cancel all accepted ones, and return when the threads have ended."""
