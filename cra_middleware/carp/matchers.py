"""Conditions on arguments: three answers, never two.

True: it holds. False: it does not. None: it cannot be evaluated, because an argument it names is absent
although the action declares it, or a value is of a kind the condition says nothing about (a string where
the condition compares numbers, NaN, an object that is no JSON). A restrictive policy holds then, an allow
does not. When the call has none of the arguments it names and the action declares none, the condition is about
something else: False.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice

import jsonschema_rs

from cra_middleware.atlas.schema_work import too_much_work
from cra_middleware.atlas.schemas import Schema, compile_schema, named_arguments
from cra_middleware.carp.fits import Fit, compile_fit

Arguments = Mapping[str, object]
Matcher = Callable[[Arguments], bool | None]


def parameters_matcher(schema: Schema, declared: frozenset[str]) -> Matcher:
    """Compile ``conditions.parameters`` for an action whose schema declares the arguments ``declared``."""
    validator = compile_schema(schema)
    names = named_arguments(schema)
    fit = compile_fit(schema)

    def match(arguments: Arguments) -> bool | None:
        absent = names - arguments.keys()
        if absent & declared:
            return None
        if absent == names:
            return False
        if fit(arguments) is not Fit.FITS:
            return None
        return bool(validator.is_valid(dict(arguments)))

    return match


_ONLY_NAMES = frozenset(
    (
        *("type", "properties", "required", "additionalProperties", "minProperties", "maxProperties", "$defs"),
        *("$schema", "$comment", "title", "description", "default", "examples", "deprecated"),
    )
)
"""Keywords that do not look into an argument which ``properties`` names."""
Violation = Callable[[Arguments], str | None]
"""Why arguments do not fit an action's schema; None when they do."""


def schema_check(schema: Schema) -> Violation:
    """Compile an action's schema."""
    validator, too_much, free = compile_schema(schema), too_much_work(schema), _free(schema)

    def check(arguments: Arguments) -> str | None:
        if too_much is not None and too_much(arguments):
            return "the arguments are too deep or too many for the action's schema, which refers to itself"
        return schema_violation(validator, arguments, free)

    return check


def _free(schema: Schema) -> frozenset[str]:
    """The arguments that a schema only names: of whatever kind they are, it says nothing about them."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not schema.keys() <= _ONLY_NAMES:
        return frozenset()
    return frozenset(name for name, one in properties.items() if one is True or one == {})


def schema_violation(
    validator: jsonschema_rs.Validator, arguments: Arguments, free: frozenset[str] = frozenset()
) -> str | None:
    """Why the arguments do not fit, naming places and keywords but never a value; None when they fit.

    ``free`` are those that the schema says nothing about.
    """
    try:
        if validator.is_valid(arguments):
            return None
        problems = [_describe(error) for error in islice(validator.iter_errors(arguments), 4)]
    except ValueError:  # bytes, an object, text with lone surrogates: nobody can say that they fit
        if not free.isdisjoint(arguments):  # the library reads them all the same
            known = {name: None if name in free else value for name, value in arguments.items()}
            return schema_violation(validator, known)
        return "an argument that the action's schema speaks of is of a kind that JSON does not have"
    more = " and more" if len(problems) > 3 else ""
    return "the arguments do not fit the action's schema: " + "; ".join(problems[:3]) + more


def _describe(error: jsonschema_rs.ValidationError) -> str:
    place = "".join(f"/{token}" for token in error.instance_path)[:255]
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
        case "falseSchema":
            return f"{place or '/'} holds something that the schema does not allow"
        case "enum":
            options = getattr(kind, "options", ())
            return f"{place or '/'} must be one of {', '.join(str(item)[:32] for item in options[:8])}"
        case _:
            limit = getattr(kind, "limit", None)
            return f"{place or '/'} violates {name}" + (f" {limit}" if isinstance(limit, (int, float)) else "")


def _types(kind: object) -> str:
    types = getattr(kind, "types", None)
    return " or ".join(map(str, types)) if isinstance(types, (list, tuple)) else "another kind"
