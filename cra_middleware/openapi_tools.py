"""The operations of an OpenAPI document (3.0 or 3.1), as tools: for a first Atlas.

An operation is called by its ``operationId``, as most generators of tools name it; its arguments are its parameters
and the properties of its JSON body, in one object. Schemas are brought along below ``$defs``; what OpenAPI 3.0 writes
its own way (``nullable``, boolean ``exclusiveMinimum``) is written as JSON Schema does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from pydantic import JsonValue

Described = tuple[str, str, dict[str, JsonValue] | None]

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_SCHEMAS = "#/components/schemas/"
_DROPPED = frozenset(("example", "examples", "xml", "externalDocs", "discriminator", "deprecated", "nullable"))
_MAX_STEPS = 20


def openapi_tools(document: JsonValue) -> list[Described]:
    """Name, description and schema of the arguments of each operation, in the document's order.

    Raises:
        ValueError: when it is no OpenAPI 3 document.
    """
    paths = document.get("paths") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not str(document.get("openapi", "")).startswith("3."):
        raise ValueError('it is no OpenAPI 3 document: "openapi" does not say 3.x')
    if not isinstance(paths, dict):
        raise ValueError('it is no OpenAPI 3 document: it has no "paths"')
    found: dict[str, Described] = {}
    for path, item in paths.items():
        item = _resolved(item, document)
        for method in _METHODS:
            operation = item.get(method)
            if isinstance(operation, dict):
                name = operation.get("operationId")
                name = name if isinstance(name, str) and name else _made_name(method, path)
                text = operation.get("summary") or operation.get("description") or f"{method.upper()} {path}"
                found[name] = (name, str(text), _arguments(item, operation, document))
    return list(found.values())


def _made_name(method: str, path: str) -> str:
    words = re.sub(r"[^0-9A-Za-z]+", "_", path).strip("_")
    return f"{method}_{words}" if words else method


def _arguments(
    item: Mapping[str, JsonValue], operation: Mapping[str, JsonValue], document: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    properties: dict[str, JsonValue] = {}
    required: list[JsonValue] = []
    for parameter in (*_listed(item.get("parameters")), *_listed(operation.get("parameters"))):
        one = _resolved(parameter, document)
        name = one.get("name")
        if isinstance(name, str) and one.get("in") != "cookie":
            properties[name] = _schema(one.get("schema", {}), document)
            if one.get("required") is True and name not in required:
                required.append(name)
    body = _resolved(operation.get("requestBody"), document)
    schema = _json_body(body)
    if schema is not None:
        shape = _resolved(schema, document)
        inner = shape.get("properties")
        if isinstance(inner, dict):
            properties |= {name: _schema(value, document) for name, value in inner.items()}
            required += [name for name in _listed(shape.get("required")) if name not in required]
        else:
            properties["body"] = _schema(schema, document)
            if body.get("required") is True:
                required.append("body")
    made: dict[str, JsonValue] = {"type": "object", "properties": properties}
    if required:
        made["required"] = required
    definitions = _definitions(properties, document)
    if definitions:
        made["$defs"] = definitions
    return made


def _json_body(body: Mapping[str, JsonValue]) -> JsonValue:
    content = body.get("content")
    for kind, media in content.items() if isinstance(content, dict) else ():
        if "json" in kind or "form" in kind:
            return media.get("schema") if isinstance(media, dict) else None
    return None


def _resolved(value: JsonValue, document: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """An object, behind whatever references inside the document lead to it; empty when there is none."""
    for _ in range(_MAX_STEPS):
        if not isinstance(value, dict):
            return {}
        reference = value.get("$ref")
        if not isinstance(reference, str):
            return value
        value = _at(reference, document)
    return {}


def _at(reference: str, document: Mapping[str, JsonValue]) -> JsonValue:
    if not reference.startswith("#/"):
        return None  # another file is not opened
    value: JsonValue = dict(document)
    for step in reference[2:].split("/"):
        value = value.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(value, dict) else None
    return value


def _schema(value: JsonValue, document: Mapping[str, JsonValue]) -> JsonValue:
    """A schema as JSON Schema writes it, its references pointing below ``$defs``."""
    if isinstance(value, list):
        return [_schema(item, document) for item in value]
    if not isinstance(value, dict):
        return value
    reference = value.get("$ref")
    if isinstance(reference, str):
        return {"$ref": f"#/$defs/{reference[len(_SCHEMAS) :]}"} if reference.startswith(_SCHEMAS) else {}
    made = {key: _schema(item, document) for key, item in value.items() if key not in _DROPPED and key[:2] != "x-"}
    for bound, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(made.get(bound), bool) and made.pop(bound) is True and limit in made:
            made[bound] = made.pop(limit)
    if value.get("nullable") is True and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made


def _definitions(properties: JsonValue, document: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The schemas that are referred to, and those that they refer to."""
    found: dict[str, JsonValue] = {}
    waiting = list(_references(properties))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _schema(_at(f"{_SCHEMAS}{name}", document) or {}, document)
            waiting += _references(found[name])
    return dict(sorted(found.items()))


def _references(value: JsonValue) -> Iterator[str]:
    if isinstance(value, dict):
        reference = value.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/$defs/"):
            yield reference.removeprefix("#/$defs/")
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def _listed(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []
