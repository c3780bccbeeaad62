"""The policy decision point: ``decide`` one call, ``survey`` all actions, ``explain`` a decision.

The first decisive match wins; inside a phase by priority, then manifest order:

1. ``deny``, then the action's own schema (``invalid_parameters``)
2. ``require_approval``, unless approved; but what nothing allows is denied at once, not asked
3. ``rate_limit``, a policy's or the action's own
4. ``allow``
5. the default: ``no_allow_policy``

An action that no Atlas declares is ``unknown_action``, whatever the default. A decision is pure, but for the
place it takes in the counters; that is the last step, after every other check has passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cra_middleware.atlas.findings import check_dependencies
from cra_middleware.atlas.loader import Atlas
from cra_middleware.atlas.manifest import Conditions, PolicyType
from cra_middleware.carp.call import Allow, Ask, Decision, Deny, ToolCall
from cra_middleware.carp.matchers import schema_violation
from cra_middleware.carp.messages import DecisionType
from cra_middleware.carp.policy import CompiledAction, Facts, Rule, compile_atlas, compile_conditions, evaluate
from cra_middleware.carp.quota import Counters, Exhausted, Limit
from cra_middleware.errors import AtlasError

DefaultDecision = Literal["deny", "allow"]
DEFAULT_POLICY = "default"
HUMAN_APPROVAL = "Requires human approval"
SOME_DENIED = "Some actions are denied by policy"


class Seen(NamedTuple):
    """What one policy said about a call; for people who ask why."""

    policy_id: str
    type: PolicyType
    holds: bool
    why: str


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one action stands before any call: what ``resolve`` tells an agent."""

    action: CompiledAction
    verdict: Literal["allow", "deny", "require_approval"]
    policy_id: str
    reason: str
    rules: tuple[Rule, ...]
    """Every rule that counts, or may count once the arguments are known."""


class Resolver:
    """Decides under a fixed set of Atlases."""

    def __init__(self, atlases: Sequence[Atlas], default_decision: DefaultDecision = "deny") -> None:
        """Compile the policies.

        Raises:
            AtlasError: when two Atlases have the same id or declare the same action, or a dependency is missing.
            ValueError: when ``default_decision`` is neither ``deny`` nor ``allow``.
        """
        if default_decision not in ("deny", "allow"):
            raise ValueError(f"default_decision must be 'deny' or 'allow', not {default_decision!r}")
        self.atlases = tuple(atlases)
        self.default_decision: DefaultDecision = default_decision
        self._actions: dict[str, CompiledAction] = {}
        manifests = {atlas.manifest.atlas_id: (atlas.manifest, atlas.file) for atlas in atlases}
        if len(manifests) != len(self.atlases):
            raise ValueError("two Atlases have the same atlas_id; load each once")
        findings = tuple(check_dependencies(manifests))
        if findings:
            raise AtlasError(findings)
        for atlas in atlases:
            for action_id, compiled in compile_atlas(atlas).items():
                if action_id in self._actions:
                    both = f"{self._actions[action_id].atlas_id} and {compiled.atlas_id}"
                    raise ValueError(f"{both} both declare {action_id}: it would be unclear whose policies count")
                self._actions[action_id] = compiled

    @property
    def actions(self) -> Mapping[str, CompiledAction]:
        """Every declared action, in load and manifest order."""
        return self._actions

    def decide(self, call: ToolCall, facts: Facts, now_us: int, counters: Counters, approved: bool = False) -> Decision:
        """The verdict on one call, made at ``now_us``; ``approved`` says that a person said yes to it."""
        action = self._actions.get(call.action_id)
        if action is None or (facts.atlas_ids is not None and action.atlas_id not in facts.atlas_ids):
            return _unknown(call.action_id)
        arguments = call.arguments
        if call.problem is not None:
            reason = f"the arguments cannot be recorded: {call.problem}"
            return Deny("invalid_parameters", f"action:{call.action_id}", reason, None, "invalid_parameters")
        for rule in action.deny:
            if rule.holds(facts, arguments):
                return Deny("policy_denied", rule.policy_id, rule.reason)
        if action.validator is not None:
            violation = schema_violation(action.validator, arguments)
            if violation is not None:
                return Deny("invalid_parameters", f"action:{call.action_id}", violation, None, "invalid_parameters")
        allowed_by = self._allowing(action, facts, arguments)
        if action.ask and not approved:
            for rule in action.ask:
                if rule.holds(facts, arguments):
                    return (
                        self._nothing_allows(action, facts, arguments)
                        if allowed_by is None
                        else Ask(rule.policy_id, rule.reason)
                    )
        reservation = None
        limits: tuple[Limit, ...] = ()
        if action.limits:
            counting = (rule.quota for rule in action.limits if rule.quota and rule.holds(facts, arguments))
            limits = tuple(quota.limit(facts) for quota in counting)
        if limits:
            taken = counters.peek(limits, now_us) if allowed_by is None else counters.reserve(limits, now_us)
            if isinstance(taken, Exhausted):
                return _exhausted(taken)
            reservation = taken
        if allowed_by is None:
            return self._nothing_allows(action, facts, arguments)
        return Allow(allowed_by or None, reservation)

    def survey(
        self, facts: Facts, now_us: int, counters: Counters, atlas_ids: Sequence[str] | None = None
    ) -> Iterator[Standing]:
        """Where every action stands before any call; takes no place in any limit."""
        for compiled in self._actions.values():
            if atlas_ids is None or compiled.atlas_id in atlas_ids:
                yield self._standing(compiled, facts, now_us, counters)

    def explain(self, call: ToolCall, facts: Facts) -> Iterator[Seen]:
        """Every policy that is about the call's action, and what it said, in the order they are looked at."""
        action = self._actions.get(call.action_id)
        for rule in action.rules if action is not None else ():
            holds = rule.holds(facts, call.arguments)
            answers = [(condition.name, evaluate(condition, facts, call.arguments)) for condition in rule.conditions]
            words = {True: "holds", False: "does not hold", None: "cannot be evaluated"}
            why = ", ".join(f"{name} {words[answer]}" for name, answer in answers) or "no conditions"
            yield Seen(rule.policy_id, rule.type, holds, why)

    def context_holds(self, conditions: Conditions, facts: Facts, capabilities: frozenset[str] = frozenset()) -> bool:
        """Whether a context pack's conditions are met, for a request that is about ``capabilities``;
        what cannot be evaluated is not."""
        compiled = compile_conditions(conditions, None, capabilities)
        return all(evaluate(condition, facts, None) is True for condition in compiled)

    def _allowing(self, action: CompiledAction, facts: Facts, arguments: Mapping[str, object]) -> str | None:
        """The policy that allows; the empty text when the default does; None when nothing does."""
        for rule in action.allow:
            if rule.holds(facts, arguments):
                return rule.policy_id
        return "" if self.default_decision == "allow" else None

    def _nothing_allows(self, action: CompiledAction, facts: Facts, arguments: Mapping[str, object]) -> Deny:
        reason = f"no policy allows {action.action.action_id}"
        near = [
            (
                rule,
                [condition.name for condition in rule.conditions if evaluate(condition, facts, arguments) is not True],
            )
            for rule in action.allow
        ]
        if near:
            nearest, misses = min(near, key=lambda item: len(item[1]))
            reason += f"; {nearest.policy_id} would, but for its condition on {' and '.join(misses)}"
        return Deny("no_allow_policy", DEFAULT_POLICY, reason)

    def _standing(self, compiled: CompiledAction, facts: Facts, now_us: int, counters: Counters) -> Standing:
        def certain(rules: tuple[Rule, ...]) -> Rule | None:
            return next((rule for rule in rules if not rule.on_arguments and rule.holds(facts, None)), None)

        may_apply = tuple(rule for rule in compiled.rules if _may_apply(rule, facts))
        allow = next((rule for rule in may_apply if rule.type == "allow"), None)
        denial, ask = certain(compiled.deny), certain(compiled.ask)
        if denial is not None:
            return Standing(compiled, "deny", denial.policy_id, denial.reason, may_apply)
        if allow is None and self.default_decision == "deny":
            reason = f"no policy allows {compiled.action.action_id}"
            return Standing(compiled, "deny", DEFAULT_POLICY, reason, may_apply)
        if ask is not None:
            return Standing(compiled, "require_approval", ask.policy_id, HUMAN_APPROVAL, may_apply)
        limits = [
            rule.quota.limit(facts)
            for rule in compiled.limits
            if rule.quota and not rule.on_arguments and rule.holds(facts, None)
        ]
        exhausted = counters.peek(limits, now_us)
        if exhausted is not None:
            return Standing(compiled, "deny", exhausted.limit.policy_id, exhausted.limit.reason, may_apply)
        return Standing(compiled, "allow", allow.policy_id if allow else DEFAULT_POLICY, "", may_apply)


def _unknown(action_id: str) -> Deny:
    reason = (
        f'no loaded Atlas declares the action {action_id[:255]!r}; declare it under "actions", '
        'or map the tool to one: "adapters": {"any": {"tools": {"<tool>": "<action>"}}}'
    )
    return Deny("unknown_action", DEFAULT_POLICY, reason)


def _may_apply(rule: Rule, facts: Facts) -> bool:
    """Whether a rule counts, or may count once the arguments are known."""
    rest = tuple(condition for condition in rule.conditions if condition.name != "parameters")
    answers = [evaluate(condition, facts, None) for condition in rest]
    return False not in answers and (rule.type != "allow" or None not in answers)


def _exhausted(taken: Exhausted) -> Deny:
    seconds = -(-taken.retry_after_us // 1_000) / 1_000
    return Deny("rate_limit_exceeded", taken.limit.policy_id, taken.limit.reason, max(seconds, 0.001), "rate_limit")


def decision_type(standings: Sequence[Standing], wanted: frozenset[str], unknown: bool) -> DecisionType:
    """The word for a whole resolution: all of the wanted allowed, none, or some."""
    verdicts = [standing.verdict for standing in standings if standing.action.action.action_id in wanted]
    if verdicts and not unknown and all(verdict == "allow" for verdict in verdicts):
        return "allow"
    if any(verdict == "allow" for verdict in verdicts):
        return "partial"
    return "requires_approval" if "require_approval" in verdicts else "deny"
