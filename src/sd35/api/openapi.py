"""The OpenAPI description, with what holds for every route: the API key, and the answers of the middleware."""

from typing import Any

from fastapi import FastAPI

from sd35.api.auth import is_open
from sd35.api.dialects import wording_at
from sd35.api.refusals import ApiError, ErrorFormat

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, `sd35_...`, where there are any."},
    "basic": {"type": "http", "scheme": "basic", "description": "The same as the password; the user's name is free."},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "The same, for clients without."},
}


def describe(app: FastAPI) -> None:
    """Have the app's description say what its gate does."""
    plain = app.openapi

    def with_gate() -> dict[str, Any]:
        if not app.openapi_schema:
            page = plain()
            page.setdefault("components", {})["securitySchemes"] = _SCHEMES
            for path, operations in page["paths"].items():
                for operation in [] if is_open(path) else operations.values():
                    _add_gate(operation, wording_at(path))
            app.openapi_schema = page
        return app.openapi_schema

    app.openapi = with_gate  # type: ignore[method-assign]  # as FastAPI documents it


def _add_gate(operation: dict[str, Any], wording: ErrorFormat) -> None:
    operation["security"] = [{name: []} for name in _SCHEMES]
    documented = wording.documented
    answers = {
        "401": documented("No API key came, or none that is valid.", **{"WWW-Authenticate": "`Bearer`, or `Basic`."}),
        "403": documented("Without API keys: a `Host` that is not allowed, or a web page of another origin asks."),
        "503": documented("The store of keys does not answer.", **{"Retry-After": "Seconds."}),
    }
    if "requestBody" in operation:
        answers["408"] = documented("The body did not arrive in time.")
    responses = operation["responses"] = answers | operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):  # FastAPI's own words, in which nothing is worded here
        del responses["422"]
    status, _ = wording.words(ApiError(422, ""), "")
    responses.setdefault(str(status), documented("A parameter of the address or a header is wrong; each is named."))
