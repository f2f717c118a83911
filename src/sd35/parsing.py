"""Parse untrusted JSON and TOML. Every failure is an OSError or a ValueError with a short message.

The libraries raise RecursionError for deeply nested brackets. They accept slightly less nesting, but then printing or
validating the result fails. So the depth is limited here. Callers put the name of the file before the message.
"""

import json
import tomllib
from pathlib import Path
from typing import Any, NoReturn

MAX_DEPTH = 64
_MAX_DIGITS = 1000  # Python refuses more than 4300 digits, with a long message
_TOO_DEEP = f"values nested in more than {MAX_DEPTH} levels; allowed: at most {MAX_DEPTH}"


def read_json(path: Path) -> Any:  # noqa: ANN401  any JSON value
    """Parse a JSON file. Raises OSError if it cannot be read, ValueError if it is not valid JSON."""
    return parse_json(path.read_bytes())


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises OSError if it cannot be read, ValueError if it is not valid TOML."""
    text = path.read_bytes().decode("utf-8")
    try:
        content = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    _check_depth(content)
    return content


def parse_json(content: bytes) -> Any:  # noqa: ANN401  any JSON value
    """Parse JSON as in RFC 8259: UTF-8, without NaN and Infinity. Raises ValueError if it is not valid."""
    try:
        parsed = json.loads(content.decode("utf-8"), parse_int=_parse_integer, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    _check_depth(parsed)
    return parsed


def shown(value: object, limit: int = 80) -> str:
    """Return the representation of an untrusted value for an error message, shortened to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _parse_integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits; allowed: at most {_MAX_DIGITS} digits")
    return int(digits)


def _refuse_constant(name: str) -> NoReturn:
    """Raise ValueError for `NaN`, `Infinity` or `-Infinity`, which Python's parser accepts."""
    raise ValueError(f"{name} is not a number in JSON")


def _check_depth(content: object) -> None:
    """Raise ValueError if objects and lists are nested in more than MAX_DEPTH levels."""
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent) if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _children(value: object) -> list[Any]:
    """Return the values in an object or a list, or nothing for other values."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
