"""Reads a JSON body strictly: bounded, one object, no key twice, each field of its type or refused by name."""

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from sd35.api.refusals import ApiError, FieldError, shown

MAX_BODY_BYTES = 1024 * 1024
_NAMED_FIELDS = 10  # unknown ones that an answer names; more are counted
INTEGER_DIGITS = 1000  # longer integers are not converted, because that takes too long; they are refused
_CLAUSE_END = re.compile(r"[:.](?: |$)")

Body = TypeVar("Body", bound=BaseModel)


def described(kind: type[BaseModel], media_type: str = "application/json", **more: object) -> dict[str, Any]:
    """A body in the OpenAPI page, for `openapi_extra`: bodies are read here, of which FastAPI knows nothing."""
    content = {media_type: {"schema": kind.model_json_schema(), **more}}
    return {"requestBody": {"required": True, "content": content}}


async def type_may_be_missing(request: Request) -> None:
    """Let a router's JSON bodies come without a `Content-Type`: a dependency of routers that imitate another service.

    Some clients of those services send none (Dify's tool for AUTOMATIC1111), and FastAPI reads their bodies as JSON.
    This project's own routes keep asking for the type. A page of another site can send such a body without a CORS
    preflight (`fetch` with a `Blob` that has no type), so it is the check of `Origin` that keeps other sites out.
    """
    request.state.type_may_be_missing = True


async def read_json(request: Request, kind: type[Body]) -> Body:
    """Read the body as a model of `kind`. Raises ApiError: 400, 413, 415 or 422."""
    return parse_json(await read_unparsed_json(request, MAX_BODY_BYTES), kind)


async def read_unparsed_json(request: Request, most_bytes: int, count: Callable[[int], None] | None = None) -> bytes:
    """Read a JSON body without parsing it, so that large ones can be parsed later. For `count` see `read_body`.

    Raises ApiError: 400, 413 or 415.
    """
    _check_type(request)
    return await read_body(request, most_bytes, count)


async def read_object(request: Request, most_bytes: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """Read the body as a JSON object whose fields are not checked. Raises ApiError: 400, 413, 415 or 422."""
    _check_type(request)
    return parse_object(await read_body(request, most_bytes))


def _check_type(request: Request) -> None:
    content_type = request.headers.get("content-type", "").strip()
    media_type = content_type.partition(";")[0].strip().lower()
    is_missing = not content_type and getattr(request.state, "type_may_be_missing", False)
    if media_type != "application/json" and not is_missing:
        allowed = "application/json (with curl: -H 'content-type: application/json')"
        error = FieldError(field="content-type", got=shown(media_type), allowed=allowed)
        raise ApiError.of_fields(415, [error])


def parse_json(content: bytes, kind: type[Body]) -> Body:
    """Parse a body as a model of `kind`. Raises ApiError: 400 or 422."""
    return validate(parse_object(content), kind)


def parse_object(content: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8. Raises ApiError: 400 for what is no JSON, 422 for no object or a key twice."""
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_int=_integer)
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply") from error
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        errors = [FieldError(field="body", got=shown(value), allowed="a JSON object")]
        raise ApiError(422, 'the body must be a JSON object, such as {"prompt": "a cat"}', errors)
    return value


def validate(value: Mapping[str, Any], kind: type[Body]) -> Body:
    """The object as a model of `kind`. Raises ApiError (422) with the fields that are wrong.

    A field that `kind` does not have is wrong, unless its model_config says `extra="ignore"`.
    """
    # Told apart here: to pydantic, a name that is no Unicode text (a lone surrogate) is a wrong value of no field.
    known = {name: content for name, content in value.items() if name in kind.model_fields}
    ignores = kind.model_config.get("extra") == "ignore"
    unknown = [(name, content) for name, content in value.items() if name not in known and not ignores]
    errors = [_unknown(name, content, kind) for name, content in unknown[:_NAMED_FIELDS]]
    if len(unknown) > _NAMED_FIELDS:
        errors.append(_unknown("body", f"{len(unknown) - _NAMED_FIELDS} more fields", kind))
    try:
        body = kind.model_validate(known, strict=True)
    except ValidationError as error:
        # A validator can say by `got` which part of a value is wrong.
        fields: dict[str, object] = {}
        for detail in error.errors():
            field = str(detail["loc"][0])
            fields.setdefault(field, detail.get("ctx", {}).get("got", known.get(field, "nothing")))
        errors += [_field_error(field, got, kind) for field, got in fields.items()]
    if errors:
        raise ApiError.of_fields(422, errors)
    return body


def _unknown(field: str, got: object, kind: type[BaseModel]) -> FieldError:
    fields = [name for name, known in kind.model_fields.items() if known.annotation is not type(None)]
    return FieldError(field=shown(field), got=shown(got), allowed=f"only {', '.join(fields)}")


def _field_error(field: str, got: object, kind: type[BaseModel]) -> FieldError:
    allowed, *_ = _CLAUSE_END.split(kind.model_fields[field].description or "")
    assert allowed, f"{kind.__name__}.{field}: its description must begin with what is allowed"
    return FieldError(field=field, got=shown(got), allowed=allowed)


async def read_body(request: Request, most_bytes: int, count: Callable[[int], None] | None = None) -> bytes:
    """The body as it came. `count` is called with the size of each piece, and may raise to refuse it.

    Raises ApiError: 413, 415 where it is compressed, 400 where it is not whole.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        error = FieldError(field="content-encoding", got=shown(encoding), allowed="identity: the body as it is")
        raise ApiError(415, "compressed bodies are not read", [error])
    too_large = ApiError(
        413,
        f"the body is larger than the {most_bytes} bytes that are allowed",
        [FieldError(field="body", got=None, allowed=f"at most {most_bytes} bytes")],
        {"Connection": "close"},
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most_bytes:
        raise too_large
    content = bytearray()
    try:
        async for chunk in request.stream():
            if count:
                count(len(chunk))
            content += chunk
            if len(content) > most_bytes:
                raise too_large
    except ClientDisconnect as error:
        raise ApiError(400, "the client went away before its request was whole") from error
    return bytes(content)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, content in pairs:
        if key in value:
            error = FieldError(field=shown(key), got="given twice", allowed="each field once")
            raise ApiError(422, f"{shown(key)!r} is given twice", [error])
        value[key] = content
    return value


def _integer(digits: str) -> int | Decimal:
    """A number no field allows is as good as the integer itself, and is read in no time."""
    return int(digits) if len(digits.lstrip("-")) <= INTEGER_DIGITS else Decimal(digits)
