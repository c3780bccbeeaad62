"""Why a call is decided as it is: the phase, what each condition saw, and what would have to change."""

from __future__ import annotations

from typing import Any

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware.testing import FrozenClock
from tests.conftest import NOON, manifest

SCHEMA = {"properties": {"amount": {"type": "number"}, "note": {"type": "string"}}}
ACTIONS = [
    {"action_id": "refund.create", "name": "r", "description": "r", "parameters_schema": SCHEMA, "risk_tier": "high"},
    {"action_id": "ticket.get", "name": "t", "description": "t"},
]
RULES: list[dict[str, Any]] = [
    {"allow": "refund.create", "when": {"amount": "<= 1000"}, "hours": "09:00-18:00", "id": "small"},
    {"deny": "refund.create", "agents": "evil-*", "id": "evil"},
    {"deny": "refund.create", "context": {"env": "test"}, "risk_tiers": "high", "id": "no-tests"},
    {"ask": "refund.create", "when": {"amount": "> 100"}, "id": "large"},
    {"limit": "refund.create", "to": "1/hour", "id": "rate"},
    {"budget": "refund.create", "to": "50 of amount", "id": "money", "agents": "poor-*"},
]


def explain(amount: Any = 5, now: str = NOON, agent: str = "bot", env: str = "prod", **more: Any) -> Any:
    atlas = Atlas.from_dict({**manifest(actions=ACTIONS, policies=[]), "rules": RULES})
    with Runtime(atlas, clock=FrozenClock(now)) as runtime:
        arguments = {"amount": amount, **more}
        return runtime.explain("refund.create", arguments, agent_id=agent, context={"env": env})


@pytest.mark.parametrize(
    ("given", "phase", "change"),
    [
        ({}, "allow", ""),
        ({"agent": "evil-1"}, "deny", "policy evil would not count if agents evil-* (saw 'evil-1') did not hold"),
        ({"env": "test"}, "deny", "if risk_tiers high (saw high) or context env test (saw 'test') did not hold"),
        ({"note": 5}, "schema", "the arguments have to fit the action's schema"),
        ({"amount": 500}, "require_approval", "a person has to say yes to exactly these arguments"),
        ({"amount": 5000}, "default", "policy small would allow it with argument amount <= 1000 (saw 5000)"),
        ({"now": "2026-01-05T20:00:00+00:00"}, "default", "time_window 09:00–18:00 UTC (saw 2026-01-05T20:00Z)"),
        ({"agent": "poor-1", "amount": 60}, "budget", "a cheaper call, or another session"),
    ],
)
def test_phase_and_what_would_change(given: dict[str, Any], phase: str, change: str) -> None:
    """In one sentence."""
    told = explain(**given)
    assert told.phase == phase
    assert change in told.would_change
    assert (told.would_change == "") is (phase == "allow")


def test_conditions_tell_what_they_saw() -> None:
    """Every policy about the action, in the order they are looked at; what cannot be evaluated is said."""
    told = explain(amount="5")
    seen = {item.policy_id: item for item in told.policies}
    assert list(seen) == ["evil", "no-tests", "large", "rate", "money", "small"]
    (amount,) = seen["large"].conditions
    assert (amount.name, amount.wants, amount.saw, amount.answer) == ("argument amount", "> 100", "'5'", None)
    assert seen["large"].holds
    assert not seen["small"].holds
    assert seen["rate"].conditions == ()
    found = {(one.name, one.saw, one.answer) for one in seen["no-tests"].conditions}
    assert found == {("risk_tiers", "high", True), ("context env", "'prod'", False)}


def test_nothing_is_taken() -> None:
    """However often it is asked, the one call of the hour is still there; afterwards it says so."""
    atlas = Atlas.from_dict({**manifest(actions=ACTIONS, policies=[]), "rules": RULES})
    prod = {"env": "prod"}
    with Runtime(atlas, clock=FrozenClock(NOON)) as runtime, runtime.session("agent", context=prod) as session:
        for _ in range(3):
            assert runtime.explain("refund.create", {"amount": 5}, context=prod).phase == "allow"
        session.call("refund.create", lambda amount: None, 5)
        told = runtime.explain("refund.create", {"amount": 5}, context=prod)
        assert (told.phase, told.would_change) == ("rate_limit", "wait 3600 s")
        assert runtime.explain("no.such").phase == "unknown action"
        with pytest.raises(ValueError, match="agent_id"):
            runtime.explain("refund.create", agent_id="")
