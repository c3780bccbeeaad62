"""What a client sends: its bodies, from what the core knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from typing import NamedTuple

import orjson

from cra_middleware._canonical import normalise
from cra_middleware._clock import SystemClock, timestamp_text
from cra_middleware._ids import new_id
from cra_middleware.carp.call import ToolCall
from cra_middleware.carp.messages import Request, Requester, Task
from cra_middleware.carp.policy import Facts

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
    told: dict[str, object] = {
        "action_id": _name(call.action_id),
        "parameters": orjson.Fragment(parameters_of(call)),
        "idempotency_key": request_id,
        "tool_name": _name(call.tool_name),
        "tool_call_id": _name(call.tool_call_id),
        "agent_name": _name(call.agent_name),
        "distrust": _name(call.distrust, MAX_REASON),
    }
    data = orjson.dumps(
        {
            "carp_version": "1.0",
            "request_id": request_id,
            "timestamp": now_text(),
            "operation": "execute",
            "requester": {"agent_id": agent_id, "session_id": session_id},
            "execution": {key: value for key, value in told.items() if value not in (None, "")},
        }
    )
    return Execute(request_id, data)


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


def resolve_body(session_id: str, facts: Facts, goal: str) -> Request:
    """A plain CARP request of a session."""
    return Request(
        request_id=new_id(),
        timestamp=now_text(),
        requester=Requester(agent_id=facts.agent_id, session_id=session_id),
        task=Task(goal=goal, risk_tier=facts.risk_tier),
    )


def parameters_of(call: ToolCall) -> bytes:
    """The arguments as JSON, which the server makes the same canonical text of as we would."""
    if b"cra:" not in call.text:
        return call.text  # nothing in it is tagged: it is the plain JSON of plain values
    return json.dumps(_plain(call.arguments), separators=(",", ":"), ensure_ascii=False).encode()


def json_of(value: Mapping[str, object], name: str) -> orjson.Fragment:
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


def _plain(value: object) -> object:
    """A value for JSON. What has no form there is sent as the tag that stands for it."""
    if value is None or isinstance(value, bool):
        return value
    if type(value) is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            return normalise(value)
        return value
    if type(value) is int:
        return value if value.bit_length() < 4096 else normalise(value)
    if type(value) is float:
        return value if isfinite(value) else normalise(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return normalise(value)
