"""The engine's interface. Everything that crosses it is plain data that can be pickled.

Callers know this module alone. `sd35.engine.local.engine.LocalEngine` is the engine of this process; one in another
process, or on another machine, can stand in its place.
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

CLOSING_RETRY_S = 5.0  # after which a client may ask again, of an engine that closes
PREVIEWS_PER_S = 4.0


@dataclass(frozen=True)
class DeviceLimits:
    """How much work a device accepts.

    `max_rows`: transformer rows in a batch; a single image is stepped even if it has more. `max_in_flight`: images
    accepted and not ended. `max_wait_s`: the longest estimated wait that an image is accepted for. `memory_bytes`: for
    the working memory of steps and decodings. `max_slowdown`: in lasting overload, an image that would take this many
    times as long as alone is refused.
    """

    max_rows: int
    max_in_flight: int
    max_wait_s: float
    memory_bytes: int
    max_slowdown: float = float("inf")


@dataclass(frozen=True)
class Work:
    """A request, and how to run it.

    `width_px`, `height_px`: the size to generate at; the caller enlarges the result if the request asks for more.
    `client`: between clients, the engine is fair. `priority`: see `sd35.request.PRIORITY`.
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
    """A part of an image's way: "queue", "encode", "denoise", "decode" in an engine. Times of `time.monotonic`."""

    name: str
    began_s: float
    ended_s: float

    @property
    def took_s(self) -> float:
        """Its duration."""
        return self.ended_s - self.began_s


class Progress(NamedTuple):
    """How far an image is: `step` of `steps` evaluations of the transformer are done.

    `preview`: what the image looks like now, one pixel for each latent position. None unless the caller asked for
    previews, and in between: there are at most PREVIEWS_PER_S a second.
    """

    step: int
    steps: int
    preview: Pixels | None = None


class GeneratedImage(NamedTuple):
    """The pixels of a request, at the size of its `Work`, and the stages as its caller waited for them.

    `request` has another profile than the submitted one if that had a numerical failure and another one replaced it.
    """

    request: Request
    pixels: Pixels
    stages: tuple[Stage, ...]

    @property
    def took_s(self) -> float:
        """Seconds from the end of the wait in the queue to the pixels."""
        return self.stages[-1].ended_s - self.stages[0].ended_s


OnProgress: TypeAlias = Callable[[Progress], None]
"""Called on an engine's thread after each evaluation; it must be quick. What it raises is logged."""


@dataclass(eq=False)
class Handle:
    """One caller's wait. `future` ends once: with a GeneratedImage, an Sd35Error, or CancelledError."""

    future: Future[GeneratedImage] = field(default_factory=Future)


@dataclass(frozen=True)
class EngineStatus:
    """What an engine has to do now, what it may do, and what it counted since it was opened.

    `waiting`: images before their first step; `running`: the other accepted ones. `backlog_s`: estimated seconds of
    work left in both. `used_bytes`: working memory in use, of `limits.memory_bytes`. `held_bytes`, `free_bytes`: what
    this process has of the memory it computes in, the host's or a device's, and what it could have more. `retried`:
    images that were started again in a wider precision, after a numerical failure.
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
    """Told of the work while it is done, once a step or less often; it must be quick and must not raise."""

    def encoded(self, prompts: int, took_s: float) -> None:
        """Prompts that were not in the cache were encoded."""

    def on_step_done(self, images: int, rows: int, took_s: float) -> None:
        """A batch of `images` made a step together, in `rows` transformer rows."""

    def failed(self, error: str, *, was_split: bool) -> None:
        """A call of the backend raised. With `was_split`, each of its prompts or images is tried alone."""


class Engine(Protocol):
    """Generates images. All methods may be called from any thread."""

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """What it can generate with. Cheap to ask."""

    @property
    def is_running(self) -> bool:
        """Whether it accepts images: not after `drain` or `close`, nor after it broke. Cheap to ask."""

    def submit(self, work: Work, on_progress: OnProgress | None = None, *, previews: bool = False) -> Handle:
        """Accept an image. With `previews`, its progress has them.

        Work of the same request joins what is accepted already, and keeps that one's client and priority.

        Raises InvalidRequest if it can never be done here, Overloaded if not now, NotReady after `drain` or `close`.
        """

    def send_previews(self, handle: Handle) -> None:
        """From now on, send previews with this handle's progress."""

    def cancel(self, handle: Handle) -> None:
        """End a wait. An image that nobody waits for any more ends before its next step."""

    def status(self) -> EngineStatus:
        """Return what it has to do now."""

    def observe(self, observer: Observer) -> None:
        """Report the work from now on to `observer`, and to no other."""

    def drain(self) -> None:
        """Accept nothing more, and return when what was accepted has ended."""

    def close(self) -> None:
        """Accept nothing more, cancel what was accepted, and return when all has ended."""
