"""docs/reference/http-api.md, from the API's OpenAPI description."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from docs_generator.json_schema import body_table, default_of, object_table, references_in, type_of, with_enumerations
from docs_generator.markdown import anchor, code, default_in_words, document, sentence, table
from sd35.api.app import create_app
from sd35.api.dialects import DIALECTS
from sd35.api.errors import PROBLEM
from sd35.service.lifecycle import ServiceLifecycle
from sd35.settings import Settings

_TITLES = {
    "images": "Images",
    "jobs": "Jobs",
    "service": "Service",
    "OpenAI's API": "OpenAI's API",
    "AUTOMATIC1111's API": "AUTOMATIC1111's API",
    "Stability's API": "Stability's API",
}
_COMMON_SHARE = 0.4  # of the routes: a response of more of them is described once
_MAX_LISTED_HEADERS = 3
_INTRODUCTION = """
The server describes this API itself: `/docs` is a page to try it, and `/openapi.json` the OpenAPI description. To use a
client that you already have, see [Clients](../guide/clients.md).

- Bodies are JSON in UTF-8, except Stability's, which are forms. Unknown fields are refused, except AUTOMATIC1111's.
- If the service has API keys, each route needs one, except `/healthz`, `/readyz`, `/docs`, `/openapi.json` and signed
  links. Send it as `Authorization: Bearer sd35_...`, as `X-Api-Key: sd35_...`, or as the password of HTTP Basic.
- `Idempotency-Key` names a call that generates images. Sent again with the same body, the call returns the same images
  instead of generating others.
- A response with a status of 400 or more has an [error](#errors) as its body. Routes share [some of these
  responses](#responses-of-most-routes).
- `X-Request-Id` in each response is the request's id in the server's log.
"""


class Operation(NamedTuple):
    """A method of a path, and its description."""

    method: str
    path: str
    description: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The method and the path."""
        return f"{self.method} {self.path}"

    @property
    def body_type(self) -> str | None:
        """The media type of the body, if there is one."""
        return next(iter(self.description.get("requestBody", {}).get("content", {})), None)

    @property
    def body_schema(self) -> Mapping[str, Any]:
        """The schema of the body; empty without one."""
        schema: Mapping[str, Any] = {}
        if media_type := self.body_type:
            schema = self.description["requestBody"]["content"][media_type]["schema"]
        return schema

    @property
    def fields(self) -> Mapping[str, Any]:
        """The schemas of the body's fields."""
        fields: Mapping[str, Any] = self.body_schema.get("properties", {})
        return fields


class Common(NamedTuple):
    """What most routes share: responses as (status, description), and the descriptions of headers by name."""

    responses: set[tuple[str, str]]
    headers: dict[str, str]


def page() -> str:
    """Return the page."""
    api = openapi()
    schemas = api["components"]["schemas"]
    operations = [
        Operation(method.upper(), path, each)
        for tag in _TITLES
        for path, methods in api["paths"].items()
        for method, each in methods.items()
        if each["tags"] == [tag]
    ]
    common = _common(operations)
    sections: list[str] = []
    for tag, title in _TITLES.items():
        tagged = [each for each in operations if each.description["tags"] == [tag]]
        sections += [f"## {title}", _overview(tagged, common)]
        for each in tagged:
            if _has_section(each, common):
                sections.append(_section(each, _with_same_fields(each, operations), common))
    return document(
        "HTTP API",
        "the OpenAPI description of src/sd35/api",
        _INTRODUCTION,
        *sections,
        "## Responses of most routes",
        table(["Status", "Meaning"], sorted(common.responses)),
        "## Headers of responses",
        table(["Header", "Meaning"], ([code(name), text] for name, text in common.headers.items())),
        "## Errors",
        *_errors(schemas),
        "## Objects",
        *_objects(operations, schemas),
    )


def openapi() -> dict[str, Any]:
    """Return the OpenAPI description of an app that never starts."""

    def never() -> Any:  # noqa: ANN401
        raise AssertionError

    settings = Settings.model_construct()  # the defaults, whatever the environment says
    api: dict[str, Any] = create_app(ServiceLifecycle(never, never, print), settings).openapi()
    return with_enumerations(api)


def _common(operations: list[Operation]) -> Common:
    """Find the responses that most routes share, and the headers of all."""
    counts: Counter[tuple[str, str]] = Counter()
    headers: dict[str, str] = {}
    for each in operations:
        for status, response in each.description["responses"].items():
            counts[status, response["description"]] += 1
            headers |= {name: header["description"] for name, header in response.get("headers", {}).items()}
    frequent = {key for key, count in counts.items() if count > _COMMON_SHARE * len(operations)}
    return Common({(status, text) for status, text in frequent if not status.startswith("2")}, headers)


def _overview(operations: list[Operation], common: Common) -> str:
    """Return a table of routes. Those without a section of their own have their description in it."""
    rows = []
    for each in operations:
        text = sentence(each.description["summary"])
        if not _has_section(each, common):
            text = f"{text} {each.description.get('description', '')}"
        rows.append([code(f"{each.method} {each.path}"), text])
    return table(["Route", "Purpose"], rows)


def _has_section(operation: Operation, common: Common) -> bool:
    """Return whether there is more to say of a route than that it answers."""
    description = operation.description
    rows = _response_rows(description["responses"], common)
    return "parameters" in description or "requestBody" in description or len(rows) > 1 or "[" in rows[0][2]


def _with_same_fields(operation: Operation, operations: list[Operation]) -> Operation | None:
    """Return the first route before this one whose body has some of its fields, and no others."""
    before = operations[: operations.index(operation)]
    return next((each for each in before if each.fields and each.fields.items() <= operation.fields.items()), None)


def _section(operation: Operation, same: Operation | None, common: Common) -> str:
    description = operation.description
    parts = [f"### {operation.title}", description.get("description", ""), _parameters(description)]
    if media_type := operation.body_type:
        fields = operation.fields
        parts.append(f"Body, {code(media_type)}:")
        if same:
            parts.append(f"All fields of [{same.title}](#{anchor(same.title)}), and these:")
            fields = {name: field for name, field in fields.items() if name not in same.fields}
        else:
            parts += _examples(description["requestBody"]["content"][media_type])
        parts.append(body_table({**operation.body_schema, "properties": fields}))
    rows = _response_rows(description["responses"], common)
    parts += ["Responses:", table(["Status", "Meaning", "Body", "Headers"], rows)]
    return "\n\n".join(part for part in parts if part)


def _parameters(description: Mapping[str, Any]) -> str:
    rows = []
    for each in description.get("parameters", ()):
        schema = each["schema"]
        options = [option for option in schema.get("anyOf", [schema]) if option != {"type": "null"}]
        default, meaning = default_in_words(each.get("description", ""))
        default = "required" if each.get("required") else default_of(each["name"], schema, {}) or default
        rows.append([code(each["name"]), each["in"], " or ".join(map(type_of, options)), default, meaning])
    return table(["Parameter", "In", "Allowed", "Default", "Meaning"], rows) if rows else ""


def _examples(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the last example of a body, which has the most fields."""
    if examples := list(content.get("examples", {}).values()):
        yield f"```json\n{json.dumps(examples[-1]['value'], indent=2)}\n```"


def _response_rows(responses: Mapping[str, Any], common: Common) -> list[list[str]]:
    rows = []
    for status, response in sorted(responses.items()):
        if (status, response["description"]) not in common.responses:
            names = list(response.get("headers", {}))
            headers = ", ".join(map(code, names))
            if len(names) > _MAX_LISTED_HEADERS:
                headers = "[headers of an image](#headers-of-responses)"
            rows.append([status, _meaning(response), _content(status, response), headers])
    return rows


def _meaning(response: Mapping[str, Any]) -> str:
    return "Success." if response["description"] == "Successful Response" else response["description"]


def _content(status: str, response: Mapping[str, Any]) -> str:
    """Return the media types of a successful response, or the objects of its JSON."""
    types = []
    for media_type, content in response.get("content", {}).items() if status.startswith("2") else ():
        schema = content.get("schema", {})
        is_object = media_type == "application/json" and any(references_in(schema))
        types.append(type_of(schema) if is_object else code(media_type))
    return ", ".join(types)


def _errors(schemas: Mapping[str, Any]) -> Iterator[str]:
    """Yield the error format of each dialect."""
    yield f"Routes of this project have a [Problem](#problem), {code(PROBLEM.media_type)}. Others have these objects."
    for dialect in DIALECTS:
        if dialect.error_format is not PROBLEM:
            schema = dialect.error_format.model.model_json_schema()
            yield f"### Errors under `{dialect.prefixes[0]}`"
            yield sentence(schema["description"])
            yield object_table(schema)
            for name, part in schema.get("$defs", {}).items():
                assert name not in schemas, f"two objects are named {name}"
                yield f"### {name}"
                yield part["description"]
                yield object_table(part)


def _objects(operations: list[Operation], schemas: Mapping[str, Any]) -> Iterator[str]:
    """Yield a section for each object that a successful response has, and for the objects in it."""
    names: dict[str, None] = {}
    found = [
        name
        for each in operations
        for status, response in each.description["responses"].items()
        if status.startswith("2")
        for name in references_in(response)
    ]
    while found:
        name = found.pop(0)
        if name not in names:
            names[name] = None
            found += references_in(schemas[name])
    for name in names:
        schema = schemas[name]
        yield f"### {name}"
        yield schema.get("description", "")
        yield object_table(schema)
