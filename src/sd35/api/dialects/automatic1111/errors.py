"""The error format of AUTOMATIC1111's API, and errors that several of its routes share."""

from typing import Any

from pydantic import BaseModel, Field

from sd35.api.errors import ApiError, ErrorFormat, Responses

_NAMES = {"model": "sd_model_checkpoint", "guidance_scale": "cfg_scale"}  # this project's names to AUTOMATIC1111's


class ErrorBody(BaseModel):
    """An error in AUTOMATIC1111's format."""

    error: str = Field(description="The kind of error.")
    detail: str = Field(description="What went wrong, and what to do.")
    body: str = Field(default="", description="Always empty.")
    errors: str = Field(description="The invalid fields, each with the value received and the allowed values.")


def _render_error(error: ApiError, _: str) -> tuple[int, dict[str, Any]]:
    """Return AUTOMATIC1111's status and JSON object of an error. See `ErrorFormat.render`."""
    names = _NAMES if error.error else {}  # errors without an Sd35Error come from this dialect and use its names
    fields = [invalid.model_copy(update={"field": names.get(invalid.field, invalid.field)}) for invalid in error.errors]
    errors = "; ".join(invalid.sentence for invalid in fields)
    kind = type(error.error).__name__ if error.error else "HTTPException"
    return error.status, ErrorBody(error=kind, detail=error.detail, errors=errors).model_dump()


ERROR_FORMAT = ErrorFormat(_render_error, ErrorBody, challenge='Basic realm="sd35", Bearer')
documented = ERROR_FORMAT.documented
BODY_ERRORS: Responses = {
    400: documented("The body is not JSON."),
    413: documented("The body is too large."),
    415: documented("The `Content-Type` of the body is not `application/json`."),
    422: documented("A field is invalid. The error names each such field."),
}
MODEL_ERRORS: Responses = {404: documented("No model of that name is served. The error lists the served models.")}
