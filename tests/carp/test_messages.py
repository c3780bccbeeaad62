"""What is read as a CARP request, and what a resolution looks like on the wire."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cra_middleware.carp.messages import AllowedAction, DeniedAction, Request

SESSION = "0198c0de-0000-7000-8000-000000000001"
REQUEST = "0198c0de-0000-7000-8000-000000000002"
NESTED: dict[str, Any] = {
    "request_id": REQUEST,
    "requester": {"agent_id": "bot", "session_id": SESSION},
    "task": {"goal": "help", "risk_tier": "high", "required_capabilities": ["a"]},
}
FLAT: dict[str, Any] = {
    "request_id": REQUEST,
    "agent_id": "bot",
    "session_id": SESSION,
    "goal": "help",
    "risk_tier": "high",
    "required_capabilities": ["a"],
}


def without(body: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != key}


def test_nested_and_flat_are_one() -> None:
    """The flat body of older clients means the same; only the nested one is ever written."""
    nested, flat = Request.model_validate(NESTED), Request.model_validate(FLAT)
    assert nested == flat
    assert flat.model_dump(exclude_defaults=True) == {
        **NESTED,
        "task": {**NESTED["task"], "required_capabilities": ("a",)},
    }


def test_half_flat() -> None:
    """A flat requester may stand beside a nested task."""
    mixed = {"request_id": REQUEST, "agent_id": "bot", "session_id": SESSION, "task": NESTED["task"]}
    assert Request.model_validate(mixed) == Request.model_validate(NESTED)


def test_the_callers_body_is_not_changed() -> None:
    """Reading a body takes nothing out of it."""
    body = {**FLAT, "requested_capabilities": ["a"]}
    before = dict(body)
    Request.model_validate(body)
    assert body == before
    task = {"goal": "help", "requested_capabilities": ["a"]}
    Request.model_validate({**NESTED, "task": task})
    assert task == {"goal": "help", "requested_capabilities": ["a"]}


@pytest.mark.parametrize(
    "body",
    [
        {**without(FLAT, "required_capabilities"), "requested_capabilities": ["a"]},
        {**NESTED, "task": {"goal": "help", "risk_tier": "high", "requested_capabilities": ["a"]}},
        {**FLAT, "requested_capabilities": ["a"]},
        {**NESTED, "carp_version": "1.0", "operation": "resolve", "context": {}},
    ],
)
def test_aliases(body: dict[str, Any]) -> None:
    """``requested_capabilities`` is an older name of ``required_capabilities``; defaults may be spelt out."""
    assert Request.model_validate(body) == Request.model_validate(NESTED)


def test_defaults() -> None:
    """A goal and who asks are enough."""
    request = Request.model_validate({**NESTED, "task": {"goal": "help"}})
    assert (request.task.risk_tier, request.task.required_capabilities, request.atlas_ids) == ("low", (), None)
    assert (request.operation, request.carp_version, request.context) == ("resolve", "1.0", {})


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "text",
        {},
        without(NESTED, "request_id"),
        without(NESTED, "task"),
        without(NESTED, "requester"),
        {**NESTED, "agent_id": "other"},
        {**NESTED, "goal": "other"},
        {**NESTED, "extra": 1},
        {**NESTED, "requester": {**NESTED["requester"], "extra": 1}},
        {**NESTED, "requester": {**NESTED["requester"], "agent_id": ""}},
        {**NESTED, "requester": {**NESTED["requester"], "agent_id": "x" * 256}},
        {**NESTED, "requester": {**NESTED["requester"], "agent_id": 5}},
        {**NESTED, "requester": {**NESTED["requester"], "session_id": "../../etc/passwd"}},
        {**NESTED, "requester": {**NESTED["requester"], "session_id": SESSION.upper()}},
        {**NESTED, "requester": {**NESTED["requester"], "session_id": SESSION + "\n"}},
        {**NESTED, "requester": {**NESTED["requester"], "parent_session_id": "x"}},
        {**NESTED, "request_id": "1"},
        {**NESTED, "task": {"goal": ""}},
        {**NESTED, "task": {"goal": "x" * 10_001}},
        {**NESTED, "task": {"goal": "x", "risk_tier": "HIGH"}},
        {**NESTED, "task": {"goal": "x", "required_capabilities": "a"}},
        {**NESTED, "task": {"goal": "x", "required_capabilities": [5]}},
        {**NESTED, "task": {"goal": "x", "required_capabilities": ["a"], "requested_capabilities": ["b"]}},
        {**FLAT, "requested_capabilities": ["b"]},
        {**NESTED, "task": "help"},
        {**NESTED, "carp_version": "2.0"},
        {**NESTED, "operation": "execute"},
        {**NESTED, "atlas_ids": ["not an id"]},
        {**NESTED, "atlas_ids": ["com.example.x\n"]},
        {**NESTED, "context": []},
        {**NESTED, "context": {"a": object()}},
    ],
)
def test_malformed(body: Any) -> None:
    """What is missing, unknown, given twice or of the wrong form is refused, not guessed at."""
    with pytest.raises(ValidationError):
        Request.model_validate(body)


def test_a_request_is_frozen() -> None:
    """Nobody changes a request after it was read."""
    request = Request.model_validate(NESTED)
    with pytest.raises(ValidationError, match="frozen"):
        request.operation = "resolve"  # type: ignore[misc]


def test_absent_values_are_left_out() -> None:
    """An action without a schema or a policy has no such key."""
    allowed = AllowedAction(
        action_id="a.b", name="n", description="d", risk_tier="low", requires_confirmation=False, idempotent=True
    )
    assert "parameters_schema" not in allowed.model_dump()
    assert "rate_limit" not in allowed.model_dump(mode="json")
    assert DeniedAction(action_id="a.b", reason="r").model_dump() == {"action_id": "a.b", "reason": "r"}
