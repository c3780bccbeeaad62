"""JSON Schemas inside an Atlas: compiled shut, and read for the names and keywords they use.

Only ``#`` references resolve: the library would otherwise fetch ``file://`` and ``http://`` addresses.
Patterns run on a linear-time engine, so no text can make a decision slow; look-around and back-references
are therefore refused when the Atlas is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

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


DIALECT = "https://json-schema.org/draft/2020-12/schema"
_UNENFORCED = frozenset(
    (
        *("$id", "$anchor", "$vocabulary", "$dynamicRef", "$dynamicAnchor"),
        *("format", "contentEncoding", "contentMediaType", "contentSchema"),
    )
)
"""What a validator may skip, or what would make a reference mean something else: not for conditions."""


class Problem(NamedTuple):
    """Something wrong inside a schema."""

    at: Pointer
    message: str


class InvalidSchemaError(ValueError):
    """A schema that does not compile; the message names keyword and place, never a value."""

    def __init__(self, problem: Problem) -> None:
        super().__init__("".join(f"/{token}" for token in problem.at) + f" {problem.message}")
        self.problem = problem


def compile_schema(schema: Schema) -> jsonschema_rs.Validator:
    """A validator that fetches nothing.

    Raises:
        InvalidSchemaError: when the schema is invalid, has a reference outside itself, or a pattern that a
            linear-time engine cannot run.
    """
    try:
        validator: jsonschema_rs.Validator = jsonschema_rs.validator_for(
            dict(schema), retriever=_refuse, pattern_options=jsonschema_rs.RegexOptions()
        )
    except jsonschema_rs.ValidationError as error:
        raise InvalidSchemaError(_problem(error)) from None  # the library's own message quotes values
    except (jsonschema_rs.ReferencingError, ValueError):
        raise InvalidSchemaError(Problem((), "cannot be compiled: nested too deeply, or not JSON")) from None
    return validator


def schema_problem(schema: Schema) -> Problem | None:
    """Why ``schema`` does not compile, or None."""
    try:
        compile_schema(schema)
    except InvalidSchemaError as error:
        return error.problem
    return None


def _problem(error: jsonschema_rs.ValidationError) -> Problem:
    name = str(error.kind.name)
    if name == "$ref":
        return Problem((), "has a reference that does not resolve; only references inside the schema (#...) do")
    at = tuple(error.instance_path)
    if name == "format" and error.schema_path[-1:] != ["format"]:
        return Problem(at, "is no regular expression without look-around and back-references")
    return Problem(at, f"is not what JSON Schema allows here (it violates {name!r})")


def _refuse(uri: str) -> JsonValue:
    raise ValueError("only references inside the schema (#...) are resolved")


def unknown_keywords(schema: JsonValue) -> Iterator[Pointer]:
    """Where ``schema`` uses a keyword that JSON Schema 2020-12 does not have (``x-`` keys are notes)."""
    return (at for at, key, _ in keywords(schema, ()) if key not in KEYWORDS and not key.startswith("x-"))


def condition_problems(schema: Schema) -> Iterator[Problem]:
    """What a condition may not hold: a keyword that would restrict nothing, a reference other than ``#/...``."""
    for at, key, value in keywords(dict(schema), ()):
        if key not in KEYWORDS and not key.startswith("x-"):
            yield Problem(at, f"unknown JSON-Schema keyword {key!r}")
        elif key in _UNENFORCED or (key == "$schema" and value != DIALECT):
            yield Problem(at, f"{key!r} is not enforced in a condition")
        elif key == "$ref" and not (value == "#" or str(value).startswith("#/")):
            yield Problem(at, "only references of the form #/... are followed in a condition")


def keywords(schema: JsonValue, at: Pointer) -> Iterator[tuple[Pointer, str, JsonValue]]:
    """Every keyword in ``schema`` and the schemas inside it, with its place and value."""
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        yield (*at, key), key, value
        if key in _ONE:
            yield from keywords(value, (*at, key))
        elif key in _LIST and isinstance(value, Sequence):
            for index, item in enumerate(value):
                yield from keywords(item, (*at, key, index))
        elif key in _MAP and isinstance(value, Mapping):
            for name, item in value.items():
                yield from keywords(item, (*at, key, name))


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
                for branch in value.values() if key == "dependentSchemas" else ():
                    visit(branch)
        required = node.get("required")
        if isinstance(required, list):
            names.update(name for name in required if isinstance(name, str))
        for key in ("not", "if", "then", "else"):
            visit(node.get(key))
        for key in ("allOf", "anyOf", "oneOf"):
            branches = node.get(key)
            for branch in branches if isinstance(branches, list) else ():
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
