"""Parse untrusted JSON and TOML: every failure is an OSError or a ValueError with a short message.

The libraries raise RecursionError for deeply nested brackets. They also accept nesting just below that depth, and
printing or validating the result fails later.
"""

import json
import tomllib
from pathlib import Path
from typing import Any, NoReturn

MAX_DEPTH = 64
_MAX_DIGITS = 1000


def read_json(path: Path) -> Any:  # noqa: ANN401  any JSON value
    """Parse a JSON file. Raises OSError, ValueError."""
    return parse_json(path.read_bytes())


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises OSError, ValueError."""
    text = path.read_bytes().decode("utf-8")
    try:
        content = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    _check_depth(content)
    return content


def parse_json(content: bytes) -> Any:  # noqa: ANN401  any JSON value
    """Parse JSON as in RFC 8259: UTF-8, without NaN and Infinity. Raises ValueError."""
    try:
        parsed = json.loads(content.decode("utf-8"), parse_int=_integer, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    _check_depth(parsed)
    return parsed


def shown(value: object, limit: int = 80) -> str:
    """Return the representation of an untrusted value for an error message, shortened to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits; allowed: {_MAX_DIGITS}")
    return int(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _check_depth(content: object) -> None:
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [child for each in level for child in _children(each) if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(_too_deep())


def _children(value: object) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _too_deep() -> str:
    return f"values nested in more than {MAX_DEPTH} levels"
