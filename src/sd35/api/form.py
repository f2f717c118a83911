"""Reads a form of several parts strictly: bounded, each field once, texts of its model's types, no files."""

from typing import TypeVar

from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message

from sd35.api.body import read_body, validate
from sd35.api.refusals import FieldError, RequestRefused, shown

MAX_FORM_BYTES = 10 * 1024 * 1024
_MOST_PARTS = 50
_MEDIA_TYPE = "multipart/form-data"

Form = TypeVar("Form", bound=BaseModel)


async def read_form(request: Request, kind: type[Form]) -> Form:
    """The body as a model of `kind`. A file without content counts as not there.

    Raises RequestRefused: 400, 413, 415, or 422 with the fields that are wrong, of which a file with content is one.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != _MEDIA_TYPE:
        error = FieldError(field="content-type", got=shown(media_type), allowed=f"{_MEDIA_TYPE} (with curl: -F)")
        raise RequestRefused(415, f"content-type: got {error.got!r}; allowed: {error.allowed}", [error])
    content = await read_body(request, MAX_FORM_BYTES)

    async def again() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    fields: dict[str, str] = {}
    wrong: list[FieldError] = []
    try:
        whole = Request(request.scope, again)
        async with whole.form(max_files=_MOST_PARTS, max_fields=_MOST_PARTS, max_part_size=MAX_FORM_BYTES) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if value.size:
                        wrong.append(FieldError(field=shown(name), got=f"{value.size} bytes", allowed="no file"))
                elif name in fields:
                    wrong.append(FieldError(field=shown(name), got="given twice", allowed="each field once"))
                else:
                    fields[name] = value
    except (HTTPException, MultiPartException, UnicodeError) as error:
        words = error.detail if isinstance(error, HTTPException) else str(error)
        raise RequestRefused(400, f"the body is not a form that can be read: {words}") from error
    if wrong:
        raise RequestRefused(
            422, "; ".join(f"{each.field}: got {each.got}; allowed: {each.allowed}" for each in wrong), wrong
        )
    return validate(fields, kind, strict=False)
