"""What is told of the work: counted (`metering`), traced (`tracing`), and of each picture a line in the log."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import structlog

from sd35.engine.observing import Stage
from sd35.errors import ContentRefused, InvalidRequest, NotReady, Overloaded
from sd35.request import Request
from sd35.service.metering import Metering, PictureEnd
from sd35.service.tracing import Tracing, note

_SHOWN_CHARACTERS = 200
_NOT_BEGUN = (InvalidRequest, NotReady, Overloaded)


class Telemetry:
    """Prompts are logged, shortened, with `log_prompts` only."""

    def __init__(
        self, metering: Metering | None = None, tracing: Tracing | None = None, *, log_prompts: bool = False
    ) -> None:
        self.metering, self.tracing = metering or Metering(), tracing or Tracing()
        self._log_prompts = log_prompts

    @contextmanager
    def making(self) -> Iterator[None]:
        """Count how the making of a picture ends, where no picture comes of it."""
        try:
            yield
        except _NOT_BEGUN:
            raise
        except BaseException as error:
            self.metering.ended(_end_of(error))
            raise

    def made(self, request: Request, stages: Sequence[Stage]) -> None:
        """A picture was made: its stages, counted, traced and logged."""
        self.metering.ended("made", stages)
        self.tracing.stages(request, stages)
        structlog.get_logger().info(
            "picture",
            digest=request.digest,
            model=request.model,
            profile=request.profile,
            size=f"{request.width}x{request.height}",
            steps=request.steps,
            **{f"{stage.name}_ms": round(1000 * stage.took_s, 1) for stage in stages},
            **self._prompts(request),
        )

    def given(self, request: Request, cache: Literal["hit", "shared", "miss"]) -> None:
        """Someone got a picture."""
        self.metering.given(cache)
        note(digest=request.digest, cache=cache)

    def _prompts(self, request: Request) -> dict[str, str]:
        if not self._log_prompts:
            return {}
        prompts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        return {name: _shortened(prompt) for name, prompt in prompts.items() if prompt}


def _end_of(error: BaseException) -> PictureEnd:
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    return "refused" if isinstance(error, ContentRefused) else "failed"


def _shortened(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"
