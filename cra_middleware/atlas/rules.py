"""``rules:``, the way people write policies. Each becomes one or more plain policies.

allow | ask | deny | limit | budget     actions, as one glob or a list
when                                    tests of arguments (``argument_tests``)
hours, outside                          a schedule, or all the time that is not (``schedule``)
agents, risk_tiers, context             who, how risky, under which facts
why, id, shadow                         the reason shown, the policy's id, only recorded
approvers, expires                      of an ask: who may say yes, and how long the question stands (30m)
to                                      of a limit: 30/hour per agent; of a budget: 500/day of amount per global
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pydantic import JsonValue

from cra_middleware.atlas.argument_tests import parse_argument_test
from cra_middleware.atlas.manifest import PolicyType
from cra_middleware.atlas.schedule import Window, parse_schedule

VERBS: dict[str, PolicyType] = {
    "allow": "allow",
    "ask": "require_approval",
    "deny": "deny",
    "limit": "rate_limit",
    "budget": "budget",
}
KEYS = (
    *("when", "hours", "outside", "agents", "risk_tiers", "context", "why", "id", "shadow"),
    *("approvers", "expires", "to"),
)
_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
_LETTERS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
# a number has at most fifteen digits: more is a mistake, and thousands are more than int() takes
_WINDOW = r"/\s*(?P<window>second|minute|hour|day|week|[1-9][0-9]{0,14}[smhdw])"
_ENDING = r"(?:\s+per\s+(?P<scope>action|agent|session|global))?(?P<sliding>\s+sliding)?"
_LIMIT = re.compile(rf"(?P<most>[1-9][0-9]{{0,14}})\s*{_WINDOW}{_ENDING}")
_COST = r"(?P<cost>[0-9]{1,15}(?:\.[0-9]{1,15})?)|(?P<function>\w+)\(\)|(?P<parameter>\w+)"
_BUDGET = re.compile(rf"(?P<most>[0-9]{{1,15}}(?:\.[0-9]{{1,15}})?)\s*(?:{_WINDOW})?\s+of\s+(?:{_COST}){_ENDING}")
_DURATION = re.compile(r"([1-9][0-9]{0,14})\s*([smhdw])")


class RuleProblem(NamedTuple):
    """What is wrong with a rule, and where in it."""

    at: tuple[str, ...]
    message: str
    hint: str = ""


class _Error(ValueError):
    def __init__(self, key: str, message: str, hint: str = "", inner: str | None = None) -> None:
        super().__init__(message)
        self.problem = RuleProblem((key,) if inner is None else (key, inner), message, hint)


def compile_rule(rule: JsonValue, taken: set[str]) -> tuple[list[dict[str, JsonValue]], list[RuleProblem]]:
    """The policies that a rule stands for, or what is wrong with it; ids in ``taken`` are avoided and added."""
    if not isinstance(rule, dict):
        return [], [RuleProblem((), "a rule is a mapping", "begin with - allow: [...], ask, deny, limit or budget")]
    verbs = [key for key in rule if key in VERBS]
    unknown = [key for key in rule if key not in VERBS and key not in KEYS]
    problems = [RuleProblem((key,), f"unknown key {key!r}", _nearest(key)) for key in unknown]
    if len(verbs) != 1 and not unknown:  # a misspelt verb is told as that
        said = "has no verb" if not verbs else f"has {len(verbs)} verbs"
        problems.append(RuleProblem((), f"a rule {said}", f"begin with one of {', '.join(VERBS)}"))
    if problems:
        return [], problems
    try:
        return _policies(rule, verbs[0], taken), []
    except _Error as error:
        return [], [error.problem]


def _nearest(key: str) -> str:
    near = difflib.get_close_matches(key, [*VERBS, *KEYS], n=1)
    return f"did you mean {near[0]}?" if near else f"a rule has {', '.join(VERBS)} and {', '.join(KEYS)}"


def _policies(rule: Mapping[str, JsonValue], verb: str, taken: set[str]) -> list[dict[str, JsonValue]]:
    actions = _texts(rule, verb)
    conditions = dict(_conditions(rule))
    parameters = dict(_parameters(rule, verb))
    windows = list(_windows(rule, verb))
    names = _ids(rule, verb, actions, len(windows), taken)
    policy: dict[str, JsonValue] = {"type": VERBS[verb], "actions": list(actions)}
    timed: list[Window | None] = [*windows] or [None]
    return [
        _with(
            {"policy_id": name, **policy},
            conditions if window is None else {**conditions, "time_window": window},
            parameters,
        )
        for name, window in zip(names, timed, strict=True)
    ]


def _with(
    policy: dict[str, JsonValue], conditions: dict[str, JsonValue], parameters: dict[str, JsonValue]
) -> dict[str, JsonValue]:
    return {
        **policy,
        **({"conditions": conditions} if conditions else {}),
        **({"parameters": parameters} if parameters else {}),
    }


def _ids(
    rule: Mapping[str, JsonValue], verb: str, actions: list[str], windows: int, taken: set[str]
) -> tuple[str, ...]:
    """The id of each policy that a rule becomes; ids of our own avoid those that are ``taken``."""

    def numbered(name: str) -> tuple[str, ...]:
        return (name,) if windows <= 1 else tuple(f"{name}-{place}" for place in range(1, windows + 1))

    given = rule.get("id")
    if given is not None:
        if not isinstance(given, str) or not given:
            raise _Error("id", "an id is a text")
        return numbered(given)  # one that is used twice is found later, with every other
    first = actions[0].replace(".", "-").replace("*", "all").replace("?", "any")
    base, number = f"{verb}-{first}", 1
    names = numbered(base)
    while not taken.isdisjoint((base, *names)):
        number += 1
        base = f"{verb}-{first}-{number}"
        names = numbered(base)
    taken.update((base, *names))
    return names


def _texts(rule: Mapping[str, JsonValue], key: str) -> list[str]:
    value = rule[key]
    values = value if isinstance(value, list) else [value]
    texts = [item for item in values if isinstance(item, str) and item]
    if not values or len(texts) != len(values):
        raise _Error(key, f"{key} takes a text, or a list of texts")
    return texts


def _conditions(rule: Mapping[str, JsonValue]) -> Iterator[tuple[str, JsonValue]]:
    for key in ("risk_tiers", "agents"):
        if key in rule:
            yield key, list(_texts(rule, key))
    if "context" in rule:
        facts = rule["context"]
        if not isinstance(facts, dict) or not facts or not all(isinstance(value, str) for value in facts.values()):
            raise _Error("context", "context names facts and the texts they equal", "for example {env: prod}")
        yield "context_matches", facts
    if "when" in rule:
        tests = rule["when"]
        if not isinstance(tests, dict) or not tests:
            raise _Error("when", "when names arguments and what they are", 'for example {amount: "> 100"}')
        for name, test in tests.items():
            try:
                parse_argument_test(test)
            except ValueError as error:
                raise _Error("when", str(error), "see docs/atlas.md, Rules", name) from None
        yield "arguments", tests


def _parameters(rule: Mapping[str, JsonValue], verb: str) -> Iterator[tuple[str, JsonValue]]:
    if "why" in rule:
        if not isinstance(rule["why"], str) or not rule["why"]:
            raise _Error("why", "why is the sentence that an agent is told")
        yield "reason", rule["why"]
    if "shadow" in rule:
        if not isinstance(rule["shadow"], bool):
            raise _Error("shadow", "shadow is true or false")
        if rule["shadow"]:
            yield "enforcement", "shadow"
    for key in ("approvers", "expires"):
        if key in rule and verb != "ask":
            raise _Error(key, f"{key} belongs to ask", f"a rule that begins with {verb} asks nobody")
    if "approvers" in rule:
        yield "approvers", list(_texts(rule, "approvers"))
    if "expires" in rule:
        found = _DURATION.fullmatch(str(rule["expires"]))
        if found is None:
            raise _Error("expires", "expires is a number and a unit", "for example 30m, 45s, 2h or 1d")
        yield "expires_seconds", int(found[1]) * _LETTERS[found[2]]
    if ("to" in rule) != (verb in ("limit", "budget")):
        said = f"a {verb} needs to" if verb in ("limit", "budget") else "to belongs to limit and budget"
        raise _Error("to", said, "for example to: 30/hour per agent")
    if verb == "limit":
        yield from _limit(rule["to"])
    elif verb == "budget":
        yield from _budget(rule["to"])


def _limit(text: JsonValue) -> Iterator[tuple[str, JsonValue]]:
    found = _LIMIT.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        raise _Error(
            "to", "a limit is a number of calls in a time", "for example 30/hour, 5/15m per agent, 3/day sliding"
        )
    yield "max_calls", int(found["most"])
    yield from _counted(found)


def _budget(text: JsonValue) -> Iterator[tuple[str, JsonValue]]:
    found = _BUDGET.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        hint = "for example 500/day of amount per global, 100 of 2.50, 1000/hour of tokens()"
        raise _Error("to", "a budget is how much, in which time, of what a call costs", hint)
    if found["sliding"] and not found["window"]:
        raise _Error("to", "a budget without a time cannot slide", "for example 500/day of amount sliding")
    yield "max_cost", _number(found["most"])
    yield from _counted(found)
    if found["cost"]:
        yield "cost", _number(found["cost"])
    elif found["function"]:
        yield "cost_function", found["function"]
    else:
        yield "cost_parameter", found["parameter"]


def _counted(found: re.Match[str]) -> Iterator[tuple[str, JsonValue]]:
    window = found["window"]
    if window:
        yield "window_seconds", _UNITS.get(window) or int(window[:-1]) * _LETTERS[window[-1]]
    if found["scope"]:
        yield "scope", found["scope"]
    if found["sliding"]:
        yield "algorithm", "sliding"


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _windows(rule: Mapping[str, JsonValue], verb: str) -> Iterator[Window]:
    if "hours" in rule and "outside" in rule:
        raise _Error("outside", "a rule has hours or outside, not both", "write two rules")
    for key in ("hours", "outside"):
        if key not in rule:
            continue
        text = rule[key]
        if not isinstance(text, str):
            raise _Error(key, f"{key} is a text", "for example mon-fri 09:00-18:00 Europe/Berlin")
        try:
            schedule = parse_schedule(text)
        except ValueError as error:
            raise _Error(key, str(error)) from None
        windows = [schedule.inside()] if key == "hours" else schedule.outside()
        if not windows:
            raise _Error(key, "there is no time outside of it", "leave it out, or name fewer days or hours")
        if len(windows) > 1 and verb in ("limit", "budget"):
            said = f"what lies outside is {len(windows)} windows, which would be counted apart"
            raise _Error(key, said, "write hours, once for each window")
        yield from windows
