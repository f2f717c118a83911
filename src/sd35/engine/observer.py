"""What an engine tells of its work while it works, and the stages that an image went through, told when it is done."""

from typing import NamedTuple, Protocol


class Stage(NamedTuple):
    """A part of an image's way: "queue", "encode", "denoise" and "decode" in an engine. Times of `time.monotonic`."""

    name: str
    began_s: float
    ended_s: float

    @property
    def took_s(self) -> float:
        """How long it was."""
        return self.ended_s - self.began_s


class Observer(Protocol):
    """Told on the engine's threads, once a step or less often: it must be quick and must not raise."""

    def encoded(self, prompts: int, took_s: float) -> None:
        """Prompts that were not kept were encoded."""

    def on_step_done(self, images: int, rows: int, took_s: float) -> None:
        """Images made a step together, in so many transformer rows."""

    def failed(self, error: Exception, *, was_split: bool) -> None:
        """A call of the backend raised; where it was split, each of its prompts or images is tried alone."""


class Unobserved:
    """Hears nothing."""

    def encoded(self, prompts: int, took_s: float) -> None:
        """Nothing."""

    def on_step_done(self, images: int, rows: int, took_s: float) -> None:
        """Nothing."""

    def failed(self, error: Exception, *, was_split: bool) -> None:
        """Nothing."""
