"""JSON Schemas inside an Atlas: compiled shut, and read for the names and keywords they use.

Only ``#`` references resolve: the library would otherwise fetch ``file://`` and ``http://`` addresses.
Patterns run on a linear-time engine, so no text can make a decision slow; look-around and back-references
are therefore refused when the Atlas is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import jsonschema_rs
from pydantic import JsonValue

Schema = Mapping[str, JsonValue]
Pointer = tuple[str | int, ...]

_ONE = (
    "not",
    "if",
    "then",
    "else",
    "items",
    "additionalProperties",
    "contains",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_LIST = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAP = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_PLAIN = (
    *("$schema", "$id", "$ref", "$anchor", "$comment", "$vocabulary", "$dynamicRef", "$dynamicAnchor"),
    *("type", "enum", "const", "multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"),
    *("maxLength", "minLength", "pattern", "maxItems", "minItems", "uniqueItems", "maxContains", "minContains"),
    *("maxProperties", "minProperties", "required", "dependentRequired", "format"),
    *("title", "description", "default", "deprecated", "readOnly", "writeOnly", "examples"),
    *("contentEncoding", "contentMediaType", "contentSchema"),
)
KEYWORDS = frozenset((*_ONE, *_LIST, *_MAP, *_PLAIN))
"""JSON Schema 2020-12, and ``definitions``, which generators still write."""


def compile_schema(schema: Schema) -> jsonschema_rs.Validator:
    """A validator that fetches nothing.

    Raises:
        ValueError: when the schema is invalid, has a reference outside itself, or a pattern that a
            linear-time engine cannot run. The message names keyword and place, never a value.
    """
    try:
        validator: jsonschema_rs.Validator = jsonschema_rs.validator_for(
            dict(schema), retriever=_refuse, pattern_options=jsonschema_rs.RegexOptions()
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise ValueError(getattr(error, "message", str(error)).splitlines()[0]) from error
    return validator


def schema_problem(schema: Schema) -> str | None:
    """Why ``schema`` does not compile, or None."""
    try:
        compile_schema(schema)
    except ValueError as error:
        return str(error)
    return None


def _refuse(uri: str) -> JsonValue:
    raise ValueError("only references inside the schema (#...) are resolved")


def unknown_keywords(schema: JsonValue, at: Pointer = ()) -> Iterator[Pointer]:
    """Where ``schema`` uses a keyword that JSON Schema 2020-12 does not have (``x-`` keys are notes)."""
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        if key not in KEYWORDS and not key.startswith("x-"):
            yield (*at, key)
        elif key in _ONE:
            yield from unknown_keywords(value, (*at, key))
        elif key in _LIST and isinstance(value, Sequence):
            for index, item in enumerate(value):
                yield from unknown_keywords(item, (*at, key, index))
        elif key in _MAP and isinstance(value, Mapping):
            for name, item in value.items():
                yield from unknown_keywords(item, (*at, key, name))


def named_arguments(schema: Schema) -> frozenset[str]:
    """The arguments a condition is about: ``properties`` and ``required``, in whatever branch they stand."""
    names: set[str] = set()
    seen: set[str] = set()

    def visit(node: JsonValue) -> None:
        if not isinstance(node, Mapping):
            return
        for key in ("properties", "dependentSchemas", "dependentRequired"):
            value = node.get(key)
            if isinstance(value, Mapping):
                names.update(value)
        required = node.get("required")
        if isinstance(required, Sequence):
            names.update(name for name in required if isinstance(name, str))
        for key in ("not", "if", "then", "else"):
            visit(node.get(key))
        for key in ("allOf", "anyOf", "oneOf"):
            branches = node.get(key)
            if isinstance(branches, Sequence):
                for branch in branches:
                    visit(branch)
        ref = node.get("$ref")
        if isinstance(ref, str) and ref not in seen:
            seen.add(ref)
            visit(resolve_ref(dict(schema), ref))

    visit(dict(schema))
    return frozenset(names)


def resolve_ref(root: JsonValue, ref: str) -> JsonValue:
    """What a ``#/...`` reference names inside ``root``; None when there is nothing."""
    node = root
    for token in ref.removeprefix("#").split("/")[1:]:
        token = token.replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping):
            node = node.get(token)
        elif isinstance(node, Sequence) and not isinstance(node, str) and token.isdigit() and int(token) < len(node):
            node = node[int(token)]
        else:
            return None
    return node
