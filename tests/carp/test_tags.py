"""Arguments that were sent in canonical form are decided as where they were made."""

from __future__ import annotations

import json
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware import Atlas
from cra_middleware.carp.call import Allow, ToolCall
from cra_middleware.carp.counters import MemoryCounters
from cra_middleware.carp.policy import Facts
from cra_middleware.carp.resolver import Resolver
from cra_middleware.carp.tags import Lost, has_lost, read_tags, untagged
from tests.conftest import manifest

NOW_US = 1_767_614_400_000_000
FACTS = Facts("bot", "low", {}, "00000000-0000-7000-8000-000000000000")


class Odd:
    """Something that JSON has no form for."""

    def __repr__(self) -> str:
        return "Odd()"


VALUES: list[Any] = [
    "plain",
    "cra:str:x",
    "cra:opaque:imitated",
    "half \ud800 a letter, and \\ud800",
    2**53,
    2**70,
    -(2**60),
    1e-9,
    1e300,
    float("inf"),
    b"bytes",
    Decimal("150.00"),
    Decimal("7"),
    date(2026, 1, 5),
    timedelta(days=1),
    Path("/srv/data/a.txt"),
    UUID("00000000-0000-7000-8000-000000000000"),
    {1, 2},
    Odd(),
    [1, {"a": "cra:x", "b": Odd()}],
    {"k": None},
    None,
    True,
    50,
    150,
]
TESTS: list[Any] = [
    "> 100",
    "plain",
    {"matches": "[a-z]+"},
    {"glob": ["/srv/**"]},
    {"within": "/srv"},
    {"commands": ["git status"]},
    ["plain", 50],
]
SCHEMAS: list[Any] = [
    {"properties": {"value": {"type": "string"}}, "required": ["value"]},
    {"properties": {"value": {"const": "cra:opaque:x"}}},
    {"properties": {"value": {"exclusiveMinimum": 100}}},
    {"properties": {"value": {"not": {"type": "string"}}}},
]


def sent(call: ToolCall) -> ToolCall:
    """The same call, where it arrives."""
    return read_tags(ToolCall.freeze(call.action_id, call.tool_name, json.loads(call.text)))


def resolver(*rules: Any, policies: Any = ()) -> Resolver:
    base = manifest(policies=list(policies), **({"rules": list(rules)} if rules else {}))
    return Resolver((Atlas.from_dict(base),))


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_the_text_is_the_same(value: Any) -> None:
    """And so is the digest, which questions and traces hold."""
    call = ToolCall.freeze("ticket.get", "tool", {"value": value})
    there = sent(call)
    assert (there.text, there.digest, there.problem) == (call.text, call.digest, None)
    assert there.live is None


@pytest.mark.parametrize("verb", ["allow", "ask", "deny"])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_rules_decide_the_same(value: Any, verb: str) -> None:
    """Whatever a rule tests: a value that is not there is one that nobody can judge."""
    for test in TESTS:
        rules: list[Any] = [{verb: "ticket.get", "when": {"value": test}}]
        if verb != "allow":
            rules.append({"allow": "ticket.get"})
        decides = resolver(*rules)
        call = ToolCall.freeze("ticket.get", "tool", {"value": value})
        here, there = (decides.decide(one, FACTS, NOW_US, MemoryCounters()) for one in (call, sent(call)))
        assert type(here) is type(there), (verb, test, here, there)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_schemas_decide_the_same(value: Any) -> None:
    """Those of policies."""
    for schema in SCHEMAS:
        for kind in ("deny", "require_approval", "allow"):
            policy = {"policy_id": "p", "type": kind, "conditions": {"parameters": {"type": "object", **schema}}}
            allow = [] if kind == "allow" else [{"policy_id": "a", "type": "allow"}]
            decides = resolver(policies=[*allow, policy])
            call = ToolCall.freeze("ticket.get", "tool", {"value": value})
            here, there = (decides.decide(one, FACTS, NOW_US, MemoryCounters()) for one in (call, sent(call)))
            if isinstance(value, set):  # its members are not in its tag: it may be judged more strictly
                assert type(here) is type(there) or not isinstance(there, Allow)
                continue
            assert type(here) is type(there), (kind, schema, here, there)


def test_an_object_is_not_outside_of_what_is_denied() -> None:
    """The name of its type, as text, would be."""
    decides = resolver({"deny": "ticket.get", "when": {"value": {"matches": "secret.*"}}}, {"allow": "ticket.get"})
    call = ToolCall.freeze("ticket.get", "tool", {"value": Odd()})
    as_text = ToolCall.freeze("ticket.get", "tool", json.loads(call.text))
    assert isinstance(decides.decide(as_text, FACTS, NOW_US, MemoryCounters()), Allow)
    assert not isinstance(decides.decide(sent(call), FACTS, NOW_US, MemoryCounters()), Allow)


@pytest.mark.parametrize("value", ["cra:", "cra:nothing:x", "cra:int"])
def test_what_is_no_tag_lets_nothing_run(value: str) -> None:
    """A call that is not in the form that it says is recorded, and denied."""
    call = read_tags(ToolCall.freeze("ticket.get", "tool", {"value": value}))
    if value == "cra:int":
        assert isinstance(call.arguments["value"], Lost)
        return
    assert call.problem is not None
    assert not isinstance(resolver({"allow": "ticket.get"}).decide(call, FACTS, NOW_US, MemoryCounters()), Allow)


def test_what_has_a_problem_keeps_it() -> None:
    """Keys that collide, or are none, are found before."""
    call = ToolCall.freeze("ticket.get", "tool", {'a"b': 1})
    assert call.problem is not None
    assert read_tags(call) == call


def test_what_is_lost() -> None:
    """Of some kinds the value is not in the tag."""
    kept = ToolCall.freeze("ticket.get", "tool", {"value": [2**70, Path("/"), "cra:str:x"]})
    lost = ToolCall.freeze("ticket.get", "tool", {"value": [{"deep": b"x"}]})
    assert not has_lost(sent(kept))
    assert has_lost(sent(lost))
    assert sent(kept).arguments == {"value": [2**70, "/", "cra:str:x"]}


@given(st.text(st.characters(codec=None)))
def test_every_text_comes_back(text: str) -> None:
    """Whatever it imitates."""
    call = ToolCall.freeze("ticket.get", "tool", {"value": text})
    assert sent(call).arguments == {"value": text}


@pytest.mark.parametrize(
    "text", ["cra:text:\\", "cra:text:\\q", "cra:text:\\uD800", "cra:text:\\U00110000", "cra:text:é"]
)
def test_a_text_that_is_not_escaped_so_is_lost(text: str) -> None:
    """Nobody can say what it was."""
    assert isinstance(untagged(text), Lost)
