"""Types of AUTOMATIC1111's fields. AUTOMATIC1111 reads JSON leniently, and its clients rely on that.

Numbers may be text, integers may be `8.0`, switches may be text, 0 or 1. null, "", "None", [] and {} mean "not set".
Fractions for integers and booleans for numbers are refused, because clients do not send them on purpose.

Source: pydantic 1 as AUTOMATIC1111/stable-diffusion-webui 1.10 uses it, modules/api/models.py.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from sd35.api.body import INTEGER_DIGITS

ANY_INTEGER = f"an integer of at most {INTEGER_DIGITS:,} digits"
_INTEGER = re.compile(rf"[+-]?\d{{1,{INTEGER_DIGITS}}}(\.0*)?", re.ASCII)
_UNIT_SWITCHES = ("enabled", "enable", "ad_tab_enable")  # of ControlNet, AnimateDiff and ADetailer
_NUMBER = re.compile(r"[+-]?(\d{1,30}\.?\d{0,30}|\.\d{1,30})(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
# The texts that pydantic 1 accepts for a boolean.
_FLAGS = dict.fromkeys(("1", "on", "t", "true", "y", "yes"), True)
_FLAGS |= dict.fromkeys(("0", "off", "f", "false", "n", "no"), False)


def as_integer(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """Convert text and whole floats to an integer, and empty text to None. Return other values unchanged."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return _read_text(value, lambda text: int(text.partition(".")[0]) if _INTEGER.fullmatch(text) else value)


def as_number(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """Convert text to a number, and empty text to None. Return other values unchanged."""
    return _read_text(value, lambda text: float(text) if _NUMBER.fullmatch(text) else value)


def as_flag(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """Convert text, 0 and 1 to a boolean, and empty text to None. Return other values unchanged."""
    if isinstance(value, int | float) and value in {0, 1}:
        return bool(value)
    return _read_text(value, lambda text: _FLAGS.get(text.lower(), value))


def _read_text(value: Any, read: Callable[[str], Any]) -> Any:  # noqa: ANN401  any JSON value
    """Convert text with the function `read`, and empty text to None. Return other values unchanged."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    return read(text) if text else None


def is_unset(value: object) -> bool:
    """Return whether clients send this value for "not set"."""
    if isinstance(value, str):
        return value.strip().lower() in {"", "none"}
    return value is None or value in (0, [], {})  # False and 0.0 are equal to 0


def _as_text(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """Convert a number to text. Return other values unchanged."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


# The three functions below are validators. pydantic turns their ValueError into a ValidationError, and
# `sd35.api.body.validate` turns that into an error that names the allowed values of the field.


def _check_unset(value: Any) -> None:  # noqa: ANN401  any JSON value
    """Refuse any value that clients do not send for "not set"."""
    if not is_unset(value):
        raise ValueError


def _check_no_styles(value: Any) -> None:  # noqa: ANN401  any JSON value
    """Refuse a list with a style. Clients send "None" or an empty value for an unset style."""
    has_no_styles = isinstance(value, list) and all(map(is_unset, value))
    if not is_unset(value) and not has_no_styles:
        raise ValueError


def _check_no_scripts(value: Any) -> None:  # noqa: ANN401  any JSON value
    """Refuse an object of scripts if a script is on. The error names the first script that is on."""
    if is_unset(value):
        return
    if not isinstance(value, dict):
        raise ValueError  # noqa: TRY004  pydantic treats a TypeError as a bug
    for name, script in value.items():
        if not _is_off(script):
            raise PydanticCustomError("script_is_on", "a script is on", {"got": name})


def _is_off(script: object) -> bool:
    """Return whether the `args` of a script turn it off.

    They do if they are empty, if the first is false, or if all units are off and either the first is empty or the
    others are switches. A unit is an object among the `args`, with the settings of one ControlNet or one detector.
    Without `args`, AUTOMATIC1111 runs a script with its defaults, and then the script does nothing.
    """
    arguments = script.get("args") if isinstance(script, dict) else script
    if is_unset(arguments):
        return True
    if not isinstance(arguments, list):
        return False
    first = arguments[0]
    if as_flag(first) is False:
        return True
    units = [argument for argument in arguments if isinstance(argument, dict)]
    if not all(map(_is_unit_off, units)):
        return False
    if is_unset(first):
        return True
    # Here, the script is off only if it has units, such as ADetailer's, and its other arguments are switches. The units
    # are off, as checked above.
    others = [as_flag(argument) for argument in arguments if not isinstance(argument, dict)]
    return any(units) and all(isinstance(other, bool) or is_unset(other) for other in others)


def _is_unit_off(unit: dict[str, Any]) -> bool:
    """Return whether a unit of ControlNet, ADetailer or AnimateDiff is off."""
    if not unit or any(as_flag(unit.get(switch)) is False for switch in _UNIT_SWITCHES):
        return True
    return "ad_model" in unit and is_unset(unit["ad_model"])  # ADetailer does nothing without a model


class _Lenient:
    """Annotation of a field that may be null. `read` converts the value before pydantic validates it.

    The JSON schema of the field allows the JSON types `types` and null, with the limits of the field's type.
    """

    def __init__(self, read: Callable[[Any], Any], *types: str) -> None:
        self._read, self._types = read, types

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        limits = [choice for choice in handler(schema)["anyOf"] if choice["type"] != "null"]
        # A field of several types, such as an integer or a float, has no limits.
        return {**(limits[0] if len(limits) == 1 else {}), "type": [*self._types, "null"]}


LENIENT_INTEGER = _Lenient(as_integer, "integer", "string")
LENIENT_NUMBER = _Lenient(as_number, "number", "string")

Integer: TypeAlias = Annotated[int | None, LENIENT_INTEGER]
Number: TypeAlias = Annotated[int | float | None, LENIENT_NUMBER]
Zero: TypeAlias = Annotated[Annotated[float, Field(ge=0, le=0)] | None, LENIENT_NUMBER]
Text: TypeAlias = Annotated[str | None, _Lenient(_as_text, "string", "number")]
Flag: TypeAlias = Annotated[bool | None, _Lenient(as_flag, "boolean", "integer", "string")]
Off: TypeAlias = Annotated[
    Annotated[bool, Field(le=False)] | None,
    BeforeValidator(as_flag),
    WithJsonSchema({"anyOf": [{"const": False}, {"const": 0}, {"type": ["string", "null"]}]}),
]
Nothing: TypeAlias = Annotated[Any, BeforeValidator(_check_unset), WithJsonSchema({})]
NoStyles: TypeAlias = Annotated[Any, BeforeValidator(_check_no_styles), WithJsonSchema({})]
NoScripts: TypeAlias = Annotated[Any, BeforeValidator(_check_no_scripts), WithJsonSchema({})]
