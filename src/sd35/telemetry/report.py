"""Reports the work: counts it (`metering`), traces it (`tracing`), and logs a line for each image.

A report that fails is logged as a failure. It never fails the work it reports.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Literal, ParamSpec

import structlog

from sd35.engine.base import Stage
from sd35.errors import ContentRefused, InvalidRequest, NotReady, Overloaded
from sd35.request import Request
from sd35.telemetry.metrics import ImageEnd, Metrics
from sd35.telemetry.tracing import Tracing, note

_SHOWN_CHARACTERS = 200
_NOT_BEGUN = (InvalidRequest, NotReady, Overloaded)


Arguments = ParamSpec("Arguments")


def _never_failing(report: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Log what a report raises instead of raising it."""

    @wraps(report)
    def reported(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            report(*args, **kwargs)
        except Exception:  # noqa: BLE001  whatever it is, the image is there
            structlog.get_logger().exception("a report failed")

    return reported


class Telemetry:
    """Prompts are logged, shortened, with `log_prompts` only."""

    def __init__(
        self, metrics: Metrics | None = None, tracing: Tracing | None = None, *, log_prompts: bool = False
    ) -> None:
        self.metrics, self.tracing = metrics or Metrics(), tracing or Tracing()
        self._log_prompts = log_prompts

    @contextmanager
    def making(self) -> Iterator[None]:
        """Count how the making of an image ends, where no image comes of it."""
        try:
            yield
        except _NOT_BEGUN:
            raise
        except BaseException as error:
            self.metrics.ended(_end_of(error))
            raise

    @_never_failing
    def made(self, request: Request, stages: Sequence[Stage]) -> None:
        """Count, trace and log an image that was made, and its stages."""
        self.metrics.ended("made", stages)
        self.tracing.stages(request, stages)
        structlog.get_logger().info(
            "image",
            digest=request.digest,
            model=request.model,
            profile=request.profile,
            size=f"{request.width}x{request.height}",
            steps=request.steps,
            **{f"{stage.name}_ms": round(1000 * stage.took_s, 1) for stage in stages},
            **self._prompts(request),
        )

    @_never_failing
    def given(self, request: Request, cache: Literal["hit", "shared", "miss"]) -> None:
        """Count an image that was given to a caller."""
        self.metrics.given(cache)
        note(digest=request.digest, cache=cache)

    def _prompts(self, request: Request) -> dict[str, str]:
        if not self._log_prompts:
            return {}
        prompts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        return {name: _shortened(prompt) for name, prompt in prompts.items() if prompt}


def _end_of(error: BaseException) -> ImageEnd:
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    return "refused" if isinstance(error, ContentRefused) else "failed"


def _shortened(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"
