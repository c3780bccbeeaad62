"""Conditions on arguments: three answers, never two.

True: it holds. False: it does not. None: it cannot be evaluated, because an argument it names is absent
although the action declares it, or a value is of a kind the condition says nothing about (a string where
the condition compares numbers, NaN, an object that is no JSON). A restrictive policy holds then, an allow
does not. When the call has none of the arguments it names and the action declares none, the condition is about
something else: False.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from itertools import islice

import jsonschema_rs
from pydantic import JsonValue

from cra_middleware.atlas.schemas import Schema, compile_schema, named_arguments, resolve_ref

Arguments = Mapping[str, object]
Matcher = Callable[[Arguments], bool | None]

_NUMERIC = frozenset(("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"))
_STRING = frozenset(("pattern", "minLength", "maxLength", "format"))
_ARRAY = frozenset(("items", "prefixItems", "contains", "minItems", "maxItems", "uniqueItems"))
_OBJECT = frozenset(("properties", "required", "minProperties", "maxProperties", "patternProperties", "propertyNames"))
_MAX_DEPTH = 64


def parameters_matcher(schema: Schema, declared: frozenset[str]) -> Matcher:
    """Compile ``conditions.parameters`` for an action whose schema declares the arguments ``declared``."""
    validator = compile_schema(schema)
    names = named_arguments(schema)
    root: JsonValue = dict(schema)

    def match(arguments: Arguments) -> bool | None:
        absent = names - arguments.keys()
        if absent & declared:
            return None
        if absent == names:
            return False
        if not _evaluable(root, arguments, root, 0):
            return None
        return bool(validator.is_valid(dict(arguments)))

    return match


def _evaluable(schema: JsonValue, value: object, root: JsonValue, depth: int) -> bool:
    """Whether every keyword that looks at ``value`` is about values of its kind."""
    if not isinstance(schema, Mapping):
        return True
    if depth > _MAX_DEPTH:
        return False
    keys = schema.keys()
    number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    if number and not math.isfinite(value) and not keys.isdisjoint(_NUMERIC | {"type", "enum", "const"}):  # type: ignore[arg-type]
        return False
    if "type" in keys and not _has_type(value, schema["type"]):
        return False
    if (
        (not number and not keys.isdisjoint(_NUMERIC))
        or (not isinstance(value, str) and not keys.isdisjoint(_STRING))
        or (not isinstance(value, (list, tuple)) and not keys.isdisjoint(_ARRAY))
        or (not isinstance(value, Mapping) and not keys.isdisjoint(_OBJECT))
    ):
        return False
    if not _is_json(value) and not keys.isdisjoint(("enum", "const")):
        return False
    ref = schema.get("$ref")
    if isinstance(ref, str) and not _evaluable(resolve_ref(root, ref), value, root, depth + 1):
        return False
    return _parts_evaluable(schema, value, root, depth) and _branches_evaluable(schema, value, root, depth)


def _parts_evaluable(schema: Mapping[str, JsonValue], value: object, root: JsonValue, depth: int) -> bool:
    if isinstance(value, Mapping):
        properties = schema.get("properties")
        known = properties if isinstance(properties, Mapping) else {}
        rest = schema.get("additionalProperties")
        return all(_evaluable(known.get(key, rest), item, root, depth + 1) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        first = schema.get("prefixItems")
        heads: Sequence[JsonValue] = first if isinstance(first, list) else ()
        tail = schema.get("items")
        return all(
            _evaluable(heads[index] if index < len(heads) else tail, item, root, depth + 1)
            for index, item in enumerate(value)
        )
    return True


def _branches_evaluable(schema: Mapping[str, JsonValue], value: object, root: JsonValue, depth: int) -> bool:
    for key in ("allOf", "anyOf", "oneOf"):
        branches = schema.get(key)
        if isinstance(branches, list) and branches:
            verdicts = (_evaluable(branch, value, root, depth + 1) for branch in branches)
            # alternatives may be told apart by type, so one that fits is enough
            if not (all(verdicts) if key == "allOf" else any(verdicts)):
                return False
    return _evaluable(schema.get("not"), value, root, depth + 1)


def _has_type(value: object, types: JsonValue) -> bool:
    names = types if isinstance(types, list) else [types]
    return any(isinstance(name, str) and _IS_TYPE[name](value) for name in names)


def _is_integer(value: object) -> bool:
    if isinstance(value, (float, Decimal)):
        return math.isfinite(value) and value == int(value)
    return isinstance(value, int) and not isinstance(value, bool)


_IS_TYPE: dict[str, Callable[[object], bool]] = {
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, (int, float, Decimal)) and not isinstance(value, bool),
    "integer": _is_integer,
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, (list, tuple)),
    "object": lambda value: isinstance(value, Mapping),
    "null": lambda value: value is None,
}


def _is_json(value: object) -> bool:
    return any(is_type(value) for is_type in _IS_TYPE.values())


def schema_violation(validator: jsonschema_rs.Validator, arguments: Arguments) -> str | None:
    """Why the arguments do not fit, naming places and keywords but never a value; None when they fit."""
    if validator.is_valid(arguments):
        return None
    problems = [_describe(error) for error in islice(validator.iter_errors(arguments), 4)]
    more = " and more" if len(problems) > 3 else ""
    return "the arguments do not fit the action's schema: " + "; ".join(problems[:3]) + more


def _describe(error: jsonschema_rs.ValidationError) -> str:
    place = "".join(f"/{token}" for token in error.instance_path)
    kind = error.kind
    name = str(kind.name)
    match name:
        case "required":
            return f"{place}/{getattr(kind, 'property', '?')} is missing"
        case "type":
            return f"{place or '/'} must be of type {_types(kind)}"
        case "additionalProperties":
            names = ", ".join(str(item)[:64] for item in getattr(kind, "unexpected", ()))
            return f"{place or '/'} has arguments that the action does not know: {names}"
        case "enum":
            options = getattr(kind, "options", ())
            return f"{place or '/'} must be one of {', '.join(str(item)[:32] for item in options[:8])}"
        case _:
            limit = getattr(kind, "limit", None)
            return f"{place or '/'} violates {name}" + (f" {limit}" if isinstance(limit, (int, float)) else "")


def _types(kind: object) -> str:
    types = getattr(kind, "types", None)
    return " or ".join(map(str, types)) if isinstance(types, (list, tuple)) else "another kind"
