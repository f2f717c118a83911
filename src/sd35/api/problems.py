"""Refusals as `application/problem+json` (RFC 9457): what was wrong, in which field, and what is allowed."""

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, Field

from sd35.api.refusals import ApiError, ErrorFormat, FieldError

MEDIA_TYPE = "application/problem+json"


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


def _words(refused: ApiError, request_id: str) -> tuple[int, dict[str, Any]]:
    problem = Problem.of(refused.status, refused.detail).model_dump(exclude={"errors", "request_id"})
    if refused.errors:
        problem["errors"] = [error.model_dump() for error in refused.errors]
    return refused.status, {**problem, "request_id": request_id}


PROBLEM = ErrorFormat(_words, Problem, MEDIA_TYPE)
documented = PROBLEM.documented
