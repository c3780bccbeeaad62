"""Replay: recorded traffic decided again, with its own clock and counters, and nothing guessed."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cra_middleware import Answer, Atlas, Runtime
from cra_middleware.carp.recorded import recorded_arguments
from cra_middleware.carp.resolver import Resolver
from cra_middleware.errors import CallRefused
from cra_middleware.replay import Replay, replay
from cra_middleware.testing import FrozenClock
from cra_middleware.trace.event import Event
from tests.conftest import NOON, manifest, policies

SCHEMA = {"type": "object", "properties": {"amount": {"type": "number"}, "note": {}}, "required": ["amount"]}
ACTIONS = [
    {"action_id": "refund.create", "name": "r", "description": "r", "parameters_schema": SCHEMA},
    {"action_id": "ticket.get", "name": "t", "description": "t"},
]
OVER = {"arguments": {"amount": "> 100"}}
ASK = {"policy_id": "ask", "type": "require_approval", "actions": ["refund.*"], "conditions": OVER}
DENY = {"policy_id": "no", "type": "deny", "actions": ["refund.*"], "conditions": OVER}
RATE = {"policy_id": "rate", "type": "rate_limit", "parameters": {"max_calls": 2, "window_seconds": 60}}


def atlas(*entries: dict[str, Any], **parts: Any) -> Atlas:
    return Atlas.from_dict(manifest(actions=ACTIONS, policies=policies(*entries), **parts))


def pay(amount: Any = 0, note: Any = None) -> None:
    return None


def recorded(made: Atlas, *calls: tuple[Any, ...], **options: Any) -> list[tuple[Event, ...]]:
    """Sessions of two agents that make these calls: an amount, and the seconds to wait afterwards."""
    clock = FrozenClock(NOON)
    options = {"record": "full", **options}
    found = []
    with Runtime(made, clock=clock, **options) as runtime:
        sessions = [runtime.session("a"), runtime.session("b")]
        for number, (arguments, wait) in enumerate(calls):
            with suppress(CallRefused):
                sessions[number % 2].call("refund.create", pay, *arguments)
            clock.advance(wait)
        for session in sessions:
            session.end()
            found.append(session.events)
    return found


def told(found: list[tuple[Event, ...]], made: Atlas, **options: Any) -> Replay:
    return replay(found, Resolver([made], **options))


def words(result: Replay) -> list[str]:
    return [f"{step.recorded.word} {step.now.word}" for step in result.steps]


def test_what_would_change() -> None:
    """Allowed to denied, to asked, and back."""
    found = recorded(atlas(), ((50,), 1), ((500,), 1))
    assert words(told(found, atlas())) == ["allow allow", "allow allow"]
    assert told(found, atlas()).is_same
    denied = told(found, atlas(DENY))
    assert words(denied) == ["allow allow", "allow deny"]
    (step,) = denied.changed
    assert (step.now.policy_id, step.now.code, step.agent_id, step.action_id) == (
        "no",
        "policy_denied",
        "b",
        "refund.create",
    )
    assert words(told(found, atlas(ASK))) == ["allow allow", "allow ask"]
    refused = recorded(atlas(DENY), ((50,), 1), ((500,), 1))
    assert words(told(refused, atlas())) == ["allow allow", "deny allow"]


def test_answers_of_persons_count() -> None:
    """What was asked and approved, or rejected, was asked."""
    yes = recorded(atlas(ASK), ((500,), 1), ((50,), 1), approver=lambda pending: Answer(True, "ann"))
    no = recorded(atlas(ASK), ((500,), 1), approver=lambda pending: False)
    pending = recorded(atlas(ASK), ((500,), 1))
    for found in (yes, no, pending):
        assert told(found, atlas(ASK)).is_same
        assert words(told(found, atlas(DENY)))[0] == "ask deny"
        assert words(told(found, atlas()))[0] == "ask allow"


def test_limits_are_counted_with_the_recorded_clock() -> None:
    """Two sessions share one limit; a minute later there is room again."""
    shared = {**RATE, "parameters": {**RATE["parameters"], "scope": "global"}}  # type: ignore[dict-item]
    calls = [((1,), 10)] * 4 + [((1,), 60)] + [((1,), 1)] * 2
    result = told(recorded(atlas(), *calls), atlas(shared))
    assert [step.now.word for step in result.steps] == ["allow", "allow", "deny", "deny", "deny", "allow", "allow"]
    assert told(recorded(atlas(shared), *calls), atlas(shared)).is_same
    asked = recorded(atlas(ASK, shared), ((500,), 1), ((500,), 1), ((5,), 1), approver=lambda pending: True)
    assert told(asked, atlas(ASK, shared)).is_same


def test_windows_are_as_of_then() -> None:
    """A window that is closed today was open when it happened."""
    window = {"time_window": {"start": "11:00", "end": "13:00"}}
    noon = {"policy_id": "noon", "type": "deny", "actions": ["refund.*"], "conditions": window}
    calls = (((1,), 3600), ((1,), 1))
    assert [step.now.word for step in told(recorded(atlas(), *calls), atlas(noon)).steps] == ["deny", "allow"]


def test_hashes_only_are_never_guessed() -> None:
    """What depends on arguments is undecidable, and says on which; what does not is decided."""
    found = recorded(atlas(), ((50,), 1), ((500,), 1), record="hash")
    result = told(found, atlas(DENY))
    assert (words(result), len(result.undecidable)) == (["allow undecidable"] * 2, 2)
    assert result.steps[0].now.reason == "policy no looks at the argument amount"
    assert (result.changed, result.is_same) == ((), False)
    everything = {"policy_id": "stop", "type": "deny"}
    assert words(told(found, atlas(everything))) == ["allow deny"] * 2
    facts = {"policy_id": "prod", "type": "deny", "conditions": {"context_matches": {"env": "prod"}}}
    with Runtime(atlas()) as runtime, runtime.session() as session:
        session.call("ticket.get", lambda: None)
    (step,) = told([session.events], atlas()).steps
    assert (step.recorded.word, step.now.word) == ("allow", "allow")  # the hash of no arguments is known
    (step,) = told([session.events], atlas(facts)).steps
    assert (step.now.word, step.now.reason) == ("undecidable", "policy prod looks at facts of the session")


def test_redacted_arguments_are_unknown() -> None:
    """What was hidden cannot be decided on, the rest can."""
    made = atlas(redact=["refund.*.note"])
    found = recorded(made, ((50, "secret"), 1))
    noted = {"policy_id": "n", "type": "deny", "conditions": {"arguments": {"note": "secret"}}}
    (step,) = told(found, atlas(noted)).steps
    assert (step.now.word, step.now.reason) == ("undecidable", "policy n looks at the argument note")
    bare = Atlas.from_dict(manifest(actions=[{**ACTIONS[1], "action_id": "refund.create"}], policies=policies(DENY)))
    assert [step.now.word for step in told(found, bare).steps] == ["allow"]


def test_limits_shared_with_undecidable_calls() -> None:
    """A call that may have run makes a later one undecidable only where it could matter."""
    found = recorded(atlas(redact=["refund.*.note"]), *[((5, "x" if number == 2 else None), 1) for number in range(8)])
    noted = {"policy_id": "n", "type": "deny", "conditions": {"arguments": {"note": "x"}}}
    limit = {**RATE, "parameters": {"max_calls": 3, "window_seconds": 600}}
    steps = told(found, atlas(noted, limit)).steps
    assert all(step.now.word == "undecidable" for step in steps)  # every note was hidden
    free = Atlas.from_dict(
        manifest(actions=[{**ACTIONS[1], "action_id": "refund.create"}], policies=policies(noted, limit))
    )
    clock = FrozenClock(NOON)
    with Runtime(free, clock=clock, record="full", redact=["*.note"]) as runtime, runtime.session("a") as session:
        for number in range(5):
            with suppress(CallRefused):
                session.call("refund.create", lambda **given: None, **({"note": "y"} if number == 1 else {"n": 1}))
    again = told([session.events], free)
    assert [step.now.word for step in again.steps] == ["allow", "undecidable", "allow", "undecidable", "undecidable"]
    assert again.steps[3].now.reason == "a limit that is shared with calls which cannot be decided"


@pytest.mark.filterwarnings("ignore::cra_middleware.policies.AtlasWarning")
def test_observed_traffic_under_a_first_atlas() -> None:
    """Tools that were seen under their own names are mapped as the Atlas maps them, arguments and all."""
    with Runtime.observe(record="full") as runtime, runtime.session() as session:
        session.call("pay_back", lambda sum: None, 500)
        session.call("look", lambda: None)
    tools = {"pay_back": {"action": "refund.create", "args": {"sum": "amount"}}, "look": "ticket.get"}
    made = atlas(DENY, adapters={"any": {"tools": tools}})
    assert words(told([session.events], made)) == ["allow deny", "allow allow"]
    assert words(told([session.events], atlas())) == ["allow deny", "allow deny"]


def test_a_resolution_is_answered_again() -> None:
    """What an agent would be told differently."""
    found = recorded(atlas())
    assert all(item.recorded == item.now for item in told(found, atlas()).requests)
    changed = told(found, atlas({"policy_id": "stop", "type": "deny"}))
    assert changed.requests[0].now == ("deny", 0, 2)
    assert not changed.is_same


@pytest.mark.parametrize(
    ("parameters", "values", "unknown"),
    [
        ({"a": "cra:int:9007199254740993"}, {"a": 2**53 + 1}, set()),
        ({"a": "cra:float:1e-05"}, {"a": 1e-05}, set()),
        ({"a": "cra:str:cra:x"}, {"a": "cra:x"}, set()),
        ({"a": ["cra:date:2026-01-05"]}, {"a": ["2026-01-05"]}, set()),
        ({"a": "cra:bytes:00", "b": 1}, {"b": 1}, {"a"}),
        ({"a": {"x": ["cra:opaque:x.Y"]}}, {}, {"a"}),
        ({"a": "cra:redacted:00"}, {}, {"a"}),
        ({"a": ["mail cra:redacted:email"], "b": 1}, {"b": 1}, {"a"}),
        ({"a": {"x": {"$commit": "sha256:0", "ref": "r"}}}, {}, {"a"}),
        ({"a": "cra:int:five"}, {}, {"a"}),
        ({"a": "cra:new:thing"}, {}, {"a"}),
    ],
)
def test_recorded_values(parameters: dict[str, Any], values: dict[str, Any], unknown: set[str]) -> None:
    """Tags are read back; what they only stand for is unknown."""
    assert recorded_arguments(parameters, "") == (values, unknown)


AMOUNTS = st.sampled_from(
    [(5,), (500,), ("500",), (None,), (-1,), (2**60,), (0.1 + 0.2,), (5, "x"), (5, [1, {"a": b"x"}])]
)
ENTRIES = st.lists(
    st.sampled_from(
        [ASK, DENY, RATE, {"policy_id": "late", "type": "deny", "conditions": {"time_window": {"start": "12:01"}}}]
    ),
    max_size=3,
    unique_by=lambda entry: entry["policy_id"],
)


@settings(max_examples=60)
@given(
    ENTRIES, st.lists(st.tuples(AMOUNTS, st.sampled_from([0, 1, 61])), max_size=6), st.sampled_from([True, False, None])
)
def test_the_same_atlas_decides_the_same(entries: list[dict[str, Any]], calls: list[Any], answer: bool | None) -> None:
    """Replaying a full trace under the very policies it was recorded under never differs."""
    made = atlas(*entries)
    options = {} if answer is None else {"approver": lambda pending: answer}
    result = told(recorded(made, *calls, **options), made)
    assert [step for step in result.steps if step.is_changed] == []


@pytest.mark.filterwarnings("ignore::cra_middleware.policies.AtlasWarning")
def test_a_tool_that_frameworks_map_apart() -> None:
    """Which framework called is in no trace: where their maps disagree nothing is guessed, and a limit may be spent."""
    with Runtime.observe(record="full") as runtime, runtime.session() as session:
        session.call("look", lambda: None)
        session.call("ticket.get", lambda: None)
    apart = {"one": {"tools": {"look": "ticket.get"}}, "two": {"tools": {"look": "refund.create"}}}
    for adapters in (apart, {"one": apart["one"]}):
        assert words(told([session.events], atlas(DENY, adapters=adapters))) == ["allow undecidable", "allow allow"]
    once = {**RATE, "parameters": {"max_calls": 1, "window_seconds": 60}}
    assert words(told([session.events], atlas(once, adapters=apart)))[1] == "allow undecidable"
    agreed = {**apart, "two": apart["one"], "any": apart["one"]}
    assert words(told([session.events], atlas(adapters=agreed))) == ["allow allow", "allow allow"]
