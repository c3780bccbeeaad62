"""Why a call is decided as it is: every policy about it, what each condition saw, and what would have to change.

Pure: it takes no place in any limit, and nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from cra_middleware._clock import timestamp_text
from cra_middleware.atlas.argument_tests import parse_argument_test
from cra_middleware.atlas.manifest import Conditions, PolicyType
from cra_middleware.atlas.schemas import named_arguments
from cra_middleware.atlas.words import schema_in_words, window_in_words
from cra_middleware.carp.arguments import shown_value, tell_argument
from cra_middleware.carp.call import Allow, Ask, Decision, Deny, ToolCall
from cra_middleware.carp.policy import RANK, CompiledAction, Condition, Facts, Rule, Situation, evaluate
from cra_middleware.carp.quota import Counters, Exhausted, Limit, Reservation
from cra_middleware.carp.resolver import Resolver

Phase = Literal["unknown action", "deny", "schema", "require_approval", "rate_limit", "budget", "allow", "default"]


class Answered(NamedTuple):
    """One condition, what it saw, and what it said."""

    name: str
    wants: str
    saw: str
    answer: bool | None
    """None: it cannot be evaluated."""


class Seen(NamedTuple):
    """What one policy said about a call."""

    policy_id: str
    type: PolicyType
    holds: bool
    """What cannot be evaluated holds, but for an allow."""
    is_enforced: bool
    conditions: tuple[Answered, ...]
    reason: str


class Explanation(NamedTuple):
    """A decision, and all that led to it."""

    call: ToolCall
    decision: Decision
    phase: Phase
    """Where it was decided."""
    schema_problem: str | None
    policies: tuple[Seen, ...]
    """All that are about the action, in the order in which they are looked at."""
    would_change: str
    """What would make the call run, in one sentence; empty when it would."""


class LookedAt:
    """Counters that are looked at and never changed."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def peek(self, limits: Sequence[Limit], now_us: int) -> Exhausted | None:
        return self._counters.peek(limits, now_us)

    def reserve(self, limits: Sequence[Limit], now_us: int) -> Reservation | Exhausted:
        return self._counters.peek(limits, now_us) or Reservation((), now_us, "")

    def commit(self, reservation: Reservation) -> None:
        return None

    def release(self, reservation: Reservation) -> None:
        return None

    def forget(self, session_id: str) -> None:
        return None


def explain(resolver: Resolver, call: ToolCall, facts: Facts, now_us: int, counters: Counters) -> Explanation:
    """Decide one call without taking anything, and say why."""
    decision = resolver.decide(call, facts, now_us, LookedAt(counters))
    action = resolver.actions.get(call.action_id)
    situation = Situation(facts, call.arguments, now_us)
    problem = call.problem
    if problem is None and action is not None and action.violation is not None:
        problem = action.violation(call.arguments)
    rules = action.rules if action is not None and call.problem is None else ()
    seen = tuple(_seen(rule, action, situation, resolver.project) for rule in rules if action is not None)
    phase = _phase(decision)
    return Explanation(call, decision, phase, problem, seen, _would_change(decision, phase, seen))


def _seen(rule: Rule, action: CompiledAction, situation: Situation, project: str | None) -> Seen:
    conditions = rule.source.conditions if rule.source is not None else Conditions()
    answered = tuple(
        one for condition in rule.conditions for one in _answered(condition, conditions, action, situation, project)
    )
    return Seen(rule.policy_id, rule.type, rule.holds(situation), rule.is_enforced, answered, rule.reason)


def _answered(
    condition: Condition, written: Conditions, action: CompiledAction, situation: Situation, project: str | None
) -> Iterator[Answered]:
    facts, arguments, now_us = situation
    answer = evaluate(condition, situation)
    match condition.name:
        case "risk_tiers":
            tier = max(facts.risk_tier, action.action.risk_tier, key=RANK.__getitem__)
            yield Answered("risk_tiers", _any_of(written.risk_tiers), tier, answer)
        case "agents":
            yield Answered("agents", _any_of(written.agents), shown_value(facts.agent_id), answer)
        case "capabilities":
            yield Answered("capabilities", _any_of(written.capabilities), action.action.action_id, answer)
        case "context_matches":
            for key, value in (written.context_matches or {}).items():
                given = facts.context.get(key)
                same = None if not isinstance(given, str) else given == value
                saw = "nothing" if given is None else shown_value(given)
                yield Answered(f"context {key}", value, saw, same)
        case "time_window" if written.time_window is not None:
            yield Answered(
                "time_window", window_in_words(written.time_window), timestamp_text(now_us)[:16] + "Z", answer
            )
        case "arguments":
            declared = named_arguments(action.action.parameters_schema or {})
            for name, test in (written.arguments or {}).items():
                told = tell_argument(name, parse_argument_test(test), arguments or {}, declared, project)
                yield Answered(f"argument {name}", told.wants, told.saw, told.answer)
        case _:
            names = sorted(named_arguments(written.parameters or {}))
            saw = ", ".join(f"{name} = {_given(arguments or {}, name)}" for name in names)
            yield Answered("parameters", " and ".join(schema_in_words(written.parameters or {})), saw, answer)


def _given(arguments: Mapping[str, object], name: str) -> str:
    return shown_value(arguments[name]) if name in arguments else "(missing)"


def _any_of(values: tuple[str, ...] | None) -> str:
    return " or ".join(values or ())


def _phase(decision: Decision) -> Phase:
    match decision:
        case Ask():
            return "require_approval"
        case Allow():
            return "allow" if decision.policy_id else "default"
        case Deny(code="unknown_action"):
            return "unknown action"
        case Deny(code="invalid_parameters"):
            return "schema"
        case Deny(code="rate_limit_exceeded"):
            return "rate_limit"
        case Deny(code="budget_exceeded"):
            return "budget"
        case Deny(code="no_allow_policy"):
            return "default"
        case _:
            return "deny"


def _would_change(decision: Decision, phase: Phase, seen: tuple[Seen, ...]) -> str:
    if isinstance(decision, Allow):
        return ""
    if isinstance(decision, Ask):
        return "a person has to say yes to exactly these arguments"
    if phase == "deny":
        return _unless(next((item for item in seen if item.policy_id == decision.policy_id), None))
    if phase == "schema":
        return "the arguments have to fit the action's schema"
    if phase in ("rate_limit", "budget"):
        wait = decision.retry_after_seconds
        return "a cheaper call, or another session" if wait is None else f"wait {wait:g} s"
    if phase == "unknown action":
        return "declare the action in an Atlas, or map the tool to one that is declared"
    allows = [item for item in seen if item.type == "allow"]
    if not allows:
        return "an allow policy for this action"
    nearest = min(allows, key=lambda item: sum(one.answer is not True for one in item.conditions))
    missed = [f"{one.name} {one.wants} (saw {one.saw})" for one in nearest.conditions if one.answer is not True]
    return f"policy {nearest.policy_id} would allow it with {' and '.join(missed)}" if missed else "an allow policy"


def _unless(item: Seen | None) -> str:
    if item is None or not item.conditions:
        return "nothing the agent can do: the policy has no conditions"
    doubtful = [one for one in item.conditions if one.answer is None]
    named = doubtful or list(item.conditions)
    words = " or ".join(f"{one.name} {one.wants} (saw {one.saw})" for one in named)
    said = "could not be evaluated" if doubtful else "did not hold"
    return f"policy {item.policy_id} would not count if {words} {'could be proven false' if doubtful else said}"
