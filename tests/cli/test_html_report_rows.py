"""Python and the page's script fill the same rows, whatever a trace that verifies says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cra_middleware import verify
from cra_middleware._canonical import canonical
from cra_middleware.trace.event import GENESIS, seal
from cra_middleware.trace_page import render
from tests.cli.browser import Browser
from tests.cli.conftest import an_id
from tests.cli.test_html_report import HOSTILE

TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [HOSTILE, "", "x" * 700, "\U0001f469\u200d\U0001f4bb" * 300, "{reason}", "cra:str:cra:x", "a\nb", " "]
    ),
)
NUMBERS = st.one_of(st.integers(0, 2**53 - 1), st.floats(0.001, 1e6), st.just(60.0))
CALL = st.fixed_dictionaries(
    {"span": st.integers(1, 3), "requested": st.booleans()},
    optional={
        "tool_name": TEXTS,
        "agent_name": TEXTS,
        "effect": st.sampled_from(["require_approval", "shadow_deny", "budget", "constructor"]),
        "violation_type": TEXTS,
        "approver": TEXTS,
        "reason": TEXTS,
        "retry_after_seconds": NUMBERS,
        "error_message": TEXTS,
        "duration_ms": st.integers(0, 2**53 - 1),
        "message": TEXTS,
    },
)


def events_of(step: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Events of one step, in some order that the format allows without an ``execution_id``."""
    has = step.__contains__
    pick = {key: step[key] for key in ("tool_name", "agent_name") if has(key)}
    if step["requested"]:
        yield "action.requested", {"action_id": "a.b", "parameters_hash": GENESIS, **pick}
    if has("effect"):
        yield "policy.evaluated", {"policy_id": "p", "result": "deny", "action_id": "a.b", "effect": step["effect"]}
    if has("violation_type"):
        yield "policy.violated", {"policy_id": "p", "violation_type": step["violation_type"], "action_id": "a.b"}
    if has("approver"):
        yield "action.approved", {"action_id": "a.b", "resolution_id": "r", "approver": step["approver"]}
    if has("reason"):
        again = {"retry_after_seconds": step["retry_after_seconds"]} if has("retry_after_seconds") else {}
        yield "action.denied", {"action_id": "a.b", "reason": step["reason"], **again}
    if has("error_message"):
        yield "action.failed", {"action_id": "a.b", "error_code": "E", "error_message": step["error_message"]}
    if has("message"):
        yield "error.occurred", {"error_code": "e", "message": step["message"], "count": step.get("duration_ms", 0)}


def write_chain(path: Path, agent: str, atlases: list[str], steps: Sequence[dict[str, Any]]) -> None:
    """A chain of such steps, written by the writer's own rule."""
    events = [
        (9, "session.started", {"agent_id": agent, "goal": "g", "atlas_ids": atlases, "metadata": {"mode": agent}})
    ]
    events += [(step["span"], *event) for step in steps for event in events_of(step)]
    head, lines = GENESIS, []
    for sequence, (span, kind, payload) in enumerate(events):
        time = f"2026-01-0{5 + sequence // 4 % 4}T12:00:00.{sequence:03d}001+00:00"
        ids = (an_id(100 + sequence), an_id(1), an_id(span), None, an_id(2))
        line, head = seal(*ids, sequence, time, kind, canonical(payload).decode(), head)
        lines.append(line)
    path.write_text("".join(lines), encoding="utf-8", newline="")


@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sessions=st.lists(st.tuples(TEXTS, st.lists(TEXTS, max_size=2), st.lists(CALL, max_size=6)), min_size=1, max_size=6)
)
def test_both_sides_fill_the_same_rows(browser: Browser, tmp_path: Path, sessions: Any) -> None:
    """Whatever a trace that verifies says, the script makes the very rows that Python made."""
    reports = []
    for number, session in enumerate(sessions):
        path = tmp_path / f"{number}.jsonl"
        write_chain(path, *session)
        reports.append(verify(path))
        assert reports[-1].intact, reports[-1]
    shown = browser.show("".join(render(reports, made="now", version="0")))
    assert {state for state, _ in (shown.overall, *shown.sessions)} == {"whole"}, shown
