"""Problem documents (RFC 9457): the error format of this project's own routes."""

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, Field

from sd35.api.errors import ApiError, ErrorFormat, FieldError

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = "about:blank"
    title: str = Field(description="The status in words.")
    status: int
    detail: str = Field(description="What went wrong, and what to do.")
    errors: list[FieldError] = Field(default=[], description="The invalid fields. Omitted if there are none.")
    request_id: str = Field(default="", description="Also in the header `X-Request-Id` and in the server's log.")

    @classmethod
    def of(cls, status: int, detail: str) -> "Problem":
        """Build a problem without fields from a status and its detail."""
        return cls(title=HTTPStatus(status).phrase, status=status, detail=detail)


def _render(error: ApiError, request_id: str) -> tuple[int, dict[str, Any]]:
    problem = Problem.of(error.status, error.detail).model_dump(exclude={"errors", "request_id"})
    if error.errors:
        problem["errors"] = [field.model_dump() for field in error.errors]
    return error.status, {**problem, "request_id": request_id}


PROBLEM = ErrorFormat(_render, Problem, MEDIA_TYPE)
documented = PROBLEM.documented
UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: documented("The service is loading or closing, or a store does not answer.", **{"Retry-After": "Seconds."})
}
