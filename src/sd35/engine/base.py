"""The engine's interface. Everything that crosses it is plain data that can be pickled.

Callers import only this module. `sd35.engine.local.engine.LocalEngine` implements it in this process. An engine in
another process or on another machine can replace it.
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
        max_rows: Transformer rows in a batch. A single image runs even if it has more.
        max_in_flight: Images that are accepted and have not ended.
        max_wait_s: An image is refused if its estimated wait is longer.
        memory_bytes: Working memory for steps and decodings.
        max_slowdown: In lasting overload, an image is refused if it would take this many times as long as alone.
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
        width_px, height_px: The size to generate at. The caller enlarges the result if the request asks for more.
        client: Clients share the device equally.
        priority: See `sd35.request.PRIORITY`.
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
    """A stage of an image: in an engine, "queue", "encode", "denoise" or "decode". Times are of `time.monotonic`."""

    name: str
    began_s: float
    ended_s: float

    @property
    def took_s(self) -> float:
        """The duration in seconds."""
        return self.ended_s - self.began_s


class Progress(NamedTuple):
    """The progress of an image: `step` of `steps` evaluations of the transformer are done.

    `preview` shows the image so far, one pixel for each latent position. It is None if the caller did not ask for
    previews, and between previews: there are at most PREVIEWS_PER_S a second.
    """

    step: int
    steps: int
    preview: Pixels | None = None


class GeneratedImage(NamedTuple):
    """The pixels of a request, at the size of its `Work`, and the stages since its caller submitted it.

    `request` is the submitted one, except for its profile if a numerical failure was retried with another profile.
    """

    request: Request
    pixels: Pixels
    stages: tuple[Stage, ...]

    @property
    def took_s(self) -> float:
        """Seconds from the end of the wait in the queue to the pixels."""
        return self.stages[-1].ended_s - self.stages[0].ended_s


OnProgress: TypeAlias = Callable[[Progress], None]
"""Called on an engine's thread after each evaluation. It must be quick. Its exceptions are logged."""


@dataclass(eq=False)
class Handle:
    """One caller's wait for an image. `future` ends with a GeneratedImage, an Sd35Error, or CancelledError."""

    future: Future[GeneratedImage] = field(default_factory=Future)


@dataclass(frozen=True)
class EngineStatus:
    """An engine's current load, its limits, and its counts since it was opened.

    Attributes:
        waiting: Images before their first step.
        running: The other images in flight.
        backlog_s: Estimated seconds of work left in both.
        used_bytes: Working memory in use, out of `limits.memory_bytes`.
        is_host_memory: Whether the next two are of the host's memory or of a device's.
        held_bytes: Memory that this process holds.
        free_bytes: Memory that it could still allocate.
        numerical_failures: Images that failed numerically, by kind.
        retried: How many of them were started again in a wider precision.
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
    """Is called once a step or less often, on the engine's threads. It must be quick and must not raise."""

    def encoded(self, prompts: int, took_s: float) -> None:
        """Take note of prompts that were not in the cache and were encoded."""

    def on_step_done(self, images: int, rows: int, took_s: float) -> None:
        """Take note of a step of a batch of `images`, in `rows` transformer rows."""

    def failed(self, error: str, *, was_split: bool) -> None:
        """Take note of an exception of the backend. With `was_split`, each prompt or image is now tried alone."""


class Engine(Protocol):
    """Generates images. All methods may be called from any thread."""

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """The models in their profiles. Quick."""

    @property
    def is_running(self) -> bool:
        """Whether images are accepted: not after `drain`, `close` or a broken thread. Quick."""

    def submit(self, work: Work, on_progress: OnProgress | None = None, *, previews: bool = False) -> Handle:
        """Accept an image. `on_progress` is called after each evaluation, with previews if `previews`.

        If the same request is in flight, both callers wait for one image, with the first one's client and priority.

        Raises:
            InvalidRequest: This engine can never generate it.
            Overloaded: It cannot be accepted now.
            NotReady: The engine is closing.
        """

    def send_previews(self, handle: Handle) -> None:
        """Send previews with this handle's progress from now on."""

    def cancel(self, handle: Handle) -> None:
        """End a wait. An image without waiting callers ends before its next step."""

    def status(self) -> EngineStatus:
        """Return the current load, limits and counts."""

    def observe(self, observer: Observer) -> None:
        """Replace the observer."""

    def drain(self) -> None:
        """Accept no more images, and return when all accepted ones have ended."""

    def close(self) -> None:
        """Accept no more images, cancel all accepted ones, and return when the threads have ended."""
