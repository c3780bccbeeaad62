"""What a validator does for a call is bounded, for every schema that loads."""

from __future__ import annotations

from typing import Any

import pytest

from cra_middleware.atlas.schema_work import MAX_LOOKS, too_much_work, work_problems
from cra_middleware.carp.matchers import schema_check

REF = {"$ref": "#/$defs/a"}


def circle(**keywords: Any) -> dict[str, Any]:
    return {"$defs": {"a": keywords}, **REF}


def nested(depth: int, inner: Any = "x") -> Any:
    """``{"n": {"n": ...}}``."""
    for _ in range(depth):
        inner = {"n": inner}
    return inner


TWICE = circle(anyOf=[{"type": "string"}, *({"properties": {"n": REF}, "required": ["n"]} for _ in range(2))])
TREE = circle(
    type="object",
    properties={"left": REF, "right": REF, "more": {"type": "array", "items": REF}},
    additionalProperties=False,
)


def chain(links: int, **between: Any) -> dict[str, Any]:
    """Each link refers to the next by two ways."""
    names = [{"$ref": f"#/$defs/{number + 1}"} for number in range(links)]
    links_ = {str(number): {"anyOf": [name, {**name, **between}]} for number, name in enumerate(names)}
    return {"$defs": {**links_, str(links): {"type": "string"}}, "$ref": "#/$defs/0"}


@pytest.mark.parametrize(
    "schema",
    [
        TWICE,
        circle(properties={"n": {"allOf": [REF, REF]}}, required=["z"]),
        circle(properties={"n": REF}, patternProperties={"n": REF}, required=["z"]),
        circle(properties={"n": {"if": REF, "then": REF}}, required=["z"]),
        circle(unevaluatedProperties=False, anyOf=[{"properties": {"n": REF}}], required=["z"]),
    ],
)
def test_a_schema_that_branches_into_itself(schema: dict[str, Any]) -> None:
    """It loads, takes small arguments, and refuses those that would double the work too often, at once."""
    assert list(work_problems(schema)) == []
    too_much = too_much_work(schema)
    assert too_much is not None
    assert not too_much(nested(3))
    assert too_much(nested(60))
    assert "refers to itself" in str(schema_check(schema)(nested(60)))


@pytest.mark.parametrize(
    "schema",
    [
        chain(20),
        circle(**REF),
        circle(anyOf=[{"not": REF}, {"type": "string"}]),
        {"properties": {"a": chain(20)["$defs"]["0"]}, "$defs": chain(20)["$defs"]},
    ],
)
def test_alternatives_that_no_value_could_make_cheap(schema: dict[str, Any]) -> None:
    """A circle or a chain at one place is found when the Atlas is loaded."""
    assert [problem.at for problem in work_problems(schema)] == [()]


@pytest.mark.parametrize(
    ("schema", "at"),
    [
        ({"properties": {"a": {"$ref": "#x"}}, "$defs": {"x": {"$anchor": "x"}}}, ("properties", "a", "$ref")),
        ({"$dynamicRef": "#x", "$dynamicAnchor": "x"}, ("$dynamicRef",)),
        ({"properties": {"a": {"$id": "http://x/", "$ref": "#/$defs/b"}}}, ("properties", "a", "$id")),
    ],
)
def test_references_that_cannot_be_followed(schema: dict[str, Any], at: tuple[str, ...]) -> None:
    """Where nobody can say what a reference means, nobody can say how much work it makes."""
    assert [problem.at for problem in work_problems(schema)] == [at]


@pytest.mark.parametrize(
    "schema",
    [
        TREE,
        circle(anyOf=[{"type": "number"}, {"properties": {"and": {"items": REF}}}, {"properties": {"not": REF}}]),
        {"properties": {"a": {"$ref": "#/$defs/b"}, "c": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"type": "string"}}},
        {"type": "object", "properties": {"a": {"oneOf": [{"type": "string"}, {"type": "null"}]}}},
        chain(5),
    ],
)
def test_ordinary_schemas_load(schema: dict[str, Any]) -> None:
    """Trees, expressions, shared definitions and a few alternatives."""
    assert list(work_problems(schema)) == []


def test_ordinary_recursion_is_deep_and_wide() -> None:
    """A tree of a thousand leaves, sixty levels deep, is no burden."""
    leaves = {"more": [{"left": {}} for _ in range(1000)]}
    for _ in range(60):
        leaves = {"left": leaves, "right": {}}
    assert schema_check(TREE)(leaves) is None


def test_only_where_the_value_decides_is_it_looked_at() -> None:
    """A schema without circles costs a call nothing."""
    assert too_much_work({"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"type": "string"}}}) is None
    assert too_much_work(TREE) is not None


def test_a_chain_down_the_value() -> None:
    """Without a circle, but with more ways than are counted: the depth of the arguments decides."""
    names = [{"properties": {"n": {"$ref": f"#/$defs/{n + 1}"}}} for n in range(20)]
    schema = {
        "$defs": {**{str(n): {"anyOf": [name, name]} for n, name in enumerate(names)}, "20": {}},
        "$ref": "#/$defs/0",
    }
    too_much = too_much_work(schema)
    assert too_much is not None
    assert (too_much(nested(3)), too_much(nested(20))) == (False, True)


def test_wide_arguments_have_their_limit() -> None:
    """A schema of which the value decides is asked about no more than so many values."""
    too_much = too_much_work(TREE)
    assert too_much is not None
    assert too_much({"more": [{}] * MAX_LOOKS})
