"""Policies, compiled once: for every action the ones that are about it, by phase, conditions as closures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jsonschema_rs

from cra_middleware.atlas.globs import any_glob
from cra_middleware.atlas.loader import Atlas
from cra_middleware.atlas.manifest import (
    RISK_TIERS,
    Action,
    Conditions,
    Policy,
    PolicyType,
    RateLimitParameters,
    RiskTier,
    Scope,
)
from cra_middleware.atlas.schemas import compile_schema, named_arguments
from cra_middleware.carp.matchers import Arguments, parameters_matcher
from cra_middleware.carp.quota import Limit

RANK: Mapping[str, int] = {tier: rank for rank, tier in enumerate(RISK_TIERS)}


class Facts(NamedTuple):
    """What a session knows about itself, and decisions depend on."""

    agent_id: str
    risk_tier: RiskTier
    context: Mapping[str, object]
    root_session_id: str
    """Where session-wide counters are kept: the outermost session."""
    atlas_ids: tuple[str, ...] | None = None
    """The Atlases the session was opened for; None means all that are loaded."""


Test = Callable[[Facts, Arguments | None], bool | None]
"""One condition. None: it cannot be evaluated. The arguments are None before a call (``resolve``)."""


class Condition(NamedTuple):
    """One condition of one policy, for one action."""

    name: str
    test: Test


@dataclass(frozen=True, slots=True)
class Rule:
    """One policy, compiled for one action."""

    policy_id: str
    type: PolicyType
    reason: str
    conditions: tuple[Condition, ...]
    source: Policy | None = None
    """None for what the action itself demands."""
    quota: Quota | None = None

    @property
    def on_arguments(self) -> bool:
        """Whether only the arguments can tell."""
        return any(condition.name == "parameters" for condition in self.conditions)

    def holds(self, facts: Facts, arguments: Arguments | None) -> bool:
        """Whether the rule counts for this call; what cannot be evaluated counts against the call."""
        if not self.conditions:
            return True
        unknown = False
        for condition in self.conditions:
            answer = evaluate(condition, facts, arguments)
            if answer is False:
                return False
            unknown = unknown or answer is None
        return not unknown or self.type != "allow"


@dataclass(frozen=True, slots=True)
class Quota:
    """A rate limit, before it is known who calls."""

    atlas_id: str
    rule_id: str
    action_id: str
    max_calls: int
    window_seconds: int
    scope: Scope | None
    reason: str

    def limit(self, facts: Facts) -> Limit:
        """The limit that a call under ``facts`` counts in."""
        who = {
            None: (facts.agent_id, self.action_id),
            "action": (self.action_id,),
            "agent": (facts.agent_id,),
            "session": (facts.root_session_id,),
            "global": (),
        }[self.scope]
        key = (self.atlas_id, self.rule_id, self.scope or "", *who)
        return Limit(key, self.max_calls, self.window_seconds * 1_000_000, self.rule_id, self.reason)


@dataclass(frozen=True, slots=True)
class CompiledAction:
    """Everything a decision about one action needs."""

    action: Action
    atlas_id: str
    validator: jsonschema_rs.Validator | None
    deny: tuple[Rule, ...]
    ask: tuple[Rule, ...]
    limits: tuple[Rule, ...]
    allow: tuple[Rule, ...]
    scopes: tuple[Rule, ...]

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All of them, in the order in which they are looked at."""
        return (*self.deny, *self.ask, *self.limits, *self.allow, *self.scopes)


def evaluate(condition: Condition, facts: Facts, arguments: Arguments | None) -> bool | None:
    """One condition's answer; evaluation that raises is a condition that cannot be evaluated."""
    try:
        return condition.test(facts, arguments)
    except Exception:  # noqa: BLE001  a hostile value may raise anything in a comparison: fail closed
        return None


def compile_atlas(atlas: Atlas) -> dict[str, CompiledAction]:
    """The actions of one Atlas, each with the policies that are about it.

    Policies of one phase are ordered by priority, highest first, then as in the manifest.
    """
    manifest = atlas.manifest
    ordered = sorted(manifest.policies, key=lambda policy: -policy.priority)
    globs = {policy.policy_id: any_glob(policy.actions) for policy in ordered}
    capabilities: dict[str, set[str]] = {}
    for capability in manifest.capabilities:
        for action_id in capability.actions:
            capabilities.setdefault(action_id, set()).add(capability.capability_id)
    compiled = {}
    for action in manifest.actions:
        own = frozenset(capabilities.get(action.action_id, ()))
        about = [policy for policy in ordered if globs[policy.policy_id](action.action_id)]
        rules = [_rule(policy, action, own, manifest.atlas_id) for policy in about]
        compiled[action.action_id] = _compiled(action, manifest.atlas_id, rules)
    return compiled


def _compiled(action: Action, atlas_id: str, rules: list[Rule]) -> CompiledAction:
    def phase(kind: PolicyType) -> tuple[Rule, ...]:
        return tuple(rule for rule in rules if rule.type == kind)

    itself = f"action:{action.action_id}"
    asks, limits = phase("require_approval"), phase("rate_limit")
    if action.requires_confirmation:
        asks = (*asks, Rule(itself, "require_approval", f"{action.action_id} needs a person's confirmation", ()))
    if action.rate_limit is not None:
        calls, window = action.rate_limit.max_calls, action.rate_limit.window_seconds
        reason = f"{action.action_id} may run {calls} times in {window} s"
        quota = Quota(atlas_id, itself, action.action_id, calls, window, None, reason)
        limits = (*limits, Rule(itself, "rate_limit", reason, (), None, quota))
    schema = action.parameters_schema
    return CompiledAction(
        action=action,
        atlas_id=atlas_id,
        validator=None if schema is None else compile_schema(schema),
        deny=phase("deny"),
        ask=asks,
        limits=limits,
        allow=phase("allow"),
        scopes=phase("scope"),
    )


def _rule(policy: Policy, action: Action, capabilities: frozenset[str], atlas_id: str) -> Rule:
    parameters = policy.rules_of()
    reason = parameters.reason or policy.description or _sentence(policy, action)
    quota = None
    if isinstance(parameters, RateLimitParameters):
        quota = Quota(
            atlas_id,
            policy.policy_id,
            action.action_id,
            parameters.max_calls,
            parameters.window_seconds,
            parameters.scope,
            reason,
        )
    conditions = tuple(compile_conditions(policy.conditions, action, capabilities))
    return Rule(policy.policy_id, policy.type, reason, conditions, policy, quota)


def _sentence(policy: Policy, action: Action) -> str:
    verbs: dict[PolicyType, str] = {
        "deny": "does not allow",
        "require_approval": "wants a person to approve",
        "rate_limit": "limits how often an agent may call",
    }
    return f"policy {policy.policy_id} {verbs.get(policy.type, 'is about')} {action.action_id}"


def compile_conditions(conditions: Conditions, action: Action | None, capabilities: frozenset[str]) -> list[Condition]:
    """The conditions present, as closures; ``action`` is None for a context pack's."""
    result: list[Condition] = []
    if conditions.risk_tiers is not None:
        result.append(
            Condition("risk_tiers", _risk_tiers(conditions.risk_tiers, RANK[action.risk_tier] if action else 0))
        )
    if conditions.agents is not None:
        matches = any_glob(conditions.agents)
        result.append(Condition("agents", lambda facts, arguments: matches(facts.agent_id)))
    if conditions.capabilities is not None:
        shared = not capabilities.isdisjoint(conditions.capabilities)
        result.append(Condition("capabilities", lambda facts, arguments: shared))
    if conditions.context_matches is not None:
        result.append(Condition("context_matches", _context(conditions.context_matches)))
    if conditions.parameters is not None:
        declared = named_arguments(action.parameters_schema or {}) if action else frozenset[str]()
        matcher = parameters_matcher(conditions.parameters, declared)
        result.append(
            Condition("parameters", lambda facts, arguments: None if arguments is None else matcher(arguments))
        )
    return result


def _risk_tiers(tiers: tuple[RiskTier, ...], floor: int) -> Test:
    ranks = frozenset(RANK[tier] for tier in tiers)
    return lambda facts, arguments: max(RANK[facts.risk_tier], floor) in ranks


def _context(wanted: Mapping[str, str]) -> Test:
    def test(facts: Facts, arguments: Arguments | None) -> bool | None:
        unknown = False
        for key, value in wanted.items():
            given = facts.context.get(key)
            if not isinstance(given, str):
                unknown = True  # absent, or no string: nobody can say
            elif given != value:
                return False
        return None if unknown else True

    return test
