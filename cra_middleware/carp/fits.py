"""Whether a JSON Schema says something about a value, before anybody asks whether the value is valid.

A validator skips what is not about a value's kind: ``{"maximum": 50}`` is "valid" for the text "9999". A condition
must not be fooled by that, so it is asked first whether every keyword it would use is about values of that kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum

from pydantic import JsonValue

from cra_middleware.atlas.schemas import Schema, resolve_ref


class Fit(IntEnum):
    """Of several parts, the worst counts."""

    FITS = 0
    EXCLUDED = 1
    """The value's own ``type`` says no: such a branch is surely false, and not what another is about."""
    UNKNOWN = 2
    """A keyword would be skipped, because the value is of another kind."""


@dataclass(slots=True)
class Walk:
    """How far one look at one value has come."""

    depth: int = 0
    """In references that are followed now."""
    references: int = 0
    """Followed so far. A schema that refers to itself in two branches doubles them with each level of the value."""


Check = Callable[[object, Walk], Fit]
"""For one schema and a value."""

_FITS, _EXCLUDED, _UNKNOWN = Fit.FITS, Fit.EXCLUDED, Fit.UNKNOWN
_NUMERIC = frozenset(("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"))
_STRING = frozenset(("pattern", "minLength", "maxLength"))
_ARRAY = frozenset(
    (
        *("items", "prefixItems", "contains", "minContains", "maxContains"),
        *("minItems", "maxItems", "uniqueItems", "unevaluatedItems"),
    )
)
_OBJECT = frozenset(
    (
        *("properties", "required", "minProperties", "maxProperties", "patternProperties", "propertyNames"),
        *("additionalProperties", "unevaluatedProperties", "dependentRequired", "dependentSchemas"),
    )
)
_MAX_DEPTH = 64
_MAX_REFERENCES = 10_000


def compile_fit(schema: Schema) -> Callable[[object], Fit]:
    """A test whether every keyword of ``schema`` that looks at a value is about values of its kind."""
    root: JsonValue = dict(schema)
    check = _compile(root, root, {})
    return lambda value: check(value, Walk())


def _compile(schema: JsonValue, root: JsonValue, refs: dict[str, Check]) -> Check:
    if not isinstance(schema, Mapping):
        return _anything

    def part(key: str) -> Check:
        return _compile(schema.get(key), root, refs)

    def parts(key: str) -> dict[str, Check]:
        named = schema.get(key)
        return {name: _compile(item, root, refs) for name, item in named.items()} if isinstance(named, Mapping) else {}

    def listed(key: str) -> list[Check]:
        items = schema.get(key)
        return [_compile(item, root, refs) for item in items] if isinstance(items, list) else []

    checks = [
        *_own(schema),
        *_reference(schema.get("$ref"), root, refs),
        *_object(parts("properties"), parts("patternProperties"), part("additionalProperties")),
        *_dependent(parts("dependentSchemas")),
        *_array(listed("prefixItems"), part("items"), part("contains")),
        *(_unsure(part(key)) for key in ("not", "if", "then", "else") if key in schema),
        *(_every(part(key)) for key in ("unevaluatedProperties", "unevaluatedItems") if key in schema),
        *(_worst(listed(key)) for key in ("allOf",) if key in schema),
        *(_alternatives(listed(key)) for key in ("anyOf", "oneOf") if key in schema),
    ]
    return _worst(checks)


def _anything(value: object, walk: Walk) -> Fit:
    return _FITS


def _worst(checks: Sequence[Check]) -> Check:
    if not checks:
        return _anything
    if len(checks) == 1:
        return checks[0]

    def check(value: object, walk: Walk) -> Fit:
        worst = _FITS
        for one in checks:
            fit = one(value, walk)
            if fit is _UNKNOWN:
                return fit
            worst = fit if fit is _EXCLUDED else worst
        return worst

    return check


def _own(schema: Mapping[str, JsonValue]) -> Iterator[Check]:
    """The keywords that look at the value itself."""
    keys = schema.keys()
    numeric, text = not keys.isdisjoint(_NUMERIC), not keys.isdisjoint(_STRING)
    array, mapping = not keys.isdisjoint(_ARRAY), not keys.isdisjoint(_OBJECT)
    compares = not keys.isdisjoint(("type", "enum", "const"))
    names = schema.get("type", [])
    types = [_IS_TYPE[str(name)] for name in (names if isinstance(names, list) else [names])]
    if not (numeric or text or array or mapping or compares):
        return

    def check(value: object, walk: Walk) -> Fit:
        number = _is_number(value)
        if (numeric or compares) and isinstance(value, (float, Decimal)) and not math.isfinite(value):
            return _UNKNOWN
        if compares and not _is_json(value):
            return _UNKNOWN
        if types and not any(is_type(value) for is_type in types):
            return _EXCLUDED
        if (
            (numeric and not number)
            or (text and not isinstance(value, str))
            or (array and not isinstance(value, (list, tuple)))
            or (mapping and not isinstance(value, Mapping))
        ):
            return _UNKNOWN
        return _FITS

    yield check


def _reference(ref: JsonValue, root: JsonValue, refs: dict[str, Check]) -> Iterator[Check]:
    if not isinstance(ref, str):
        return

    def check(value: object, walk: Walk) -> Fit:
        if walk.depth > _MAX_DEPTH or walk.references > _MAX_REFERENCES:
            return _UNKNOWN
        if ref not in refs:  # only now, for a schema may refer to itself
            refs[ref] = _compile(resolve_ref(root, ref), root, refs)
        walk.references += 1
        walk.depth += 1
        fit = refs[ref](value, walk)
        walk.depth -= 1
        return fit

    yield check


def _object(known: Mapping[str, Check], patterns: Mapping[str, Check], rest: Check) -> Iterator[Check]:
    # Which patterns are about a key is for the validator to know, so a doubt about one is a doubt about all.
    named = {key: _unsure(one) for key, one in known.items()}
    each = _unsure(_worst(list(patterns.values()))) if patterns else _anything
    others = _unsure(_worst([*patterns.values(), rest])) if patterns or rest is not _anything else _anything
    if not named and others is _anything:
        return

    def check(value: object, walk: Walk) -> Fit:
        for key, item in value.items() if isinstance(value, Mapping) else ():
            one = named.get(key)
            if one is None:
                if others(item, walk) is _UNKNOWN:
                    return _UNKNOWN
            elif one(item, walk) is _UNKNOWN or each(item, walk) is _UNKNOWN:
                return _UNKNOWN
        return _FITS

    yield check


def _dependent(schemas: Mapping[str, Check]) -> Iterator[Check]:
    for key, one in schemas.items():

        def check(value: object, walk: Walk, key: str = key, one: Check = one) -> Fit:
            return one(value, walk) if isinstance(value, Mapping) and key in value else _FITS

        yield check


def _array(heads: Sequence[Check], tail: Check, contains: Check) -> Iterator[Check]:
    if not heads and tail is _anything and contains is _anything:
        return
    first, rest = [_unsure(one) for one in heads], _unsure(tail)

    def check(value: object, walk: Walk) -> Fit:
        for index, item in enumerate(value) if isinstance(value, (list, tuple)) else ():
            # an item of another type is just not the one that `contains` looks for
            if (first[index] if index < len(first) else rest)(item, walk) is _UNKNOWN or (
                contains(item, walk) is _UNKNOWN
            ):
                return _UNKNOWN
        return _FITS

    yield check


def _every(one: Check) -> Check:
    """Perhaps about every item, perhaps about none: any doubt is one."""
    unsure = _unsure(one)

    def check(value: object, walk: Walk) -> Fit:
        items: Sequence[object] = ()
        if isinstance(value, Mapping):
            items = tuple(value.values())
        elif isinstance(value, (list, tuple)):
            items = value
        return max((unsure(item, walk) for item in items), default=_FITS)

    return check


def _unsure(one: Check) -> Check:
    """For a part of which nobody knows what its being false makes of the whole."""
    return lambda value, walk: _FITS if one(value, walk) is _FITS else _UNKNOWN


def _alternatives(branches: Sequence[Check]) -> Check:
    """Alternatives may be told apart by type, so one that fits is enough; but a doubtful one is a doubt."""

    def check(value: object, walk: Walk) -> Fit:
        fits = {one(value, walk) for one in branches}
        return _FITS if _FITS in fits and _UNKNOWN not in fits else max(fits, default=_FITS)

    return check


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    if isinstance(value, (float, Decimal)):
        return math.isfinite(value) and value == int(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _is_json(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float, Decimal, list, tuple, Mapping))


_IS_TYPE: dict[str, Callable[[object], bool]] = {
    "string": lambda value: isinstance(value, str),
    "number": _is_number,
    "integer": _is_integer,
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, (list, tuple)),
    "object": lambda value: isinstance(value, Mapping),
    "null": lambda value: value is None,
}
