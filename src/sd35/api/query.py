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

    Raises ApiError with status 422 and a FieldError for each of the first `_MAX_NAMED` unknown parameters.
    """
    if not request.query_params or has_link(request.scope):
        return
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    parameters = get_flat_params(route.dependant)  # also headers and the parts of the path
    known = [parameter.alias for parameter in parameters if isinstance(parameter.field_info, Query)]
    unknown = [(name, value) for name, value in request.query_params.multi_items() if name not in known]
    if not unknown:
        return
    if known:
        allowed = f"only known parameters ({', '.join(known)})"
    else:
        allowed = "no query parameters" + ("; send fields in the body" if request.method == "POST" else "")
    errors = [FieldError(field=echo(name), got=echo(value), allowed=allowed) for name, value in unknown[:_MAX_NAMED]]
    raise ApiError.from_fields(422, errors)
