"""Nothing that stands in an address is passed over: what a route does not know is refused by name."""

from fastapi import Request
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Query
from fastapi.routing import APIRoute

from sd35.api.auth import has_link
from sd35.api.refusals import ApiError, FieldError, shown

_NAMED = 10  # more are not named


async def refuse_unknown(request: Request) -> None:
    """A dependency of routes. Of signed links, the signature itself says whether they are as they were written.

    Raises ApiError (422).
    """
    if not request.query_params or has_link(request.scope):
        return
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    known = [each.alias for each in get_flat_params(route.dependant) if isinstance(each.field_info, Query)]
    unknown = [(name, value) for name, value in request.query_params.multi_items() if name not in known]
    if not unknown:
        return
    allowed = f"only {', '.join(known)}" if known else "none in the address; fields belong in the body"
    wrong = [FieldError(field=shown(name), got=shown(value), allowed=allowed) for name, value in unknown[:_NAMED]]
    raise ApiError.of_fields(422, wrong)
