"""Strict reading of JSON bodies: a limited size, one object, no repeated keys, and an error for each invalid field."""

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from sd35.api.errors import ApiError, FieldError, echo

MAX_BODY_BYTES = 1024 * 1024
_MAX_NAMED_FIELDS = 10  # unknown fields that an error names; if there are more, it gives their number
INTEGER_DIGITS = 1000  # longer integers are refused without converting them, which would take too long
_CLAUSE_END = re.compile(r"[:.](?: |$)")  # the end of the allowed values at the start of a field's description

Body = TypeVar("Body", bound=BaseModel)


def openapi_body(model: type[BaseModel], media_type: str = "application/json", **more: object) -> dict[str, Any]:
    """Describe a body for FastAPI's `openapi_extra`. FastAPI cannot describe it, because this module reads the bodies.

    `more` holds further keys of the OpenAPI media type, such as `examples`.
    """
    content = {media_type: {"schema": model.model_json_schema(), **more}}
    return {"requestBody": {"required": True, "content": content}}


async def allow_missing_content_type(request: Request) -> None:
    """Accept JSON bodies without a `Content-Type`. Use as a dependency of routers that imitate another service.

    Some clients of those services do not send the header, such as Dify's tool for AUTOMATIC1111. This project's own
    routes require it, as a protection against pages of other sites: before a page may send such a header, the browser
    asks the server with a CORS preflight request. A page can also send a body without the header (`fetch` with a `Blob`
    that has no type). Then there is no preflight, and only the check of `Origin` keeps the page out.
    """
    request.state.content_type_optional = True


async def read_json(request: Request, model: type[Body]) -> Body:
    """Read the JSON body as `model`.

    Raises ApiError like `read_unparsed_json`, `parse_object` and `validate`.
    """
    return parse_json(await read_unparsed_json(request, MAX_BODY_BYTES), model)


async def read_unparsed_json(request: Request, max_bytes: int, count: Callable[[int], None] | None = None) -> bytes:
    """Read a JSON body without parsing it, so that the caller can parse a large body in a thread.

    For `max_bytes` and `count`, see `read_body`. Raises ApiError like `read_body`, and with status 415 if the
    `Content-Type` is not `application/json`.
    """
    content_type = request.headers.get("content-type", "").strip()
    media_type = content_type.partition(";")[0].strip().lower()
    is_missing = not content_type and getattr(request.state, "content_type_optional", False)
    if media_type != "application/json" and not is_missing:
        allowed = "application/json (with curl: -H 'content-type: application/json')"
        raise ApiError.from_field(415, "content-type", media_type, allowed)
    return await read_body(request, max_bytes, count)


async def read_object(request: Request) -> dict[str, Any]:
    """Read the body as a JSON object without checking its fields.

    Raises ApiError like `read_unparsed_json` and `parse_object`.
    """
    return parse_object(await read_unparsed_json(request, MAX_BODY_BYTES))


def parse_json(content: bytes, model: type[Body]) -> Body:
    """Parse a JSON body as `model`. Raises ApiError like `parse_object` and `validate`."""
    return validate(parse_object(content), model)


def parse_object(content: bytes) -> dict[str, Any]:
    """Parse a JSON object in UTF-8.

    Raises ApiError with status 400 if `content` is not JSON or is nested too deeply, or 422 if it is not an object or
    repeats a key.
    """
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_object_of, parse_int=_integer_of)
    except RecursionError as error:
        raise ApiError(400, "the JSON is nested too deeply; send fewer levels of arrays and objects") from error
    except ValueError as error:
        raise ApiError(400, f"the body cannot be read as JSON ({error}); send a JSON object in UTF-8") from error
    if not isinstance(value, dict):
        raise ApiError.from_field(422, "body", value, 'a JSON object, such as {"prompt": "a cat"}')
    return value


def validate(value: Mapping[str, Any], model: type[Body]) -> Body:
    """Return an object as a `model`. Unknown fields are invalid, unless the model has `extra="ignore"`.

    Raises ApiError with status 422 and a FieldError for each invalid field. Of the unknown fields, the error names
    only the first `_MAX_NAMED_FIELDS`.
    """
    # pydantic cannot report an unknown field whose name has a lone surrogate, so unknown fields are found here.
    known = {name: content for name, content in value.items() if name in model.model_fields}
    ignores = model.model_config.get("extra") == "ignore"
    unknown = [(name, content) for name, content in value.items() if name not in known and not ignores]
    errors = [_unknown_field_error(name, content, model) for name, content in unknown[:_MAX_NAMED_FIELDS]]
    if len(unknown) > _MAX_NAMED_FIELDS:
        errors.append(_unknown_field_error("body", f"{len(unknown)} unknown fields", model))
    try:
        body = model.model_validate(known, strict=True)
    except ValidationError as error:
        got_by_field: dict[str, object] = {}
        for detail in error.errors():
            field = str(detail["loc"][0])
            value_or_nothing = known.get(field, "nothing")
            # A validator can put the invalid part of a value into the error's context as `got`.
            got_by_field.setdefault(field, detail.get("ctx", {}).get("got", value_or_nothing))
        errors += [_invalid_field_error(field, got, model) for field, got in got_by_field.items()]
    if errors:
        raise ApiError.from_fields(422, errors)
    return body


def _unknown_field_error(field: str, got: object, model: type[BaseModel]) -> FieldError:
    """Return the error of an unknown field. It names the known fields, except those that exist only to be refused."""
    fields = [name for name, known in model.model_fields.items() if known.annotation is not type(None)]
    return FieldError(field=echo(field), got=echo(got), allowed=f"only known fields ({', '.join(fields)})")


def _invalid_field_error(field: str, got: object, model: type[BaseModel]) -> FieldError:
    """Return the error of a known field. Its allowed values are the beginning of the field's description."""
    allowed, *_ = _CLAUSE_END.split(model.model_fields[field].description or "")
    assert allowed, f"{model.__name__}.{field}: its description must begin with the allowed values"
    return FieldError(field=field, got=echo(got), allowed=allowed)


async def read_body(request: Request, max_bytes: int, count: Callable[[int], None] | None = None) -> bytes:
    """Return the bytes of the body.

    Args:
        request: The request.
        max_bytes: The maximum size of the body.
        count: Called with the size in bytes of each piece that arrives. May raise an error to refuse the body.

    Raises ApiError with status 400 if the body is incomplete, 413 if it is too large, and 415 if it is compressed.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        error = FieldError(field="content-encoding", got=echo(encoding), allowed="identity: an uncompressed body")
        raise ApiError(415, "compressed bodies are not supported; send the body uncompressed", [error])
    too_large = ApiError(
        413,
        f"the body is too large; allowed: at most {max_bytes} bytes",
        [FieldError(field="body", got=None, allowed=f"at most {max_bytes} bytes")],
        {"Connection": "close"},
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    content = bytearray()
    try:
        async for chunk in request.stream():
            if count:
                count(len(chunk))
            content += chunk
            if len(content) > max_bytes:
                raise too_large
    except ClientDisconnect as error:
        raise ApiError(400, "the client disconnected before its request was complete") from error
    return bytes(content)


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object from its keys and values. Raises ApiError with status 422 if a key is repeated."""
    value: dict[str, Any] = {}
    for key, content in pairs:
        if key in value:
            error = FieldError(field=echo(key), got="two values", allowed="one value")
            raise ApiError(422, f"{echo(key)!r} is given twice; send it once", [error])
        value[key] = content
    return value


def _integer_of(digits: str) -> int | Decimal:
    """Convert a JSON integer. With too many digits, it becomes a Decimal: that is fast, and no field accepts it."""
    return int(digits) if len(digits.lstrip("-")) <= INTEGER_DIGITS else Decimal(digits)
