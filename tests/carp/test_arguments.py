"""Tests of arguments: proven inside, proven outside, or neither; and what they mean for an allow and for a deny."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from cra_middleware import Atlas
from cra_middleware.atlas.argument_tests import parse_argument_test
from cra_middleware.atlas.words import test_in_words as words_of
from cra_middleware.carp.arguments import arguments_matcher, shown_value, tell_argument
from cra_middleware.carp.call import Allow, Ask, ToolCall
from cra_middleware.carp.counters import MemoryCounters
from cra_middleware.carp.policy import Facts
from cra_middleware.carp.resolver import Resolver
from tests.conftest import manifest, policies


class Hostile:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("hostile")

    def __hash__(self) -> int:
        raise RuntimeError("hostile")

    def __float__(self) -> float:
        raise RuntimeError("hostile")


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("test", "value", "answer"),
    [
        ("> 100", 101, True),
        ("> 100", 100, False),
        (">100", 100.0001, True),
        ("> 0.1", 0.1, False),
        (">= 0.1", 0.1, True),
        ("< -5", -6, True),
        ("<= 7", Decimal("7.0"), True),
        ("> 100", 10**40, True),
        ("> 100", "101", None),
        ("> 100", "50", None),
        ("> 100", None, None),
        ("> 100", True, None),
        ("> 100", NAN, None),
        ("> 100", INF, None),
        ("> 100", Decimal("NaN"), None),
        ("> 100", [101], None),
        ("> 100", Hostile(), None),
        (5, 5, True),
        (5, 5.0, True),
        (5, Decimal(5), True),
        (5, 6, False),
        (5, "5", None),
        (5, True, None),
        (1, True, None),
        (True, True, True),
        (True, False, False),
        (True, 1, None),
        (True, "true", None),
        (True, None, False),
        (None, None, True),
        (None, 5, False),
        (None, Hostile(), None),
        ("gold", "gold", True),
        ("gold", "Gold", False),
        ("gold", ["gold"], None),
        ("gold", {"gold": 1}, None),
        ("gold", Hostile(), None),
        (["gold", 5], 5, True),
        (["gold", 5], "gold", True),
        (["gold", 5], 6, None),
        ([5, 6], 7, False),
        ([5, 6], NAN, None),
        (["> 100"], "> 100", True),
        ({"matches": "T-[0-9]+"}, "T-42", True),
        ({"matches": "T-[0-9]+"}, "T-42\n", False),
        ({"matches": "T-[0-9]+"}, "xT-42", False),
        ({"matches": "a|b"}, "ab", False),
        ({"matches": "a|b"}, "b", True),
        ({"matches": "(?m)^a$"}, "a\nb", False),
        ({"matches": ".*"}, 5, None),
        ({"matches": ".*"}, "\ud800", None),
        ({"commands": "ls *"}, "ls", True),
        ({"commands": ["ls *", ["pwd"]]}, "pwd", True),
    ],
)
def test_one_argument(test: Any, value: object, answer: bool | None) -> None:
    """Nothing is guessed, and no value breaks it."""
    parsed = parse_argument_test(test)
    match = arguments_matcher({"a": parsed}, frozenset({"a"}), None)
    assert match({"a": value}) is answer
    told = tell_argument("a", parsed, {"a": value}, frozenset({"a"}), None)
    assert told.answer is answer
    assert words_of(parsed)
    assert len(told.saw) <= 80
    assert told.saw.isprintable()


@pytest.mark.parametrize(
    ("given", "declared", "answer"),
    [
        ({"a": 101, "b": 5}, "a b", True),
        ({"a": 101, "b": 6}, "a b", False),
        ({"a": "x", "b": 6}, "a b", False),
        ({"a": "x", "b": 5}, "a b", None),
        ({"a": 101}, "a b", None),
        ({"a": 101}, "a", False),
        ({"a": 50}, "a b", False),
        ({}, "a b", None),
        ({}, "", False),
    ],
)
def test_several_arguments(given: dict[str, object], declared: str, answer: bool | None) -> None:
    """All must hold; one that is missing is unknown where the action declares it, else the rule is about others."""
    tests = {"a": parse_argument_test("> 100"), "b": parse_argument_test(5)}
    assert arguments_matcher(tests, frozenset(declared.split()), None)(given) is answer


@pytest.mark.parametrize(
    ("amount", "verdicts"),
    [(50, "allow allow"), (101, "ask deny"), ("50", "ask deny"), (None, "ask deny"), (..., "ask deny")],
)
def test_compiled_by_effect(amount: Any, verdicts: str) -> None:
    """An ask holds unless the value is proven outside, an allow only when it is proven inside."""
    action = {
        "action_id": "refund.create",
        "name": "r",
        "description": "r",
        "parameters_schema": {"properties": {"amount": {}}},
    }
    ask = {"policy_id": "ask", "type": "require_approval", "conditions": {"arguments": {"amount": "> 100"}}}
    allow = {"policy_id": "small", "type": "allow", "conditions": {"arguments": {"amount": "<= 100"}}}
    call = ToolCall.freeze("refund.create", "t", {} if amount is ... else {"amount": amount})
    found = []
    for entries in (policies(ask), [allow]):
        resolver = Resolver([Atlas.from_dict(manifest(actions=[action], policies=entries))])
        decision = resolver.decide(call, Facts("a", "low", {}, "s"), 0, MemoryCounters())
        found.append("allow" if isinstance(decision, Allow) else "ask" if isinstance(decision, Ask) else "deny")
    assert " ".join(found) == verdicts


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ("> lots", "compares nothing"),
        (">", "compares nothing"),
        ("!= 5", "compares nothing"),
        ("> 1e5", "compares nothing"),
        ([], "empty list"),
        ([[1]], "a list of values holds"),
        ([{"matches": "x"}], "a list of values holds"),
        ({}, "one test at a time"),
        ({"matches": "a", "glob": "b"}, "one test at a time"),
        ({"inside": "/x"}, "is no test"),
        ({"within": 5}, "within takes one folder"),
        ({"within": "src"}, "within takes an absolute folder"),
        ({"within": "$HOME/x"}, "within takes an absolute folder"),
        ({"within": "$PROJECTS"}, "within takes an absolute folder"),
        ({"glob": []}, "takes a text"),
        ({"glob": [5]}, "takes a text"),
        ({"glob": "../x"}, "is no pattern"),
        ({"glob": "$HOME/x"}, "is no pattern"),
        ({"glob": "~root/x"}, "is no pattern"),
        ({"matches": 5}, "takes one regular expression"),
        ({"matches": "a)|(b"}, "look-around"),
        ({"matches": "(?=a)"}, "look-around"),
        ({"matches": r"(a)\1"}, "look-around"),
        ({"commands": ["ls", ""]}, "takes a text"),
    ],
)
def test_what_is_no_test(test: Any, why: str) -> None:
    """Each says what to write."""
    with pytest.raises(ValueError, match=why):
        parse_argument_test(test)


@pytest.mark.parametrize("test", [{"within": "$PROJECT"}, {"glob": "src/*"}, {"glob": "$PROJECT/x"}])
def test_a_project_is_wanted(test: Any) -> None:
    """What speaks of the project cannot be compiled without one."""
    with pytest.raises(ValueError, match=r"Runtime\(project=...\)"):
        arguments_matcher({"a": parse_argument_test(test)}, frozenset(), None)


def test_shown_values() -> None:
    """Short, and nothing steers a terminal."""
    assert shown_value("\x1b[2J\u202e") == r"'\x1b[2J\u202e'"
    assert shown_value(10**5000) == "a int too long to show"
    assert shown_value(Hostile()) == "an object of type Hostile"
    assert len(shown_value("x" * 10_000)) == 80
