"""Trying out: shadow policies, observe mode; and holding tight: baselines, reloading, no rule that loosens."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware import Atlas, Runtime, Session
from cra_middleware.carp.call import Allow, ToolCall
from cra_middleware.carp.counters import MemoryCounters
from cra_middleware.carp.policy import Facts
from cra_middleware.carp.resolver import Resolver
from cra_middleware.errors import AtlasError, CallRefused, InvalidParameters
from cra_middleware.policies import AtlasWarning
from cra_middleware.testing import FrozenClock
from tests.conftest import NOON, manifest, policies

DENY: dict[str, Any] = {"policy_id": "no", "type": "deny", "actions": ["refund.*"], "parameters": {"reason": "No."}}
ASK: dict[str, Any] = {"policy_id": "ask", "type": "require_approval", "actions": ["refund.*"]}
RATE: dict[str, Any] = {
    "policy_id": "rate",
    "type": "rate_limit",
    "actions": ["refund.*"],
    "parameters": {"max_calls": 1, "window_seconds": 60},
}
BUDGET: dict[str, Any] = {
    "policy_id": "money",
    "type": "budget",
    "actions": ["refund.*"],
    "parameters": {"max_cost": 1, "cost_parameter": "amount"},
}


def shadow(policy: dict[str, Any]) -> dict[str, Any]:
    return {**policy, "parameters": {**policy.get("parameters", {}), "enforcement": "shadow"}}


def atlas(*entries: dict[str, Any], **parts: Any) -> Atlas:
    return Atlas.from_dict(manifest(policies=policies(*entries), **parts))


def pay(session: Session, amount: Any = 1) -> str:
    try:
        session.call("refund.create", lambda amount: None, amount)
    except CallRefused as refused:
        return f"{refused.code} {refused.policy_id}"
    return "ran"


def shadows(session: Session) -> list[str]:
    return [
        str(event.payload["policy_id"])
        for event in session.events
        if (event.payload.get("effect"), event.payload.get("result")) == ("shadow_deny", "allow")
    ]


@pytest.mark.parametrize("policy", [DENY, ASK, BUDGET], ids=lambda policy: policy["policy_id"])
def test_a_shadow_is_recorded_and_runs(policy: dict[str, Any]) -> None:
    """Whatever it would have done."""
    with Runtime(atlas(shadow(policy))) as runtime, runtime.session() as session:
        assert pay(session, 2) == "ran"
        assert shadows(session) == [policy["policy_id"]]
        assert session.verify().intact
        assert "refund.create" in {item.action_id for item in session.resolution.allowed_actions}


def test_a_shadow_limit_counts_for_itself() -> None:
    """The second call would have been refused; the third, a minute later, not."""
    clock = FrozenClock(NOON)
    with Runtime(atlas(shadow(RATE)), clock=clock) as runtime, runtime.session() as session:
        assert [pay(session), pay(session)] == ["ran", "ran"]
        assert shadows(session) == ["rate"]
        clock.advance(60)
        assert (pay(session), shadows(session)) == ("ran", ["rate"])


def test_shadows_beside_a_denial_are_recorded_too() -> None:
    """And an enforced policy is enforced, whatever stands in the shadow before it."""
    first = {**shadow(DENY), "policy_id": "try", "priority": 5}
    with Runtime(atlas(first, DENY)) as runtime, runtime.session() as session:
        assert pay(session) == "policy_denied no"
        assert shadows(session) == ["try"]


def test_shadows_of_an_approved_call_are_recorded_once() -> None:
    """It is decided twice, before the question and after the answer; what only counts then is noted then."""
    trial = {**shadow(DENY), "policy_id": "try"}
    with Runtime(atlas(trial, ASK, shadow(RATE)), approver=lambda pending: True) as runtime:
        with runtime.session() as session:
            assert [pay(session), pay(session)] == ["ran", "ran"]
            assert shadows(session) == ["try", "try", "rate"]
            assert session.verify().intact


def test_an_allow_in_the_shadow_grants_nothing() -> None:
    """And is warned about."""
    only = shadow({"policy_id": "yes", "type": "allow"})
    with pytest.warns(AtlasWarning, match="W009"):
        runtime = Runtime(Atlas.from_dict(manifest(policies=[only])))
    with runtime, runtime.session() as session:
        assert pay(session) == "no_allow_policy default"


SCHEMA = {"properties": {"amount": {"type": "number"}}, "required": ["amount"]}
TYPED = [{"action_id": "refund.create", "name": "r", "description": "r", "parameters_schema": SCHEMA}]


@pytest.mark.filterwarnings("ignore::cra_middleware.policies.AtlasWarning")
@pytest.mark.parametrize("policy", [DENY, ASK, BUDGET, None], ids=str)
def test_observing_enforces_nothing(policy: dict[str, Any] | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Would-be denials run, are recorded, and are said once; arguments that do not fit still refuse."""
    entries = [policy] if policy else []
    made = atlas(*entries, actions=TYPED) if policy else Atlas.from_dict(manifest(actions=TYPED, policies=[DENY]))
    with Runtime(made, mode="observe") as runtime, runtime.session() as session:
        assert [pay(session, 2), pay(session, 2)] == ["ran", "ran"]
        assert len(shadows(session)) >= 2
        assert pay(session, "x") == "invalid_parameters action:refund.create"
        session.call("no.such", lambda: None)
        assert shadows(session)[-1] == "default"
        assert session.events[0].payload["metadata"]["mode"] == "observe"  # type: ignore[index]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(set(said)) >= 2
    assert any("no.such would be denied" in line for line in said)


def test_observing_without_any_atlas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything runs and is recorded; nothing in a tool's name can steer a terminal."""
    with Runtime.observe(trace=tmp_path) as runtime, runtime.session() as session:
        assert session.call("search_docs", lambda q: q, "x") == "x"
        session.call("\x1b[2Jevil", lambda: None)
        with pytest.raises(InvalidParameters):
            session.call("search_docs", lambda q: q, {5: "key"})
        assert session.verify().intact
    assert "\x1b" not in capsys.readouterr().err


def test_modes_are_named() -> None:
    """A misspelt mode does not enforce less."""
    with pytest.raises(ValueError, match="mode must be"):
        Runtime(atlas(), mode="observing")  # type: ignore[arg-type]


FLOOR = {"atlas_id": "com.example.floor", "actions": []}


def floor(*entries: dict[str, Any]) -> Atlas:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Atlas.from_dict({**manifest(policies=list(entries)), **FLOOR})


@pytest.mark.filterwarnings("ignore::cra_middleware.policies.AtlasWarning")
def test_a_baseline_only_tightens() -> None:
    """Its denials and limits are about every action; its allows are needed beside the Atlas's own, never enough."""
    with Runtime(atlas(), baseline=floor(DENY)) as runtime, runtime.session() as session:
        assert pay(session) == "policy_denied no"
        session.call("ticket.get", lambda: None)
    with Runtime(atlas(), baseline=floor(RATE)) as runtime, runtime.session() as session:
        assert [pay(session), pay(session)] == ["ran", "rate_limit_exceeded rate"]
    some = {"policy_id": "some", "type": "allow", "actions": ["ticket.*"]}
    with Runtime(atlas(), baseline=floor(some)) as runtime, runtime.session() as session:
        assert pay(session) == "no_allow_policy default"
        session.call("ticket.get", lambda: None)
        denied = {item.action_id for item in session.resolution.denied_actions}
        assert "refund.create" in denied
        assert "ticket.get" not in denied
    nothing = Atlas.from_dict(manifest(policies=[{"policy_id": "x", "type": "allow", "actions": ["ticket.get"]}]))
    everything = floor({"policy_id": "all", "type": "allow"})
    with Runtime(nothing, baseline=everything) as runtime, runtime.session() as session:
        assert pay(session) == "no_allow_policy default"


def test_a_reload_is_at_once_and_for_all() -> None:
    """Sessions in flight meet the new policies with their next call, and their chains say so."""
    with Runtime(atlas()) as runtime, runtime.session() as session:
        assert pay(session) == "ran"
        before = runtime.policy_digest
        runtime.reload(atlas(DENY, version="2.0.0"))
        assert pay(session) == "policy_denied no"
        assert runtime.policy_digest != before
        noted = [event.payload for event in session.events if event.event_type == "error.occurred"]
        assert [(item["error_code"], runtime.policy_digest in str(item["message"])) for item in noted] == [
            ("policy_changed", True)
        ]
        assert session.verify().intact


def test_a_broken_reload_leaves_the_old(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """And says why."""
    (tmp_path / "atlas.yaml").write_text("atlas_version: '1.0'\nrules: [{deny: x, wen: 5}]")
    with Runtime(atlas(DENY)) as runtime, runtime.session() as session:
        digest = runtime.policy_digest
        with pytest.raises(AtlasError):
            runtime.reload(tmp_path)
        with pytest.raises(ValueError, match="same atlas_id"):
            runtime.reload([atlas(), atlas()])
        assert (pay(session), runtime.policy_digest) == ("policy_denied no", digest)
    assert "the old one stays in force" in caplog.text


def test_reloading_under_load() -> None:
    """Sixteen threads call while the policies change: each call meets one set or the other, and the chain is whole."""
    one, two = atlas(), atlas(DENY, version="2.0.0")
    with Runtime(one) as runtime, runtime.session() as session:
        found: list[str] = []
        threads = [threading.Thread(target=lambda: found.extend(pay(session) for _ in range(20))) for _ in range(16)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            runtime.reload(two)
            runtime.reload(one)
        for thread in threads:
            thread.join()
        assert len(found) == 320
        assert set(found) <= {"ran", "policy_denied no"}
        assert session.verify().intact


CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "risk_tiers": st.sampled_from([["low"], ["high", "critical"]]),
        "agents": st.sampled_from([["a*"], ["b"]]),
        "context_matches": st.sampled_from([{"env": "prod"}, {"no": "x"}]),
        "arguments": st.sampled_from([{"amount": "> 10"}, {"amount": [5, 20]}, {"note": {"matches": "x+"}}]),
        "parameters": st.sampled_from([{"properties": {"amount": {"minimum": 10}}, "required": ["amount"]}]),
        "time_window": st.sampled_from([{"start": "10:00", "end": "14:00"}, {"days": ["sun"]}]),
    },
)
ABOUT = st.sampled_from([["*"], ["refund.*"], ["ticket.get", "refund.create"], ["ticket.*"]])


def policy(kinds: dict[str, dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda kind, actions, conditions, priority: {
            "type": kind,
            "actions": actions,
            "conditions": conditions,
            "priority": priority,
            "parameters": kinds[kind],
        },
        st.sampled_from(sorted(kinds)),
        ABOUT,
        CONDITIONS,
        st.integers(-1, 1),
    )


RESTRICTIVE: dict[str, dict[str, Any]] = {
    "deny": {},
    "require_approval": {},
    "rate_limit": {"max_calls": 1, "window_seconds": 60},
    "budget": {"max_cost": 15, "cost_parameter": "amount"},
}
ARGUMENTS = st.dictionaries(
    st.sampled_from(["amount", "note"]), st.sampled_from([5, 10, 20, "20", None, "xx", -1, 1.5, True]), max_size=2
)


@given(
    st.lists(policy({**RESTRICTIVE, "allow": {}}), max_size=5),
    policy(RESTRICTIVE),
    st.integers(0, 5),
    st.lists(ARGUMENTS, min_size=1, max_size=4),
    st.sampled_from(["a1", "b"]),
    st.booleans(),
)
def test_no_restriction_ever_allows_more(
    entries: list[dict[str, Any]],
    added: dict[str, Any],
    place: int,
    calls: list[dict[str, Any]],
    agent: str,
    approved: bool,
) -> None:
    """Wherever a deny, ask, limit or budget is added, what was not allowed stays so; and looking changes nothing."""

    def named(several: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**entry, "policy_id": f"p{number}"} for number, entry in enumerate(several)]

    before = Resolver([Atlas.from_dict(manifest(policies=named(entries)))])
    after = Resolver([Atlas.from_dict(manifest(policies=named([*entries[:place], added, *entries[place:]])))])
    facts, counters = Facts(agent, "low", {"env": "prod"}, "s"), (MemoryCounters(), MemoryCounters())
    noon = 1_767_614_400_000_000
    for arguments in calls:
        call = ToolCall.freeze("refund.create", "t", arguments)
        list(after.survey(facts, noon, counters[1]))
        old = before.decide(call, facts, noon, counters[0], approved)
        new = after.decide(call, facts, noon, counters[1], approved)
        if isinstance(new, Allow):
            assert isinstance(old, Allow)
        # the same calls run on both sides, as they would have without the new rule
        for decision, counted in ((old, counters[0]), (new, counters[1])):
            for reservation in decision.reservations if isinstance(decision, Allow) else ():
                (counted.commit if isinstance(new, Allow) else counted.release)(reservation)
