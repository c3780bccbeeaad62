"""What each event type carries, and that the templates write what ``canonical`` would."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware._canonical import canonical
from cra_middleware.trace import payloads
from cra_middleware.trace.event import EVENT_TYPES
from cra_middleware.trace.payloads import payload_problem

IDS = st.uuids().map(str)
HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)
TRACEPARENTS = st.builds("00-{}-{}-01".format, st.just("0af7651916cd43dd8448eb211c80319c"), st.just("b7ad6b7169203331"))
CODES = st.sampled_from(["policy_denied", "unknown_action", "arguments_changed"])
NAMES = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.sampled_from(
        [
            "ticket.get",
            "",
            '"',
            "\\",
            '","policy_id":"x',
            "a\nb",
            "\u2028",
            "cra:int:1",
            "\ud800",
            "{}",
            "\0",
            "%s{action_id}",
        ]
    ),
)
VALUES = st.dictionaries(st.text(max_size=3).filter(str.isidentifier), st.integers() | st.floats() | NAMES, max_size=3)


def plain(payload: dict[str, Any]) -> str:
    """The canonical text, without what is absent."""
    return canonical({key: value for key, value in payload.items() if value is not None}).decode()


@given(
    action_id=NAMES,
    execution_id=IDS,
    parameters_hash=HASHES,
    resolution_id=IDS,
    tool_name=NAMES,
    tool_call_id=st.none() | NAMES,
    agent_name=st.none() | NAMES,
    traceparent=st.none() | TRACEPARENTS,
    request_key=st.none() | NAMES,
    parameters=st.none() | VALUES,
)
def test_requested(parameters: Any, **fields: Any) -> None:
    """The template of action.requested is canonical, however hostile the names."""
    text = None if parameters is None else canonical(parameters).decode()
    assert payloads.requested(**fields, parameters=text) == plain({**fields, "parameters": parameters})


@given(
    action_id=NAMES,
    execution_id=IDS,
    resolution_id=IDS,
    policy_id=st.none() | NAMES,
    approval_id=st.none() | IDS,
    approver=st.none() | NAMES,
)
def test_approved(**fields: Any) -> None:
    """The template of action.approved is canonical, however hostile the names."""
    assert payloads.approved(**fields) == plain(fields)


@given(
    action_id=NAMES,
    execution_id=IDS,
    reason=NAMES,
    code=CODES,
    policy_id=st.none() | NAMES,
    retry_after_seconds=st.none() | st.floats(0, 1e6) | st.integers(0, 10**6),
    approval_id=st.none() | IDS,
)
def test_denied(**fields: Any) -> None:
    """The template of action.denied is canonical, however hostile the names."""
    assert payloads.denied(**fields) == plain(fields)


@given(
    action_id=NAMES,
    execution_id=IDS,
    duration_ms=st.integers(0, 10**9),
    resolution_id=IDS,
    item_count=st.none() | st.integers(0, 10**9),
    result=st.none() | VALUES,
    result_hash=st.none() | HASHES,
)
def test_executed(result: Any, **fields: Any) -> None:
    """The template of action.executed is canonical, however hostile the names."""
    text = None if result is None else canonical(result).decode()
    assert payloads.executed(**fields, result=text) == plain({**fields, "result": result})


T, N, O, L, F = "text", 1, {}, [], True  # noqa: E741  one letter a kind keeps the table readable
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "session.started": ({"agent_id": T, "goal": T}, {"atlas_ids": L, "metadata": O}),
    "carp.request.received": (
        {"request_id": T, "operation": T, "goal": T},
        {"atlas_ids": L, "risk_tier": T, "context": O},
    ),
    "context.injected": ({"block_id": T, "source": T, "content_type": T, "token_count": N, "priority": N}, {}),
    "context.redacted": ({"block_id": T, "redaction_reason": T}, {}),
    "policy.evaluated": ({"policy_id": T, "result": T}, {"action_id": T, "effect": T, "action_count": N}),
    "policy.violated": ({"policy_id": T, "violation_type": T}, {"action_id": T, "details": O}),
    "carp.resolution.completed": (
        {
            "resolution_id": T,
            "request_id": T,
            "decision_type": T,
            "allowed_count": N,
            "denied_count": N,
            "context_block_count": N,
            "ttl_seconds": N,
        },
        {},
    ),
    "carp.resolution.cached": ({"resolution_id": T, "cache_hit": F}, {}),
    "action.requested": (
        {"action_id": T, "parameters_hash": T},
        {
            "resolution_id": T,
            "execution_id": T,
            "tool_name": T,
            "tool_call_id": T,
            "agent_name": T,
            "traceparent": T,
            "parameters": O,
        },
    ),
    "action.approved": (
        {"action_id": T, "resolution_id": T},
        {"execution_id": T, "policy_id": T, "approval_id": T, "approver": T},
    ),
    "action.denied": (
        {"action_id": T, "reason": T},
        {"policy_id": T, "code": T, "execution_id": T, "approval_id": T, "retry_after_seconds": 1.5},
    ),
    "action.executed": (
        {"action_id": T, "execution_id": T, "duration_ms": N},
        {"resolution_id": T, "result_hash": T, "item_count": N, "reported_by": T},
    ),
    "action.failed": (
        {"action_id": T, "error_code": T, "error_message": T},
        {"execution_id": T, "duration_ms": N},
    ),
    "error.occurred": ({"error_code": T, "message": T}, {"count": N, "bytes": N, "sha256": T}),
    "session.ended": ({"reason": T, "duration_ms": N}, {"action_count": N, "event_count": N, "error": T}),
}


def test_every_type_has_a_shape() -> None:
    """The list of event types is closed, and this table is the contract's."""
    assert SHAPES.keys() == EVENT_TYPES


@pytest.mark.parametrize("kind", SHAPES)
def test_whole_payloads(kind: str) -> None:
    """The required keys are enough, and all optional ones may be there."""
    required, optional = SHAPES[kind]
    assert payload_problem(kind, required) is None
    assert payload_problem(kind, {**required, **optional}) is None


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind in SHAPES for key in SHAPES[kind][0]])
def test_a_missing_key(kind: str, key: str) -> None:
    """Each required key is missed by name."""
    required, optional = SHAPES[kind]
    payload = {name: value for name, value in {**required, **optional}.items() if name != key}
    assert payload_problem(kind, payload) == f"{kind} lacks {key}"


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind in SHAPES for part in SHAPES[kind] for key in part])
def test_a_wrong_type(kind: str, key: str) -> None:
    """Each key has one type: null, a boolean for a number, and any other kind are refused."""
    whole = {**SHAPES[kind][0], **SHAPES[kind][1]}
    for value in (None, True, "1", 1, 1.5, {}, []):
        fits = type(value) is type(whole[key]) or (key == "retry_after_seconds" and type(value) is int)
        problem = payload_problem(kind, {**whole, key: value})
        assert problem == (None if fits else f"{kind}: {key} has the wrong type")


@pytest.mark.parametrize("value", [None, True, "1", 1, {}, []])
def test_a_result_may_be_anything(value: object) -> None:
    """What a tool returned is recorded as it is."""
    payload = {"action_id": T, "execution_id": T, "duration_ms": 1, "result": value}
    assert payload_problem("action.executed", payload) is None


@pytest.mark.parametrize("kind", SHAPES)
def test_an_unknown_key(kind: str) -> None:
    """No payload may carry a key that is not the contract's; a long name is not repeated whole."""
    assert payload_problem(kind, {**SHAPES[kind][0], "extra": 1}) == f"{kind} has an unknown key 'extra'"
    assert len(payload_problem(kind, {**SHAPES[kind][0], "x" * 10_000: 1}) or "") < 200


def test_render_leaves_out_what_is_absent() -> None:
    """A key whose value is None is not written; anything deeper stays as it is."""
    assert payloads.render({"b": None, "a": {"c": None}}) == '{"a":{"c":null}}'
