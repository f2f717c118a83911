"""The API's description, with what holds for every route: its key, and the answers of the gate before it."""

from typing import Any

from fastapi import FastAPI

from sd35.api.callers import is_open
from sd35.api.problems import MEDIA_TYPE, documented

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, `sd35_...`, where there are any."},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "The same, for clients without."},
}
_ANSWERS = {
    "401": documented("No API key came, or none that is valid.", **{"WWW-Authenticate": "`Bearer`"}),
    "503": documented("The store of keys does not answer.", **{"Retry-After": "Seconds."}),
}
_WRONG = documented("A parameter of the address or a header is wrong; each is named.")
_TOO_SLOW = documented("The body did not arrive in time.")


def describe(app: FastAPI) -> None:
    """Have the app's description say what its gate does."""
    plain = app.openapi

    def with_gate() -> dict[str, Any]:
        if not app.openapi_schema:
            page = plain()
            page.setdefault("components", {})["securitySchemes"] = _SCHEMES
            for path, operations in page["paths"].items():
                for operation in [] if is_open(path) else operations.values():
                    _add_gate(operation)
            app.openapi_schema = page
        return app.openapi_schema

    app.openapi = with_gate  # type: ignore[method-assign]  # as FastAPI documents it


def _add_gate(operation: dict[str, Any]) -> None:
    operation["security"] = [{name: []} for name in _SCHEMES]
    answers = _ANSWERS | ({"408": _TOO_SLOW} if "requestBody" in operation else {})
    operation["responses"] = answers | operation["responses"]
    if MEDIA_TYPE not in operation["responses"].get("422", {}).get("content", {MEDIA_TYPE: None}):
        operation["responses"]["422"] = _WRONG  # in place of FastAPI's own form
