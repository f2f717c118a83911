"""What is refused, before any dialect words it: the status, the words, and the fields that were wrong."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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

_SHOWN_CHARACTERS = 100
_STORE_RETRY_S = 5


class FieldError(BaseModel):
    """One field that was wrong."""

    field: str = Field(description="Name of the field, or `body`.")
    got: Any = Field(description="What came, shortened where it is long; `nothing` where the field is missing.")
    allowed: str = Field(description="What would have been accepted.")

    @property
    def sentence(self) -> str:
        """All three."""
        return f"{self.field}: got {self.got!r}; allowed: {self.allowed}"


class ApiError(Exception):
    """A request that is refused, or failed. `error` is this project's own that it comes of, if it comes of one."""

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
    def of_fields(cls, status: int, errors: Sequence[FieldError]) -> "ApiError":
        """For these fields alone, each in its sentence."""
        return cls(status, "; ".join(error.sentence for error in errors), errors)

    @classmethod
    def of(cls, error: Sd35Error) -> "ApiError":
        """What one of this project's errors is over HTTP."""
        errors = []
        headers = {}
        match error:
            case InvalidRequest() | UntrustedRequest():
                errors = [FieldError(field=error.field, got=shown(error.got), allowed=error.allowed)]
            case UnknownModel():
                errors = [FieldError(field="model", got=shown(error.name), allowed=", ".join(error.served))]
            case Overloaded() | TooMany() | NotReady():
                headers = {"Retry-After": str(math.ceil(error.retry_after_s))}
            case StoreUnavailable():
                headers = {"Retry-After": str(_STORE_RETRY_S)}
        return cls(error.status, str(error), errors, headers, error)


class ErrorFormat(NamedTuple):
    """How a dialect words refusals: the status and the JSON object of one, by the request's id, and its description.

    `challenge` is how a 401 says that a key may come.
    """

    words: Callable[[ApiError, str], tuple[int, dict[str, Any]]]
    model: type[BaseModel]
    media_type: str = "application/json"
    challenge: str = "Bearer"

    def response(self, refused: ApiError, request_id: str) -> Response:
        """A refusal as a response. ASCII, so that not even a lone surrogate in what came can break it."""
        status, content = self.words(refused, request_id)
        headers = refused.headers | ({"WWW-Authenticate": self.challenge} if status == 401 else {})
        return Response(json.dumps(content, allow_nan=False), status, headers, self.media_type)

    def documented(self, description: str, **headers: str) -> dict[str, Any]:
        """A refusal as a response in the OpenAPI page; `headers` are names and descriptions."""
        return {
            "description": description,
            "content": {self.media_type: {"schema": _inlined(self.model.model_json_schema())}},
            "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()},
        }


def noted(request: Request, error: Sd35Error) -> ApiError:
    """What an error is over HTTP, counted, and where an image failed, logged: also where an answer has begun."""
    if isinstance(error, GenerationFailed):
        structlog.get_logger().error("image failed", exc_info=error)
    request.app.state.telemetry.metrics.error_returned(error)
    return ApiError.of(error)


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


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without references, which would point nowhere on the page."""
    definitions = schema.pop("$defs", {})

    def inline(part: Any) -> Any:  # noqa: ANN401  any JSON value
        if isinstance(part, list):
            return [inline(each) for each in part]
        if not isinstance(part, dict):
            return part
        if reference := part.get("$ref"):
            return inline(definitions[reference.rpartition("/")[2]])
        return {name: inline(value) for name, value in part.items()}

    inlined: dict[str, Any] = inline(schema)
    return inlined
