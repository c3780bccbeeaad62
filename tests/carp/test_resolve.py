"""A resolution: what an agent may do, what it should know, and what is written down about it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware._ids import new_id
from cra_middleware.carp.messages import Request, Resolution
from cra_middleware.errors import ActionDenied
from cra_middleware.testing import FrozenClock
from tests.conftest import NOON, manifest, policies

IDS = ("ticket.get", "ticket.list", "ticket.update", "ticket.delete", "refund.create")
CAPABILITIES = [
    {"capability_id": "reading", "name": "r", "actions": ["ticket.get", "ticket.list"]},
    {"capability_id": "deleting", "name": "d", "actions": ["ticket.delete"]},
    {"capability_id": "money", "name": "m", "actions": ["refund.create"]},
    {"capability_id": "both", "name": "b", "actions": ["ticket.get", "ticket.delete"]},
    {"capability_id": "empty", "name": "e"},
]
NO_DELETE = {"policy_id": "no-delete", "type": "deny", "actions": ["*.delete"], "parameters": {"reason": "Never."}}
ASK_MONEY = {"policy_id": "ask-money", "type": "require_approval", "actions": ["refund.*"]}
OVER = {"parameters": {"properties": {"amount": {"exclusiveMinimum": 100}}, "required": ["amount"]}}


def request(*required: str, **more: Any) -> Request:
    """A request in a session of its own."""
    task = {"goal": more.pop("goal", "help"), "required_capabilities": list(required), **more.pop("task", {})}
    requester = {"agent_id": "agent", "session_id": more.pop("session_id", None) or new_id()}
    return Request.model_validate({"request_id": new_id(), "requester": requester, "task": task, **more})


def runtime_of(*atlases: dict[str, Any], clock: FrozenClock | None = None, **options: Any) -> Runtime:
    return Runtime([Atlas.from_dict(item) for item in atlases], clock=clock or FrozenClock(NOON), **options)


def usual(**parts: Any) -> dict[str, Any]:
    return manifest(**{"capabilities": CAPABILITIES, "policies": policies(NO_DELETE, ASK_MONEY), **parts})


def allowed(resolution: Resolution) -> list[str]:
    return [item.action_id for item in resolution.allowed_actions]


def denied(resolution: Resolution) -> dict[str, str | None]:
    return {item.action_id: item.policy_id for item in resolution.denied_actions}


def events(runtime: Runtime, asked: Request, *types: str) -> list[dict[str, Any]]:
    """The payloads of the session that ``asked`` opens."""
    runtime.resolve(asked)
    session = runtime.find(asked.requester.session_id)
    assert session is not None
    return [dict(event.payload) for event in session.events if event.event_type in types]


@pytest.mark.parametrize(
    ("required", "kind"),
    [
        (["reading"], "allow"),
        (["deleting"], "deny"),
        (["money"], "requires_approval"),
        (["both"], "partial"),
        (["reading", "deleting"], "partial"),
        (["reading", "money"], "partial"),
        (["deleting", "money"], "requires_approval"),
        (["none"], "deny"),
        (["reading", "none"], "partial"),
        (["money", "none"], "requires_approval"),
        (["empty"], "deny"),
        (["reading", "empty"], "allow"),
        (["reading", "reading"], "allow"),
        ([], "partial"),
    ],
)
def test_decision_type(required: list[str], kind: str) -> None:
    """All of the requested set: allow; some: partial; none: requires_approval where one waits, else deny."""
    with runtime_of(usual()) as runtime:
        resolution = runtime.resolve(request(*required))
    assert resolution.decision.type == kind
    assert (resolution.decision.reason is None) is (kind == "allow")
    if "none" in required:
        assert resolution.decision.reason == "Unknown capabilities: none"


@pytest.mark.parametrize(
    ("capabilities", "kind"),
    [([], "partial"), (CAPABILITIES[:1], "allow"), (CAPABILITIES[1:2], "deny"), (CAPABILITIES[4:], "partial")],
)
def test_requested_set_without_a_wish(capabilities: list[Any], kind: str) -> None:
    """Nothing required: the actions of all capabilities count, and where there are none, all actions."""
    with runtime_of(usual(capabilities=capabilities)) as runtime:
        resolution = runtime.resolve(request())
        assert resolution.decision.type == kind
        assert len(allowed(resolution)) + len(denied(resolution)) == len(IDS)


def test_lists_hold_the_requested_set() -> None:
    """With required capabilities both lists hold their actions only, in the manifest's order."""
    with runtime_of(usual()) as runtime:
        whole, part = runtime.resolve(request()), runtime.resolve(request("both", "money"))
    assert (allowed(whole), denied(whole)) == (
        ["ticket.get", "ticket.list", "ticket.update"],
        {"ticket.delete": "no-delete", "refund.create": "ask-money"},
    )
    assert (allowed(part), denied(part)) == (
        ["ticket.get"],
        {"ticket.delete": "no-delete", "refund.create": "ask-money"},
    )
    reasons = {item.action_id: item.reason for item in part.denied_actions}
    assert reasons == {"ticket.delete": "Never.", "refund.create": "Requires human approval"}


def test_several_atlases() -> None:
    """Atlases come in load order, or as requested; one capability may be spread over several."""
    two = manifest(
        atlas_id="com.example.two",
        actions=[{"action_id": "zebra.feed", "name": "n", "description": "d"}],
        capabilities=[
            {"capability_id": "reading", "name": "r", "actions": ["zebra.feed"]},
            {"capability_id": "zoo", "name": "z", "actions": ["zebra.feed"]},
        ],
        policies=policies(),
    )
    both = ("com.example.two", "com.example.tests")
    with runtime_of(usual(), two) as runtime:
        assert allowed(runtime.resolve(request()))[-1] == "zebra.feed"
        assert allowed(runtime.resolve(request(atlas_ids=both)))[0] == "zebra.feed"
        assert allowed(runtime.resolve(request("reading"))) == ["ticket.get", "ticket.list", "zebra.feed"]
        one = runtime.resolve(request("reading", atlas_ids=both[1:]))
        assert (allowed(one), one.decision.type) == (["ticket.get", "ticket.list"], "allow")
        missing = runtime.resolve(request("reading", "zoo", atlas_ids=both[1:]))
        assert (missing.decision.type, missing.decision.reason) == ("partial", "Unknown capabilities: zoo")
        with pytest.raises(ValueError, match="not loaded"):
            runtime.resolve(request(atlas_ids=["com.example.none"]))


def test_a_session_sees_its_own_atlases_only() -> None:
    """A session that was opened for some Atlases is shown no others, whatever a later request asks for."""
    block = {"context_id": "b", "content": "for others", "inject_mode": "always"}
    action = {"action_id": "zebra.feed", "name": "n", "description": "d"}
    two = manifest(atlas_id="com.example.two", actions=[action], policies=policies(), context_blocks=[block])
    with runtime_of(manifest(), two) as runtime:
        session = runtime.session(atlas_ids=["com.example.tests"])
        for wish in (request(), request(atlas_ids=["com.example.two"])):
            resolution = session.resolve(wish)
            assert "zebra.feed" not in {*allowed(resolution), *denied(resolution)}
            assert resolution.context_blocks == ()
        with pytest.raises(ActionDenied, match="unknown_action"):
            session.call("zebra.feed", lambda: None)


def test_constraints() -> None:
    """What only a call can decide is listed once per policy: questions, limits, scopes, conditions on arguments."""
    entries = policies(
        ASK_MONEY,
        {
            "policy_id": "limit",
            "type": "rate_limit",
            "actions": ["ticket.*"],
            "parameters": {"max_calls": 2, "window_seconds": 60},
        },
        {"policy_id": "scope", "type": "scope", "actions": ["ticket.get"], "parameters": {"any": "thing"}},
        {
            "policy_id": "big",
            "type": "deny",
            "actions": ["refund.*"],
            "conditions": OVER,
            "parameters": {"reason": "Too much."},
        },
        {"policy_id": "small", "type": "allow", "actions": ["refund.*"], "conditions": OVER},
        {"policy_id": "elsewhere", "type": "require_approval", "conditions": {"agents": ["other"]}},
        {
            "policy_id": "maybe",
            "type": "require_approval",
            "actions": ["ticket.get"],
            "conditions": {"context_matches": {"a": "b"}},
        },
    )
    with runtime_of(manifest(policies=entries)) as runtime:
        constraints = {item.constraint_id: item for item in runtime.resolve(request()).constraints}
    assert {name: item.type for name, item in constraints.items()} == {
        "ask-money": "require_approval",
        "limit": "rate_limit",
        "scope": "scope",
        "big": "scope",
        "small": "scope",
        "maybe": "require_approval",
    }
    assert constraints["limit"].parameters["actions"] == ["ticket.get", "ticket.list", "ticket.update", "ticket.delete"]
    assert (constraints["limit"].parameters["max_calls"], constraints["limit"].parameters["window_seconds"]) == (2, 60)
    assert constraints["big"].parameters == {
        "effect": "deny",
        "actions": ["refund.create"],
        "reason": "Too much.",
        "when": OVER["parameters"],
    }
    assert constraints["small"].parameters["effect"] == "allow"


def test_conditions_on_arguments_are_left_open() -> None:
    """Before the arguments are known, an action that some arguments allow or deny is listed as allowed."""
    entries = [
        {"policy_id": "small", "type": "allow", "conditions": OVER},
        {"policy_id": "big", "type": "deny", "conditions": OVER},
        {"policy_id": "ask", "type": "require_approval", "conditions": OVER},
    ]
    with runtime_of(manifest(policies=entries)) as runtime:
        assert allowed(runtime.resolve(request())) == list(IDS)


def test_context_of_a_request() -> None:
    """Facts in the request count for its resolution; an allow on a fact that is missing does not."""
    entries = [{"policy_id": "p", "type": "allow", "conditions": {"context_matches": {"env": "dev"}}}]
    with runtime_of(manifest(policies=entries)) as runtime:
        assert allowed(runtime.resolve(request())) == []
        assert allowed(runtime.resolve(request(context={"env": "dev"}))) == list(IDS)
        assert allowed(runtime.resolve(request(context={"env": 5}))) == []


def test_policy_events_are_restrictive_only() -> None:
    """At the standard level a resolve records who denies or asks, not who allows or does not care."""
    with runtime_of(usual()) as runtime:
        rows = events(runtime, request(), "policy.evaluated")
    assert rows == [
        {"policy_id": "no-delete", "result": "deny", "action_id": "ticket.delete"},
        {"policy_id": "ask-money", "result": "deny", "effect": "require_approval", "action_id": "refund.create"},
    ]


def test_verbose_events() -> None:
    """At the verbose level every policy about every action is recorded, once."""
    with runtime_of(usual(), trace_level="verbose") as runtime:
        rows = events(runtime, request(), "policy.evaluated")
    counts = Counter((row["policy_id"], row["result"]) for row in rows)
    assert counts == {("allow-all", "allow"): 5, ("no-delete", "deny"): 1, ("ask-money", "deny"): 1}
    assert len(rows) == len({(row["policy_id"], row["action_id"]) for row in rows})


def test_many_policy_events_become_few() -> None:
    """More than a hundred are aggregated: one event for each policy and result, with the number of actions."""
    actions = [{"action_id": f"a.n{number}", "name": "n", "description": "d"} for number in range(150)]
    entries = policies(
        {"policy_id": "no", "type": "deny", "actions": ["a.n1*"]},
        {"policy_id": "ask", "type": "require_approval", "actions": ["a.*"]},
    )
    with runtime_of(manifest(actions=actions, policies=entries)) as runtime:
        rows = events(runtime, request(), "policy.evaluated")
    assert sorted(rows, key=lambda row: str(row["policy_id"])) == [
        {"policy_id": "ask", "result": "deny", "effect": "require_approval", "action_count": 89},
        {"policy_id": "no", "result": "deny", "action_count": 61},
    ]
    with runtime_of(manifest(actions=actions[:100], policies=entries)) as runtime:
        assert len(events(runtime, request(), "policy.evaluated")) == 100


def test_order_of_events() -> None:
    """A resolve writes the request, the contexts, the policies, and the outcome, in that order."""
    block = {"context_id": "b", "content": "hello", "inject_mode": "always", "priority": 7}
    with runtime_of(usual(context_blocks=[block])) as runtime:
        asked = request("both", goal="now")
        resolution = runtime.resolve(asked)
        session = runtime.find(asked.requester.session_id)
        assert session is not None
        kinds = [event.event_type for event in session.events]
        payloads = {event.event_type: dict(event.payload) for event in session.events}
        assert session.verify().intact
    assert kinds == [
        "session.started",
        "carp.request.received",
        "context.injected",
        "policy.evaluated",
        "carp.resolution.completed",
    ]
    assert payloads["carp.request.received"] == {"request_id": asked.request_id, "operation": "resolve", "goal": "now"}
    assert payloads["context.injected"] == {
        "block_id": "b",
        "source": "com.example.tests",
        "content_type": "text/markdown",
        "token_count": 2,
        "priority": 7,
    }
    assert payloads["carp.resolution.completed"] == {
        "resolution_id": resolution.resolution_id,
        "request_id": asked.request_id,
        "decision_type": "partial",
        "allowed_count": 1,
        "denied_count": 1,
        "context_block_count": 1,
        "ttl_seconds": 3600,
    }
    assert [item.content for item in resolution.context_blocks] == ["hello"]


def test_dropped_context_is_recorded(tmp_path: Path) -> None:
    """A file that a pack's ``max_tokens`` leaves out is recorded as redacted, and not injected."""
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text("x" * 40)
    pack = {"pack_id": "k", "name": "k", "files": ["a.md", "b.md"], "max_tokens": 10}
    (tmp_path / "atlas.json").write_text(json.dumps(manifest(context_packs=[pack])))
    with Runtime(tmp_path) as runtime:
        rows = events(runtime, request(), "context.injected", "context.redacted")
    assert [row["block_id"] for row in rows] == ["k:a.md", "k:b.md"]
    assert rows[1] == {"block_id": "k:b.md", "redaction_reason": "max_tokens"}


@pytest.mark.parametrize(
    ("conditions", "injected"),
    [
        ({"agents": ["agent"]}, True),
        ({"agents": ["other"]}, False),
        ({"risk_tiers": ["low"]}, True),
        ({"risk_tiers": ["high"]}, False),
        ({"context_matches": {"env": "dev"}}, True),
        ({"context_matches": {"env": "prod"}}, False),
        ({"context_matches": {"other": "x"}}, False),
        ({"capabilities": ["reading"]}, True),
        ({"capabilities": ["money"]}, False),
        ({"agents": ["agent"], "risk_tiers": ["high"]}, False),
    ],
)
def test_conditions_of_packs(conditions: dict[str, Any], injected: bool, tmp_path: Path) -> None:
    """A pack is injected when all its conditions hold; what cannot be evaluated does not."""
    (tmp_path / "a.md").write_text("text")
    pack = {"pack_id": "k", "name": "k", "files": ["a.md"], "conditions": conditions}
    (tmp_path / "atlas.json").write_text(json.dumps(usual(context_packs=[pack])))
    with Runtime(tmp_path) as runtime:
        resolution = runtime.resolve(request("reading", context={"env": "dev"}))
    assert len(resolution.context_blocks) == injected


def test_capability_conditions_of_packs_without_a_wish(tmp_path: Path) -> None:
    """A request that names no capabilities is about all of them."""
    (tmp_path / "a.md").write_text("text")
    pack = {"pack_id": "k", "name": "k", "files": ["a.md"], "conditions": {"capabilities": ["money"]}}
    (tmp_path / "atlas.json").write_text(json.dumps(usual(context_packs=[pack])))
    with Runtime(tmp_path) as runtime:
        assert len(runtime.resolve(request()).context_blocks) == 1


def test_values_are_recorded_only_when_asked() -> None:
    """A request's facts are in the trace with ``record="full"`` only."""
    asked = request(context={"customer": "Ada"}, task={"risk_tier": "high"})
    with runtime_of(usual()) as runtime:
        (row,) = events(runtime, asked, "carp.request.received")
        assert "context" not in row
        assert row["risk_tier"] == "high"
    with runtime_of(usual(), record="full") as runtime:
        (row,) = events(runtime, asked, "carp.request.received")
        assert row["context"] == {"customer": "Ada"}


def test_resolve_uses_up_nothing() -> None:
    """Any number of resolves leaves a limit as it was; a used-up one is seen as denied until its window closes."""
    clock = FrozenClock(NOON)
    limited = {
        "policy_id": "limit",
        "type": "rate_limit",
        "actions": ["ticket.get"],
        "parameters": {"max_calls": 1, "window_seconds": 60, "reason": "Enough."},
    }
    with runtime_of(manifest(policies=policies(limited)), clock=clock) as runtime:
        session = runtime.session()
        for _ in range(5):
            assert "ticket.get" in allowed(session.resolve())
        session.call("ticket.get", lambda: None)
        resolution = session.resolve()
        assert denied(resolution) == {"ticket.get": "limit"}
        assert resolution.denied_actions[0].reason == "Enough."
        effects = [event.payload.get("effect") for event in session.events if event.event_type == "policy.evaluated"]
        assert effects == ["rate_limit"]
        clock.advance(60)
        assert "ticket.get" in allowed(session.resolve())


def test_a_resolution_is_renewed() -> None:
    """A resolution is used until its time is over, and renewed by the first call after that; not before."""
    clock = FrozenClock(NOON)
    with runtime_of(manifest(), clock=clock) as runtime:
        session = runtime.session()
        first = session.resolution
        assert first.ttl_seconds == 3600
        clock.advance(3599)
        session.call("ticket.get", lambda: None)
        assert session.resolution.resolution_id == first.resolution_id
        clock.advance(1)
        session.call("ticket.get", lambda: None)
        second = session.resolution
        assert second.resolution_id != first.resolution_id
        used = [event.payload["resolution_id"] for event in session.events if event.event_type == "action.approved"]
        assert used == [first.resolution_id, second.resolution_id]
        clock.advance(3600)
        assert session.resolution.resolution_id != second.resolution_id
        assert session.verify().intact


def test_no_allow_is_told_in_resolve() -> None:
    """An action that nothing allows is denied by the default; with ``default_decision="allow"`` it is allowed."""
    entries = [{"policy_id": "some", "type": "allow", "actions": ["ticket.get"]}]
    with runtime_of(manifest(policies=entries)) as runtime:
        resolution = runtime.resolve(request())
        assert set(denied(resolution).values()) == {"default"}
        assert events(runtime, request(), "policy.evaluated") == []
    with runtime_of(manifest(policies=entries), default_decision="allow") as runtime:
        assert allowed(runtime.resolve(request())) == list(IDS)


def test_what_an_action_itself_demands() -> None:
    """Confirmation and an own limit are listed under ``action:<id>``."""
    action = {
        "action_id": "a.b",
        "name": "n",
        "description": "d",
        "requires_confirmation": True,
        "rate_limit": {"max_calls": 1, "window_seconds": 5},
    }
    with runtime_of(manifest(actions=[action], policies=policies())) as runtime:
        resolution = runtime.resolve(request())
    assert denied(resolution) == {"a.b": "action:a.b"}
    assert resolution.decision.type == "requires_approval"
    assert [(item.constraint_id, item.type, item.parameters["actions"]) for item in resolution.constraints] == [
        ("action:a.b", "require_approval", ["a.b"]),
        ("action:a.b", "rate_limit", ["a.b"]),
    ]
