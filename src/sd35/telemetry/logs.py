"""Structured logs on standard error, and text that is safe to write to a terminal.

Terminals obey control characters, so text from clients and servers is escaped before it is written to a terminal.
"""

import logging
import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import structlog

from sd35.errors import StoreUnavailable

LogFormat: TypeAlias = Literal["auto", "console", "json"]

_TRACEBACK_KEYS = {"exception", "stack"}


def is_console(log_format: LogFormat) -> bool:
    """Return whether log lines are for people instead of JSON. With `auto`, they are if stderr is a terminal."""
    return log_format == "console" or (log_format == "auto" and sys.stderr.isatty())


def configure_logs(log_format: LogFormat, library_level: int = logging.INFO) -> None:
    """Send the logs of structlog and of the standard library to standard error, in one format.

    Libraries log through the standard library; their lines below `library_level` are dropped. This project logs with
    structlog, which writes its lines directly, because a line takes twice as long through the standard library.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper("iso", utc=True),
    ]
    rendering = _rendering_processors(log_format)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=library_level, force=True)
    # Messages such as "Waiting for application startup." do not help a person at a terminal.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING if is_console(log_format) else logging.INFO)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # `upgrade_schema` logs a migration in one line
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # the service already logs the user interface's requests
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _rendering_processors(log_format: LogFormat) -> list[structlog.typing.Processor]:
    """Return the last processors of structlog, which turn the fields of a line into text."""
    if not is_console(log_format):
        return [structlog.processors.format_exc_info, _never_failing(structlog.processors.JSONRenderer())]
    colors = sys.stderr.isatty() and not os.environ.get("NO_COLOR")  # https://no-color.org
    renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
    return [escape_controls, _never_failing(renderer)]


def log_by_logging() -> None:
    """Send the logs of structlog to the standard library's `logging`. Does nothing if structlog is already configured.

    The Python library (`Generator`) uses it: by default, structlog prints to standard output, which belongs to the
    caller's program.
    """
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


@contextmanager
def log_errors(unavailable: str) -> Iterator[None]:
    """Log the errors of a `with` block instead of raising them, so that a loop around the block continues.

    StoreUnavailable is logged with the message `unavailable`. Any other error is a bug, and is logged with its
    traceback.
    """
    try:
        yield
    except StoreUnavailable as error:
        structlog.get_logger().error(unavailable, reason=str(error))
    except Exception:  # noqa: BLE001  see above
        structlog.get_logger().exception("unexpected error; please report it with this traceback")


def printable(text: str, keep: str = "") -> str:
    r"""Escape each unprintable character as in a Python string: ESC becomes `\x1b`. Characters in `keep` stay.

    Unprintable characters are control characters, line separators, marks that reverse the direction of writing, and
    lone surrogates, which cannot be encoded.
    """
    if text.isprintable():
        return text
    characters = []
    for character in text:
        is_kept = character.isprintable() or character in keep
        characters.append(character if is_kept else character.encode("unicode_escape").decode())
    return "".join(characters)


def escape_controls(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:  # noqa: ANN401  structlog's
    """Escape all text of a console log line. A processor of structlog. Tracebacks keep their line breaks.

    Lines in JSON do not need it, because JSON escapes strings anyway.
    """
    event = structlog.processors.format_exc_info(logger, method, event)
    escaped = {}
    for key, value in event.items():
        keep = "\n\t" if key in _TRACEBACK_KEYS else ""
        escaped[key] = printable(value, keep) if isinstance(value, str) else value
    return escaped


def _never_failing(renderer: structlog.typing.Processor) -> structlog.typing.Processor:
    """Wrap a renderer so that it never raises. If a value cannot be rendered, the line is rendered without values.

    An error in logging would otherwise fail a request.
    """

    def render(logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:  # noqa: ANN401  structlog's own types
        """Render a line, or if that fails, the line without its values."""
        # Copied before the call, because ConsoleRenderer removes these keys from `event`.
        plain = {"event": str(event.get("event")), "level": method, "timestamp": event.get("timestamp")}
        try:
            return renderer(logger, method, event)
        except Exception as error:  # noqa: BLE001  the `__str__` or `__repr__` of a value may raise anything
            return renderer(logger, method, {**plain, "unrendered": type(error).__name__})

    return render
