"""Generate docs/reference/errors.md from the classes of `sd35.errors`."""

import inspect
import re
from collections.abc import Iterator

from docs_generator.markdown import code, document, table
from sd35 import errors
from sd35.errors import Sd35Error

_REMEDY = "Remedy:"
_INTRODUCTION = """
An error has a name, a message that says what to do, and one of these forms:

- **HTTP**: a response with the status in the first table. The API of this project answers with a problem document
  (`application/problem+json`, RFC 9457). The APIs of OpenAI, AUTOMATIC1111 and Stability answer in their own formats,
  and change the status of some errors: see [Clients](../guide/clients.md#errors).
- **Command line**: a message on stderr, `sd35: MESSAGE`, and the exit code in the tables.
- **Python**: an exception of `sd35.errors`. All derive from `Sd35Error`.

The metric `sd35_errors_total` counts the errors of HTTP responses by name.
"""
_EXIT_CODES = """
Exit code 0 is success, and 130 is Ctrl-C. Some commands also exit with 1 to report a result, such as an image that
differs: [Command line](cli.md) names these commands.
"""


def page() -> str:
    """Return the page in Markdown."""
    kinds = list(_walk(Sd35Error))
    of_requests = [(kind, depth) for kind, depth in kinds if _has_status(kind)]
    of_commands = [(kind, depth) for kind, depth in kinds if not _has_status(kind)]
    return document(
        "Errors",
        "src/sd35/errors.py",
        _INTRODUCTION,
        "## Errors of requests",
        "An indented error is a special case of the nearest error above it that is not indented.",
        table(["Error", "HTTP", "Exit code", "Meaning", "Remedy"], (_row(kind, depth) for kind, depth in of_requests)),
        "## Errors of commands, and of the start of the service",
        table(["Error", "Exit code", "Meaning", "Remedy"], (_row(kind, depth) for kind, depth in of_commands)),
        "## Exit codes",
        _EXIT_CODES,
    )


def _walk(base: type[Sd35Error], depth: int = 0) -> Iterator[tuple[type[Sd35Error], int]]:
    """Yield the public errors below `base` in the order of the source, with the depth of each in the tree."""
    public = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, Sd35Error)]
    for kind in public:
        if kind is not Sd35Error and _public_base(kind) is base:
            yield kind, depth
            yield from _walk(kind, depth + 1)


def _public_base(kind: type[Sd35Error]) -> type:
    """Return the nearest base class that `sd35.errors` contains."""
    return next(base for base in kind.__mro__[1:] if hasattr(errors, base.__name__))


def _has_status(kind: type[Sd35Error]) -> bool:
    """Return whether an error can be the response to a request: its class or one of its bases sets a status."""
    bases = kind.__mro__[: kind.__mro__.index(Sd35Error)]
    return any("status" in vars(base) for base in bases) or kind is errors.JobEnded  # each instance sets its status


def _row(kind: type[Sd35Error], depth: int) -> list[str]:
    """Return the cells of an error, indented by its depth in the tree. Only errors of requests have a status."""
    meaning, remedy = meaning_and_remedy(kind)
    status = (
        "if the job failed, the status of its error; if it was cancelled, 409; if its image was removed, 410"
        if kind is errors.JobEnded
        else str(kind.status)
    )
    name = "&emsp;" * depth + code(kind.__name__)
    return [name, *([status] if _has_status(kind) else []), str(kind.exit_code), meaning, remedy]


def meaning_and_remedy(kind: type[Sd35Error]) -> tuple[str, str]:
    """Return the first paragraph of an error's docstring, and the one that begins with `Remedy:`."""
    meaning, *others = re.split(r"\n\s*\n", inspect.getdoc(kind) or "")
    remedy = next((each.removeprefix(_REMEDY).strip() for each in others if each.startswith(_REMEDY)), "")
    assert remedy, f"{kind.__name__}: its docstring has no paragraph that begins with {_REMEDY!r}"
    return meaning, remedy
