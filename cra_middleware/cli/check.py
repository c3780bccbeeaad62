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

from cra_middleware._clock import SystemClock
from cra_middleware.atlas.manifest import RISK_TIERS, PolicyType, RiskTier
from cra_middleware.carp.call import Allow, Ask, Decision, Deny, ToolCall
from cra_middleware.carp.matchers import schema_violation
from cra_middleware.carp.policy import RANK, Facts
from cra_middleware.carp.quota import MemoryCounters
from cra_middleware.carp.resolver import Resolver, Seen
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
    format: FormatOption = Format.text,
) -> None:
    """Decide one call as the runtime would, and say why. Nothing runs, counts or is recorded.

    Every policy about the action is shown, in the order in which they are looked at.

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
    resolver = _resolver([atlas_path, *(beside or ())])
    decision = resolver.decide(call, facts, SystemClock().wall_us(), MemoryCounters())
    # arguments that cannot be written down are refused before any policy is looked at
    seen = () if call.problem is not None else tuple(resolver.explain(call, facts))
    if format is Format.json:
        emit({**_verdict(decision), "policies": [item._asdict() for item in seen]})
    else:
        _print(call, facts, resolver, seen, decision)
    raise typer.Exit(_EXIT_CODES[str(_verdict(decision)["verdict"])])


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


def _resolver(paths: Sequence[str]) -> Resolver:
    atlases = [load(path) for path in paths]
    try:
        return Resolver(atlases)
    except AtlasError as error:
        for item in error.findings:
            complain(item)
        raise stop("an Atlas that this one depends on is missing; name it with --with PATH", 1) from None
    except ValueError as error:
        raise stop(error, 1) from None


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


def _print(call: ToolCall, facts: Facts, resolver: Resolver, seen: Sequence[Seen], decision: Decision) -> None:
    known = resolver.actions.get(call.action_id)
    tier = facts.risk_tier if known is None else max(facts.risk_tier, known.action.risk_tier, key=RANK.__getitem__)
    say((call.action_id, "bold cyan"), f"  by {facts.agent_id}, {tier} risk")
    say()
    denials = [item for item in seen if item.type == "deny"]
    for item in denials:
        _print_seen(item)
    if call.problem is None and known is not None:
        validator = known.validator
        problem = None if validator is None else schema_violation(validator, call.arguments)
        fits = "the action has no schema" if validator is None else "the arguments fit"
        say(
            (problem or fits, "bold red" if problem else "dim"),
            lead=("  schema", "" if problem else "dim"),
            indent=_INDENT,
        )
    for item in seen:
        if item.type != "deny":
            _print_seen(item)
    if known is not None:
        say()
    _print_verdict(decision)
    if isinstance(decision, Deny) and decision.code == "unknown_action":
        similar = difflib.get_close_matches(call.action_id, resolver.actions, n=3)
        if similar:
            say(f"Did you mean {' or '.join(similar)}?", indent=2)


def _print_seen(item: Seen) -> None:
    name = (item.policy_id, _STYLES.get(item.type, "bold") if item.holds else "dim")
    rest = (f" {'applies' if item.holds else 'does not apply'}: {item.why}", "" if item.holds else "dim")
    say(name, rest, lead=(f"  {item.type}", "" if item.holds else "dim"), indent=_INDENT)


def _print_verdict(decision: Decision) -> None:
    match decision:
        case Allow():
            by = f"by policy {decision.policy_id}" if decision.policy_id else "by default"
            say(("ALLOWED", "bold green"), f"  {by}")
        case Ask():
            say(("APPROVAL REQUIRED", "bold yellow"), f"  policy {decision.policy_id}")
            say(decision.reason, indent=2)
        case Deny():
            say(("DENIED", "bold red"), f"  {decision.code}, policy {decision.policy_id}")
            say(decision.reason, indent=2)
            if decision.retry_after_seconds is not None:
                say(f"Try again in {decision.retry_after_seconds:g} s.", indent=2)
