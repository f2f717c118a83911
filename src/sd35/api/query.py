"""A check that refuses unknown query parameters instead of ignoring them."""

from fastapi import Request
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Query
from fastapi.routing import APIRoute

from sd35.api.auth import has_link
from sd35.api.errors import ApiError, FieldError, echo

_MAX_NAMED = 10  # unknown parameters that an error names


async def refuse_unknown_parameters(request: Request) -> None:
    """Refuse unknown query parameters. Use as a dependency of routes.

    The parameters of a signed link are not checked here, because its signature covers them.

    Raises ApiError with status 422 and a FieldError for each unknown parameter.
    """
    if not request.query_params or has_link(request.scope):
        return
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    known = [each.alias for each in get_flat_params(route.dependant) if isinstance(each.field_info, Query)]
    unknown = [(name, value) for name, value in request.query_params.multi_items() if name not in known]
    if not unknown:
        return
    allowed = f"only {', '.join(known)}" if known else "no query parameters; fields belong in the body"
    errors = [FieldError(field=echo(name), got=echo(value), allowed=allowed) for name, value in unknown[:_MAX_NAMED]]
    raise ApiError.from_fields(422, errors)
