"""API errors, and the formats of their responses.

A dialect is an API for images: this project's own, or an API in the form of another service, such as OpenAI's. Each has
an `ErrorFormat`. The errors of this project's own dialect, and of routes outside the dialects, are problem documents
(RFC 9457).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias

import structlog
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from sd35.errors import (
    GenerationFailed,
    InvalidRequest,
    NotReady,
    Overloaded,
    Sd35Error,
    StoreUnavailable,
    TooMany,
    UnknownModel,
    UntrustedRequest,
)

Responses: TypeAlias = dict[int | str, dict[str, Any]]
"""Descriptions of responses by status, as in FastAPI's `responses`."""
RETRY_AFTER = "The number of seconds to wait before trying again."
_MAX_ECHO_CHARACTERS = 100
_ECHO_SUFFIX_CHARACTERS = 40  # room for "... (N characters)" after a value that is cut off
_STORE_RETRY_S = 5


class FieldError(BaseModel):
    """An invalid field: its name, the value received, and the allowed values."""

    field: str = Field(description="The name of the field, query parameter or header, or `body` for the whole body.")
    got: Any = Field(description="The value received, shortened if it is long. `nothing` if the field is missing.")
    allowed: str = Field(description="The allowed values, in words.")

    @property
    def sentence(self) -> str:
        """The error as one sentence."""
        return f"{self.field}: got {self.got!r}; allowed: {self.allowed}"


class ApiError(Exception):
    """An error that is sent to the client.

    Attributes:
        status: The HTTP status. The error format of a dialect may replace it.
        detail: What went wrong, and what to do.
        errors: The invalid fields.
        headers: Headers of the response.
        error: The `Sd35Error` that caused it, if any.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        error: Sd35Error | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, errors, dict(headers or {})
        self.error = error

    @classmethod
    def from_fields(cls, status: int, errors: Sequence[FieldError]) -> "ApiError":
        """Build the error of several invalid fields. Its detail has one sentence for each field."""
        return cls(status, "; ".join(error.sentence for error in errors), errors)

    @classmethod
    def from_field(cls, status: int, field: str, got: object, allowed: str) -> "ApiError":
        """Build the error of one invalid field."""
        return cls.from_fields(status, [FieldError(field=echo(field), got=echo(got), allowed=allowed)])

    @classmethod
    def from_error(cls, error: Sd35Error) -> "ApiError":
        """Build the error that reports an `Sd35Error` to the client."""
        errors = []
        headers = {}
        match error:
            case InvalidRequest() | UntrustedRequest():
                errors = [FieldError(field=error.field, got=echo(error.got), allowed=error.allowed)]
            case UnknownModel():
                errors = [FieldError(field="model", got=echo(error.name), allowed=", ".join(error.served))]
            case Overloaded() | TooMany() | NotReady():
                headers = {"Retry-After": str(math.ceil(error.retry_after_s))}
            case StoreUnavailable():
                headers = {"Retry-After": str(_STORE_RETRY_S)}
        return cls(error.status, str(error), errors, headers, error)


class ErrorFormat(NamedTuple):
    """The error format of a dialect.

    Attributes:
        render: Returns the status and the JSON object of a response. Its arguments are the error and the request's id.
        model: Describes the JSON object.
        media_type: The media type of error responses.
        challenge: The header `WWW-Authenticate` of a response with status 401.
    """

    render: Callable[[ApiError, str], tuple[int, dict[str, Any]]]
    model: type[BaseModel]
    media_type: str = "application/json"
    challenge: str = "Bearer"

    def response(self, error: ApiError, request_id: str) -> Response:
        """Build the response of an error."""
        status, content = self.render(error, request_id)
        headers = error.headers | ({"WWW-Authenticate": self.challenge} if status == 401 else {})
        # `json.dumps` writes ASCII, so lone surrogates that the error repeats from the request can be encoded.
        return Response(json.dumps(content, allow_nan=False), status, headers, self.media_type)

    def documented(self, description: str, **headers: str) -> dict[str, Any]:
        """Describe an error response in OpenAPI. `headers` maps names to descriptions."""
        return {
            "description": description,
            "content": {self.media_type: {"schema": _inline_references(self.model.model_json_schema())}},
            "headers": openapi_headers(headers),
        }

    @property
    def unavailable(self) -> Responses:
        """The description of the 503 response. All routes that need the service have it."""
        description = "The service is loading or closing, its engine has failed, or a store does not answer."
        return {503: self.documented(description, **{"Retry-After": RETRY_AFTER})}


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = Field(default="about:blank", description="Always `about:blank`: `status` is the kind of problem.")
    title: str = Field(description="The name of the status, such as `Not Found`.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What went wrong, and what to do.")
    errors: list[FieldError] = Field(default=[], description="The invalid fields. Omitted if no field is invalid.")
    request_id: str = Field(
        default="", description="The id of the request, as in the header `X-Request-Id` and in the server's log."
    )

    @classmethod
    def of(cls, status: int, detail: str) -> "Problem":
        """Build a problem document without invalid fields."""
        return cls(title=HTTPStatus(status).phrase, status=status, detail=detail)


def _render_problem(error: ApiError, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return the status and the problem document of an error. See `ErrorFormat.render`."""
    problem = Problem.of(error.status, error.detail).model_dump(exclude={"errors", "request_id"})
    if error.errors:
        problem["errors"] = [field.model_dump() for field in error.errors]
    return error.status, {**problem, "request_id": request_id}


def report_error(request: Request, error: Sd35Error) -> ApiError:
    """Count an error in the metrics, and return the error for the client. A GenerationFailed is also logged."""
    if isinstance(error, GenerationFailed):
        structlog.get_logger().error("image failed", exc_info=error)
    request.app.state.telemetry.metrics.error_returned(error)
    return ApiError.from_error(error)


def echo(value: object) -> Any:  # noqa: ANN401  any JSON value
    """Return a received value in a form that is safe to send back.

    Booleans, null, finite floats, short text and integers below 2^53 are returned unchanged, anything else as short
    text: "a list of length 3", "an integer of 80 bits", or the beginning of a long text.
    """
    # Booleans are integers. JavaScript rounds integers from 2^53 on.
    is_safe_integer = isinstance(value, int) and abs(value) < 2**53
    if value is None or is_safe_integer or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list):
        text = f"a list of length {len(value)}"
    elif isinstance(value, dict):
        text = f"an object of size {len(value)}"
    elif isinstance(value, int):
        text = f"an integer of {value.bit_length()} bits"
    else:
        text = str(value)
    if len(text) <= _MAX_ECHO_CHARACTERS:
        return text
    return f"{text[: _MAX_ECHO_CHARACTERS - _ECHO_SUFFIX_CHARACTERS]}… ({len(text)} characters)"


def openapi_headers(descriptions: Mapping[str, str]) -> dict[str, Any]:
    """Describe response headers in OpenAPI."""
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in descriptions.items()}


def _inline_references(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON schema with the definitions in place of the references to them.

    The schema becomes a part of the OpenAPI description. References start at the description's root, which does not
    contain the definitions.
    """
    definitions = schema.pop("$defs", {})

    def inline(part: Any) -> Any:  # noqa: ANN401  any JSON value
        """Return a part of the schema without references."""
        if isinstance(part, list):
            return [inline(item) for item in part]
        if not isinstance(part, dict):
            return part
        if reference := part.get("$ref"):
            return inline(definitions[reference.rpartition("/")[2]])
        return {name: inline(value) for name, value in part.items()}

    inlined: dict[str, Any] = inline(schema)
    return inlined


PROBLEM = ErrorFormat(_render_problem, Problem, "application/problem+json")
documented = PROBLEM.documented
