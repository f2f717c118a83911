"""Parts of the OpenAPI description that all routes share: API keys, and the errors of the middleware."""

from typing import Any

from fastapi import FastAPI

from sd35.api.auth import is_open
from sd35.api.dialects import error_format_at
from sd35.api.errors import RETRY_AFTER, ApiError, ErrorFormat

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, `sd35_...`, if the service has keys."},
    "basic": {"type": "http", "scheme": "basic", "description": "An API key as the password, with any user name."},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "An API key in a header."},
}


def describe_middleware(app: FastAPI) -> None:
    """Add API keys, and the errors of the middleware, to the app's OpenAPI description."""
    generate_schema = app.openapi

    def openapi() -> dict[str, Any]:
        """Return the OpenAPI description with the additions. It is generated at the first call."""
        if not app.openapi_schema:
            schema = generate_schema()
            schema.setdefault("components", {})["securitySchemes"] = _SCHEMES
            for path, operations in schema["paths"].items():
                if not is_open(path):
                    for operation in operations.values():
                        _describe_operation(operation, error_format_at(path))
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents it


def _describe_operation(operation: dict[str, Any], error_format: ErrorFormat) -> None:
    """Add API keys, and the errors of the middleware in the format `error_format`, to the description of one route."""
    operation["security"] = [{name: []} for name in _SCHEMES]
    documented = error_format.documented
    errors = {
        "401": documented("The API key is missing or invalid.", **{"WWW-Authenticate": "How to send an API key."}),
        "403": documented("`Host`, or the origin of a web page that sent the request, is not allowed."),
        "503": documented("The store of API keys does not answer.", **{"Retry-After": RETRY_AFTER}),
    }
    if "requestBody" in operation:
        errors["408"] = documented("The body did not arrive within the time of the setting `body_timeout_s`.")
    responses = operation["responses"] = errors | operation["responses"]  # the route's own descriptions take precedence
    if "HTTPValidationError" in str(responses.get("422")):  # FastAPI's format, which this app does not use
        del responses["422"]
    status, _ = error_format.render(ApiError(422, ""), "")  # a dialect may use another status, such as 400
    responses.setdefault(str(status), documented("A query parameter or a header is invalid. The error names it."))
