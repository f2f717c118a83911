"""Reading JSON and TOML that others wrote: every failure is an OSError or a ValueError with a short message.

The libraries alone raise RecursionError for nested brackets. They also accept nesting that is only just shallow enough,
on which printing and validating fail later.
"""

import json
import tomllib
from pathlib import Path
from typing import Any, NoReturn

MOST_LEVELS = 64
_MOST_DIGITS = 1000


def read_json(path: Path) -> Any:  # noqa: ANN401  whatever the file holds
    """Parse a JSON file. Raises OSError, ValueError."""
    return parse_json(path.read_bytes())


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises OSError, ValueError."""
    text = path.read_bytes().decode("utf-8")
    try:
        content = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    _check_levels(content)
    return content


def parse_json(content: bytes) -> Any:  # noqa: ANN401  see above
    """Parse JSON as RFC 8259 has it: UTF-8, and neither NaN nor Infinity. Raises ValueError."""
    try:
        parsed = json.loads(content.decode("utf-8"), parse_int=_integer, parse_constant=_constant)
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    _check_levels(parsed)
    return parsed


def shown(value: object, limit: int = 80) -> str:
    """The representation of a value from a file for an error message, shortened and in one line."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits; allowed: {_MOST_DIGITS}")
    return int(digits)


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _check_levels(content: object) -> None:
    level = [content]
    for _ in range(MOST_LEVELS):
        level = [each for one in level for each in _inside(one) if isinstance(each, dict | list)]
        if not level:
            return
    raise ValueError(_too_deep())


def _inside(value: object) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _too_deep() -> str:
    return f"values nested in more than {MOST_LEVELS} levels"
