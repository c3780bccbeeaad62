"""Policies, compiled once: for every action the ones that are about it, by phase, conditions as closures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from cra_middleware.atlas.argument_tests import parse_argument_test
from cra_middleware.atlas.globs import any_glob
from cra_middleware.atlas.loader import Atlas
from cra_middleware.atlas.manifest import (
    RISK_TIERS,
    Action,
    ApprovalParameters,
    Conditions,
    Policy,
    PolicyType,
    RiskTier,
)
from cra_middleware.atlas.schemas import named_arguments
from cra_middleware.carp.arguments import arguments_matcher
from cra_middleware.carp.limits import CostFunctions, Quota, own_quota, policy_quota
from cra_middleware.carp.matchers import Arguments, Violation, parameters_matcher, schema_check
from cra_middleware.carp.messages import AllowedAction
from cra_middleware.carp.time_windows import time_window_test

RANK: Mapping[str, int] = {tier: rank for rank, tier in enumerate(RISK_TIERS)}
ON_ARGUMENTS = ("parameters", "arguments")
"""The conditions that only a call's arguments can answer."""


class Facts(NamedTuple):
    """What a session knows about itself, and decisions depend on."""

    agent_id: str
    risk_tier: RiskTier
    context: Mapping[str, object]
    root_session_id: str
    """Where session-wide counters are kept: the outermost session."""
    atlas_ids: tuple[str, ...] | None = None
    """The Atlases the session was opened for; None means all that are loaded."""


class Situation(NamedTuple):
    """What conditions look at."""

    facts: Facts
    arguments: Arguments | None
    """None before a call (``resolve``)."""
    now_us: int


Test = Callable[[Situation], bool | None]
"""One condition. None: it cannot be evaluated."""


class Condition(NamedTuple):
    """One condition of one policy, for one action."""

    name: str
    test: Test


class Terms(NamedTuple):
    """What the operator adds to the words of an Atlas."""

    project: str | None = None
    """The folder that ``$PROJECT`` stands for."""
    costs: CostFunctions = MappingProxyType({})
    """What ``cost_function`` names."""
    is_observing: bool = False
    """Nothing is enforced."""


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One policy, compiled for one action."""

    policy_id: str
    type: PolicyType
    reason: str
    conditions: tuple[Condition, ...]
    source: Policy | None = None
    """None for what the action itself demands."""
    quota: Quota | None = None
    is_enforced: bool = True
    """False in the shadow: it is evaluated and recorded, and decides nothing."""
    on_arguments: bool = False
    """Whether only the arguments can tell."""
    approvers: tuple[str, ...] = ()
    expires_seconds: int | None = None

    def holds(self, situation: Situation) -> bool:
        """Whether the rule counts for this call; what cannot be evaluated counts against the call."""
        if not self.conditions:
            return True
        unknown = False
        for condition in self.conditions:
            answer = evaluate(condition, situation)
            if answer is False:
                return False
            unknown = unknown or answer is None
        return not unknown or self.type != "allow"


@dataclass(frozen=True, slots=True)
class CompiledAction:
    """Everything a decision about one action needs."""

    action: Action
    atlas_id: str
    violation: Violation | None
    """What the action's own schema says about arguments; None when it has none."""
    deny: tuple[Rule, ...]
    ask: tuple[Rule, ...]
    limits: tuple[Rule, ...]
    """Rate limits, then budgets."""
    allow: tuple[Rule, ...]
    scopes: tuple[Rule, ...]
    listed: AllowedAction
    """How a resolution lists it when it is allowed."""
    floor: tuple[Rule, ...] | None = None
    """The baseline's allow policies, one of which must hold too; None when the baseline only restricts."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All of them, in the order in which they are looked at."""
        return (*self.deny, *self.ask, *self.limits, *(self.floor or ()), *self.allow, *self.scopes)


def evaluate(condition: Condition, situation: Situation) -> bool | None:
    """One condition's answer; evaluation that raises is a condition that cannot be evaluated."""
    try:
        return condition.test(situation)
    except Exception:  # noqa: BLE001  a hostile value may raise anything in a comparison: fail closed
        return None


def compile_atlas(atlas: Atlas, terms: Terms, baseline: Atlas | None = None) -> dict[str, CompiledAction]:
    """The actions of one Atlas, each with the policies that are about it, the ``baseline``'s before its own.

    Policies of one phase are ordered by priority, highest first, then as in the manifest.

    Raises:
        ValueError: when a policy speaks of ``$PROJECT`` or of a cost function, and ``terms`` has none.
    """
    manifest = atlas.manifest
    about = _Index(manifest.policies)
    floor = _Index(baseline.manifest.policies) if baseline is not None else None
    floor_allows = baseline is not None and any(policy.type == "allow" for policy in baseline.manifest.policies)
    capabilities: dict[str, set[str]] = {}
    for capability in manifest.capabilities:
        for action_id in capability.actions:
            capabilities.setdefault(action_id, set()).add(capability.capability_id)
    compiled = {}
    for action in manifest.actions:
        own = frozenset(capabilities.get(action.action_id, ()))
        rules = [_rule(policy, action, own, manifest.atlas_id, terms) for policy in about.policies(action.action_id)]
        below: list[Rule] = []
        if baseline is not None and floor is not None:
            name = baseline.manifest.atlas_id
            below = [_rule(policy, action, own, name, terms) for policy in floor.policies(action.action_id)]
        compiled[action.action_id] = _compiled(action, manifest.atlas_id, below, rules, floor_allows, terms)
    return compiled


class _Index:
    """Policies by action: those that name it exactly are looked up, only globs are tried."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._ordered = sorted(policies, key=lambda policy: -policy.priority)
        self._exact: dict[str, list[int]] = {}
        self._globs: list[tuple[int, Callable[[str], bool]]] = []
        for place, policy in enumerate(self._ordered):
            globs = [pattern for pattern in policy.actions if "*" in pattern or "?" in pattern]
            if globs:
                self._globs.append((place, any_glob(globs)))
            for name in set(policy.actions).difference(globs):
                self._exact.setdefault(name, []).append(place)

    def policies(self, action_id: str) -> Iterator[Policy]:
        """Those about an action, in order."""
        places = {*self._exact.get(action_id, ()), *(place for place, matches in self._globs if matches(action_id))}
        return (self._ordered[place] for place in sorted(places))


def _compiled(
    action: Action, atlas_id: str, below: list[Rule], rules: list[Rule], floor_allows: bool, terms: Terms
) -> CompiledAction:
    def phase(*kinds: PolicyType) -> tuple[Rule, ...]:
        return tuple(rule for kind in kinds for rule in (*below, *rules) if rule.type == kind)

    itself = f"action:{action.action_id}"
    enforced = not terms.is_observing
    asks, limits = phase("require_approval"), phase("rate_limit")
    if action.requires_confirmation:
        reason = f"{action.action_id} needs a person's confirmation"
        asks = (*asks, Rule(itself, "require_approval", reason, (), is_enforced=enforced))
    quota = own_quota(action, atlas_id, itself)
    if quota is not None:
        limits = (*limits, Rule(itself, "rate_limit", quota.reason, (), None, quota, is_enforced=enforced))
    schema = action.parameters_schema
    return CompiledAction(
        action=action,
        atlas_id=atlas_id,
        violation=None if schema is None else schema_check(schema),
        deny=phase("deny"),
        ask=asks,
        limits=(*limits, *phase("budget")),
        allow=tuple(rule for rule in rules if rule.type == "allow" and (rule.is_enforced or not enforced)),
        scopes=phase("scope"),
        listed=_listed(action),
        floor=tuple(rule for rule in below if rule.type == "allow") if floor_allows else None,
    )


def _listed(action: Action) -> AllowedAction:
    return AllowedAction(
        action_id=action.action_id,
        name=action.name,
        description=action.description,
        parameters_schema=action.parameters_schema,
        returns_schema=action.returns_schema,
        risk_tier=action.risk_tier,
        requires_confirmation=action.requires_confirmation,
        idempotent=action.idempotent,
        rate_limit=action.rate_limit,
    )


def _rule(policy: Policy, action: Action, capabilities: frozenset[str], atlas_id: str, terms: Terms) -> Rule:
    parameters = policy.rules_of()
    reason = parameters.reason or policy.description or _sentence(policy, action)
    asks = parameters if isinstance(parameters, ApprovalParameters) else ApprovalParameters()
    try:
        conditions = tuple(compile_conditions(policy.conditions, action, capabilities, terms.project))
    except ValueError as error:
        raise ValueError(f"policy {policy.policy_id} of {atlas_id}: {error}") from None
    return Rule(
        policy_id=policy.policy_id,
        type=policy.type,
        reason=reason,
        conditions=conditions,
        source=policy,
        quota=policy_quota(policy, parameters, action.action_id, atlas_id, reason, terms.costs),
        is_enforced=parameters.enforcement == "enforce" and not terms.is_observing,
        on_arguments=any(condition.name in ON_ARGUMENTS for condition in conditions),
        approvers=asks.approvers or (),
        expires_seconds=asks.expires_seconds,
    )


def _sentence(policy: Policy, action: Action) -> str:
    verbs: dict[PolicyType, str] = {
        "deny": "does not allow",
        "require_approval": "wants a person to approve",
        "rate_limit": "limits how often an agent may call",
        "budget": "limits what may be spent on",
    }
    return f"policy {policy.policy_id} {verbs.get(policy.type, 'is about')} {action.action_id}"


def compile_conditions(
    conditions: Conditions, action: Action | None, capabilities: frozenset[str], project: str | None = None
) -> list[Condition]:
    """The conditions present, as closures; ``action`` is None for a context pack's.

    Raises:
        ValueError: when one speaks of ``$PROJECT`` and there is none.
    """
    return list(_conditions(conditions, action, capabilities, project))


def _conditions(
    conditions: Conditions, action: Action | None, capabilities: frozenset[str], project: str | None
) -> Iterator[Condition]:
    if conditions.risk_tiers is not None:
        yield Condition("risk_tiers", _risk_tiers(conditions.risk_tiers, RANK[action.risk_tier] if action else 0))
    if conditions.agents is not None:
        matches = any_glob(conditions.agents)
        yield Condition("agents", lambda situation: matches(situation.facts.agent_id))
    if conditions.capabilities is not None:
        shared = not capabilities.isdisjoint(conditions.capabilities)
        yield Condition("capabilities", lambda situation: shared)
    if conditions.context_matches is not None:
        yield Condition("context_matches", _context(conditions.context_matches))
    if conditions.time_window is not None:
        is_open = time_window_test(conditions.time_window)
        yield Condition("time_window", lambda situation: is_open(situation.now_us))
    declared = named_arguments(action.parameters_schema or {}) if action else frozenset[str]()
    if conditions.parameters is not None:
        yield Condition("parameters", _on_arguments(parameters_matcher(conditions.parameters, declared)))
    if conditions.arguments is not None:
        tests = {name: parse_argument_test(value) for name, value in conditions.arguments.items()}
        yield Condition("arguments", _on_arguments(arguments_matcher(tests, declared, project)))


def _on_arguments(matches: Callable[[Arguments], bool | None]) -> Test:
    return lambda situation: None if situation.arguments is None else matches(situation.arguments)


def _risk_tiers(tiers: tuple[RiskTier, ...], floor: int) -> Test:
    ranks = frozenset(RANK[tier] for tier in tiers)
    return lambda situation: max(RANK[situation.facts.risk_tier], floor) in ranks


def _context(wanted: Mapping[str, str]) -> Test:
    def test(situation: Situation) -> bool | None:
        unknown = False
        for key, value in wanted.items():
            given = situation.facts.context.get(key)
            if not isinstance(given, str):
                unknown = True  # absent, or no string: nobody can say
            elif given != value:
                return False
        return None if unknown else True

    return test
