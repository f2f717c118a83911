"""Count, trace and log the images of the generation service.

If counting, tracing or logging fails, the error is logged, and the image is not affected.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec

import structlog

from sd35.engine.base import Stage
from sd35.errors import ContentRefused, InvalidRequest, NotReady, Overloaded
from sd35.request import Request
from sd35.telemetry.metrics import CacheResult, ImageResult, Metrics
from sd35.telemetry.tracing import Tracing, note

_MAX_PROMPT = 200  # characters
_NOT_STARTED = (InvalidRequest, NotReady, Overloaded)  # errors of requests that were not accepted

Arguments = ParamSpec("Arguments")


def _never_raise(report: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Decorate a function so that it logs its exceptions instead of raising them."""

    @wraps(report)
    def safe(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        """Call `report`, and log an exception that it raises."""
        try:
            report(*args, **kwargs)
        except Exception:  # noqa: BLE001  the caller gets the image in any case
            structlog.get_logger().exception(
                "an image could not be counted, traced or logged; please report it with this traceback"
            )

    return safe


class Telemetry:
    """Metrics, traces and logs of generated images.

    Args:
        metrics: Counters and histograms.
        tracing: Creates spans.
        log_prompts: Whether to log the first 200 characters of prompts.
    """

    def __init__(
        self, metrics: Metrics | None = None, tracing: Tracing | None = None, *, log_prompts: bool = False
    ) -> None:
        self.metrics, self.tracing = metrics or Metrics(), tracing or Tracing()
        self._log_prompts = log_prompts

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Count a failed, refused or cancelled image if the block raises.

        Errors of requests that were not accepted do not count.
        """
        try:
            yield
        except _NOT_STARTED:
            raise
        except BaseException as error:
            self.metrics.image_ended(_result_of(error))
            raise

    @_never_raise
    def image_generated(self, request: Request, stages: Sequence[Stage]) -> None:
        """Count, trace and log a generated image and its stages."""
        self.metrics.image_ended("generated", stages)
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

    @_never_raise
    def image_returned(self, request: Request, cache: CacheResult) -> None:
        """Count an image that is returned to a caller, and add its digest to the current span."""
        self.metrics.image_returned(cache)
        note(digest=request.digest, cache=cache)

    def _prompts(self, request: Request) -> dict[str, str]:
        """Return the prompts as fields of a log line. Returns no fields if prompts are not logged."""
        if not self._log_prompts:
            return {}
        prompts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        return {name: _shorten(prompt) for name, prompt in prompts.items() if prompt}


def _result_of(error: BaseException) -> ImageResult:
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    return "refused" if isinstance(error, ContentRefused) else "failed"


def _shorten(text: str) -> str:
    if len(text) <= _MAX_PROMPT:
        return text
    return f"{text[:_MAX_PROMPT]}… ({len(text)} characters)"
