"""``cra check``: what would be decided about one call, and why."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cra_middleware._clock import SystemClock, parse_us
from cra_middleware.atlas.manifest import RISK_TIERS, PolicyType, RiskTier
from cra_middleware.carp.call import Allow, Ask, Decision, Deny, ToolCall
from cra_middleware.carp.counters import MemoryCounters
from cra_middleware.carp.explain import Explanation, Seen, explain
from cra_middleware.carp.policy import RANK, Facts
from cra_middleware.carp.resolver import Resolver
from cra_middleware.cli.atlas import load
from cra_middleware.cli.output import Format, FormatOption, complain, emit, say, stop
from cra_middleware.errors import AtlasError

_INDENT = 20
_STYLES: dict[PolicyType, str] = {"deny": "bold red", "require_approval": "bold yellow", "allow": "bold green"}
_EXIT_CODES = {"allow": 0, "deny": 3, "require_approval": 4}


def check(
    path: Annotated[str, typer.Argument(metavar="PATH", help="An Atlas folder or file. With $CRA_ATLAS: left out.")],
    action: Annotated[str | None, typer.Argument(metavar="ACTION", help="An action id, as in the Atlas.")] = None,
    args: Annotated[str, typer.Option(metavar="JSON", help="The arguments: an object, @FILE, or - for stdin.")] = "{}",
    agent: Annotated[str, typer.Option(help="Who calls.")] = "agent",
    risk_tier: Annotated[str, typer.Option(help=f"Of the task: {', '.join(RISK_TIERS)}.")] = "low",
    context: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A fact; may be repeated.")] = None,
    beside: Annotated[
        list[str] | None, typer.Option("--with", metavar="PATH", help="An Atlas loaded beside it; may be repeated.")
    ] = None,
    at: Annotated[str, typer.Option(metavar="TIME", help="As of then: 2026-01-31T22:00+01:00. Left out: now.")] = "",
    project: Annotated[str, typer.Option(metavar="DIR", help="The folder that $PROJECT stands for.")] = "",
    format: FormatOption = Format.text,
) -> None:
    """Decide one call as the runtime would, and say why. Nothing runs, counts or is recorded.

    Every policy about the action is shown, in the order in which they are looked at, with what each condition saw
    and what would have to change.

    \b
    Example:  cra check atlases/support refund.create --args '{"amount": 250}' --risk-tier high
              echo '{"amount": 250}' | cra check atlases/support refund.create --args -

    Exit code: 0 allowed, 3 denied, 4 a person must approve, 1 the Atlas has errors, 2 wrong usage.
    """
    if action is None:
        atlas_path, action = os.environ.get("CRA_ATLAS"), path
        if not atlas_path:
            raise stop("name an Atlas and an action: cra check PATH ACTION (or set CRA_ATLAS and name the action)", 2)
    else:
        atlas_path = path
    facts = Facts(_agent(agent), _tier(risk_tier), _facts(context or ()), "")
    call = ToolCall.freeze(action, "cra check", _arguments(args))
    resolver = _resolver([atlas_path, *(beside or ())], project)
    told = explain(resolver, call, facts, _time(at), MemoryCounters())
    if format is Format.json:
        emit(_as_json(told))
    else:
        _print(told, facts, resolver)
    raise typer.Exit(_EXIT_CODES[str(_verdict(told.decision)["verdict"])])


def _as_json(told: Explanation) -> dict[str, object]:
    return {
        **_verdict(told.decision),
        "phase": told.phase,
        "schema": told.schema_problem,
        "policies": [
            {**item._asdict(), "conditions": [one._asdict() for one in item.conditions]} for item in told.policies
        ],
        "would_change": told.would_change or None,
    }


def _verdict(decision: Decision) -> dict[str, object]:
    code, reason, wait = None, None, None
    match decision:
        case Allow():
            word = "allow"
        case Ask():
            word, code, reason = "require_approval", "approval_required", decision.reason
        case Deny():
            word, code, reason, wait = "deny", decision.code, decision.reason, decision.retry_after_seconds
    return {
        "verdict": word,
        "code": code,
        "policy_id": decision.policy_id,
        "reason": reason,
        "retry_after_seconds": wait,
    }


def _resolver(paths: Sequence[str], project: str) -> Resolver:
    atlases = [load(path) for path in paths]
    try:
        return Resolver(atlases, project=project or None)
    except AtlasError as error:
        for item in error.findings:
            complain(item)
        raise stop("an Atlas that this one depends on is missing; name it with --with PATH", 1) from None
    except ValueError as error:
        raise stop(error, 1) from None


def _time(text: str) -> int:
    if not text:
        return SystemClock().wall_us()
    try:
        return parse_us(text)
    except ValueError as error:
        raise stop(f"--at takes a time with its offset, such as 2026-01-31T22:00:00+01:00: {error}", 2) from None


def _agent(name: str) -> str:
    if not 0 < len(name) <= 255:
        raise stop("--agent must have 1 to 255 characters", 2)
    return name


def _tier(text: str) -> RiskTier:
    for tier in RISK_TIERS:
        if text == tier:
            return tier
    raise stop(f"--risk-tier must be one of {', '.join(RISK_TIERS)}, not {text!r}", 2)


def _facts(pairs: Sequence[str]) -> dict[str, object]:
    facts: dict[str, object] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not key or not sign:
            raise stop(f"--context takes KEY=VALUE, not {pair!r}", 2)
        if key in facts:
            raise stop(f"--context names {key!r} twice; keep one", 2)
        facts[key] = value
    return facts


def _arguments(source: str) -> dict[str, object]:
    text = _text(source)
    try:
        value: object = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise stop(f"--args is not JSON ({problem}); write an object, for example --args '{{\"id\": 7}}'", 2) from None
    if not isinstance(value, dict):
        raise stop("--args must be a JSON object of the tool's arguments by name, for example --args '{\"id\": 7}'", 2)
    return value


def _text(source: str) -> str:
    if source != "-" and not source.startswith("@"):
        return source
    name = "stdin" if source == "-" else source[1:]
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(name).read_bytes()
        return data.decode()
    except OSError as error:
        raise stop(f"--args: {name} cannot be read: {error.strerror or error}", 2) from None
    except ValueError as error:  # not UTF-8, or a NUL in a file's name
        raise stop(f"--args: {name} cannot be read: {error}", 2) from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _no_constant(name: str) -> object:
    raise ValueError(f"JSON has no {name}")


def _print(told: Explanation, facts: Facts, resolver: Resolver) -> None:
    call = told.call
    known = resolver.actions.get(call.action_id)
    tier = facts.risk_tier if known is None else max(facts.risk_tier, known.action.risk_tier, key=RANK.__getitem__)
    say((call.action_id, "bold cyan"), f"  by {facts.agent_id}, {tier} risk")
    say()
    for item in told.policies:
        if item.type == "deny":
            _print_seen(item)
    if call.problem is None and known is not None:
        fits = "the action has no schema" if known.violation is None else "the arguments fit"
        problem = told.schema_problem
        say(
            (problem or fits, "bold red" if problem else "dim"),
            lead=("  schema", "" if problem else "dim"),
            indent=_INDENT,
        )
    for item in told.policies:
        if item.type != "deny":
            _print_seen(item)
    if known is not None:
        say()
    _print_verdict(told.decision, told.phase)
    if told.would_change:
        say(f"To change that: {told.would_change}.", indent=2)
    if isinstance(told.decision, Deny) and told.decision.code == "unknown_action":
        similar = difflib.get_close_matches(call.action_id, resolver.actions, n=3)
        if similar:
            say(f"Did you mean {' or '.join(similar)}?", indent=2)


def _print_seen(item: Seen) -> None:
    name = (item.policy_id, _STYLES.get(item.type, "bold") if item.holds else "dim")
    applies = ("applies" if item.holds else "does not apply") + ("" if item.is_enforced else " (not enforced)")
    why = "" if item.conditions else ": no conditions"
    rest = (f" {applies}{why}", "" if item.holds else "dim")
    say(name, rest, lead=(f"  {item.type}", "" if item.holds else "dim"), indent=_INDENT)
    for one in item.conditions:
        answer = {True: "holds", False: "does not hold", None: "cannot be evaluated"}[one.answer]
        say((f"{one.name} {answer}: wants {one.wants}, saw {one.saw}", "dim"), indent=_INDENT + 2)


def _print_verdict(decision: Decision, phase: str) -> None:
    match decision:
        case Allow():
            by = f"by policy {decision.policy_id}" if decision.policy_id else "by default"
            say(("ALLOWED", "bold green"), f"  {by}, in the phase {phase}")
        case Ask():
            say(("APPROVAL REQUIRED", "bold yellow"), f"  policy {decision.policy_id}, in the phase {phase}")
            say(decision.reason, indent=2)
        case Deny():
            say(("DENIED", "bold red"), f"  {decision.code}, policy {decision.policy_id}, in the phase {phase}")
            say(decision.reason, indent=2)
            if decision.retry_after_seconds is not None:
                say(f"Try again in {decision.retry_after_seconds:g} s.", indent=2)
