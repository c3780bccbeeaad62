"""One call, one verdict: which policy decides, and that no policy can be turned into its opposite by another."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware import Atlas, Runtime
from cra_middleware.approvals.approval import Answer
from cra_middleware.carp.call import Allow, Ask, Decision, Deny, ToolCall
from cra_middleware.carp.counters import MemoryCounters
from cra_middleware.carp.explain import explain
from cra_middleware.carp.policy import Facts
from cra_middleware.carp.resolver import DefaultDecision, Resolver
from cra_middleware.errors import ActionDenied, ApprovalRequired
from tests.conftest import manifest, policies

SCHEMA = {"type": "object", "properties": {"amount": {"type": "number"}}}
ACTIONS = [
    {"action_id": "refund.create", "name": "n", "description": "d", "parameters_schema": SCHEMA, "risk_tier": "medium"},
    {"action_id": "ticket.get", "name": "n", "description": "d"},
    {"action_id": "order.cancel", "name": "n", "description": "d", "requires_confirmation": True},
]
OVER = {"parameters": {"properties": {"amount": {"exclusiveMinimum": 100}}, "required": ["amount"]}}
UNDER = {"parameters": {"properties": {"amount": {"maximum": 100}}, "required": ["amount"]}}
RANK = {Allow: 0, Ask: 1, Deny: 2}


def resolver(*entries: dict[str, Any], default: DefaultDecision = "deny") -> Resolver:
    named = [{"policy_id": f"p{index}", **entry} for index, entry in enumerate(entries)]
    return Resolver([Atlas.from_dict(manifest(actions=ACTIONS, policies=named))], default)


def decide(
    made: Resolver,
    action: str = "ticket.get",
    *,
    agent: str = "agent",
    tier: Any = "low",
    context: dict[str, object] | None = None,
    approved: bool = False,
    counters: MemoryCounters | None = None,
    atlas_ids: tuple[str, ...] | None = None,
    **arguments: Any,
) -> Decision:
    call = ToolCall.freeze(action, "tool", arguments)
    facts = Facts(agent, tier, context or {}, "root", atlas_ids)
    return made.decide(call, facts, 0, counters or MemoryCounters(), approved)


def word(decision: Decision) -> str:
    match decision:
        case Allow(policy_id):
            return f"allow {policy_id}"
        case Ask(policy_id):
            return f"ask {policy_id}"
        case Deny(code, policy_id):
            return f"{code} {policy_id}"


CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "agents": st.sampled_from([["a*"], ["b"], ["*"], ["z"]]),
        "risk_tiers": st.sampled_from([["low"], ["medium", "high"], ["critical"]]),
        "context_matches": st.sampled_from([{"env": "prod"}, {"env": "dev"}, {"env": "prod", "who": "me"}]),
        "parameters": st.sampled_from([OVER["parameters"], UNDER["parameters"], {"required": ["note"]}]),
    },
)
POLICY = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["allow", "deny", "require_approval", "rate_limit", "scope"]),
        "actions": st.sampled_from([["*"], ["refund.*"], ["*.get", "order.*"], ["none.*"]]),
        "priority": st.integers(-1, 1),
        "conditions": CONDITIONS,
    }
).map(
    lambda entry: (
        {**entry, "parameters": {"max_calls": 1, "window_seconds": 60}} if entry["type"] == "rate_limit" else entry
    )
)
CALL = st.fixed_dictionaries(
    {
        "action": st.sampled_from(["refund.create", "ticket.get", "order.cancel", "no.such"]),
        "agent": st.sampled_from(["agent", "b"]),
        "tier": st.sampled_from(["low", "high", "critical"]),
        "context": st.sampled_from([{}, {"env": "prod"}, {"env": "dev", "who": "me"}, {"env": 5}]),
        "approved": st.booleans(),
    },
    optional={"amount": st.sampled_from([50, 150, "50", None, float("nan")]), "note": st.just("x")},
)


def deny(entry: dict[str, Any]) -> dict[str, Any]:
    return {**{key: value for key, value in entry.items() if key != "parameters"}, "type": "deny"}


@given(st.lists(POLICY, max_size=5), POLICY, st.integers(0, 5), CALL)
def test_a_deny_only_tightens(
    entries: list[dict[str, Any]], extra: dict[str, Any], at: int, call: dict[str, Any]
) -> None:
    """Adding a deny policy, anywhere, never turns a deny into anything else, nor an ask into an allow."""
    extra = {**deny(extra), "policy_id": "extra"}
    before = decide(resolver(*entries), **call)
    after = decide(resolver(*entries[:at], extra, *entries[at:]), **call)
    assert RANK[type(after)] >= RANK[type(before)]
    if isinstance(before, Deny):
        assert isinstance(after, Deny)


@given(st.lists(POLICY, max_size=5), POLICY, st.integers(0, 5), CALL)
def test_a_question_only_tightens(
    entries: list[dict[str, Any]], extra: dict[str, Any], at: int, call: dict[str, Any]
) -> None:
    """Adding a require_approval policy never makes a call easier."""
    extra = {**deny(extra), "type": "require_approval", "policy_id": "extra"}
    before = decide(resolver(*entries), **call)
    after = decide(resolver(*entries[:at], extra, *entries[at:]), **call)
    assert RANK[type(after)] >= RANK[type(before)]


@given(st.lists(POLICY, max_size=5), POLICY, CALL)
def test_an_allow_only_loosens(entries: list[dict[str, Any]], extra: dict[str, Any], call: dict[str, Any]) -> None:
    """Adding an allow policy changes nothing but what nothing allowed before."""
    extra = {**deny(extra), "type": "allow", "policy_id": "extra"}
    before, after = decide(resolver(*entries), **call), decide(resolver(*entries, extra), **call)
    if not (isinstance(before, Deny) and before.code == "no_allow_policy"):
        assert type(after) is type(before)


@given(st.lists(POLICY, max_size=4), CALL)
def test_order_in_the_manifest_only_names(entries: list[dict[str, Any]], call: dict[str, Any]) -> None:
    """The verdict is the same in every order of the manifest; only which policy is named may differ."""
    named = [{"policy_id": f"p{index}", **entry} for index, entry in enumerate(entries)]
    answers = set()
    for order in itertools.islice(itertools.permutations(named), 6):
        decision = decide(resolver(*order), **call)
        answers.add((type(decision), decision.code if isinstance(decision, Deny) else None))
    assert len(answers) == 1


@given(st.lists(POLICY, max_size=5), CALL)
def test_no_answer_without_an_allow(entries: list[dict[str, Any]], call: dict[str, Any]) -> None:
    """Where no allow policy is, nothing is allowed and nobody is asked, approved or not."""
    entries = [entry for entry in entries if entry["type"] != "allow"]
    assert isinstance(decide(resolver(*entries), **call), Deny)


@given(st.lists(POLICY, max_size=5), CALL)
def test_the_default_allows_only_what_nothing_says(entries: list[dict[str, Any]], call: dict[str, Any]) -> None:
    """``default_decision="allow"`` replaces a missing allow, never a deny, a question or an unknown action."""
    strict, loose = decide(resolver(*entries), **call), decide(resolver(*entries, default="allow"), **call)
    if not (isinstance(strict, Deny) and strict.code == "no_allow_policy"):
        assert type(loose) is type(strict)
    if call["action"] == "no.such":
        assert word(loose) == "unknown_action default"


ALLOW = {"type": "allow", "policy_id": "yes"}
DENY = {"type": "deny", "policy_id": "no"}
ASK = {"type": "require_approval", "policy_id": "ask"}
LIMIT = {"type": "rate_limit", "policy_id": "limit", "parameters": {"max_calls": 1, "window_seconds": 60}}


@pytest.mark.parametrize(
    ("entries", "call", "verdict"),
    [
        ([], {}, "no_allow_policy default"),
        ([ALLOW], {}, "allow yes"),
        ([ALLOW], {"action": "no.such"}, "unknown_action default"),
        ([ALLOW], {"action": "ticket.*"}, "unknown_action default"),
        ([ALLOW], {"action": "ticket.get", "atlas_ids": ("com.example.other",)}, "unknown_action default"),
        ([ALLOW, DENY], {}, "policy_denied no"),
        ([{**ALLOW, "priority": 1000}, {**DENY, "priority": -1000}], {}, "policy_denied no"),
        ([ALLOW, DENY, ASK, LIMIT], {"approved": True}, "policy_denied no"),
        ([ALLOW, DENY], {"action": "refund.create", "amount": "x"}, "policy_denied no"),
        ([ALLOW, ASK], {"action": "refund.create", "amount": "x"}, "invalid_parameters action:refund.create"),
        ([], {"action": "refund.create", "amount": "x"}, "invalid_parameters action:refund.create"),
        ([ALLOW], {"action": "refund.create", "amount": {1: 2}}, "invalid_parameters action:refund.create"),
        ([ALLOW, DENY], {"action": "refund.create", "amount": {1: 2}}, "invalid_parameters action:refund.create"),
        ([ALLOW, ASK], {}, "ask ask"),
        ([ALLOW, ASK], {"approved": True}, "allow yes"),
        ([ASK], {}, "no_allow_policy default"),
        ([ASK], {"approved": True}, "no_allow_policy default"),
        ([LIMIT], {}, "no_allow_policy default"),
        ([ALLOW], {"action": "order.cancel"}, "ask action:order.cancel"),
        ([ALLOW, ASK], {"action": "order.cancel"}, "ask ask"),
        ([ALLOW], {"action": "order.cancel", "approved": True}, "allow yes"),
        ([], {"action": "order.cancel"}, "no_allow_policy default"),
        ([ALLOW, {"type": "scope", "policy_id": "s", "parameters": {"x": 1}}], {}, "allow yes"),
        ([{"type": "scope", "policy_id": "s"}], {}, "no_allow_policy default"),
        ([ALLOW, {**ALLOW, "policy_id": "second"}], {}, "allow yes"),
        ([ALLOW, {**ALLOW, "policy_id": "second", "priority": 1}], {}, "allow second"),
        ([ALLOW, DENY, {**DENY, "policy_id": "first", "priority": 1}], {}, "policy_denied first"),
        ([ALLOW, {**ASK, "policy_id": "late", "priority": -1}, ASK], {}, "ask ask"),
        # conditions: lists are or, conditions are and; what is unknown restricts, and never allows
        ([{**ALLOW, "conditions": {"agents": ["x*", "age?t"]}}], {}, "allow yes"),
        ([{**ALLOW, "conditions": {"agents": ["Agent"]}}], {}, "no_allow_policy default"),
        ([{**ALLOW, "conditions": {"risk_tiers": ["low"]}}], {"action": "refund.create"}, "no_allow_policy default"),
        ([{**ALLOW, "conditions": {"risk_tiers": ["medium"]}}], {"action": "refund.create"}, "allow yes"),
        ([{**ALLOW, "conditions": {"risk_tiers": ["high"]}}], {"action": "refund.create", "tier": "high"}, "allow yes"),
        ([ALLOW, {**DENY, "conditions": {"agents": ["agent"], "risk_tiers": ["high"]}}], {}, "allow yes"),
        (
            [ALLOW, {**DENY, "conditions": {"context_matches": {"env": "prod"}}}],
            {"context": {"env": "prod"}},
            "policy_denied no",
        ),
        (
            [ALLOW, {**DENY, "conditions": {"context_matches": {"env": "prod"}}}],
            {"context": {"env": "dev"}},
            "allow yes",
        ),
        ([ALLOW, {**DENY, "conditions": {"context_matches": {"env": "prod"}}}], {}, "policy_denied no"),
        (
            [ALLOW, {**DENY, "conditions": {"context_matches": {"env": "prod", "x": "y"}}}],
            {"context": {"env": "dev"}},
            "allow yes",
        ),
        (
            [ALLOW, {**DENY, "conditions": {"context_matches": {"env": "1"}}}],
            {"context": {"env": 1}},
            "policy_denied no",
        ),
        (
            [ALLOW, {**DENY, "conditions": {"context_matches": {"env": "1"}}}],
            {"context": {"env": ["1"]}},
            "policy_denied no",
        ),
        (
            [{**ALLOW, "conditions": {"context_matches": {"env": "1"}}}],
            {"context": {"env": 1}},
            "no_allow_policy default",
        ),
        (
            [{**ALLOW, "conditions": {"context_matches": {"env": "True"}}}],
            {"context": {"env": True}},
            "no_allow_policy default",
        ),
        ([{**ALLOW, "conditions": {"context_matches": {"env": "None"}}}], {}, "no_allow_policy default"),
        ([ALLOW, {**ASK, "conditions": {"context_matches": {"env": "prod"}}}], {"context": {"env": None}}, "ask ask"),
        ([ALLOW, {**DENY, "conditions": OVER}], {"action": "refund.create", "amount": 150}, "policy_denied no"),
        ([ALLOW, {**DENY, "conditions": OVER}], {"action": "refund.create", "amount": 50}, "allow yes"),
        ([ALLOW, {**DENY, "conditions": OVER}], {"action": "refund.create", "amount": "50"}, "policy_denied no"),
        ([ALLOW, {**DENY, "conditions": OVER}], {"action": "refund.create"}, "policy_denied no"),
        ([ALLOW, {**DENY, "conditions": OVER}], {"action": "ticket.get"}, "allow yes"),
        ([ALLOW, {**DENY, "conditions": OVER}], {"action": "ticket.get", "amount": 150}, "policy_denied no"),
        ([{**ALLOW, "conditions": UNDER}], {"action": "refund.create", "amount": 50}, "allow yes"),
        ([{**ALLOW, "conditions": UNDER}], {"action": "refund.create"}, "no_allow_policy default"),
        ([{**ALLOW, "conditions": UNDER}], {"action": "ticket.get", "amount": "50"}, "no_allow_policy default"),
        ([{**ALLOW, "conditions": UNDER}], {"action": "ticket.get", "amount": float("nan")}, "no_allow_policy default"),
    ],
)
def test_phases(entries: list[dict[str, Any]], call: dict[str, Any], verdict: str) -> None:
    """deny, the schema, the question, the limit, the allow, the default; by priority, then by place."""
    assert word(decide(resolver(*entries), **call)) == verdict


def test_a_limit_comes_after_the_question() -> None:
    """A used-up limit refuses an approved call; a call that is not approved is asked about, and takes no place."""
    made, counters = resolver(ALLOW, ASK, LIMIT), MemoryCounters()
    assert word(decide(made, counters=counters)) == "ask ask"
    allowed = decide(made, counters=counters, approved=True)
    assert isinstance(allowed, Allow)
    assert len(allowed.reservations) == 1
    assert word(decide(made, counters=counters)) == "ask ask"
    assert word(decide(made, counters=counters, approved=True)) == "rate_limit_exceeded limit"


def test_a_call_that_nothing_allows_takes_no_place() -> None:
    """A limit is charged only by a call that runs; one that nothing allows learns of a full limit first."""
    counters = MemoryCounters()
    for _ in range(3):
        assert word(decide(resolver(LIMIT), counters=counters)) == "no_allow_policy default"
    made = resolver(
        {**ALLOW, "conditions": {"agents": ["agent"]}},
        {**LIMIT, "parameters": {**LIMIT["parameters"], "scope": "global"}},
    )
    assert isinstance(decide(made, counters=counters), Allow)
    assert word(decide(made, agent="other", counters=counters)) == "rate_limit_exceeded limit"


@pytest.mark.parametrize(
    ("entries", "call", "reason"),
    [
        ([], {}, "no policy allows ticket.get"),
        ([{**ALLOW, "actions": ["refund.*"]}], {}, "no policy allows ticket.get"),
        (
            [{**ALLOW, "conditions": {"agents": ["x"]}}],
            {},
            "no policy allows ticket.get; yes would, but for its condition on agents",
        ),
        (
            [{**ALLOW, "conditions": {"agents": ["x"], "context_matches": {"env": "prod"}}}],
            {},
            "no policy allows ticket.get; yes would, but for its condition on agents and context_matches",
        ),
        (
            [
                {**ALLOW, "priority": 9, "conditions": {"agents": ["x"], "context_matches": {"env": "prod"}}},
                {"type": "allow", "policy_id": "near", "conditions": {"risk_tiers": ["high"]}},
            ],
            {},
            "no policy allows ticket.get; near would, but for its condition on risk_tiers",
        ),
        (
            [{**ALLOW, "conditions": UNDER}],
            {"action": "refund.create", "amount": 5000},
            "no policy allows refund.create; yes would, but for its condition on parameters",
        ),
    ],
)
def test_near_misses(entries: list[dict[str, Any]], call: dict[str, Any], reason: str) -> None:
    """A default deny names the allow policy that failed on the fewest conditions, and on which."""
    decision = decide(resolver(*entries), **call)
    assert isinstance(decision, Deny)
    assert decision.reason == reason


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"parameters": {"reason": "Because."}, "description": "Other."}, "Because."),
        ({"description": "Other.", "name": "Name"}, "Other."),
        ({"name": "Name"}, "policy no does not allow ticket.get"),
    ],
)
def test_reasons(entry: dict[str, Any], reason: str) -> None:
    """``parameters.reason``, else the description, else a sentence that names the policy."""
    decision = decide(resolver(ALLOW, {**DENY, **entry}))
    assert isinstance(decision, Deny)
    assert decision.reason == reason


def test_an_unknown_action_prints_what_to_paste() -> None:
    """The message says how to map a tool, and does not repeat a name without end."""
    decision = decide(resolver(ALLOW), "x" * 10_000)
    assert isinstance(decision, Deny)
    assert '"adapters": {"any": {"tools": {"<tool>": "<action>"}}}' in decision.reason
    assert len(decision.reason) < 600


def test_an_approval_does_not_replace_an_allow() -> None:
    """With an approver that says yes to all, a call that nothing allows is denied, and nobody is asked."""
    asked: list[Any] = []

    def approver(pending: Any) -> Answer:
        asked.append(pending)
        return Answer(True, "human")

    entries = [
        {"policy_id": "yes", "type": "allow", "actions": ["refund.*"], "conditions": UNDER},
        {"policy_id": "ask", "type": "require_approval", "actions": ["refund.*"]},
    ]
    with Runtime(Atlas.from_dict(manifest(actions=ACTIONS, policies=entries)), approver=approver) as runtime:
        session = runtime.session()
        with pytest.raises(ActionDenied, match="no_allow_policy"):
            session.call("refund.create", lambda amount: amount, 500)
        assert asked == []
        assert session.call("refund.create", lambda amount: amount, 5) == 5
        assert len(asked) == 1


def test_a_value_that_raises_is_unknown() -> None:
    """A value whose comparison raises does not break a decision: what restricts holds, what allows does not."""

    class Bomb(dict[str, object]):
        def items(self) -> Any:
            raise RuntimeError("secret")

    for made in (resolver(ALLOW, {**DENY, "conditions": OVER}), resolver({**ALLOW, "conditions": UNDER})):
        decision = decide(made, amount=Bomb(a=1))
        assert isinstance(decision, Deny)
        assert "secret" not in decision.reason


def test_declared_through_a_reference() -> None:
    """An argument is declared wherever the action's schema names it, behind ``$ref`` and ``allOf`` too."""
    schema = {"allOf": [{"$ref": "#/$defs/all"}], "$defs": {"all": {"properties": {"amount": {"type": "number"}}}}}
    action = {"action_id": "a.b", "name": "n", "description": "d", "parameters_schema": schema}
    atlas = Atlas.from_dict(manifest(actions=[action], policies=policies({**DENY, "conditions": OVER})))
    assert word(decide(Resolver([atlas]), "a.b")) == "policy_denied no"


def test_capabilities_condition() -> None:
    """A policy on capabilities is about the actions of any of them."""
    capabilities = [
        {"capability_id": "money", "name": "m", "actions": ["refund.create", "order.cancel"]},
        {"capability_id": "other", "name": "o", "actions": ["order.cancel"]},
    ]
    entries = policies({**DENY, "conditions": {"capabilities": ["money"]}})
    made = Resolver([Atlas.from_dict(manifest(actions=ACTIONS, policies=entries, capabilities=capabilities))])
    words = [word(decide(made, name)) for name in ("refund.create", "order.cancel", "ticket.get")]
    assert words == ["policy_denied no", "policy_denied no", "allow allow-all"]


def test_two_atlases_decide_apart() -> None:
    """An action is decided by the policies of the Atlas that declares it, and by no other's."""
    action = {"action_id": "zebra.feed", "name": "n", "description": "d"}
    one = Atlas.from_dict(manifest(actions=ACTIONS, policies=policies()))
    two = Atlas.from_dict(manifest(atlas_id="com.example.two", actions=[action], policies=[DENY]))
    made = Resolver([one, two])
    assert word(decide(made)) == "allow allow-all"
    assert word(decide(made, "zebra.feed")) == "policy_denied no"
    assert word(decide(made, "zebra.feed", atlas_ids=("com.example.tests",))) == "unknown_action default"


def test_atlases_that_collide() -> None:
    """Two Atlases with one id, or one action, are refused; so is a default that is neither allow nor deny."""
    atlas = Atlas.from_dict(manifest())
    with pytest.raises(ValueError, match="same atlas_id, com\\.example\\.tests"):
        Resolver([atlas, atlas])
    with pytest.raises(ValueError, match=r"both declare ticket\.get"):
        Resolver([atlas, Atlas.from_dict(manifest(atlas_id="com.example.two"))])
    with pytest.raises(ValueError, match="default_decision"):
        Resolver([atlas], "Allow")  # type: ignore[arg-type]


def test_explain() -> None:
    """Every policy about the action is listed in the order of the phases, with what each condition said."""
    made = resolver(
        ALLOW, LIMIT, {**ASK, "conditions": OVER}, {**DENY, "conditions": {"context_matches": {"env": "prod"}}}
    )
    call = ToolCall.freeze("refund.create", "tool", {"amount": 50})
    told = explain(made, call, Facts("agent", "low", {}, "root"), 0, MemoryCounters())
    assert [
        (item.policy_id, item.holds, [(one.name, one.saw, one.answer) for one in item.conditions])
        for item in told.policies
    ] == [
        ("no", True, [("context env", "nothing", None)]),
        ("ask", False, [("parameters", "amount = 50", False)]),
        ("limit", True, []),
        ("yes", True, []),
    ]
    assert told.phase == "deny"
    assert told.would_change == ("policy no would not count if context env prod (saw nothing) could be proven false")
    unknown = explain(made, ToolCall.freeze("no.such", "t", {}), Facts("a", "low", {}, "r"), 0, MemoryCounters())
    assert (unknown.policies, unknown.phase) == ((), "unknown action")


def test_a_question_without_an_approver() -> None:
    """Without an approver a question is an ApprovalRequired, and the tool does not run."""
    with Runtime(Atlas.from_dict(manifest(actions=ACTIONS, policies=policies()))) as runtime:
        ran: list[int] = []
        with pytest.raises(ApprovalRequired):
            runtime.session().call("order.cancel", lambda: ran.append(1))
        assert ran == []
