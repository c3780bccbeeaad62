"""Conditions on arguments have three answers: it holds, it does not, nobody can say."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware.atlas.schemas import compile_schema
from cra_middleware.carp.call import ToolCall
from cra_middleware.carp.matchers import parameters_matcher, schema_check, schema_violation
from cra_middleware.carp.policy import Condition, Facts, Situation, evaluate

YES, NO, UNKNOWN = True, False, None
NAN, INF = float("nan"), float("inf")


@dataclass
class Money:
    amount: int


class Text(str):
    pass


class Number(int):
    pass


def ask(schema: dict[str, Any], declared: str = "", **arguments: Any) -> bool | None:
    """The answer as a policy gets it: arguments frozen, and what raises cannot be evaluated."""
    matcher = parameters_matcher(schema, frozenset(declared.split()))
    condition = Condition("parameters", lambda situation: matcher(situation.arguments or {}))
    call = ToolCall.freeze("a.b", "tool", arguments)
    return evaluate(condition, Situation(Facts("agent", "low", {}, "root"), call.arguments, 0))


def about(**schema: Any) -> dict[str, Any]:
    return {"properties": {"a": schema}, "required": ["a"]}


OVER = about(exclusiveMinimum=100)
TYPED = about(type="number", exclusiveMinimum=100)
NESTED = about(type="object", properties={"b": {"type": "number", "minimum": 5}}, required=["b"])
EITHER = about(anyOf=[{"type": "number", "minimum": 100}, {"type": "string", "enum": ["all"]}])
LOOSE = about(anyOf=[{"maximum": 50}, {"type": "string", "const": "all"}])


@pytest.mark.parametrize(
    ("schema", "value", "answer"),
    [
        (OVER, 101, YES),
        (OVER, 100, NO),
        (OVER, 100.5, YES),
        (OVER, 10**400, YES),
        (OVER, -(10**400), NO),
        (OVER, 0.1 + 0.2, NO),
        (OVER, Decimal("100.01"), YES),
        (OVER, Decimal("100.00"), NO),
        (OVER, Decimal("NaN"), UNKNOWN),
        (OVER, Decimal("Infinity"), UNKNOWN),
        (OVER, NAN, UNKNOWN),
        (OVER, INF, UNKNOWN),
        (OVER, -INF, UNKNOWN),
        (OVER, "101", UNKNOWN),
        (OVER, "50", UNKNOWN),
        (OVER, True, UNKNOWN),
        (OVER, None, UNKNOWN),
        (OVER, [101], UNKNOWN),
        (OVER, {"amount": 101}, UNKNOWN),
        (OVER, object(), UNKNOWN),
        (OVER, b"101", UNKNOWN),
        (OVER, Number(101), YES),
        (TYPED, 101, YES),
        (TYPED, "101", UNKNOWN),
        (TYPED, True, UNKNOWN),
        (TYPED, NAN, UNKNOWN),
        (about(type="integer"), 5, YES),
        (about(type="integer"), 5.0, YES),
        (about(type="integer"), 5.5, UNKNOWN),
        (about(type="integer"), True, UNKNOWN),
        (about(type="number"), INF, UNKNOWN),
        (about(type="boolean"), True, YES),
        (about(type="boolean"), 1, UNKNOWN),
        (about(type="null"), None, YES),
        (about(type=["string", "null"]), None, YES),
        (about(type=["string", "null"]), 5, UNKNOWN),
        (about(type="array"), (1, 2), YES),
        (about(multipleOf=5), 10, YES),
        (about(multipleOf=5), "10", UNKNOWN),
        # equality needs no kind, but a value that JSON has
        (about(const="x"), "x", YES),
        (about(const="x"), Text("x"), YES),
        (about(const="x"), "y", NO),
        (about(const="x"), 5, NO),
        (about(const=True), 1, NO),
        (about(const=1), True, NO),
        (about(const=5), 5.0, YES),
        (about(const=None), None, YES),
        (about(enum=["us", "eu"]), "eu", YES),
        (about(enum=["us", "eu"]), None, NO),
        (about(enum=[1, 2]), NAN, UNKNOWN),
        (about(enum=["x"]), object(), UNKNOWN),
        # text
        (about(pattern="^rm "), "rm -r", YES),
        (about(pattern="^rm "), "ls", NO),
        (about(pattern="^rm "), ["rm -r"], UNKNOWN),
        (about(pattern="^rm "), b"rm -r", UNKNOWN),
        (about(pattern="x"), "\ud800", UNKNOWN),
        (about(minLength=2), "é", NO),
        (about(minLength=2), [1, 2], UNKNOWN),
        (about(maxLength=2), 5, UNKNOWN),
        # lists
        (about(items={"type": "string"}), ["a"], YES),
        (about(items={"type": "string"}), ["a", 5], UNKNOWN),
        (about(items={"minimum": 5}), [6], YES),
        (about(items={"minimum": 5}), ["6"], UNKNOWN),
        (about(items={"minimum": 5}), "66", UNKNOWN),
        (about(prefixItems=[{"const": "rm"}], items={"pattern": "^-"}), ["rm", "-r"], YES),
        (about(prefixItems=[{"const": "rm"}], items={"pattern": "^-"}), ["rm", 5], UNKNOWN),
        (about(contains={"const": "x"}), ["y", "x"], YES),
        (about(contains={"type": "number", "maximum": 5}), ["y", 5], YES),
        (about(contains={"maximum": 5}), ["99"], UNKNOWN),
        (about(contains={"const": "x"}), "x", UNKNOWN),
        (about(minItems=1), {"x": 1}, UNKNOWN),
        (about(uniqueItems=True), (1, 1), NO),
        # objects
        (NESTED, {"b": 5}, YES),
        (NESTED, {"b": 4}, NO),
        (NESTED, {}, NO),
        (NESTED, {"b": "5"}, UNKNOWN),
        (NESTED, {"b": NAN}, UNKNOWN),
        (NESTED, {"b": 5, "c": object()}, YES),
        (NESTED, "b", UNKNOWN),
        (about(properties={"amount": {"minimum": 5}}), Money(5), YES),
        (about(properties={"amount": {"minimum": 5}}), [Money(5)], UNKNOWN),
        (about(required=["b"]), {"b": object()}, YES),
        (about(required=["b"]), "b", UNKNOWN),
        (about(additionalProperties=False), "--force", UNKNOWN),
        (about(additionalProperties={"maximum": 5}), {"x": 4}, YES),
        (about(additionalProperties={"maximum": 5}), {"x": "9"}, UNKNOWN),
        (about(patternProperties={"^a": {"maximum": 5}}), {"ab": 4}, YES),
        (about(patternProperties={"^a": {"maximum": 5}}), {"ab": "9"}, UNKNOWN),
        (about(patternProperties={"^a": {"maximum": 5}}, properties={"ab": {}}), {"ab": "9"}, UNKNOWN),
        (about(dependentSchemas={"x": {"properties": {"y": {"maximum": 5}}}}), {"x": 1, "y": 4}, YES),
        (about(dependentSchemas={"x": {"properties": {"y": {"maximum": 5}}}}), {"x": 1, "y": "9"}, UNKNOWN),
        (about(dependentSchemas={"x": {"properties": {"y": {"maximum": 5}}}}), {"y": "9"}, YES),
        (about(dependentRequired={"x": ["y"]}), "x", UNKNOWN),
        (about(unevaluatedProperties={"maximum": 5}), {"x": "9"}, UNKNOWN),
        (about(unevaluatedItems={"maximum": 5}), ["9"], UNKNOWN),
        (about(minProperties=1), ["x"], UNKNOWN),
        # alternatives may be told apart by type, and by type only
        (EITHER, 150, YES),
        (EITHER, 50, NO),
        (EITHER, "all", YES),
        (EITHER, "some", NO),
        (EITHER, True, UNKNOWN),
        (EITHER, None, UNKNOWN),
        (EITHER, NAN, UNKNOWN),
        (LOOSE, 50, YES),
        (LOOSE, 51, NO),
        (LOOSE, "9999", UNKNOWN),
        (about(oneOf=[{"type": "number"}, {"type": "string"}]), "x", YES),
        (about(oneOf=[{"type": "number"}, {"type": "string"}]), True, UNKNOWN),
        (
            about(anyOf=[{"properties": {"k": {"type": "number", "minimum": 1}}}, {"required": ["z"]}]),
            {"k": "9"},
            UNKNOWN,
        ),
        (about(allOf=[{"minimum": 5}, {"maximum": 9}]), 7, YES),
        (about(allOf=[{"minimum": 5}, {"maximum": 9}]), 10, NO),
        (about(allOf=[{"minimum": 5}, {"maxLength": 9}]), 7, UNKNOWN),
        (about(**{"not": {"minimum": 5}}), 4, YES),
        (about(**{"not": {"minimum": 5}}), 5, NO),
        (about(**{"not": {"minimum": 5}}), "5", UNKNOWN),
        (about(**{"not": {"type": "string"}}), 5, UNKNOWN),
        (about(**{"if": {"minimum": 100}, "then": False}), 150, NO),
        (about(**{"if": {"minimum": 100}, "then": False}), 50, YES),
        (about(**{"if": {"minimum": 100}, "then": False}), "50", UNKNOWN),
        (about(**{"if": {"const": "x"}, "else": {"maximum": 5}}), "y", UNKNOWN),
        # references
        ({**about(**{"$ref": "#/$defs/big"}), "$defs": {"big": {"exclusiveMinimum": 100}}}, 101, YES),
        ({**about(**{"$ref": "#/$defs/big"}), "$defs": {"big": {"exclusiveMinimum": 100}}}, "101", UNKNOWN),
        ({**about(**{"$ref": "#/$defs/a~1b"}), "$defs": {"a/b": {"type": "string"}}}, 5, UNKNOWN),
        ({"$ref": "#/$defs/all", "$defs": {"all": OVER}}, 101, YES),
        ({"$ref": "#/$defs/all", "$defs": {"all": OVER}}, "101", UNKNOWN),
        ({**about(**{"$ref": "#/$defs/tree"}), "$defs": {"tree": {"items": {"$ref": "#/$defs/tree"}}}}, [[[]]], YES),
        (
            {**about(**{"$ref": "#/$defs/tree"}), "$defs": {"tree": {"items": {"$ref": "#/$defs/tree"}}}},
            [["x"]],
            UNKNOWN,
        ),
        # nothing is asked of it
        (about(), object(), YES),
        (about(title="any"), NAN, YES),
    ],
)
def test_one_argument(schema: dict[str, Any], value: Any, answer: bool | None) -> None:
    """A keyword that would be skipped, NaN, and what is no JSON cannot be evaluated; the rest holds or does not."""
    assert ask(schema, a=value) is answer


@pytest.mark.parametrize(
    ("schema", "declared", "arguments", "answer"),
    [
        (OVER, "", {}, NO),
        (OVER, "b", {"b": 5}, NO),
        (OVER, "a", {}, UNKNOWN),
        (OVER, "a b", {"b": 5}, UNKNOWN),
        (OVER, "a", {"a": 101}, YES),
        ({"properties": {"a": {"minimum": 5}, "b": {"const": "x"}}}, "", {"a": 5}, YES),
        ({"properties": {"a": {"minimum": 5}, "b": {"const": "x"}}}, "a b", {"a": 5}, UNKNOWN),
        ({"properties": {"a": {"minimum": 5}, "b": {"const": "x"}}, "required": ["a", "b"]}, "", {"a": 5}, NO),
        ({"required": ["a"]}, "", {}, NO),
        ({"required": ["a"]}, "", {"a": None}, YES),
        ({"not": {"required": ["a"]}}, "", {}, NO),
        ({"not": {"required": ["a"]}}, "a", {}, UNKNOWN),
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, "", {"b": 1}, YES),
        ({"anyOf": [OVER, {"properties": {"b": {"const": "x"}}, "required": ["b"]}]}, "", {"b": "x"}, YES),
        (
            {"anyOf": [OVER, {"properties": {"b": {"const": "x"}}, "required": ["b"]}]},
            "",
            {"a": "101", "b": "x"},
            UNKNOWN,
        ),
        ({"$ref": "#/$defs/all", "$defs": {"all": OVER}}, "a", {}, UNKNOWN),
        ({"dependentSchemas": {"a": OVER}}, "a", {}, UNKNOWN),
    ],
)
def test_absent_arguments(
    schema: dict[str, Any], declared: str, arguments: dict[str, Any], answer: bool | None
) -> None:
    """Absent although declared: nobody can say. Absent and not declared: the condition is about something else."""
    assert ask(schema, declared, **arguments) is answer


def test_other_arguments_do_not_count() -> None:
    """An object that the condition does not name does not make it unknowable."""
    assert ask(OVER, a=101, connection=object(), data=b"x") is YES
    assert ask(OVER, a=99, connection=object(), limit=NAN) is NO


def test_references_without_end() -> None:
    """A schema that refers to itself for the same value is given up on, not followed for ever."""
    schema = {
        **about(**{"$ref": "#/$defs/x"}),
        "$defs": {"x": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/y"}]}, "y": {"type": "string"}},
    }
    assert ask(schema, a="text") is YES
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    tree = {
        **about(**{"$ref": "#/$defs/tree"}),
        "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
    }
    assert ask(tree, a=deep) is UNKNOWN


SMALL = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, NAN, "", "a", "1"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
LEAVES = st.sampled_from(
    [
        {},
        {"type": "number"},
        {"type": "string"},
        {"type": ["string", "null"]},
        {"minimum": 1},
        {"maxLength": 0},
        {"const": 1},
        {"enum": ["a", None]},
        {"required": ["a"]},
        {"minItems": 1},
    ]
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"not": inner}),
        st.lists(inner, min_size=1, max_size=2).map(lambda items: {"anyOf": items}),
        st.lists(inner, min_size=1, max_size=2).map(lambda items: {"allOf": items}),
        st.fixed_dictionaries({"properties": st.dictionaries(st.sampled_from("ab"), inner, min_size=1)}),
        st.fixed_dictionaries({"items": inner}),
        st.fixed_dictionaries({"if": inner, "then": inner}),
    ),
    max_leaves=4,
)


@given(SCHEMAS, SMALL)
def test_an_answer_is_the_validators(schema: dict[str, Any], value: Any) -> None:
    """Where there is an answer, it is what JSON Schema says: the third answer only ever takes away."""
    answer = ask(about(**schema), a=value)
    assert answer is None or answer is jsonschema_rs.validator_for(about(**schema)).is_valid({"a": value})


@given(SCHEMAS, SMALL)
def test_a_condition_and_its_opposite_never_agree(schema: dict[str, Any], value: Any) -> None:
    """A condition and its negation do not both hold, and are unknown together."""
    plain, negated = ask(about(**schema), a=value), ask(about(**{"not": schema}), a=value)
    assert (plain is None) is (negated is None)
    assert plain is None or plain is not negated


@pytest.mark.parametrize(
    ("schema", "arguments", "message"),
    [
        ({"required": ["a"]}, {}, "/a is missing"),
        ({"properties": {"a": {"type": "number"}}}, {"a": "SECRET"}, "/a must be of type number"),
        ({"properties": {"a": {"type": ["number", "null"]}}}, {"a": "SECRET"}, "/a must be of type null or number"),
        (
            {"properties": {}, "additionalProperties": False},
            {"b": "SECRET"},
            "/ has arguments that the action does not know: b",
        ),
        ({"additionalProperties": False}, {"b": "SECRET"}, "/ holds something that the schema does not allow"),
        ({"properties": {"a": {"enum": ["x", "y"]}}}, {"a": "SECRET"}, "/a must be one of x, y"),
        ({"properties": {"a": {"maximum": 5}}}, {"a": 7}, "/a violates maximum 5"),
        ({"properties": {"a": {"pattern": "^x"}}}, {"a": "SECRET"}, "/a violates pattern"),
        (
            {"properties": {"a": {"items": {"properties": {"b": {"type": "null"}}}}}},
            {"a": [{"b": "SECRET"}]},
            "/a/0/b must be of type null",
        ),
        ({"properties": {name: {"type": "null"} for name in "abcde"}}, dict.fromkeys("abcde", "SECRET"), " and more"),
        ({"properties": {"a": {"type": "string"}}}, {"a": b"SECRET"}, "of a kind that JSON does not have"),
        ({"properties": {"a": {"pattern": "x"}}}, {"a": "\ud800SECRET"}, "of a kind that JSON does not have"),
    ],
)
def test_violations_are_told_without_values(schema: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    """A model is told where and which keyword, never a value; a value that JSON does not have never fits."""
    text = schema_violation(compile_schema(schema), arguments)
    assert text is not None
    assert message in text
    assert "SECRET" not in text
    assert schema_violation(compile_schema({}), arguments) is None


def test_violations_are_short() -> None:
    """However long a caller's own names are, the sentence stays short."""
    schema = {"additionalProperties": {"type": "null"}}
    text = schema_violation(compile_schema(schema), {"x" * 100_000: 1})
    assert text is not None
    assert len(text) < 500
    closed = schema_violation(
        compile_schema({"additionalProperties": False}), {f"{number}" * 1000: 1 for number in range(50)}
    )
    assert closed is not None
    assert len(closed) < 5000


def test_references_that_double() -> None:
    """A schema that refers to itself twice, and a value that is deep: nobody waits for 2^60 looks."""
    twice = {"allOf": [{"properties": {"x": {"$ref": "#/$defs/a"}}}, {"properties": {"x": {"$ref": "#/$defs/a"}}}]}
    schema = {"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": twice}}
    assert ask(schema, x={"x": {"x": {}}}) is True
    deep: dict[str, Any] = {}
    for _ in range(60):
        deep = {"x": deep}
    assert ask(schema, x=deep) is None


@pytest.mark.parametrize(
    ("schema", "good"),
    [
        ({"properties": {"a": {}}, "required": ["a"], "additionalProperties": False}, True),
        ({"properties": {"a": True}, "required": ["a"], "additionalProperties": False}, True),
        ({"properties": {"a": {}}, "patternProperties": {"a": {"type": "null"}}}, False),
        ({"properties": {"a": {}}, "propertyNames": {}, "anyOf": [{"properties": {"a": {"type": "null"}}}]}, False),
        ({"properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}, False),
        ({"properties": {"b": {}}, "additionalProperties": False}, False),
    ],
)
@pytest.mark.parametrize("value", [b"x", [b"x"], {"x": {"y": object()}}])
def test_an_argument_that_a_schema_only_names(schema: dict[str, Any], good: bool, value: object) -> None:
    """It may be of a kind that JSON does not have; one that the schema says something about may not."""
    check = schema_check(schema)
    assert (check({"a": value}) is None) is good
    if "b" not in str(schema):
        assert (check({"a": value, "b": 1}) is None) is ("additionalProperties" not in schema and good)
