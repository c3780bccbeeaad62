"""What a client sends: its bodies, from what the core knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import orjson

from cra_middleware._clock import SystemClock, timestamp_text
from cra_middleware._ids import new_id
from cra_middleware.carp.call import ToolCall
from cra_middleware.carp.messages import Request, Requester, Task
from cra_middleware.carp.policy import Facts
from cra_middleware.sessions.admission import Admitted, Opening, plain

MAX_REASON = 1000


def now_text() -> str:
    """The time by this machine's clock: a server refuses what was asked at quite another one."""
    return timestamp_text(SystemClock().wall_us())


class Execute(NamedTuple):
    """What ``POST /v1/execute`` is asked."""

    request_id: str
    """A new one, so that only this very body is the same request."""
    data: bytes


def execute_body(call: ToolCall, session_id: str, agent_id: str) -> Execute:
    """The question whether a call may run.

    Raises:
        ValueError: when the arguments cannot be sent.
    """
    request_id = new_id()
    told = {**_call_fields(call), "idempotency_key": request_id}
    data = orjson.dumps(
        {
            "carp_version": "1.0",
            "request_id": request_id,
            "timestamp": now_text(),
            "operation": "execute",
            "requester": {"agent_id": agent_id, "session_id": session_id},
            "execution": told,
        }
    )
    return Execute(request_id, data)


def would_wait_body(call: ToolCall, session_id: str) -> bytes:
    """``POST /v1/executions/would-wait``.

    Raises:
        TypeError: when the arguments cannot be sent.
    """
    return orjson.dumps({**_call_fields(call), "session_id": session_id})


def reject_body(call: ToolCall, session_id: str, reason: str) -> dict[str, object]:
    """``POST /v1/executions/reject``."""
    told = {
        "session_id": session_id,
        "action_id": _name(call.action_id),
        "tool_name": _name(call.tool_name) or "tool",
        "tool_call_id": _name(call.tool_call_id),
        "agent_name": _name(call.agent_name),
        "reason": _name(reason, MAX_REASON) or "refused",
    }
    return {key: value for key, value in told.items() if value not in (None, "")}


def session_body(opening: Opening, who: Admitted, parent_id: str | None) -> dict[str, object]:
    """``POST /v1/sessions``: what was said, as it was said, of a session whose id and parent are known.

    Raises:
        ValueError: when the context or the metadata cannot be sent.
    """
    request = opening.request
    told: dict[str, object] = {
        "session_id": who.session_id,
        "agent_id": opening.agent_id,
        "goal": opening.goal,
        "risk_tier": opening.risk_tier,
        "context": _json(plain(opening.context), "context"),
        "metadata": _json(opening.metadata, "metadata"),
        "atlas_ids": None if opening.atlas_ids is None else list(opening.atlas_ids),
        "external_id": opening.external_id,
        "subject": who.behalf,
        "parent_session_id": parent_id,
        "request": None if request is None else request.model_dump(mode="json", exclude_none=True),
    }
    return {key: value for key, value in told.items() if value is not None}


def resolve_body(session_id: str, facts: Facts, goal: str) -> Request:
    """A plain CARP request of a session."""
    return Request(
        request_id=new_id(),
        timestamp=now_text(),
        requester=Requester(agent_id=facts.agent_id, session_id=session_id),
        task=Task(goal=goal, risk_tier=facts.risk_tier),
    )


def _json(value: Mapping[str, object], name: str) -> orjson.Fragment:
    """A caller's own mapping, to be sent.

    Raises:
        ValueError: when it is no JSON.
    """
    try:
        return orjson.Fragment(json.dumps(dict(value), allow_nan=False, ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be sent: it is no JSON ({type(error).__name__})") from error


def _name(text: str | None, most: int = 255) -> str | None:
    """A text as a message can carry it: short, and without half a letter."""
    return None if text is None else text[:most].encode("utf-8", "replace").decode()


def _call_fields(call: ToolCall) -> dict[str, object]:
    """What a call is, with its arguments in their one canonical form: the server reads the tags in it."""
    told: dict[str, object] = {
        "action_id": _name(call.action_id),
        "parameters": orjson.Fragment(call.text),
        "tool_name": _name(call.tool_name),
        "tool_call_id": _name(call.tool_call_id),
        "agent_name": _name(call.agent_name),
        "distrust": _name(call.distrust, MAX_REASON),
        "tagged": True if b"cra:" in call.text else None,
    }
    return {key: value for key, value in told.items() if value not in (None, "")}
