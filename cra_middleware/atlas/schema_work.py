"""How often a validator looks at the same value: bounded, whatever an action's schema and a call's arguments are.

A schema that refers to itself by two alternatives at the same place doubles the work with each level of the value:
forty levels would take years. A chain of such alternatives that is no circle does the same to a flat value. What no
value could make cheap is found when the Atlas is loaded; where it depends on the value, the looks are counted before
a call is validated, as if every alternative were tried to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from pydantic import JsonValue

from cra_middleware.atlas.schemas import Problem, Schema, keywords, resolve_ref

MAX_WAYS = 10_000
"""Ways from a schema to the ones inside it."""
MAX_LOOKS = 50_000
"""Of a schema inside the whole at a value inside the arguments: a tenth of a second. A call that needs more is
refused."""

_UNEVALUATED = ("unevaluatedProperties", "unevaluatedItems")
_MOVING = ("$dynamicRef", "$recursiveRef")
"""References whose target depends on the way that led there."""


class _Parts(NamedTuple):
    """The schemas inside one schema, by the values they look at."""

    here: list[JsonValue]
    """The value itself; twice each, where ``unevaluated...`` asks again which of them held."""
    names: list[JsonValue]
    known: Mapping[str, JsonValue]
    """The property of that name."""
    perhaps: list[JsonValue]
    """Any property: which pattern is about which is for the validator to know."""
    others: list[JsonValue]
    """Any property that is not known."""
    first: list[JsonValue]
    """The items at the beginning, one each."""
    items: list[JsonValue]
    """Any item."""

    @property
    def all(self) -> list[JsonValue]:
        inner = [*self.names, *self.known.values(), *self.perhaps, *self.others, *self.first, *self.items]
        return [*self.here, *inner]


class _TooMuchError(Exception):
    """A circle, or more than may be."""


def work_problems(schema: Schema) -> Iterator[Problem]:
    """Why nobody could say how much work a value makes, or why it would be too much for any value."""
    root: JsonValue = dict(schema)
    found = list(keywords(root, ()))
    has_references = any(key == "$ref" for _, key, _ in found)
    for at, key, value in found:
        if key in _MOVING or (key == "$ref" and not (value == "#" or str(value).startswith("#/"))):
            yield Problem(at, "only references of the form #/... are followed")
        elif key == "$id" and len(at) > 1 and has_references:
            yield Problem(at, "an $id inside a schema changes what its references mean")
    ways = _Ways(root, lambda parts: parts.here)
    try:
        for part in _reached(root):
            ways.count(part)
    except (_TooMuchError, RecursionError):
        yield Problem((), f"has alternatives that refer on in a circle, or by more than {MAX_WAYS} ways, at one place")


def too_much_work(schema: Schema) -> Callable[[object], bool] | None:
    """A test whether arguments would take more than ``MAX_LOOKS``; None when the schema alone bounds them."""
    root: JsonValue = dict(schema)
    try:
        _Ways(root, lambda parts: parts.all).count(root)
    except (_TooMuchError, RecursionError):
        return lambda value: _is_too_much(root, value)
    return None


class _Ways:
    """Counts the ways from schemas to those inside them, each schema once."""

    def __init__(self, root: JsonValue, inside: Callable[[_Parts], list[JsonValue]]) -> None:
        self._root = root
        self._inside = inside
        self._known: dict[int, int] = {}

    def count(self, schema: JsonValue) -> int:
        """How many there are.

        Raises:
            _TooMuchError: when there are more than ``MAX_WAYS``, or a circle.
        """
        if not isinstance(schema, Mapping):
            return 1
        known = self._known.get(id(schema))
        if known is None:
            self._known[id(schema)] = MAX_WAYS  # seen again before it is counted: a circle
            known = 1 + sum(self.count(part) for part in self._inside(_parts(schema, self._root)))
            self._known[id(schema)] = known
        if known >= MAX_WAYS:
            raise _TooMuchError
        return known


def _reached(root: JsonValue) -> Iterator[JsonValue]:
    """Every schema that a value can meet, once."""
    waiting, seen = [root], set[int]()
    while waiting:
        schema = waiting.pop()
        if isinstance(schema, Mapping) and id(schema) not in seen:
            seen.add(id(schema))
            yield schema
            waiting += _parts(schema, root).all


def _is_too_much(root: JsonValue, value: object) -> bool:
    parts: dict[int, _Parts] = {}
    looks = 0

    def look(schemas: list[JsonValue], value: object) -> None:
        nonlocal looks
        for schema in schemas:
            looks += 1
            if looks > MAX_LOOKS:
                raise _TooMuchError
            if not isinstance(schema, Mapping):
                continue
            inside = parts.get(id(schema))
            if inside is None:
                inside = parts[id(schema)] = _parts(schema, root)
            look(inside.here, value)
            if isinstance(value, Mapping):
                for key, item in value.items():
                    own = [inside.known[key]] if key in inside.known else inside.others
                    look([*own, *inside.perhaps], item)
                    look(inside.names, key)
            elif isinstance(value, (list, tuple)):
                for place, item in enumerate(value):
                    look([*inside.first[place : place + 1], *inside.items], item)

    try:
        look([root], value)
    except (_TooMuchError, RecursionError):
        return True
    return False


def _parts(schema: Mapping[str, JsonValue], root: JsonValue) -> _Parts:
    def one(*keys: str) -> list[JsonValue]:
        return [schema[key] for key in keys if isinstance(schema.get(key), Mapping)]

    def listed(*keys: str) -> list[JsonValue]:
        found = [schema[key] for key in keys if isinstance(schema.get(key), list)]
        return [part for parts in found if isinstance(parts, list) for part in parts]

    def named(key: str) -> Mapping[str, JsonValue]:
        value = schema.get(key)
        return value if isinstance(value, Mapping) else {}

    ref = schema.get("$ref")
    here = [*([resolve_ref(root, ref)] if isinstance(ref, str) else ()), *listed("allOf", "anyOf", "oneOf")]
    here += [*one("not", "if", "then", "else"), *named("dependentSchemas").values(), *named("dependencies").values()]
    return _Parts(
        here=here * 2 if any(key in schema for key in _UNEVALUATED) else here,
        names=one("propertyNames"),
        known=named("properties"),
        perhaps=list(named("patternProperties").values()),
        others=one("additionalProperties", "unevaluatedProperties"),
        first=listed("prefixItems", "items"),
        items=one("items", "additionalItems", "contains", "unevaluatedItems"),
    )
