"""The served OpenAPI document: it holds the published one, and the server does as it says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cra_middleware.server.openapi import document
from tests.conftest import manifest
from tests.server.serving import Process, Served
from tests.server.test_program import execution

METHODS = ("get", "put", "post", "delete", "patch")
LOOSER = {"execution.resolution_id"}
"""Keys that the published document requires, and ours does not."""
NULLABLE = ("reason", "approval_id", "expires_at", "parent_span_id")
MORE = ("get", "/v1/traces/{session_id}", "200")
"""The one answer that tells more than the published document, beside its body: where the next part is."""


@pytest.fixture(scope="module")
def ours() -> Any:
    return yaml.safe_load(document()[0])


@pytest.fixture
def published(conformance: Path) -> Any:
    return yaml.safe_load((conformance / "reference" / "openapi.yaml").read_text())


def test_every_published_path_method_and_status_is_there(published: Any, ours: Any) -> None:
    """With its parameters and the shape of its body and its answers."""
    for path, methods in published["paths"].items():
        for method, operation in methods.items():
            mine = ours["paths"][path][method]
            assert mine["operationId"] == operation["operationId"]
            assert set(operation["responses"]) <= set(mine["responses"]), f"{method} {path}"
            for status, answer in operation["responses"].items():
                told = dict(mine["responses"][status])
                if (method, path, status) == MORE:
                    assert told.pop("headers").keys() == {"Link"}
                assert answer == told, f"{method} {path} {status}"
            assert operation.get("parameters", []) == mine.get("parameters", [])
            assert operation.get("requestBody") == mine.get("requestBody")


def test_every_published_key_is_there(published: Any, ours: Any) -> None:
    """Of the same type, and required where it was required."""
    for name, schema in published["components"]["schemas"].items():
        compare(name, schema, ours["components"]["schemas"][name])
    for name, shape in published["components"]["parameters"].items():
        assert ours["components"]["parameters"][name] == shape
    assert ours["components"]["securitySchemes"] == published["components"]["securitySchemes"]
    assert ours["security"] == published["security"]


def compare(where: str, theirs: Any, mine: Any) -> None:
    missing = set(theirs.get("required", [])) - set(mine.get("required", []))
    assert {f"{where.rpartition('.')[2]}.{key}" for key in missing} <= LOOSER, f"{where}: {missing}"
    if "type" in theirs:
        kinds = mine["type"] if isinstance(mine["type"], list) else [mine["type"]]
        assert theirs["type"] in kinds, where
        assert len(kinds) == 1 or where.rpartition(".")[2] in NULLABLE, where
    assert set(theirs.get("enum", [])) <= set(mine.get("enum", [])), where
    for key, schema in theirs.get("properties", {}).items():
        compare(f"{where}.{key}", schema, mine["properties"][key])
    if isinstance(theirs.get("items"), dict):
        compare(f"{where}[]", theirs["items"], mine["items"])
    assert theirs.get("$ref") == mine.get("$ref"), where


def test_routes_and_document_are_the_same(served: Served, ours: Any) -> None:
    """Nothing is served that is not written down, and nothing written down that is not served; but for the pages."""
    written = {f"{method.upper()} {path}" for path, methods in ours["paths"].items() for method in methods}
    written |= {f"WebSocket {path}" for path in ours["x-websockets"]}
    assert {route.name for route in served.app.routes if not route.name.startswith("page ")} == written


def test_it_is_served(served: Served) -> None:
    """As a file, to everybody."""
    answer = served.by("bot").get("/v1/openapi.yaml")
    assert answer.content == document()[0]
    assert answer.headers["content-type"].startswith("application/yaml")


@pytest.mark.slow
def test_schemathesis(process: Any) -> None:
    """Thousands of requests made from the document: no 500, no answer that is not in it."""
    pytest.importorskip("schemathesis")
    ask = {"policy_id": "ask", "type": "require_approval", "actions": ["refund.create"]}
    server: Process = process(atlas=manifest(policies=[*manifest()["policies"], ask]))
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    with httpx.Client(base_url=server.url) as client:
        session = client.post("/v1/sessions", json={"agent_id": "bot", "goal": "Help"}).json()["session_id"]
        executions = [client.post("/v1/execute", json=execution(session, n)).json()["execution_id"] for n in range(20)]
        questions = []
        for number in range(20):
            body = execution(session, number)
            body["execution"]["action_id"] = "refund.create"
            questions.append(client.post("/v1/execute", json=body).json()["error"]["details"]["approval_id"])
    known = {
        "CRA_TEST_SESSION": session,
        "CRA_TEST_EXECUTIONS": " ".join(executions),
        "CRA_TEST_APPROVALS": " ".join(questions),
        "SCHEMATHESIS_HOOKS": "tests.server.schemathesis_hooks",
    }
    command = [sys.executable, "-m", "schemathesis.cli", "run", server.url + "/v1/openapi.yaml", "--checks", checks]
    more = ["--max-examples", "60", "--phases", "examples,coverage,fuzzing,stateful", "--no-color", "--seed", "1"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [*command, *more], capture_output=True, text=True, timeout=900, cwd=root, env={**os.environ, **known}
    )
    shutil.rmtree(root / ".hypothesis", ignore_errors=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    with httpx.Client(base_url=server.url) as client:
        assert client.post(f"/v1/traces/{session}/verify").json()["valid"]
        assert client.get(f"/v1/traces/{session}").json()["total"] > 200
