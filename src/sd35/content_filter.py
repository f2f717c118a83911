"""The operator's content filter: a hook that sees prompt and image, and allows, blurs or refuses.

It is named by its import path, `package.module:name`: an object, or a class that is called without arguments. What it
raises refuses the image: a filter that does not work lets nothing through.
"""

from collections.abc import Callable
from enum import StrEnum
from importlib import import_module
from typing import Protocol

from jaxtyping import UInt8

from sd35.errors import ContentRefused, InvalidSetting
from sd35.images.png import blurred
from sd35.request import Request
from sd35.tensors import Array


class Decision(StrEnum):
    """What a filter says. BLUR of a prompt blurs the image, whatever is said of that."""

    ALLOW = "allow"
    BLUR = "blur"
    REFUSE = "refuse"


class ContentFilter(Protocol):
    """What is called, in several threads at once; it may take its time, and must decide alike each time."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> Decision | str:
        """Before anything is computed."""

    def check_image(self, pixels: UInt8[Array, "h w 3"], prompt: str) -> Decision | str:
        """Before anyone sees it: also of what is shown of it while it is made, an eighth as wide and as high."""


class AllowAll:
    """No filter."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> Decision:  # noqa: ARG002
        """Allowed."""
        return Decision.ALLOW

    def check_image(self, pixels: UInt8[Array, "h w 3"], prompt: str) -> Decision:  # noqa: ARG002
        """Allowed."""
        return Decision.ALLOW


def load_filter(path: str | None) -> ContentFilter:
    """The hook of an import path. Raises InvalidSetting where there is none."""
    if path is None:
        return AllowAll()
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name)
        hook: ContentFilter = found() if isinstance(found, type) else found
    except Exception as error:  # whatever the operator's code raises
        raise InvalidSetting(f"content_filter: got {path!r}, which gives {type(error).__name__}: {error}") from error
    if lacking := [each for each in ("check_prompt", "check_image") if not callable(getattr(hook, each, None))]:
        raise InvalidSetting(f"content_filter: got {path!r}, which has no {', '.join(lacking)}")
    return hook


def prompt_decision(hook: ContentFilter, request: Request) -> Decision:
    """ALLOW or BLUR. Raises ContentRefused."""
    return _decision(lambda: hook.check_prompt(request.prompt, request.negative_prompt), "prompt")


def image_decision(hook: ContentFilter, pixels: UInt8[Array, "h w 3"], request: Request) -> Decision:
    """ALLOW or BLUR. Raises ContentRefused."""
    return _decision(lambda: hook.check_image(pixels, request.prompt), "image")


def shown_preview(
    hook: ContentFilter, request: Request, decision: Decision, pixels: UInt8[Array, "h w 3"]
) -> UInt8[Array, "h w 3"]:
    """Return a preview, blurred unless the filter allowed the prompt (`decision`) and allows the preview."""
    try:
        if decision is Decision.ALLOW and image_decision(hook, pixels, request) is Decision.ALLOW:
            return pixels
    except ContentRefused:  # the image itself may yet be allowed
        pass
    return blurred(pixels)


def _decision(ask: Callable[[], Decision | str], what: str) -> Decision:
    try:
        decision = Decision(ask())
    except Exception as error:
        raise ContentRefused(f"the content filter failed at the {what}, which lets nothing through") from error
    if decision is Decision.REFUSE:
        raise ContentRefused(f"the {what} is refused by this service's content filter")
    return decision
