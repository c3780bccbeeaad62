"""Events of our own profile in words. A payload may be forged: every value is taken as it is, whatever its type."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from cra_middleware.cli.output import Part

Payload = Mapping[str, object]

_WORD = re.compile(r"[^\s\"\[\]()=]+").fullmatch
_LABELS = {
    "canonicalization": "encoding",
    "default_decision": "by default",
    "external_id": "external id",
    "parent_session_id": "child of",
    "policy_digest": "policies",
}


def text(value: object) -> str:
    """A payload's value as text."""
    return value if isinstance(value, str) else "?" if value is None else json.dumps(value, ensure_ascii=False)


def name(value: object) -> str:
    """A payload's value as one word: quoted when it could be taken for several, or for an arrow of ours."""
    plain = text(value)
    return plain if _WORD(plain) or not isinstance(value, str) else json.dumps(plain, ensure_ascii=False)


def facts(payload: Payload) -> dict[str, str]:
    """What ``session.started`` says about the session, by name."""
    metadata = payload.get("metadata")
    found = {
        "agent": payload.get("agent_id"),
        "goal": payload.get("goal"),
        "atlases": payload.get("atlas_ids"),
        **(metadata if isinstance(metadata, dict) else {}),
    }
    return {_LABELS.get(key, text(key)): text(value) for key, value in found.items() if value is not None}


def step(kind: str, payload: Payload) -> list[Part] | None:
    """An event as a part of its call's row; None when it is no such part."""
    policy = f" [{name(payload['policy_id'])}]" if "policy_id" in payload else ""
    match kind:
        case "action.approved":
            return [("approved", "green"), f" by {name(payload['approver'])}" if "approver" in payload else "", policy]
        case "action.denied":
            wait = f", again in {text(payload['retry_after_seconds'])} s" if "retry_after_seconds" in payload else ""
            return [("denied", "bold red"), f": {text(payload.get('reason'))}{policy}{wait}"]
        case "action.executed":
            items = f", {text(payload['item_count'])} items" if "item_count" in payload else ""
            return [("executed", "green"), f" in {text(payload.get('duration_ms'))} ms{items}"]
        case "action.failed":
            after = f" after {text(payload['duration_ms'])} ms" if "duration_ms" in payload else ""
            error = f"{name(payload.get('error_code'))}: {text(payload.get('error_message'))}"
            return [("failed", "red"), f"{after}: {error}"]
        case "policy.evaluated" if payload.get("effect") == "require_approval":
            return [("a person must approve", "yellow"), policy]
        case "policy.evaluated":
            return [f"{_effect(payload)}{policy}"]
        case "policy.violated":
            return [f"{name(payload.get('violation_type'))} violated{policy}"]
        case _:
            return None


def requested(payload: Payload) -> list[Part]:
    """The beginning of a call's row."""
    tool = f" ({name(payload['tool_name'])})" if "tool_name" in payload else ""
    return [(name(payload.get("action_id")), "bold cyan"), (tool, "dim"), " requested"]


def sentence(kind: str, payload: Payload) -> list[Part]:
    """An event as a row of its own."""

    def value(key: str) -> str:
        return (text if key in ("goal", "message") else name)(payload.get(key))

    match kind:
        case "session.started":
            return [("session started", "bold"), f" by {value('agent_id')}: {value('goal')}"]
        case "session.ended":
            error = f", {value('error')}" if "error" in payload else ""
            counted = f", {value('action_count')} actions ran" if "action_count" in payload else ""
            return [("session ended", "bold"), f": {value('reason')}{error}, after {value('duration_ms')} ms{counted}"]
        case "carp.request.received":
            tier = f", {value('risk_tier')} risk" if "risk_tier" in payload else ""
            return [f"asked to {value('operation')}{tier}: {value('goal')}"]
        case "carp.resolution.completed":
            counts = f"{value('allowed_count')} actions allowed, {value('denied_count')} not"
            documents = f"{value('context_block_count')} context documents"
            return [f"resolved: {value('decision_type')}; {counts}; {documents}; for {value('ttl_seconds')} s"]
        case "carp.resolution.cached":
            return ["resolved as before"]
        case "context.injected":
            return [f"context given: {value('block_id')} from {value('source')}, {value('token_count')} tokens"]
        case "context.redacted":
            return [f"context withheld: {value('block_id')}: {value('redaction_reason')}"]
        case "policy.evaluated":
            about = value("action_id") if "action_id" in payload else f"{value('action_count')} actions"
            return [f"policy {value('policy_id')}: {_effect(payload)} for {about}"]
        case "error.occurred":
            return [("error", "bold red"), f": {value('error_code')}: {value('message')}"]
    alone = step(kind, payload)  # a step whose call is not there
    if alone is not None:
        return [(value("action_id"), "bold cyan"), " ", *alone]
    return [(kind, "cyan"), *generic(payload)]


def generic(payload: Payload) -> list[Part]:
    """A payload as ``key=value`` pairs."""
    return [f" {key}={name(value)}" for key, value in payload.items()]


def _effect(payload: Payload) -> str:
    return text(payload["effect"] if "effect" in payload else payload.get("result"))
