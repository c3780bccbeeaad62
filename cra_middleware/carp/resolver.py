"""The policy decision point: ``decide`` one call, ``survey`` all actions before any call.

The first decisive match wins; inside a phase by priority, then manifest order:

1. ``deny``, then the action's own schema (``invalid_parameters``)
2. ``require_approval``, unless approved; but what nothing allows is denied at once, not asked
3. ``rate_limit``, a policy's or the action's own; 4. ``budget``
5. ``allow``
6. the default: ``no_allow_policy``

An action that no Atlas declares is ``unknown_action``, whatever the default. A decision is pure, but for the
place it takes in the counters; that is the last step, after every other check has passed. A policy in the shadow,
and every policy while observing, is evaluated and noted, and decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cra_middleware.atlas.findings import check_dependencies
from cra_middleware.atlas.loader import Atlas
from cra_middleware.atlas.manifest import Conditions, ToolTarget
from cra_middleware.carp.call import Allow, Ask, Decision, Deny, Shadow, Target, ToolCall
from cra_middleware.carp.limits import CostFunctions
from cra_middleware.carp.messages import DecisionType
from cra_middleware.carp.near_miss import nearest_miss
from cra_middleware.carp.policy import (
    ON_ARGUMENTS,
    CompiledAction,
    Facts,
    Rule,
    Situation,
    Terms,
    compile_atlas,
    compile_conditions,
    evaluate,
)
from cra_middleware.carp.quota import Counters, Exhausted, Limit, Reservation
from cra_middleware.errors import AtlasError

DefaultDecision = Literal["deny", "allow"]
DEFAULT_POLICY = "default"
HUMAN_APPROVAL = "Requires human approval"
SOME_DENIED = "Some actions are denied by policy"


@dataclass(frozen=True, slots=True)
class ActionStanding:
    """Where one action stands before any call: what ``resolve`` tells an agent."""

    action: CompiledAction
    verdict: Literal["allow", "deny", "require_approval"]
    policy_id: str
    reason: str
    rules: tuple[Rule, ...]
    """Every rule that counts, or may count once the arguments are known."""


class Resolver:
    """Decides under a fixed set of Atlases."""

    def __init__(
        self,
        atlases: Sequence[Atlas],
        default_decision: DefaultDecision = "deny",
        *,
        baseline: Atlas | None = None,
        project: str | None = None,
        costs: CostFunctions | None = None,
        is_observing: bool = False,
    ) -> None:
        """Compile the policies.

        Args:
            baseline: its policies are about every action; the Atlases may only be stricter.
            project: the folder that ``$PROJECT`` stands for.
            costs: what a budget's ``cost_function`` names.
            is_observing: nothing is enforced but the arguments' own schemas.

        Raises:
            AtlasError: when a dependency is missing.
            ValueError: when two Atlases have the same id or declare the same action, a policy needs ``project``
                or ``costs``, or ``default_decision`` is neither ``deny`` nor ``allow``.
        """
        if default_decision not in ("deny", "allow"):
            raise ValueError(f"default_decision must be 'deny' or 'allow', not {default_decision!r}")
        self.atlases = tuple(atlases)
        self.baseline = baseline
        self.default_decision: DefaultDecision = default_decision
        self.is_observing = is_observing
        self.project = project
        self._actions: dict[str, CompiledAction] = {}
        everything = (*self.atlases, *((baseline,) if baseline is not None else ()))
        manifests = {atlas.manifest.atlas_id: (atlas.manifest, atlas.file) for atlas in everything}
        if len(manifests) != len(everything):
            names = Counter(atlas.manifest.atlas_id for atlas in everything)
            twice = ", ".join(sorted(name for name, count in names.items() if count > 1))
            raise ValueError(f"two Atlases have the same atlas_id, {twice}: load each once")
        findings = tuple(check_dependencies(manifests))
        if findings:
            raise AtlasError(findings)
        terms = Terms(project, costs or {}, is_observing)
        for atlas in self.atlases:
            for action_id, compiled in compile_atlas(atlas, terms, baseline).items():
                if action_id in self._actions:
                    both = f"{self._actions[action_id].atlas_id} and {compiled.atlas_id}"
                    raise ValueError(f"{both} both declare {action_id}: it would be unclear whose policies count")
                self._actions[action_id] = compiled

    @property
    def actions(self) -> Mapping[str, CompiledAction]:
        """Every declared action, in load and manifest order."""
        return self._actions

    def mapped(self, tool_name: str, framework: str) -> Target | None:
        """What the Atlases say that a tool of ``framework`` stands for; ``any`` is every framework, and none."""
        for section in dict.fromkeys((framework, "any")):
            for atlas in self.atlases:
                adapter = atlas.manifest.adapters.get(section)
                target = adapter.tools.get(tool_name) if adapter is not None else None
                if target is not None:
                    return Target(target.action, target.args) if isinstance(target, ToolTarget) else Target(target)
        return None

    def decide(self, call: ToolCall, facts: Facts, now_us: int, counters: Counters, approved: bool = False) -> Decision:
        """The verdict on one call, made at ``now_us``; ``approved`` says that a person said yes to it."""
        action = self._actions.get(call.action_id)
        if action is None or (facts.atlas_ids is not None and action.atlas_id not in facts.atlas_ids):
            unknown = _unknown(call.action_id)
            if not self.is_observing:
                return unknown
            return _unwritable(call) if call.problem is not None else Allow(None, (), (_shadow(unknown),))
        if call.problem is not None:
            return _unwritable(call)
        arguments = call.arguments
        situation = Situation(facts, arguments, now_us)
        shadows: tuple[Shadow, ...] = ()
        if call.distrust is not None:
            changed = Deny("unknown_action", f"action:{call.action_id}", call.distrust)
            if not self.is_observing:
                return changed
            shadows += (_shadow(changed),)
        for rule in action.deny:
            if rule.holds(situation):
                if rule.is_enforced:
                    return Deny("policy_denied", rule.policy_id, rule.reason, shadows=shadows)
                shadows += (Shadow(rule.policy_id, "deny", "policy_denied", rule.reason),)
        if action.violation is not None:
            violation = action.violation(arguments)
            if violation is not None:
                itself = f"action:{call.action_id}"
                return Deny("invalid_parameters", itself, violation, None, "invalid_parameters", shadows)
        allowed_by = self._allowing(action, situation)
        if action.ask and not approved:
            for rule in action.ask:
                if rule.holds(situation):
                    if not rule.is_enforced:
                        shadows += (Shadow(rule.policy_id, "require_approval", "approval_required", rule.reason),)
                    elif allowed_by is None:
                        return self._nothing_allows(action, situation, shadows)
                    else:
                        hopeless = _never_within(action, situation)
                        if hopeless is not None:
                            return hopeless._replace(shadows=shadows)
                        return _asked([one for one in action.ask if one.is_enforced and one.holds(situation)], shadows)
        reservations: tuple[Reservation, ...] = ()
        if action.limits:
            denial, reservations, noted = self._within_limits(action, situation, counters, allowed_by is not None)
            shadows += noted
            if denial is not None:
                return denial._replace(shadows=shadows)
        if allowed_by is None:
            denial = self._nothing_allows(action, situation, shadows)
            if not self.is_observing:
                return denial
            return Allow(None, reservations, (*shadows, _shadow(denial)))
        return Allow(allowed_by or None, reservations, shadows)

    def survey(
        self, facts: Facts, now_us: int, counters: Counters, atlas_ids: Sequence[str] | None = None
    ) -> Iterator[ActionStanding]:
        """Where every action stands before any call; takes no place in any limit."""
        situation = Situation(facts, None, now_us)
        for compiled in self._actions.values():
            if atlas_ids is None or compiled.atlas_id in atlas_ids:
                yield self._standing(compiled, situation, counters)

    def context_holds(
        self, conditions: Conditions, facts: Facts, now_us: int, capabilities: frozenset[str] = frozenset()
    ) -> bool:
        """Whether a context pack's conditions are met, for a request that is about ``capabilities``;
        what cannot be evaluated is not."""
        if conditions.arguments is not None or conditions.parameters is not None:
            return False  # there are no arguments yet
        situation = Situation(facts, None, now_us)
        return all(evaluate(one, situation) is True for one in compile_conditions(conditions, None, capabilities))

    def _allowing(self, action: CompiledAction, situation: Situation) -> str | None:
        """The policy that allows; the empty text when the default does; None when nothing does."""
        if action.floor is not None and not any(rule.holds(situation) for rule in action.floor):
            return None
        for rule in action.allow:
            if rule.holds(situation):
                return rule.policy_id
        return "" if self.default_decision == "allow" else None

    def _within_limits(
        self, action: CompiledAction, situation: Situation, counters: Counters, is_allowed: bool
    ) -> tuple[Deny | None, tuple[Reservation, ...], tuple[Shadow, ...]]:
        """Take a place in every limit that counts, or none; limits in the shadow count for themselves."""
        facts, arguments, now_us = situation
        limits: list[Limit] = []
        in_shadow: list[Limit] = []
        unreadable: Rule | None = None
        shadows: tuple[Shadow, ...] = ()
        for rule in action.limits:
            if rule.quota is None or not rule.holds(situation):
                continue
            limit = rule.quota.limit(facts.agent_id, facts.root_session_id, arguments)
            if limit is not None:
                (limits if rule.is_enforced else in_shadow).append(limit)
            elif rule.is_enforced:
                unreadable = unreadable or rule
            else:
                shadows += (_shadow(_no_cost(rule)),)
        taken: list[Reservation] = []
        if limits:
            takes = is_allowed and unreadable is None
            first = (counters.reserve if takes else counters.peek)(limits, now_us)
            if isinstance(first, Exhausted):
                return _exhausted(first), (), shadows
            if first is not None:
                taken.append(first)
        if unreadable is not None:
            return _no_cost(unreadable), (), shadows
        for limit in in_shadow if is_allowed or self.is_observing else ():
            one = counters.reserve([limit], now_us)
            if isinstance(one, Exhausted):
                shadows += (_shadow(_exhausted(one)),)
            else:
                taken.append(one)
        return None, tuple(taken), shadows

    def _nothing_allows(self, action: CompiledAction, situation: Situation, shadows: tuple[Shadow, ...]) -> Deny:
        reason = f"no policy allows {action.action.action_id}"
        if action.floor is not None and not any(rule.holds(situation) for rule in action.floor):
            reason = f"the baseline allows no {action.action.action_id} here"
            reason += nearest_miss(action.floor, situation)
        else:
            reason += nearest_miss(action.allow, situation)
        return Deny("no_allow_policy", DEFAULT_POLICY, reason, shadows=shadows)

    def _standing(self, compiled: CompiledAction, situation: Situation, counters: Counters) -> ActionStanding:
        def certain(rules: tuple[Rule, ...]) -> Rule | None:
            return next(
                (rule for rule in rules if rule.is_enforced and not rule.on_arguments and rule.holds(situation)), None
            )

        may_apply = tuple(rule for rule in compiled.rules if _may_apply(rule, situation))
        allow = next((rule for rule in compiled.allow if rule in may_apply), None)
        denial, ask = certain(compiled.deny), certain(compiled.ask)
        if denial is not None:
            return ActionStanding(compiled, "deny", denial.policy_id, denial.reason, may_apply)
        floor = compiled.floor is None or any(rule in may_apply for rule in compiled.floor)
        if not self.is_observing and (not floor or (allow is None and self.default_decision == "deny")):
            reason = f"no policy allows {compiled.action.action_id}"
            return ActionStanding(compiled, "deny", DEFAULT_POLICY, reason, may_apply)
        if ask is not None:
            return ActionStanding(compiled, "require_approval", ask.policy_id, HUMAN_APPROVAL, may_apply)
        exhausted = counters.peek(_certain_limits(compiled, situation), situation.now_us) if compiled.limits else None
        if exhausted is not None:
            return ActionStanding(compiled, "deny", exhausted.limit.policy_id, exhausted.limit.reason, may_apply)
        return ActionStanding(compiled, "allow", allow.policy_id if allow else DEFAULT_POLICY, "", may_apply)


def _never_within(action: CompiledAction, situation: Situation) -> Deny | None:
    """Why no yes could help: a cost that cannot be read, or is more than all there is."""
    facts, arguments, _ = situation
    for rule in action.limits:
        if rule.quota is not None and rule.is_enforced and rule.holds(situation):
            limit = rule.quota.limit(facts.agent_id, facts.root_session_id, arguments)
            if limit is None:
                return _no_cost(rule)
            if limit.amount > limit.capacity:
                return _exhausted(Exhausted(limit, None))
    return None


def _certain_limits(compiled: CompiledAction, situation: Situation) -> list[Limit]:
    facts = situation.facts
    found = (
        rule.quota.limit(facts.agent_id, facts.root_session_id, None)
        for rule in compiled.limits
        if rule.quota and rule.is_enforced and not rule.on_arguments and rule.holds(situation)
    )
    return [limit for limit in found if limit is not None]


def _unknown(action_id: str) -> Deny:
    reason = (
        f'no loaded Atlas declares the action {action_id[:255]!r}; declare it under "actions", '
        'or map the tool to one: "adapters": {"any": {"tools": {"<tool>": "<action>"}}}'
    )
    return Deny("unknown_action", DEFAULT_POLICY, reason)


def _unwritable(call: ToolCall) -> Deny:
    reason = f"the arguments cannot be recorded: {call.problem}"
    return Deny("invalid_parameters", f"action:{call.action_id}", reason, None, "invalid_parameters")


def _asked(rules: Sequence[Rule], shadows: tuple[Shadow, ...]) -> Ask:
    """One question for all policies that ask: the first is named, and the answer has to satisfy each."""
    first, *others = rules
    needed = tuple(dict.fromkeys(rule.approvers for rule in others if rule.approvers))
    expiries = [rule.expires_seconds for rule in rules if rule.expires_seconds is not None]
    return Ask(first.policy_id, first.reason, first.approvers, needed, min(expiries, default=None), shadows)


def _shadow(denial: Deny) -> Shadow:
    return Shadow(denial.policy_id, "deny", denial.code, denial.reason)


def _may_apply(rule: Rule, situation: Situation) -> bool:
    """Whether a rule counts, or may count once the arguments are known."""
    answers = [evaluate(one, situation) for one in rule.conditions if one.name not in ON_ARGUMENTS]
    return False not in answers and (rule.type != "allow" or None not in answers)


def _no_cost(rule: Rule) -> Deny:
    reason = f"{rule.reason.rstrip('.')}; what this call costs cannot be read: give it as a number, not negative"
    return Deny("budget_exceeded", rule.policy_id, reason, None, "budget")


def _exhausted(taken: Exhausted) -> Deny:
    wait_us, limit = taken.retry_after_us, taken.limit
    seconds = None if wait_us is None else max(-(-wait_us // 1_000) / 1_000, 0.001)
    code: Literal["budget_exceeded", "rate_limit_exceeded"] = (
        "budget_exceeded" if limit.kind == "budget" else "rate_limit_exceeded"
    )
    return Deny(code, limit.policy_id, limit.reason, seconds, limit.kind)


def decision_type(standings: Sequence[ActionStanding], wanted: frozenset[str], unknown: bool) -> DecisionType:
    """The word for a whole resolution: all of the wanted allowed, none, or some."""
    verdicts = [standing.verdict for standing in standings if standing.action.action.action_id in wanted]
    if verdicts and not unknown and all(verdict == "allow" for verdict in verdicts):
        return "allow"
    if any(verdict == "allow" for verdict in verdicts):
        return "partial"
    return "requires_approval" if "require_approval" in verdicts else "deny"
