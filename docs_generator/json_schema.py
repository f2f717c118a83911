"""Describe JSON schemas in words, and their fields in tables."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from docs_generator.markdown import anchor, code, sentence, table

Schema: TypeAlias = Mapping[str, Any]
_CLAUSE_END = re.compile(r"[:.](?: |$)")  # ends the allowed values at the start of a description, see sd35.api.body
_OMITTED = re.compile(r"(?:^| )Omitted[^.:]*: (.+?)\.(?= [A-Z0-9]|$)")
_LIMITS = {
    "minimum": "at least {}", "maximum": "at most {}", "exclusiveMinimum": "above {}", "exclusiveMaximum": "below {}",
    "minLength": "at least {} characters", "maxLength": "at most {} characters",
    "multipleOf": "a multiple of {}", "pattern": "matching `{}`",
}  # fmt: skip


def body_table(schema: Schema) -> str:
    """Return a table of the fields of a request's body. Their descriptions are as `split_description` expects."""
    rows = []
    for name, field in schema["properties"].items():
        allowed, default, meaning = split_description(field.get("description", ""))
        default = default_of(name, field, schema) or default
        rows.append([code(name), allowed, default, sentence(meaning)])
    return table(["Field", "Allowed", "Default", "Meaning"], rows)


def object_table(schema: Schema) -> str:
    """Return a table of the fields of an object in a response."""
    rows = ([code(name), type_of(field), field.get("description", "")] for name, field in _properties(schema))
    return table(["Field", "Type", "Meaning"], rows)


def split_description(description: str) -> tuple[str, str, str]:
    """Split the description of a body's field, "ALLOWED: MEANING. Omitted: DEFAULT.", into allowed, default, meaning.

    The default is empty if the description does not name it.
    """
    end = _CLAUSE_END.search(description)
    allowed, rest = (description[: end.start()], description[end.end() :]) if end else (description, "")
    default = _OMITTED.search(rest)
    return allowed, default[1] if default else "", _OMITTED.sub("", rest)


def default_of(name: str, field: Schema, schema: Schema) -> str:
    """Return "required", or the default value of a field as code, or nothing if the schema has no default value."""
    if name in schema.get("required", []):
        return "required"
    default = field.get("default")
    return "" if default is None else code(json.dumps(default))


def type_of(schema: Schema) -> str:
    """Return a type in words, with its limits. Objects of the API are links to their sections on the page."""
    if "const" in schema or "enum" in schema:
        return ", ".join(code(json.dumps(each)) for each in schema.get("enum", [schema.get("const")]))
    if name := reference_of(schema):
        return f"[{name}](#{anchor(name)})"
    if "anyOf" in schema:
        return " or ".join(map(type_of, schema["anyOf"]))
    kind = schema.get("type", "any value")
    if kind == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})]
        return f"array of {', '.join(dict.fromkeys(map(type_of, items)))}"
    if schema.get("format") == "date-time":
        kind = "date-time"
    limits = [text.format(schema[name]) for name, text in _LIMITS.items() if name in schema]
    return ", ".join([" or ".join(kind) if isinstance(kind, list) else str(kind), *limits])


def reference_of(schema: Schema) -> str:
    """Return the name of the object that a schema refers to, or an empty string."""
    return str(schema.get("$ref", "")).rpartition("/")[2]


def with_enumerations(api: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI description with the values of enumerations in place of references to them."""
    values = {
        name: {"enum": schema["enum"]} for name, schema in api["components"]["schemas"].items() if "enum" in schema
    }

    def replace(part: Any) -> Any:  # noqa: ANN401  any JSON value
        if isinstance(part, list):
            return [replace(item) for item in part]
        if not isinstance(part, dict):
            return part
        replaced = {name: replace(value) for name, value in part.items()}
        return {**replaced, **values.get(reference_of(part), {})}

    replaced: dict[str, Any] = replace(api)
    return replaced


def references_in(part: Any) -> Iterator[str]:  # noqa: ANN401  any JSON value
    """Yield the names of all objects that a part of a schema refers to."""
    if isinstance(part, Mapping):
        if (name := reference_of(part)) and "enum" not in part:  # `with_enumerations` has inlined enumerations
            yield name
        for each in part.values():
            yield from references_in(each)
    elif isinstance(part, list):
        for each in part:
            yield from references_in(each)


def _properties(schema: Schema) -> Iterator[tuple[str, Schema]]:
    yield from schema.get("properties", {}).items()
