"""Every shared decision vector: the verdict, the code, the policy, and that a refused tool did not run."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Runtime
from cra_middleware.errors import ApprovalRequired, CallRefused
from cra_middleware.testing import FrozenClock
from cra_middleware.trace.event import Event
from tests.conftest import CONFORMANCE

FILE = CONFORMANCE / "decisions.json"

VECTORS = json.loads(FILE.read_text())["vectors"] if FILE.is_file() else []


def test_there_are_vectors(conformance: Path) -> None:
    assert len(VECTORS) > 30


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_vector(vector: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "atlas.json"
    path.write_text(json.dumps(vector["atlas"]))
    clock = FrozenClock(vector["start"])
    options = {"default_decision": vector["default_decision"]} if "default_decision" in vector else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        runtime = Runtime(path, clock=clock, **options)
    now = 0
    sessions: dict[str, Any] = {}
    for step in vector["steps"]:
        clock.advance(step["at"] - now)
        now = step["at"]
        key = json.dumps([step["agent_id"], step.get("risk_tier"), step.get("context")])
        if key not in sessions:
            facts = {name: step[name] for name in ("risk_tier", "context") if name in step}
            sessions[key] = runtime.session(agent_id=step["agent_id"], **facts)
        ran: list[dict[str, Any]] = []

        def tool(ran: list[dict[str, Any]] = ran, /, **arguments: Any) -> str:
            ran.append(arguments)
            return "ran"

        expected = step["expect"]
        try:
            value = sessions[key].call(step["action"], lambda **arguments: tool(**arguments), **step["arguments"])
        except CallRefused as refusal:
            assert ran == []
            verdict = "require_approval" if isinstance(refusal, ApprovalRequired) else "deny"
            assert verdict == expected["verdict"]
            assert refusal.code == expected.get("code", refusal.code)
            assert refusal.policy_id == expected.get("policy_id", refusal.policy_id)
        else:
            assert (expected["verdict"], value, ran) == ("allow", "ran", [step["arguments"]])
        shadows = [event.payload["policy_id"] for event in sessions[key].events if _is_shadow(event)]
        assert shadows == ([step["shadow"]] if "shadow" in step else [])
    runtime.close()


def _is_shadow(event: Event) -> bool:
    return event.payload.get("effect") == "shadow_deny"
