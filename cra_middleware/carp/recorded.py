"""Deciding a call from what a trace holds of it, which may be nothing but the hash of its arguments.

What a decision depends on and the trace does not hold is never guessed: the answer is then None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from typing import NamedTuple

from cra_middleware._canonical import digest
from cra_middleware.atlas.manifest import BudgetParameters
from cra_middleware.atlas.schemas import named_arguments
from cra_middleware.carp.call import Decision, Deny, ToolCall
from cra_middleware.carp.policy import ON_ARGUMENTS, CompiledAction, Facts, Rule, Situation, evaluate
from cra_middleware.carp.quota import Counters
from cra_middleware.carp.resolver import Resolver
from cra_middleware.carp.tags import untagged
from cra_middleware.trace.redact import is_hidden

_NO_ARGUMENTS = digest(b"{}")
_TEXTS = ("cra:str:", "cra:text:")
"""Tags of what was a text itself."""


class Recorded(NamedTuple):
    """What a trace holds of a call's arguments."""

    arguments: Mapping[str, object]
    unknown: Set[str] | None
    """The names whose values are not there; None: not even the names."""


def recorded_arguments(parameters: object, parameters_hash: str) -> Recorded:
    """Read ``action.requested``'s ``parameters``, or know from the hash that there were none."""
    if not isinstance(parameters, dict):
        return Recorded({}, frozenset() if parameters_hash == _NO_ARGUMENTS else None)
    values: dict[str, object] = {}
    unknown: set[str] = set()
    for name, value in parameters.items():
        try:
            if is_hidden(value):
                raise _LostError
            values[name] = untagged(value, _lost_value)
        except ValueError:
            unknown.add(name)
    return Recorded(values, unknown)


def recorded_facts(context: object) -> dict[str, object]:
    """A session's facts, as they were before they were written down; what is not there any more is left out.

    Conditions compare texts alone, and take any other fact for one that nobody can judge: a date, of which the tag
    is a text, stays none.
    """
    facts: dict[str, object] = {}
    for name, value in context.items() if isinstance(context, dict) else ():
        with suppress(ValueError):
            fact = untagged(value, _lost_value)
            was_text = fact == value or not isinstance(fact, str) or str(value).startswith(_TEXTS)
            if was_text and not is_hidden(value):
                facts[name] = fact
    return facts


class _LostError(ValueError):
    """A value of which the trace holds only a tag."""


def _lost_value(tag: str) -> object:
    raise _LostError


def decide_recorded(
    resolver: Resolver,
    action_id: str,
    recorded: Recorded,
    facts: Facts,
    knows_context: bool,
    now_us: int,
    counters: Counters,
    approved: bool,
) -> tuple[Decision | None, str]:
    """The decision, or None and what it depends on that the trace does not hold."""
    action = resolver.actions.get(action_id)
    call = ToolCall.freeze(action_id, "replay", recorded.arguments)
    if action is not None:
        situation = Situation(facts, recorded.arguments, now_us)
        lost = next(_lost(action, recorded, knows_context, situation), None)
        if lost is not None:
            denial = _certain_denial(action, recorded, knows_context, situation)
            return denial, "" if denial is not None else lost
    return resolver.decide(call, facts, now_us, counters, approved), ""


def _certain_denial(
    action: CompiledAction, recorded: Recorded, knows_context: bool, situation: Situation
) -> Deny | None:
    """A denial that holds whatever is not known; which policy is named first may then be another."""
    for rule in action.deny:
        known = not any(_lost_by(rule, recorded, knows_context))
        if rule.is_enforced and known and rule.holds(situation):
            return Deny("policy_denied", rule.policy_id, rule.reason)
    return None


def _lost(action: CompiledAction, recorded: Recorded, knows_context: bool, situation: Situation) -> Iterator[str]:
    """What a decision about the action depends on and is not known."""
    for rule in action.rules:
        if rule.type == "scope":
            continue
        lost = list(_lost_by(rule, recorded, knows_context))
        # a rule that surely does not count depends on nothing
        surely_not = any(evaluate(one, situation) is False for one in rule.conditions if one.name not in _UNSURE)
        if lost and not surely_not:
            yield f"policy {rule.policy_id} looks at {lost[0]}"
    if action.violation is not None:
        schema = named_arguments(action.action.parameters_schema or {})
        if recorded.unknown is None or recorded.unknown:
            names = sorted(recorded.unknown & schema) if recorded.unknown else []
            yield f"the action's schema looks at {', '.join(names) or 'arguments'}"


_UNSURE = (*ON_ARGUMENTS, "context_matches")


def _lost_by(rule: Rule, recorded: Recorded, knows_context: bool) -> Iterator[str]:
    conditions = rule.source.conditions if rule.source is not None else None
    if conditions is not None and conditions.context_matches is not None and not knows_context:
        yield "facts of the session"
    names: set[str] = set()
    if conditions is not None and conditions.arguments is not None:
        names |= set(conditions.arguments)
    if conditions is not None and conditions.parameters is not None:
        names |= named_arguments(conditions.parameters)
    parameters = rule.source.rules_of() if rule.source is not None and rule.type == "budget" else None
    if isinstance(parameters, BudgetParameters):
        if parameters.cost_parameter is not None:
            names.add(parameters.cost_parameter)
        if parameters.cost_function is not None and recorded.unknown != frozenset():
            yield "arguments"
    lost = sorted(names) if recorded.unknown is None else sorted(names & recorded.unknown)
    if lost:
        yield f"the argument {lost[0]}"
