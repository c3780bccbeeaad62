"""Policies, conditions and JSON Schemas in words, as far as short words exist; the rest as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from cra_middleware.atlas.argument_tests import (
    ArgumentTest,
    Commands,
    Comparison,
    Matches,
    OneOf,
    PathGlob,
    Within,
    parse_argument_test,
)
from cra_middleware.atlas.manifest import (
    Action,
    ApprovalParameters,
    BudgetParameters,
    Conditions,
    Policy,
    RateLimit,
    RateLimitParameters,
    TimeWindow,
)
from cra_middleware.atlas.schedule import DAYS

_SHARED_BY = {
    None: "per agent and action",
    "action": "per action",
    "agent": "per agent",
    "session": "per session",
    "global": "for everybody together",
}
_SAY_NOTHING = {"title", "description", "default", "examples", "type", "$comment"}
_SIZES = {"minLength", "maxLength"}
_SHORT = 60
_MAX_DEPTH = 3
"""Nobody reads alternatives of alternatives of alternatives."""
_RELATIONS = {
    "const": "=",
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
    "format": "is a",
}


def conditions_in_words(conditions: Conditions) -> str:
    """What must hold, for example ``when the risk tier is high or critical and amount > 100``."""
    parts = list(_conditions(conditions))
    return f"when {' and '.join(parts)}" if parts else "always"


def _conditions(conditions: Conditions) -> Iterator[str]:
    if conditions.risk_tiers is not None:
        yield f"the risk tier is {' or '.join(conditions.risk_tiers)}"
    if conditions.agents is not None:
        yield f"the agent is {' or '.join(conditions.agents)}"
    if conditions.capabilities is not None:
        yield f"it belongs to the capability {' or '.join(conditions.capabilities)}"
    for key, value in (conditions.context_matches or {}).items():
        yield f"context {key} = {_json(value)}"
    if conditions.time_window is not None:
        yield f"it is {window_in_words(conditions.time_window)}"
    for name, test in (conditions.arguments or {}).items():
        yield f"{name} {test_in_words(parse_argument_test(test))}"
    if conditions.parameters is not None:
        yield from schema_in_words(conditions.parameters)


def test_in_words(test: ArgumentTest) -> str:
    """One test of an argument, for example ``> 100`` or ``within $PROJECT``."""
    match test:
        case OneOf():
            return f"= {' or '.join(_json(value) for value in test.values)}"
        case Comparison():
            return f"{test.sign} {test.threshold}"
        case Matches():
            return f"matches /{_short(test.pattern)}/"
        case Within():
            return f"within {test.folder}"
        case PathGlob():
            return f"like {' or '.join(test.patterns)}"
        case Commands():
            return f"runs {' or '.join(test.patterns)}"


def window_in_words(window: TimeWindow) -> str:
    """For example ``mon–fri 09:00–18:00 Europe/Berlin``."""
    parts = []
    if window.days is not None:
        parts.append(_days(tuple(day for day in DAYS if day in window.days)))
    if window.start is not None or window.end is not None:
        parts.append(f"{window.start or '00:00'}–{window.end or '24:00'}")
    return " ".join([*parts, window.timezone]) if parts else f"at any time, {window.timezone}"


def _days(days: tuple[str, ...]) -> str:
    places = [DAYS.index(day) for day in DAYS if day in days]
    if len(days) > 2 and places == list(range(places[0], places[-1] + 1)):
        return f"{days[0]}–{days[-1]}"
    return ", ".join(days)


def schema_in_words(schema: Mapping[str, JsonValue]) -> Iterator[str]:
    """What a JSON Schema demands of arguments, piece by piece."""
    return _schema(schema)


def _schema(schema: Mapping[str, JsonValue], depth: int = 0) -> Iterator[str]:
    """What a schema demands of an object: a piece for each property, and one for everything else."""
    properties, required = schema.get("properties"), schema.get("required")
    known = properties if isinstance(properties, dict) else {}
    for name, rule in known.items():
        yield f"{name} {_rule(rule, depth) or 'is given'}"
    for item in required if isinstance(required, list) else ():
        if item not in known:
            yield f"{item} is given"
    rest = {key: value for key, value in schema.items() if key not in ("properties", "required", "type")}
    words = _rule(rest, depth)
    if words:
        yield words


def _rule(rule: JsonValue, depth: int = 0) -> str:
    """What a schema demands of one value; empty when nothing. Its type is named only when nothing else is."""
    if not isinstance(rule, dict):
        return "" if rule is True else f"fits {_json(rule)}"
    parts, rest = [], {}
    for key, value in rule.items():
        if key in _RELATIONS:
            parts.append(f"{_RELATIONS[key]} {_json(value)}")
        elif key == "pattern":
            parts.append(f"matches /{_short(str(value))}/")
        elif key == "enum" and isinstance(value, list):
            parts.append(f"is {' or '.join(_json(item) for item in value)}")
        elif key == "not":
            parts.append(f"not ({_branch(value, depth)})")
        elif key in ("anyOf", "oneOf", "allOf") and isinstance(value, list):
            parts.append(
                (" and " if key == "allOf" else " or ").join(f"({_branch(branch, depth)})" for branch in value)
            )
        elif key not in _SAY_NOTHING and key not in _SIZES:
            rest[key] = value
    sizes = _size(rule)
    if sizes:
        parts.append(sizes)
    if rest:
        parts.append(f"fits {_short(_json(rest))}")
    return " and ".join(parts) or (f"is {_type(rule['type'])}" if "type" in rule else "")


def _branch(schema: JsonValue, depth: int) -> str:
    """One alternative; by its author's comment, when it has one."""
    if not isinstance(schema, dict) or depth == _MAX_DEPTH:
        return _short(_json(schema))
    comment = schema.get("$comment")
    if isinstance(comment, str):
        return comment
    return " and ".join(_schema(schema, depth + 1)) or _rule(schema) or "anything"


def _size(rule: Mapping[str, JsonValue]) -> str:
    least, most = rule.get("minLength"), rule.get("maxLength")
    if least is None and most is None:
        return ""
    if least is None or most is None:
        return f"has at most {most} characters" if least is None else f"has at least {least} characters"
    return f"has {least} to {most} characters"


def arguments_in_words(action: Action) -> str:
    """An action's arguments, for example ``amount: number (> 0), note?: string``."""
    schema = action.parameters_schema
    if schema is None:
        return "any arguments; none is checked"
    properties, required = schema.get("properties"), schema.get("required")
    names = required if isinstance(required, list) else []
    rules: dict[str, JsonValue] = {str(name): True for name in names}
    rules.update(properties if isinstance(properties, dict) else {})
    parts = []
    for name, rule in rules.items():
        kind = _type(rule["type"]) if isinstance(rule, dict) and "type" in rule else ""
        limits = _rule({key: value for key, value in rule.items() if key != "type"} if kind else rule)  # type: ignore[union-attr]
        what = f"{kind} ({limits})" if kind and limits else kind or limits.removeprefix("is ") or "anything"
        parts.append(f"{name}{'' if name in names else '?'}: {what}")
    if schema.get("additionalProperties", True) is not False:
        parts.append("and any other")
    return ", ".join(parts) or "no arguments"


def limit_in_words(limit: RateLimit | RateLimitParameters) -> str:
    """``at most 10 calls in 60 s, per agent and action``."""
    calls = f"at most {limit.max_calls} call{'' if limit.max_calls == 1 else 's'} in {limit.window_seconds} s"
    scope = limit.scope if isinstance(limit, RateLimitParameters) else None
    sliding = ", sliding" if isinstance(limit, RateLimitParameters) and limit.algorithm == "sliding" else ""
    return f"{calls}{sliding}, {_SHARED_BY[scope]}"


def budget_in_words(budget: BudgetParameters) -> str:
    """``at most 500 of amount in 86400 s, for everybody together``."""
    if budget.cost is not None:
        cost = f", {budget.cost:g} a call"
    else:
        cost = f" of {budget.cost_parameter or f'{budget.cost_function}()'}"
    window = f" in {budget.window_seconds} s" if budget.window_seconds is not None else ""
    shared = _SHARED_BY[budget.scope] if window else "in a session"
    sliding = ", sliding" if budget.algorithm == "sliding" and window else ""
    return f"at most {budget.max_cost:g}{cost}{window}{sliding}, {shared}"


def policy_in_words(policy: Policy) -> str:
    """What a policy is about, and when: ``refund.*, when amount > 100``."""
    parameters = policy.rules_of()
    parts = [", ".join(policy.actions), conditions_in_words(policy.conditions)]
    if isinstance(parameters, RateLimitParameters):
        parts.append(limit_in_words(parameters))
    elif isinstance(parameters, BudgetParameters):
        parts.append(budget_in_words(parameters))
    elif isinstance(parameters, ApprovalParameters) and parameters.approvers:
        parts.append(f"answered by {' or '.join(parameters.approvers)}")
    elif policy.type == "scope" and policy.parameters:
        parts.append(_json(policy.parameters))
    if parameters.enforcement == "shadow":
        parts.append("only tried out (shadow)")
    if policy.priority:
        parts.append(f"priority {policy.priority}")
    return "; ".join(parts)


def _type(value: JsonValue) -> str:
    return " or ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def _json(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 3]}..."
