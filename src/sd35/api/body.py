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
_MAX_NAMED_FIELDS = 10  # unknown fields that an error names; the rest is counted
INTEGER_DIGITS = 1000  # longer integers are refused without converting them, which would take too long
_CLAUSE_END = re.compile(r"[:.](?: |$)")

Body = TypeVar("Body", bound=BaseModel)


def openapi_body(model: type[BaseModel], media_type: str = "application/json", **more: object) -> dict[str, Any]:
    """Describe a body for `openapi_extra`. FastAPI cannot describe it, because this module reads the bodies."""
    content = {media_type: {"schema": model.model_json_schema(), **more}}
    return {"requestBody": {"required": True, "content": content}}


async def allow_missing_content_type(request: Request) -> None:
    """Accept JSON bodies without a `Content-Type`. Use as a dependency of routers that imitate another service.

    Some clients of those services do not send the header, such as Dify's tool for AUTOMATIC1111. This project's own
    routes require it. Pages of other sites can send a body without the header, and without a CORS preflight request
    (`fetch` with a `Blob` without a type). Only the check of `Origin` keeps them out.
    """
    request.state.content_type_optional = True


async def read_json(request: Request, model: type[Body]) -> Body:
    """Read the body as `model`. Raises ApiError with status 400, 413, 415 or 422."""
    return parse_json(await read_unparsed_json(request, MAX_BODY_BYTES), model)


async def read_unparsed_json(request: Request, max_bytes: int, count: Callable[[int], None] | None = None) -> bytes:
    """Read a JSON body without parsing it, so that the caller can parse a large one later.

    For `count`, see `read_body`. Raises ApiError with status 400, 413 or 415.
    """
    content_type = request.headers.get("content-type", "").strip()
    media_type = content_type.partition(";")[0].strip().lower()
    is_missing = not content_type and getattr(request.state, "content_type_optional", False)
    if media_type != "application/json" and not is_missing:
        allowed = "application/json (with curl: -H 'content-type: application/json')"
        raise ApiError.from_field(415, "content-type", media_type, allowed)
    return await read_body(request, max_bytes, count)


async def read_object(request: Request) -> dict[str, Any]:
    """Read the body as a JSON object without checking its fields. Raises ApiError with status 400, 413, 415 or 422."""
    return parse_object(await read_unparsed_json(request, MAX_BODY_BYTES))


def parse_json(content: bytes, model: type[Body]) -> Body:
    """Parse a body as `model`. Raises ApiError with status 400 or 422."""
    return validate(parse_object(content), model)


def parse_object(content: bytes) -> dict[str, Any]:
    """Parse a JSON object in UTF-8.

    Raises ApiError with status 400 if it is not JSON, or 422 if it is not an object or repeats a key.
    """
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_int=_integer)
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply") from error
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        errors = [FieldError(field="body", got=echo(value), allowed="a JSON object")]
        raise ApiError(422, 'the body must be a JSON object, such as {"prompt": "a cat"}', errors)
    return value


def validate(value: Mapping[str, Any], model: type[Body]) -> Body:
    """Validate an object as `model`. Unknown fields are invalid, unless the model has `extra="ignore"`.

    Raises ApiError with status 422 and a FieldError for each invalid field.
    """
    # pydantic cannot report an unknown field whose name has a lone surrogate, so unknown fields are found here.
    known = {name: content for name, content in value.items() if name in model.model_fields}
    ignores = model.model_config.get("extra") == "ignore"
    unknown = [(name, content) for name, content in value.items() if name not in known and not ignores]
    errors = [_unknown(name, content, model) for name, content in unknown[:_MAX_NAMED_FIELDS]]
    if len(unknown) > _MAX_NAMED_FIELDS:
        errors.append(_unknown("body", f"{len(unknown) - _MAX_NAMED_FIELDS} more fields", model))
    try:
        body = model.model_validate(known, strict=True)
    except ValidationError as error:
        # A validator can put the invalid part of a value into the error's context as `got`.
        fields: dict[str, object] = {}
        for detail in error.errors():
            field = str(detail["loc"][0])
            fields.setdefault(field, detail.get("ctx", {}).get("got", known.get(field, "nothing")))
        errors += [_field_error(field, got, model) for field, got in fields.items()]
    if errors:
        raise ApiError.from_fields(422, errors)
    return body


def _unknown(field: str, got: object, model: type[BaseModel]) -> FieldError:
    fields = [name for name, known in model.model_fields.items() if known.annotation is not type(None)]
    return FieldError(field=echo(field), got=echo(got), allowed=f"only {', '.join(fields)}")


def _field_error(field: str, got: object, model: type[BaseModel]) -> FieldError:
    allowed, *_ = _CLAUSE_END.split(model.model_fields[field].description or "")
    assert allowed, f"{model.__name__}.{field}: its description must begin with the allowed values"
    return FieldError(field=field, got=echo(got), allowed=allowed)


async def read_body(request: Request, max_bytes: int, count: Callable[[int], None] | None = None) -> bytes:
    """Read the body unparsed.

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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, content in pairs:
        if key in value:
            error = FieldError(field=echo(key), got="two values", allowed="one value")
            raise ApiError(422, f"{echo(key)!r} is given twice", [error])
        value[key] = content
    return value


def _integer(digits: str) -> int | Decimal:
    """Convert an integer. One with too many digits becomes a Decimal, which is fast and which no field accepts."""
    return int(digits) if len(digits.lstrip("-")) <= INTEGER_DIGITS else Decimal(digits)
