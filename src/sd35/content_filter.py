"""The content filter: code of the operator that allows, blurs or refuses prompts and images.

The setting `content_filter` is an import path, `package.module:name`. It names a filter, or a class whose constructor
needs no arguments:

    class NoBlood:
        def check_prompt(self, prompt: str, negative_prompt: str) -> str:
            return "refuse" if "blood" in prompt.lower() else "allow"

        def check_image(self, pixels, prompt: str) -> str:
            return "blur" if my_classifier(pixels) > 0.5 else "allow"

If a filter raises an exception, the image is refused: a broken filter lets nothing through.
"""

import traceback
from collections.abc import Callable
from enum import StrEnum
from importlib import import_module
from typing import Protocol

import structlog
from jaxtyping import UInt8

from sd35.errors import ContentRefused, InvalidSetting
from sd35.images.resize import blurred
from sd35.request import Request
from sd35.tensors import Array


class Decision(StrEnum):
    """The decision of a filter. BLUR for a prompt blurs the image, even if the decision on the image is ALLOW."""

    ALLOW = "allow"
    BLUR = "blur"
    REFUSE = "refuse"


class ContentFilter(Protocol):
    """The interface of a content filter.

    The methods are called from several threads at once, and may take long. They must return the same decision for the
    same arguments.
    """

    def check_prompt(self, prompt: str, negative_prompt: str) -> Decision | str:
        """Decide on a prompt before its image is generated."""

    def check_image(self, pixels: UInt8[Array, "h w 3"], prompt: str) -> Decision | str:
        """Decide on an image before it is sent or stored, or on a preview before it is sent.

        A preview has 1/8 of the width and height of its image.
        """


class AllowAll:
    """A filter that allows everything. It is used if the setting `content_filter` is not set."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> Decision:  # noqa: ARG002
        """Allow every prompt."""
        return Decision.ALLOW

    def check_image(self, pixels: UInt8[Array, "h w 3"], prompt: str) -> Decision:  # noqa: ARG002
        """Allow every image."""
        return Decision.ALLOW


def load_filter(path: str | None) -> ContentFilter:
    """Import the filter at an import path, or return a filter that allows everything if the path is None.

    Raises InvalidSetting if the filter cannot be loaded, or lacks a method of `ContentFilter`.
    """
    if path is None:
        return AllowAll()
    module, _, name = path.partition(":")
    try:
        filter_or_class = getattr(import_module(module), name)
        content_filter: ContentFilter = filter_or_class() if isinstance(filter_or_class, type) else filter_or_class
    except Exception as error:  # the operator's code may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise InvalidSetting(
            f"content_filter: got {path!r}, which cannot be loaded ({reason}). Correct the filter, or set its import"
            " path as package.module:name"
        ) from error
    methods = ("check_prompt", "check_image")
    if missing := [method for method in methods if not callable(getattr(content_filter, method, None))]:
        raise InvalidSetting(
            f"content_filter: got {path!r}, which has no {' and no '.join(missing)}; allowed: an object or a class with"
            f" the methods {' and '.join(methods)}"
        )
    return content_filter


def prompt_decision(content_filter: ContentFilter, request: Request) -> Decision:
    """Return ALLOW or BLUR for a request's prompts. Raises ContentRefused if the filter refuses or fails."""
    return _decide("prompt", lambda: content_filter.check_prompt(request.prompt, request.negative_prompt))


def image_decision(content_filter: ContentFilter, pixels: UInt8[Array, "h w 3"], request: Request) -> Decision:
    """Return ALLOW or BLUR for an image. Raises ContentRefused if the filter refuses or fails."""
    return _decide("image", lambda: content_filter.check_image(pixels, request.prompt))


def shown_preview(
    content_filter: ContentFilter, request: Request, on_prompt: Decision, pixels: UInt8[Array, "h w 3"]
) -> UInt8[Array, "h w 3"]:
    """Return the pixels of a preview, blurred if the filter does not allow the prompt or the preview.

    `on_prompt` is the filter's decision on the prompt.
    """
    try:
        if on_prompt is Decision.ALLOW and image_decision(content_filter, pixels, request) is Decision.ALLOW:
            return pixels
    except ContentRefused:
        pass  # blur it and continue, because the filter may still allow the finished image
    return blurred(pixels)


def _decide(subject: str, check: Callable[[], Decision | str]) -> Decision:
    """Call a method of the filter, and return ALLOW or BLUR. Raises ContentRefused if it refuses or fails."""
    try:
        decision = Decision(check())  # the operator's code may return a string
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        structlog.get_logger().error(
            "the content filter failed", error=type(error).__name__, at=f"{place.filename}:{place.lineno}"
        )
        raise ContentRefused(
            f"this service's content filter failed on the {subject}; report this to the operator of the service"
        ) from error
    if decision is Decision.REFUSE:
        raise ContentRefused(f"this service's content filter refuses the {subject}; change the prompt")
    return decision
