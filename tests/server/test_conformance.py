"""The published golden case and the shared decision vectors over HTTP: what is decided, and what is recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from cra_middleware import CallRefused, Runtime, verify
from cra_middleware.carp.messages import Request
from cra_middleware.testing import FrozenClock
from tests.conformance.test_decisions import VECTORS
from tests.conformance.test_golden import same
from tests.server.serving import Caller, Serve, Served, listening

pytest.importorskip("uvicorn")

CALLS = (
    ("resource.get", {"resource_id": "r1"}),
    ("resource.get", {}),
    ("resource.list", {"limit": 1000}),
    ("resource.create", {"name": "ü\u2028"}),
    ("resource.delete", {"resource_id": "r1"}),
    ("resource.unknown", {}),
)
SECOND = "00000000-0000-0000-0000-000000000002"
OWN = (
    *("resolution_id", "request_id", "request_key", "execution_id", "tool_name", "tool_call_id", "duration_ms"),
    "reported_by",
)
"""Keys of a payload that differ from run to run, or with who runs the tool."""


@pytest.fixture
def golden(conformance: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The case, and a folder with its Atlas alone, beside the document that is not shipped."""
    case = conformance / "reference" / "golden" / "simple-resolve"
    atlas = tmp_path / "golden"
    (atlas / "context").mkdir(parents=True)
    shutil.copy(case / "atlas.json", atlas)
    (atlas / "context" / "overview.md").write_text("# Overview\n")
    return case, atlas


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_the_golden_case(golden: tuple[Path, Path], serve: Serve, tmp_path: Path) -> None:
    """Asked over a socket, the request gives the published resolution and trace, and the calls after it the same
    verdicts and payloads as in one process."""
    case, atlas = golden
    request = json.loads((case / "request.json").read_text())
    session_id, agent_id = request["requester"]["session_id"], request["requester"]["agent_id"]
    served = serve(atlas, clock=FrozenClock(request["timestamp"]), expires_seconds=0)
    headers = {"x-api-key": served.key("bot")}
    asked = {"agent_id": agent_id, "goal": request["task"]["goal"], "request": request}
    with listening(served) as port, httpx.Client(base_url=f"http://localhost:{port}", headers=headers) as client:
        made = client.post("/v1/sessions", json=asked)
        assert made.status_code == 201, made.text
        found = made.json()["resolution"]
        expected = json.loads((case / "expected-resolution.json").read_text())
        same(expected, found)
        assert found.keys() == expected.keys() - {"$comment"}
        assert found["allowed_actions"] == expected["allowed_actions"]
        lines = [json.loads(line) for line in read_bytes(client, session_id).split(b"\n")[:-1]]
        for left, right in zip(read(case / "expected-trace.jsonl"), lines, strict=True):
            assert list(left) == list(right)
            same(left, right)
            assert right["payload"].keys() - left["payload"].keys() <= {"metadata"}
        again = client.post("/v1/resolve", json={**request, "request_id": SECOND})
        same({key: value for key, value in expected.items() if key != "request_id"}, again.json())
        codes: list[object] = []
        for number, (action_id, parameters) in enumerate(CALLS):
            body = Caller(served, {}).execution(session_id, action_id, agent_id=agent_id, parameters=parameters)
            answer = client.post("/v1/execute", json=body)
            codes.append(None if answer.status_code == 200 else answer.json()["error"]["details"]["reason_code"])
            if answer.status_code == 200:
                told = {"session_id": session_id, "status": "success", "duration_ms": number}
                where = f"/v1/executions/{answer.json()['execution_id']}/report"
                assert client.post(where, json=told).status_code == 200
        assert client.delete(f"/v1/sessions/{session_id}").status_code == 204
        verdict = client.post(f"/v1/traces/{session_id}/verify").json()
        assert (verdict["valid"], verdict["verdict"], verdict["errors"]) == (True, "INTACT, SEALED", [])
        file = tmp_path / f"{session_id}.trace.jsonl"
        file.write_bytes(read_bytes(client, session_id))
    assert verify(file).sealed
    lines = read(file)
    assert (codes, [payload_of(line) for line in lines]) == embedded(atlas, request)


def embedded(atlas: Path, request: dict[str, Any]) -> tuple[list[object], list[Any]]:
    """The same in one process: the codes of the refusals, and what is recorded."""
    codes: list[object] = []
    clock = FrozenClock(request["timestamp"])
    with Runtime(atlas, clock=clock) as runtime:
        runtime.resolve(request)
        session = runtime.find(request["requester"]["session_id"])
        assert session is not None
        session.resolve(Request.model_validate({**request, "request_id": SECOND}))
        for action_id, parameters in CALLS:
            try:
                session.call(action_id, lambda **values: None, **parameters)
                codes.append(None)
            except CallRefused as refusal:
                codes.append(refusal.code)
        session.end()
        return codes, [payload_of(event._asdict()) for event in session.events]


def payload_of(line: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What an event says, but for ids, times and who the session belongs to."""
    told = {key: value for key, value in line["payload"].items() if key not in OWN}
    if "metadata" in told:
        told["metadata"] = {key: value for key, value in told["metadata"].items() if key != "creator"}
    return line["event_type"], told


def read_bytes(client: httpx.Client, session_id: str) -> bytes:
    answer = client.get(f"/v1/traces/{session_id}?limit=1000", headers={"accept": "application/x-ndjson"})
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    return answer.content


def test_there_are_vectors(conformance: Path) -> None:
    assert len(VECTORS) > 30


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_vector(vector: dict[str, Any], serve: Serve) -> None:
    """The verdict, the code and the policy, and that what is refused is let run nowhere."""
    if "default_decision" in vector:
        pytest.skip("a server always denies by default")
    served: Served = serve(vector["atlas"], clock=FrozenClock(vector["start"]), expires_seconds=0)
    bot = served.by("bot")
    now, sessions, allowed = 0, {}, 0
    for step in vector["steps"]:
        served.clock.advance(step["at"] - now)
        now = step["at"]
        facts = {name: step[name] for name in ("risk_tier", "context") if name in step}
        key = json.dumps([step["agent_id"], facts], sort_keys=True)
        if key not in sessions:
            sessions[key] = bot.session(step["agent_id"], **facts)
        answer = bot.execute(sessions[key], step["action"], agent_id=step["agent_id"], parameters=step["arguments"])
        expected = step["expect"]
        if answer.status_code == 200:
            assert expected["verdict"] == "allow"
            call = answer.json()["execution_id"]
            assert bot.report(sessions[key], call).status_code == 200
            allowed += 1
        else:
            error = answer.json()["error"]
            assert expected["verdict"] == ("require_approval" if answer.status_code == 423 else "deny"), error
            assert error["details"]["reason_code"] == expected.get("code", error["details"]["reason_code"])
            assert error["details"].get("policy_id") == expected.get("policy_id", error["details"].get("policy_id"))
    ran = [kind for name in sessions.values() for kind in bot.kinds(name) if kind == "action.executed"]
    assert len(ran) == allowed
    for name in sessions.values():
        assert bot.post(f"/v1/traces/{name}/verify").json()["valid"]
