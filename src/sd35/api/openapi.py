"""The API's description, with what holds for every route: its key, and the answers of the gate before it."""

from typing import Any

from fastapi import FastAPI

from sd35.api.callers import is_open
from sd35.api.dialects import wording_at
from sd35.api.refusals import Wording

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, `sd35_...`, where there are any."},
    "basic": {"type": "http", "scheme": "basic", "description": "The same as the password; the user's name is free."},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "The same, for clients without."},
}
_FASTAPIS_OWN = "HTTPValidationError"  # a form of refusals that nothing here is worded in


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


def _add_gate(operation: dict[str, Any], wording: Wording) -> None:
    operation["security"] = [{name: []} for name in _SCHEMES]
    documented = wording.documented
    answers = {
        "401": documented("No API key came, or none that is valid.", **{"WWW-Authenticate": "`Bearer`, or `Basic`."}),
        "503": documented("The store of keys does not answer.", **{"Retry-After": "Seconds."}),
    }
    if "requestBody" in operation:
        answers["408"] = documented("The body did not arrive in time.")
    operation["responses"] = answers | operation["responses"]
    if _FASTAPIS_OWN in str(operation["responses"].get("422", _FASTAPIS_OWN)):
        operation["responses"]["422"] = documented("A parameter of the address or a header is wrong; each is named.")
