"""The error format of OpenAI's API.

Source: OpenAI's API reference and Python client.
"""

from typing import Any

from pydantic import BaseModel, Field

from sd35.api.errors import ApiError, ErrorFormat, FieldError
from sd35.errors import ContentRefused, UnknownModel

_KINDS = {401: ("authentication_error", "invalid_api_key"), 429: ("rate_limit_error", "rate_limit_exceeded")}
_PARAMS = {"width": "size", "height": "size", "steps": "num_inference_steps"}  # this project's names to OpenAI's


class Error(BaseModel):
    """An error in OpenAI's format."""

    message: str = Field(description="What went wrong, and what to do.")
    type: str = Field(description="The kind of error, such as `invalid_request_error`.")
    param: str | None = Field(description="The invalid field, else null.")
    code: str | None = Field(description="The reason, such as `unknown_parameter`, else null.")


class ErrorBody(BaseModel):
    """The body of an error response in OpenAI's format."""

    error: Error = Field(description="The error.")


def _error_code(field: FieldError | None) -> str | None:
    """Return OpenAI's error code for an invalid field, or None without a field."""
    if field is None:
        return None
    if (field.field, field.got) == ("prompt", "nothing"):  # the only required field
        return "missing_required_parameter"
    is_unknown = field.allowed.startswith("only ")  # as `sd35.api.body` and `sd35.api.query` describe unknown fields
    return "unknown_parameter" if is_unknown else "invalid_value"


def _render_error(error: ApiError, _: str) -> tuple[int, dict[str, Any]]:
    """Return OpenAI's status and JSON object of an error. See `ErrorFormat.render`."""
    status, kind, code = error.status, "invalid_request_error", None
    field = error.errors[0] if error.errors else None
    match error.error:
        case ContentRefused():
            status, kind, code = 400, "image_generation_user_error", "moderation_blocked"
        case UnknownModel():  # 400 as in OpenAI's API: clients would understand 404 as a missing route
            status, code = 400, "invalid_value"
        case _ if status == 422:
            status, code = 400, _error_code(field)
        case _ if status in _KINDS:
            kind, code = _KINDS[status]
        case _ if status >= 500:
            kind = "server_error"
    message, param = error.detail, field.field if field else None
    # An Sd35Error may name a field of this project, such as `width`. Other errors use the names of OpenAI's fields.
    if field and error.error and field.field in _PARAMS:
        param = _PARAMS[field.field]
        got = f"a {field.field} of {field.got}" if param == "size" else field.got
        message = f"{param}: got {got}; allowed: {field.allowed}"
    return status, {"error": Error(message=message, type=kind, param=param, code=code).model_dump()}


ERROR_FORMAT = ErrorFormat(_render_error, ErrorBody)
