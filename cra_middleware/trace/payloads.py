"""What each event type carries: the closed list of keys, and the templates of a call's own events.

Every call writes three events, so theirs are rendered from templates instead of walked. They are safe by
construction (ids, digests, integers, strings quoted by ``json_string``); a property test holds them equal to
``canonical()`` of the same payload.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import orjson

from cra_middleware._canonical import canonical, json_string

_TEXT, _COUNT, _OBJECT, _LIST, _FLAG, _ANY = (str,), (int,), (dict,), (list,), (bool,), (object,)
_Keys = dict[str, tuple[type, ...]]

_TABLE: dict[str, tuple[_Keys, _Keys]] = {
    "session.started": ({"agent_id": _TEXT, "goal": _TEXT}, {"atlas_ids": _LIST, "metadata": _OBJECT}),
    "carp.request.received": (
        {"request_id": _TEXT, "operation": _TEXT, "goal": _TEXT},
        {"atlas_ids": _LIST, "risk_tier": _TEXT, "context": _OBJECT},
    ),
    "context.injected": (
        {"block_id": _TEXT, "source": _TEXT, "content_type": _TEXT, "token_count": _COUNT, "priority": _COUNT},
        {},
    ),
    "context.redacted": ({"block_id": _TEXT, "redaction_reason": _TEXT}, {}),
    "policy.evaluated": (
        {"policy_id": _TEXT, "result": _TEXT},
        {"action_id": _TEXT, "effect": _TEXT, "action_count": _COUNT},
    ),
    "policy.violated": (
        {"policy_id": _TEXT, "violation_type": _TEXT},
        {"action_id": _TEXT, "details": _OBJECT},
    ),
    "carp.resolution.completed": (
        {
            **dict.fromkeys(("resolution_id", "request_id", "decision_type"), _TEXT),
            **dict.fromkeys(("allowed_count", "denied_count", "context_block_count", "ttl_seconds"), _COUNT),
        },
        {},
    ),
    "carp.resolution.cached": ({"resolution_id": _TEXT, "cache_hit": _FLAG}, {}),
    "action.requested": (
        {"action_id": _TEXT, "parameters_hash": _TEXT},
        {
            **dict.fromkeys(("resolution_id", "execution_id", "tool_name", "tool_call_id", "agent_name"), _TEXT),
            **dict.fromkeys(("traceparent", "request_key"), _TEXT),
            "parameters": _OBJECT,
        },
    ),
    "action.approved": (
        {"action_id": _TEXT, "resolution_id": _TEXT},
        dict.fromkeys(("execution_id", "policy_id", "approval_id", "approver"), _TEXT),
    ),
    "action.denied": (
        {"action_id": _TEXT, "reason": _TEXT},
        {
            **dict.fromkeys(("policy_id", "code", "execution_id", "approval_id"), _TEXT),
            "retry_after_seconds": (int, float),
        },
    ),
    "action.executed": (
        {"action_id": _TEXT, "execution_id": _TEXT, "duration_ms": _COUNT},
        {
            **dict.fromkeys(("resolution_id", "result_hash", "reported_by"), _TEXT),
            "result": _ANY,
            "item_count": _COUNT,
        },
    ),
    "action.failed": (
        {"action_id": _TEXT, "error_code": _TEXT, "error_message": _TEXT},
        {"execution_id": _TEXT, "duration_ms": _COUNT},
    ),
    "error.occurred": ({"error_code": _TEXT, "message": _TEXT}, {"count": _COUNT, "bytes": _COUNT, "sha256": _TEXT}),
    "session.ended": (
        {"reason": _TEXT, "duration_ms": _COUNT},
        {"action_count": _COUNT, "event_count": _COUNT, "error": _TEXT},
    ),
}


# By type instead of by isinstance: what a JSON parser gives. Whatever is not found here is looked at again, slowly.
_PLAIN: dict[str, dict[str, tuple[type, ...]]] = {
    kind: {key: types for part in parts for key, types in part.items() if types != _ANY}
    for kind, parts in _TABLE.items()
}


def payload_problem(kind: str, payload: Mapping[str, object]) -> str | None:
    """Why ``payload`` is not one of ``kind``, or None."""
    plain = _PLAIN[kind]
    for key, value in payload.items():
        if type(value) not in plain.get(key, ()):
            break
    else:
        if _TABLE[kind][0].keys() <= payload.keys():
            return None
    return _slow_problem(kind, payload)


def _slow_problem(kind: str, payload: Mapping[str, object]) -> str | None:
    required, optional = _TABLE[kind]
    missing = required.keys() - payload.keys()
    if missing:
        return f"{kind} lacks {', '.join(sorted(missing))}"
    for key, value in payload.items():
        types = required.get(key) or optional.get(key)
        if types is None:
            return f"{kind} has an unknown key {key[:80]!r}"
        if not isinstance(value, types) or (isinstance(value, bool) and int in types):  # True is an int in Python
            return f"{kind}: {key} has the wrong type"
    return None


def render(payload: Mapping[str, object], **verbatim: bytes | None) -> str:
    """Canonical JSON of a payload whose optional keys are left out when None; ``verbatim`` values are canonical."""
    given = {key: value for key, value in payload.items() if value is not None}
    parts = {key: orjson.Fragment(text) for key, text in verbatim.items() if text is not None}
    if not parts:
        return canonical(given).decode()
    made = {**{key: orjson.Fragment(canonical(value)) for key, value in given.items()}, **parts}
    return orjson.dumps(made, option=orjson.OPT_SORT_KEYS).decode()


quote = lru_cache(maxsize=4096)(json_string)
"""JSON text of names that recur: action ids, policy ids, tool names."""


def _optional(key: str, text: str | None) -> str:
    return "" if text is None else f'"{key}":{json_string(text)},'


def requested(
    action_id: str,
    execution_id: str,
    parameters_hash: str,
    resolution_id: str,
    tool_name: str,
    tool_call_id: str | None,
    agent_name: str | None,
    traceparent: str | None,
    request_key: str | None,
    parameters: str | None,
) -> str:
    """The payload of ``action.requested``; ``parameters`` is canonical JSON."""
    given = "" if parameters is None else f'"parameters":{parameters},'
    parent = "" if traceparent is None else f',"traceparent":"{traceparent}"'
    return (
        f'{{"action_id":{quote(action_id)},{_optional("agent_name", agent_name)}"execution_id":"{execution_id}",'
        f'{given}"parameters_hash":"{parameters_hash}",{_optional("request_key", request_key)}'
        f'"resolution_id":"{resolution_id}",'
        f'{_optional("tool_call_id", tool_call_id)}"tool_name":{quote(tool_name)}{parent}}}'
    )


def approved(
    action_id: str,
    execution_id: str,
    resolution_id: str,
    policy_id: str | None,
    approval_id: str | None = None,
    approver: str | None = None,
) -> str:
    """The payload of ``action.approved``."""
    policy = "" if policy_id is None else f'"policy_id":{quote(policy_id)},'
    return (
        f'{{"action_id":{quote(action_id)},{_optional("approval_id", approval_id)}{_optional("approver", approver)}'
        f'"execution_id":"{execution_id}",{policy}"resolution_id":"{resolution_id}"}}'
    )


def denied(
    action_id: str,
    execution_id: str,
    reason: str,
    code: str,
    policy_id: str | None,
    retry_after_seconds: float | None = None,
    approval_id: str | None = None,
) -> str:
    """The payload of ``action.denied``."""
    if retry_after_seconds is not None or approval_id is not None:
        return render(
            {
                "action_id": action_id,
                "approval_id": approval_id,
                "code": code,
                "execution_id": execution_id,
                "policy_id": policy_id,
                "reason": reason,
                "retry_after_seconds": retry_after_seconds,
            }
        )
    policy = "" if policy_id is None else f'"policy_id":{quote(policy_id)},'
    return (
        f'{{"action_id":{quote(action_id)},"code":"{code}","execution_id":"{execution_id}",'
        f'{policy}"reason":{json_string(reason)}}}'
    )


def executed(
    action_id: str,
    execution_id: str,
    duration_ms: int,
    resolution_id: str,
    item_count: int | None = None,
    result: str | None = None,
    result_hash: str | None = None,
) -> str:
    """The payload of ``action.executed``; ``result`` is canonical JSON."""
    items = "" if item_count is None else f'"item_count":{item_count},'
    value = "" if result is None else f',"result":{result}'
    hashed = "" if result_hash is None else f',"result_hash":"{result_hash}"'
    return (
        f'{{"action_id":{quote(action_id)},"duration_ms":{duration_ms},"execution_id":"{execution_id}",'
        f'{items}"resolution_id":"{resolution_id}"{value}{hashed}}}'
    )
