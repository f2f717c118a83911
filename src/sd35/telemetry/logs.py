"""Structured logs on standard error, and text that is safe to write to a terminal.

A terminal obeys control characters, so text that comes from clients and servers must not carry any.
"""

import logging
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import structlog

from sd35.errors import StoreUnavailable

LogFormat: TypeAlias = Literal["auto", "console", "json"]

_TRACEBACK_KEYS = {"exception", "stack"}


def is_console(log_format: LogFormat) -> bool:
    """Return whether logs are written for people. `auto` does so if stderr is a terminal."""
    return log_format == "console" or (log_format == "auto" and sys.stderr.isatty())


def configure_logs(log_format: LogFormat, library_level: int = logging.INFO) -> None:
    """Send the logs of structlog and of the standard library to standard error, in one format.

    structlog writes its own lines directly: through the standard library, a line takes twice as long. Libraries log
    through the standard library, from `library_level` on.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper("iso", utc=True),
    ]
    rendering: list[structlog.typing.Processor] = (
        [
            escape_controls,
            _never_failing(
                structlog.dev.ConsoleRenderer(
                    colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
                )
            ),
        ]
        if is_console(log_format)
        else [structlog.processors.format_exc_info, _never_failing(structlog.processors.JSONRenderer())]
    )
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


def log_by_logging() -> None:
    """Send the logs of structlog to the standard library's `logging`, unless the program has configured structlog.

    For the library: by default structlog prints to standard output, which belongs to the caller's program.
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
    """Log errors of the block instead of raising them, in loops that must go on.

    `unavailable` is the message for StoreUnavailable. Any other error is a bug, and is logged with its traceback.
    """
    try:
        yield
    except StoreUnavailable as error:
        structlog.get_logger().error(unavailable, reason=str(error))
    except Exception:  # noqa: BLE001  see above
        structlog.get_logger().exception("unexpected error")


def printable(text: str, keep: str = "") -> str:
    r"""Escape each unprintable character as in a Python string: ESC becomes `\x1b`. Characters in `keep` stay.

    Unprintable are control characters, line separators, marks that reverse the direction of writing, and lone
    surrogates, which no terminal's encoding can write.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode() for each in text
    )


def escape_controls(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:  # noqa: ANN401  structlog's
    """Escape every value of a console log line. Tracebacks keep their line breaks. A structlog processor.

    JSON lines do not need it: JSON strings are escaped anyway.
    """
    event = structlog.processors.format_exc_info(logger, method, event)
    return {
        key: printable(value, keep="\n\t" if key in _TRACEBACK_KEYS else "") if isinstance(value, str) else value
        for key, value in event.items()
    }


def _never_failing(renderer: structlog.typing.Processor) -> structlog.typing.Processor:
    """Wrap a renderer. If it fails, the line is rendered without its values, so that logging never fails a request."""

    def render(logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:  # noqa: ANN401  structlog's own types
        plain = {"event": str(event.get("event")), "level": method, "timestamp": event.get("timestamp")}
        try:
            return renderer(logger, method, event)
        except Exception as error:  # noqa: BLE001  whatever a value's own methods raise
            return renderer(logger, method, {**plain, "unrendered": type(error).__name__})

    return render
