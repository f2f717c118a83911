"""Errors as `application/problem+json` (RFC 9457): what was wrong, in which field, and what is allowed."""

import json
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import Response

from sd35.errors import (
    InvalidRequest,
    NotAuthenticated,
    NotReady,
    Overloaded,
    Sd35Error,
    StoreUnavailable,
    TooMany,
    UnknownModel,
)

MEDIA_TYPE = "application/problem+json"
_SHOWN_CHARACTERS = 100
_STORE_RETRY_S = 5


class FieldError(BaseModel):
    """One field that was wrong."""

    field: str = Field(description="Name of the field, or `body`.")
    got: Any = Field(description="What came, shortened where it is long; `nothing` where the field is missing.")
    allowed: str = Field(description="What would have been accepted.")


class Problem(BaseModel):
    """A problem as of RFC 9457."""

    type: str = "about:blank"
    title: str = Field(description="The status in words.")
    status: int
    detail: str = Field(description="What went wrong, and what to do.")
    errors: list[FieldError] = Field(default=[], description="The fields that were wrong; left out where none was.")
    request_id: str = Field(default="", description="Also in the header `X-Request-Id` and in the server's log.")

    @classmethod
    def of(cls, status: int, detail: str) -> "Problem":
        """One without fields, of a status and the words."""
        return cls(title=HTTPStatus(status).phrase, status=status, detail=detail)


def documented(description: str, **headers: str) -> dict[str, Any]:
    """A problem as a response in the OpenAPI page; `headers` are names and descriptions."""
    schema = Problem.model_json_schema()
    schema["properties"]["errors"]["items"] = schema.pop("$defs")["FieldError"]  # a reference would point nowhere
    return {
        "description": description,
        "content": {MEDIA_TYPE: {"schema": schema}},
        "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()},
    }


class RequestRefused(Exception):  # noqa: N818
    """A request that was refused before it could be understood as one for a picture."""

    def __init__(
        self, status: int, detail: str, errors: Sequence[FieldError] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, errors, dict(headers or {})


def problem_response(
    status: int,
    detail: str,
    request_id: str,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem as a response. ASCII, so that not even a lone surrogate in what came can break it."""
    problem: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if errors:
        problem["errors"] = [error.model_dump() for error in errors]
    problem["request_id"] = request_id
    return Response(json.dumps(problem, allow_nan=False), status, headers, MEDIA_TYPE)


def problem_of(error: Sd35Error, request_id: str) -> Response:
    """The response for one of this project's errors."""
    fields = []
    headers = {}
    match error:
        case InvalidRequest():
            fields = [FieldError(field=error.field, got=shown(error.got), allowed=error.allowed)]
        case UnknownModel():
            fields = [FieldError(field="model", got=shown(error.name), allowed=", ".join(error.served))]
        case NotAuthenticated():
            headers = {"WWW-Authenticate": "Bearer"}
        case Overloaded() | TooMany() | NotReady():
            headers = {"Retry-After": str(math.ceil(error.retry_after_s))}
        case StoreUnavailable():
            headers = {"Retry-After": str(_STORE_RETRY_S)}
    return problem_response(error.status, str(error), request_id, fields, headers)


def shown(value: object) -> Any:  # noqa: ANN401  any JSON value
    """What came, fit to be sent back: short JSON scalars as they are, the rest as shortened text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**53:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str):
        text = value
    elif isinstance(value, list | dict):
        text = f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    elif isinstance(value, int):
        text = f"an integer of {value.bit_length()} bits"
    else:
        text = str(value)
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[: _SHOWN_CHARACTERS - 40]}… ({len(text)} characters)"
