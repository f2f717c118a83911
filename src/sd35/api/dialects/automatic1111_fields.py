"""Types of AUTOMATIC1111's fields: its API reads JSON leniently, and its clients rely on that.

Numbers come as text, integers as `8.0`, switches as text or as 0 and 1, nothing as null, "", "None", [] or {}.
Fractions for integers and booleans for numbers are refused: no client sends them on purpose.

Source: pydantic 1 as AUTOMATIC1111/stable-diffusion-webui 1.10 uses it, modules/api/models.py.
"""

import re
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from sd35.api.body import INTEGER_DIGITS

ANY_INTEGER = f"an integer of at most {INTEGER_DIGITS:,} digits"
_INTEGER = re.compile(rf"[+-]?\d{{1,{INTEGER_DIGITS}}}(\.0*)?", re.ASCII)
_UNIT_SWITCHES = ("enabled", "enable", "ad_tab_enable")  # ControlNet's, AnimateDiff's and ADetailer's
_NUMBER = re.compile(r"[+-]?(\d{1,30}\.?\d{0,30}|\.\d{1,30})(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
_FLAGS = dict.fromkeys(("1", "on", "t", "true", "y", "yes"), True)
_FLAGS |= dict.fromkeys(("0", "off", "f", "false", "n", "no"), False)


def as_integer(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """Turn text and whole floats into an integer, and empty text into None. Return the rest unchanged."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not text:
        return None
    return int(text.partition(".")[0]) if _INTEGER.fullmatch(text) else value


def as_number(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """Turn text into a number, and empty text into None. Return the rest unchanged."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not text:
        return None
    return float(text) if _NUMBER.fullmatch(text) else value


def as_flag(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """Turn text, 0 and 1 into a boolean, and empty text into None. Return the rest unchanged."""
    if isinstance(value, int | float) and value in {0, 1}:
        return bool(value)
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    return _FLAGS.get(text, value) if text else None


def asks_for_nothing(value: object) -> bool:
    """Whether a value is one of those by which clients say that they do not want something."""
    if isinstance(value, str):
        return value.strip().lower() in {"", "none"}
    return value is None or value in (0, [], {})  # 0 is also False and 0.0


def _as_text(value: Any) -> Any:  # noqa: ANN401  any JSON value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


def _as_nothing(value: Any) -> None:  # noqa: ANN401  any JSON value
    if not asks_for_nothing(value):
        raise ValueError


def _as_no_styles(value: Any) -> None:  # noqa: ANN401  any JSON value
    """AUTOMATIC1111's own name for no style is "None", and an unset one is sent as ""."""
    if not (asks_for_nothing(value) or (isinstance(value, list) and all(map(asks_for_nothing, value)))):
        raise ValueError


def _as_no_scripts(value: Any) -> None:  # noqa: ANN401  any JSON value
    """Raise an error that names the first script that is on."""
    if asks_for_nothing(value):
        return
    if not isinstance(value, dict):
        raise ValueError  # noqa: TRY004  pydantic takes a TypeError for a fault of the program
    for name, script in value.items():
        if not _is_off(script):
            raise PydanticCustomError("script_is_on", "a script is on", {"got": name})


def _is_off(script: object) -> bool:
    """Whether a script's `args` turn it off: they are empty, their first switch is off, or each unit is off.

    Without `args`, AUTOMATIC1111 runs a script with its defaults, with which it does nothing.
    """
    arguments = script.get("args") if isinstance(script, dict) else script
    if asks_for_nothing(arguments):
        return True
    if not isinstance(arguments, list):
        return False
    first = arguments[0]
    if as_flag(first) is False:
        return True
    units = [each for each in arguments if isinstance(each, dict)]
    if not all(map(_is_unit_off, units)):
        return False
    if asks_for_nothing(first):
        return True
    # A script whose switch is on does nothing only if its units say so themselves, as ADetailer's do.
    others = [as_flag(each) for each in arguments if not isinstance(each, dict)]
    return any(units) and all(isinstance(each, bool) or asks_for_nothing(each) for each in others)


def _is_unit_off(unit: dict[str, Any]) -> bool:
    """Whether a unit of ControlNet, ADetailer or AnimateDiff asks for nothing."""
    if not unit or any(as_flag(unit.get(switch)) is False for switch in _UNIT_SWITCHES):
        return True
    return "ad_model" in unit and asks_for_nothing(unit["ad_model"])


def schema(*types: str, **limits: float) -> WithJsonSchema:
    """Describe a lenient field by the types that are read, and null."""
    return WithJsonSchema({"type": [*types, "null"], **limits})


AS_INTEGER, AS_NUMBER, _AS_FLAG = map(BeforeValidator, (as_integer, as_number, as_flag))
# Annotated twice: what is read leniently is null or a value of the inner type.
_Number: TypeAlias = Annotated[int | float | None, AS_NUMBER]
_Zero: TypeAlias = Annotated[Annotated[float, Field(ge=0, le=0)] | None, AS_NUMBER]
_Off: TypeAlias = Annotated[Annotated[bool, Field(le=False)] | None, _AS_FLAG]

Text: TypeAlias = Annotated[str | None, BeforeValidator(_as_text), schema("string", "number")]
Flag: TypeAlias = Annotated[bool | None, _AS_FLAG, schema("boolean", "integer", "string")]
Number: TypeAlias = Annotated[_Number, schema("number", "string")]
Integer: TypeAlias = Annotated[int | None, AS_INTEGER, schema("integer", "string")]
Zero: TypeAlias = Annotated[_Zero, schema("number", "string", minimum=0, maximum=0)]
Off: TypeAlias = Annotated[
    _Off, WithJsonSchema({"anyOf": [{"const": False}, {"const": 0}, {"type": ["string", "null"]}]})
]
Nothing: TypeAlias = Annotated[Any, BeforeValidator(_as_nothing), WithJsonSchema({})]
NoStyles: TypeAlias = Annotated[Any, BeforeValidator(_as_no_styles), WithJsonSchema({})]
NoScripts: TypeAlias = Annotated[Any, BeforeValidator(_as_no_scripts), WithJsonSchema({})]
