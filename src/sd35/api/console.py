"""Text for a terminal. A terminal obeys control characters, so text from clients and servers must not carry any."""

from typing import Any

import structlog

_MULTI_LINE = {"exception", "stack"}  # keys of tracebacks


def printable(text: str, keep: str = "") -> str:
    r"""Write each character that is not printable as Python would: ESC as `\x1b`. Characters in `keep` stay.

    Not printable are control characters, line separators, marks that reverse the direction of writing, and halves of
    surrogate pairs, which no terminal's encoding can write.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode() for each in text
    )


def escape_controls(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:  # noqa: ANN401  structlog's
    """Escape every value of a log line; tracebacks keep their line breaks. A structlog processor, for the console.

    JSON needs none of it: its strings are escaped anyway.
    """
    event = structlog.processors.format_exc_info(logger, method, event)
    return {
        key: printable(value, keep="\n\t" if key in _MULTI_LINE else "") if isinstance(value, str) else value
        for key, value in event.items()
    }
