"""A resolution: what an agent may do, what it may not, what it should know, and the events that say so.

Pure: it is given the time and the ids, and returns what is to be recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import JsonValue

from cra_middleware._clock import timestamp_text
from cra_middleware.atlas.context import Selection, Wish, select
from cra_middleware.atlas.loader import Atlas
from cra_middleware.carp.messages import (
    DEFAULT_TTL_SECONDS,
    Constraint,
    ContextBlockMessage,
    DeniedAction,
    Request,
    Resolution,
    ResolutionDecision,
)
from cra_middleware.carp.policy import Facts, Rule
from cra_middleware.carp.quota import Counters
from cra_middleware.carp.resolver import DEFAULT_POLICY, SOME_DENIED, ActionStanding, Resolver, decision_type
from cra_middleware.trace.event import EventType
from cra_middleware.trace.payloads import render

TraceLevel = Literal["standard", "verbose"]
MAX_POLICY_EVENTS = 100
"""More than this many in one resolve become one event per policy, with ``action_count``."""


class Record(NamedTuple):
    """An event to be written."""

    event_type: EventType
    payload: str


@dataclass(frozen=True, slots=True)
class Options:
    """How much a resolve writes down."""

    level: TraceLevel
    full: bool
    """Whether values may be recorded, not only their hashes."""


def resolve(
    resolver: Resolver,
    request: Request,
    facts: Facts,
    counters: Counters,
    now_us: int,
    resolution_id: str,
    trace_id: str,
    options: Options,
    context: bytes | None = None,
) -> tuple[Resolution, list[Record]]:
    """Answer a CARP request under ``facts``, as of ``now_us``.

    ``context`` is what may be recorded of the session's facts, as canonical JSON.
    Only the Atlases that the session was opened for speak: others decide none of its calls.
    """
    task = request.task
    atlases = [
        atlas
        for atlas in resolver.atlases
        if (request.atlas_ids is None or atlas.manifest.atlas_id in request.atlas_ids)
        and (facts.atlas_ids is None or atlas.manifest.atlas_id in facts.atlas_ids)
    ]
    if request.atlas_ids is not None:  # Atlases as requested
        order = {atlas_id: index for index, atlas_id in enumerate(request.atlas_ids)}
        atlases.sort(key=lambda atlas: order[atlas.manifest.atlas_id])
    standings = [
        standing
        for atlas in atlases
        for standing in resolver.survey(facts, now_us, counters, (atlas.manifest.atlas_id,))
    ]
    known = _capability_actions(atlases)
    wanted, unknown = _wanted(known, task.required_capabilities, standings)
    listed = [item for item in standings if not task.required_capabilities or item.action.action.action_id in wanted]
    wish = Wish(task.goal, facts.risk_tier, task.context_hints, task.required_capabilities)
    about = frozenset(task.required_capabilities or known)
    selection = select(atlases, wish, lambda conditions: resolver.context_holds(conditions, facts, now_us, about))
    kind = decision_type(standings, wanted, bool(unknown))
    resolution = Resolution(
        resolution_id=resolution_id,
        request_id=request.request_id,
        timestamp=timestamp_text(now_us),
        decision=ResolutionDecision(type=kind, reason=_reason(kind, unknown)),
        context_blocks=tuple(
            ContextBlockMessage(
                block_id=block.block_id,
                source=block.source,
                content_type=block.content_type,
                content=block.content,
                priority=block.priority,
                token_estimate=block.token_estimate,
            )
            for block in selection.blocks
        ),
        allowed_actions=tuple(item.action.listed for item in listed if item.verdict == "allow"),
        denied_actions=tuple(
            DeniedAction(action_id=item.action.action.action_id, reason=item.reason, policy_id=item.policy_id)
            for item in listed
            if item.verdict != "allow"
        ),
        constraints=tuple(_constraints(listed)),
        ttl_seconds=DEFAULT_TTL_SECONDS,
        trace_id=trace_id,
    )
    records = [
        _request_record(request, facts, context),
        *_context_records(selection),
        *_policy_records(listed, options.level),
        _completed_record(resolution),
    ]
    return resolution, records


def out_of_reach(resolution: Resolution) -> frozenset[str]:
    """The actions that no call could be allowed to use, now or in an hour: a model need not be shown them."""
    passing = {item.constraint_id for item in resolution.constraints if item.type != "scope"}
    timed = {
        action
        for item in resolution.constraints
        if "time_window" in item.parameters
        for action in _listed(item.parameters.get("actions"))
    }
    return frozenset(
        item.action_id
        for item in resolution.denied_actions
        if item.policy_id not in passing and item.action_id not in timed
    )


def _listed(names: object) -> list[str]:
    return [str(name) for name in names] if isinstance(names, list) else []


def _capability_actions(atlases: Sequence[Atlas]) -> dict[str, set[str]]:
    """The actions of each declared capability; several Atlases may declare parts of one."""
    known: dict[str, set[str]] = {}
    for atlas in atlases:
        for capability in atlas.manifest.capabilities:
            known.setdefault(capability.capability_id, set()).update(capability.actions)
    return known


def _wanted(
    known: Mapping[str, set[str]], required: Sequence[str], standings: Sequence[ActionStanding]
) -> tuple[frozenset[str], list[str]]:
    """The requested set: the actions of the required capabilities, else of all, else every action."""
    if required:
        unknown = [name for name in required if name not in known]
        return frozenset(action for name in required for action in known.get(name, ())), unknown
    grouped = frozenset(action for actions in known.values() for action in actions)
    return grouped or frozenset(item.action.action.action_id for item in standings), []


def _reason(kind: str, unknown: Sequence[str]) -> str | None:
    if unknown:
        return f"Unknown capabilities: {', '.join(unknown)}"
    return {
        "allow": None,
        "partial": SOME_DENIED,
        "deny": "All requested actions are denied by policy",
        "requires_approval": "Every requested action needs a person's approval, or is denied",
    }[kind]


def _constraints(standings: Sequence[ActionStanding]) -> Iterator[Constraint]:
    """What is decided only at the call: one entry a policy, with the actions it is about."""
    found: dict[tuple[str, str], tuple[Rule, list[str]]] = {}  # an action's own question and limit share one id
    for item in standings:
        for rule in item.action.rules:
            if rule.is_enforced and (_is_timed(rule) or (_is_left_to_the_call(rule) and rule in item.rules)):
                found.setdefault((rule.policy_id, rule.type), (rule, []))[1].append(item.action.action.action_id)
    for (policy_id, _), (rule, actions) in found.items():
        parameters: dict[str, JsonValue] = {"actions": list(actions), "reason": rule.reason}
        if rule.source is not None:
            conditions = rule.source.conditions
            written = {key: rule.source.parameters.get(key) for key in _COUNTED}
            parameters |= {key: value for key, value in written.items() if value is not None}
            if conditions.parameters is not None:
                parameters["when"] = dict(conditions.parameters)
            if conditions.arguments is not None:
                parameters["arguments"] = dict(conditions.arguments)
            if conditions.time_window is not None:
                parameters["time_window"] = conditions.time_window.model_dump(mode="json", exclude_none=True)
        elif rule.quota is not None and rule.quota.window_us is not None:
            parameters |= {"max_calls": rule.quota.capacity, "window_seconds": rule.quota.window_us // 1_000_000}
        if rule.type in ("require_approval", "rate_limit", "budget"):
            yield Constraint(constraint_id=policy_id, type=rule.type, parameters=parameters)
        else:
            kind: Literal["time_window", "scope"] = "time_window" if _is_timed(rule) else "scope"
            yield Constraint(constraint_id=policy_id, type=kind, parameters={"effect": rule.type, **parameters})


_COUNTED = ("max_calls", "max_cost", "window_seconds", "cost", "cost_parameter", "scope", "algorithm", "approvers")


def _is_timed(rule: Rule) -> bool:
    """Whether it says something else later, whatever it says now."""
    return rule.source is not None and rule.source.conditions.time_window is not None


def _is_left_to_the_call(rule: Rule) -> bool:
    return rule.type in ("require_approval", "rate_limit", "budget", "scope") or rule.on_arguments


def _request_record(request: Request, facts: Facts, context: bytes | None) -> Record:
    return Record(
        "carp.request.received",
        render(
            {
                "request_id": request.request_id,
                "operation": request.operation,
                "goal": request.task.goal,
                "atlas_ids": None if request.atlas_ids is None else list(request.atlas_ids),
                "risk_tier": None if facts.risk_tier == "low" else facts.risk_tier,
            },
            context=context,
        ),
    )


def _context_records(selection: Selection) -> Iterator[Record]:
    for block in selection.blocks:
        payload: dict[str, object] = {
            "block_id": block.block_id,
            "source": block.source,
            "content_type": block.content_type,
            "token_count": block.token_estimate,
            "priority": block.priority,
        }
        yield Record("context.injected", render(payload))
    for block_id in selection.dropped:
        yield Record("context.redacted", render({"block_id": block_id, "redaction_reason": "max_tokens"}))


def _policy_records(standings: Sequence[ActionStanding], level: TraceLevel) -> list[Record]:
    rows: list[tuple[dict[str, object], str]] = []
    for item in standings:
        action_id = item.action.action.action_id
        if item.verdict != "allow" and item.policy_id != DEFAULT_POLICY:
            effect = "require_approval" if item.verdict == "require_approval" else _effect(item)
            rows.append(({"policy_id": item.policy_id, "result": "deny", "effect": effect}, action_id))
        if level == "verbose":
            for rule in item.action.rules:
                if rule.policy_id != item.policy_id or item.verdict == "allow":
                    grants = rule.type == "allow" and rule in item.rules
                    rows.append(
                        ({"policy_id": rule.policy_id, "result": "allow" if grants else "not_applicable"}, action_id)
                    )
    if len(rows) <= MAX_POLICY_EVENTS:
        return [Record("policy.evaluated", render({**row, "action_id": action_id})) for row, action_id in rows]
    counts = Counter(tuple(sorted(row.items(), key=lambda pair: pair[0])) for row, _ in rows)
    return [Record("policy.evaluated", render({**dict(row), "action_count": count})) for row, count in counts.items()]


def _effect(item: ActionStanding) -> str | None:
    types = {rule.type for rule in item.rules if rule.policy_id == item.policy_id}
    return next((kind for kind in ("rate_limit", "budget") if kind in types), None)


def _completed_record(resolution: Resolution) -> Record:
    return Record(
        "carp.resolution.completed",
        render(
            {
                "resolution_id": resolution.resolution_id,
                "request_id": resolution.request_id,
                "decision_type": resolution.decision.type,
                "allowed_count": len(resolution.allowed_actions),
                "denied_count": len(resolution.denied_actions),
                "context_block_count": len(resolution.context_blocks),
                "ttl_seconds": resolution.ttl_seconds,
            }
        ),
    )
