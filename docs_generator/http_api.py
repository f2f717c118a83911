"""Generate docs/reference/http-api.md from the API's OpenAPI description."""

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

_TAGS = ("images", "jobs", "service", "OpenAI's API", "AUTOMATIC1111's API", "Stability's API")  # a section each
_COMMON_SHARE = 0.4  # if more than this share of the routes have a response, the page lists it only once
_MAX_LISTED_HEADERS = 3  # only responses with an image have more
_INTRODUCTION = """
The server describes this API itself: `/docs` is a page to try it, and `/openapi.json` is the OpenAPI description. To
use an existing client, see [Clients](../guide/clients.md).

- Bodies of requests are JSON in UTF-8. Stability's API takes forms instead. Unknown fields are refused, except by
  AUTOMATIC1111's API.
- If the service has API keys, each route needs one, except `/healthz`, `/readyz`, `/docs`, `/openapi.json` and signed
  links. Send it as `Authorization: Bearer sd35_...`, as `X-Api-Key: sd35_...`, or as the password of HTTP Basic.
- `Idempotency-Key` is a name that you choose for a call that generates images. If you send the call again with the same
  key and body, the service returns the same images instead of generating others.
- A response with a status of 400 or more has an [error](#errors) as its body, except 416. Responses that many routes
  share are listed once, under [Common responses](#common-responses).
- `X-Request-Id` in each response is the id of the request in the server's log.
"""


class Operation(NamedTuple):
    """A route: a method, a path, and the part of the OpenAPI description about them."""

    method: str
    path: str
    description: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The method and the path, such as "POST /v1/txt2img"."""
        return f"{self.method} {self.path}"

    @property
    def body_type(self) -> str | None:
        """The media type of the request's body, or None without a body."""
        return next(iter(self.description.get("requestBody", {}).get("content", {})), None)

    @property
    def body_schema(self) -> Mapping[str, Any]:
        """The schema of the request's body. It is empty without a body."""
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
    """What the page lists once: responses of many routes, as (status, description), and all headers, by name."""

    responses: set[tuple[str, str]]
    headers: dict[str, str]


def page() -> str:
    """Return the page in Markdown."""
    api = openapi()
    schemas = api["components"]["schemas"]
    operations = [
        Operation(method.upper(), path, description)
        for tag in _TAGS
        for path, methods in api["paths"].items()
        for method, description in methods.items()
        if description["tags"] == [tag]
    ]
    common = _find_common(operations)
    sections: list[str] = []
    for tag in _TAGS:
        tagged = [operation for operation in operations if operation.description["tags"] == [tag]]
        sections += [f"## {tag[0].upper()}{tag[1:]}", _overview(tagged, common)]
        for operation in tagged:
            if _has_section(operation, common):
                sections.append(_section(operation, _with_same_fields(operation, operations), common))
    return document(
        "HTTP API",
        "the OpenAPI description of src/sd35/api",
        _INTRODUCTION,
        *sections,
        "## Common responses",
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
        raise AssertionError("the app must not start")

    settings = Settings.model_construct()  # the defaults, without reading the environment
    api: dict[str, Any] = create_app(ServiceLifecycle(never, never, print), settings).openapi()
    return with_enumerations(api)


def _find_common(operations: list[Operation]) -> Common:
    """Return the error responses that many routes share, and the descriptions of all headers."""
    counts: Counter[tuple[str, str]] = Counter()
    headers: dict[str, str] = {}
    for operation in operations:
        for status, response in operation.description["responses"].items():
            counts[status, response["description"]] += 1
            headers |= {name: header["description"] for name, header in response.get("headers", {}).items()}
    frequent = {key for key, count in counts.items() if count > _COMMON_SHARE * len(operations)}
    return Common({(status, text) for status, text in frequent if not status.startswith("2")}, headers)


def _overview(operations: list[Operation], common: Common) -> str:
    """Return a table of routes. It has the full description of a route that has no section of its own."""
    rows = []
    for operation in operations:
        text = sentence(operation.description["summary"])
        if not _has_section(operation, common):
            text = f"{text} {operation.description.get('description', '')}"
        rows.append([code(operation.title), text])
    return table(["Route", "Purpose"], rows)


def _has_section(operation: Operation, common: Common) -> bool:
    """Return whether a route needs a section: it has parameters, a body, several responses, or a response object."""
    description = operation.description
    rows = _response_rows(description["responses"], common)
    has_object = any("[" in body for _, _, body, _ in rows)  # a link to the object
    return "parameters" in description or "requestBody" in description or len(rows) > 1 or has_object


def _with_same_fields(operation: Operation, operations: list[Operation]) -> Operation | None:
    """Return the first earlier route with a body that has only fields of this route's body, or None.

    The section of this route then refers to the earlier route, and lists only the other fields.
    """
    earlier = operations[: operations.index(operation)]
    return next((each for each in earlier if each.fields and each.fields.items() <= operation.fields.items()), None)


def _section(operation: Operation, same: Operation | None, common: Common) -> str:
    """Return the section of a route. `same` is the route of `_with_same_fields`."""
    description = operation.description
    parts = [f"### {operation.title}", description.get("description", ""), _parameters(description)]
    if media_type := operation.body_type:
        fields = operation.fields
        parts.append(f"Body, {code(media_type)}:")
        if same:
            parts.append(f"All fields of [{same.title}](#{anchor(same.title)}), and the following:")
            fields = {name: field for name, field in fields.items() if name not in same.fields}
        else:
            parts += _examples(description["requestBody"]["content"][media_type])
        parts.append(body_table({**operation.body_schema, "properties": fields}))
    rows = _response_rows(description["responses"], common)
    parts += ["Responses:", table(["Status", "Meaning", "Body", "Headers"], rows)]
    return "\n\n".join(part for part in parts if part)


def _parameters(description: Mapping[str, Any]) -> str:
    """Return a table of the parameters in the path, the query and the headers, or nothing without parameters."""
    rows = []
    for parameter in description.get("parameters", ()):
        name, schema = parameter["name"], parameter["schema"]
        types = [option for option in schema.get("anyOf", [schema]) if option != {"type": "null"}]
        in_words, meaning = default_in_words(parameter.get("description", ""))
        default = "required" if parameter.get("required") else default_of(name, schema, {}) or in_words
        rows.append([code(name), parameter["in"], " or ".join(map(type_of, types)), default, meaning])
    return table(["Parameter", "In", "Allowed", "Default", "Meaning"], rows) if rows else ""


def _examples(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield a JSON block with the last example of a body, which has the most fields. Yield nothing without examples."""
    if examples := list(content.get("examples", {}).values()):
        yield f"```json\n{json.dumps(examples[-1]['value'], indent=2)}\n```"


def _response_rows(responses: Mapping[str, Any], common: Common) -> list[list[str]]:
    """Return a row for each response that is not common: status, meaning, body and headers."""
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
    description: str = response["description"]
    return "Success." if description == "Successful Response" else description  # FastAPI's default


def _content(status: str, response: Mapping[str, Any]) -> str:
    """Return the media types or the JSON objects of a successful response, and nothing for an error."""
    types = []
    for media_type, content in response.get("content", {}).items() if status.startswith("2") else ():
        schema = content.get("schema", {})
        is_object = media_type == "application/json" and any(references_in(schema))
        types.append(type_of(schema) if is_object else code(media_type))
    return ", ".join(types)


def _errors(schemas: Mapping[str, Any]) -> Iterator[str]:
    """Yield the parts of a section on error formats: each dialect, such as OpenAI's API, has its own."""
    yield f"This project's own routes return a [Problem](#problem), {code(PROBLEM.media_type)}. Others return these:"
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
    """Yield the parts of a section for each object in successful responses, and for the objects inside it."""
    names: dict[str, None] = {}  # a set that keeps the order
    queue = [
        name
        for operation in operations
        for status, response in operation.description["responses"].items()
        if status.startswith("2")
        for name in references_in(response)
    ]
    while queue:
        name = queue.pop(0)
        if name not in names and "enum" not in schemas[name]:  # enumerations are described where they are used
            names[name] = None
            queue += references_in(schemas[name])
    for name in names:
        schema = schemas[name]
        yield f"### {name}"
        yield schema.get("description", "")
        yield object_table(schema)
