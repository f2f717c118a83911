"""The content filter: code of the operator that allows, blurs or refuses prompts and images.

The setting `content_filter` is an import path, `package.module:name`, of an object, or of a class without constructor
arguments:

    class NoBlood:
        def check_prompt(self, prompt: str, negative_prompt: str) -> str:
            return "refuse" if "blood" in prompt.lower() else "allow"

        def check_image(self, pixels, prompt: str) -> str:
            return "blur" if my_classifier(pixels) > 0.5 else "allow"

An exception in a filter refuses the image, so that a broken filter lets nothing through.
"""

from collections.abc import Callable
from enum import StrEnum
from importlib import import_module
from typing import Protocol

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
        """Decide on an image before it is sent or stored, or on a preview, which has 1/8 of its width and height."""


class AllowAll:
    """The filter that is used if none is configured."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> Decision:  # noqa: ARG002
        """Allow every prompt."""
        return Decision.ALLOW

    def check_image(self, pixels: UInt8[Array, "h w 3"], prompt: str) -> Decision:  # noqa: ARG002
        """Allow every image."""
        return Decision.ALLOW


def load_filter(path: str | None) -> ContentFilter:
    """Import the filter at an import path. Raises InvalidSetting if that fails or the object is not a filter."""
    if path is None:
        return AllowAll()
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name)
        content_filter: ContentFilter = found() if isinstance(found, type) else found
    except Exception as error:  # the operator's code may raise anything
        raise InvalidSetting(f"content_filter: got {path!r}, which raises {type(error).__name__}: {error}") from error
    methods = ("check_prompt", "check_image")
    if missing := [name for name in methods if not callable(getattr(content_filter, name, None))]:
        raise InvalidSetting(f"content_filter: got {path!r}, which lacks the methods {', '.join(missing)}")
    return content_filter


def prompt_decision(content_filter: ContentFilter, request: Request) -> Decision:
    """Return ALLOW or BLUR for a request's prompts. Raises ContentRefused."""
    return _decide(lambda: content_filter.check_prompt(request.prompt, request.negative_prompt), "prompt")


def image_decision(content_filter: ContentFilter, pixels: UInt8[Array, "h w 3"], request: Request) -> Decision:
    """Return ALLOW or BLUR for an image. Raises ContentRefused."""
    return _decide(lambda: content_filter.check_image(pixels, request.prompt), "image")


def shown_preview(
    content_filter: ContentFilter, request: Request, on_prompt: Decision, pixels: UInt8[Array, "h w 3"]
) -> UInt8[Array, "h w 3"]:
    """Return a preview image. It is blurred unless the filter allows both the prompt and the preview."""
    try:
        if on_prompt is Decision.ALLOW and image_decision(content_filter, pixels, request) is Decision.ALLOW:
            return pixels
    except ContentRefused:  # the finished image may still be allowed
        pass
    return blurred(pixels)


def _decide(check: Callable[[], Decision | str], subject: str) -> Decision:
    try:
        decision = Decision(check())
    except Exception as error:
        raise ContentRefused(f"the content filter failed on the {subject}, so the image is refused") from error
    if decision is Decision.REFUSE:
        raise ContentRefused(f"this service's content filter refuses the {subject}")
    return decision
