"""Lets requests made from the document reach what lies behind their checks: this time, a session that is open."""

from __future__ import annotations

import os
import random
from datetime import datetime, timezone
from typing import Any

import schemathesis

SESSION = os.environ.get("CRA_TEST_SESSION", "")
EXECUTIONS = os.environ.get("CRA_TEST_EXECUTIONS", "").split()
APPROVALS = os.environ.get("CRA_TEST_APPROVALS", "").split()
ACTIONS = ("ticket.get", "ticket.delete", "refund.create")


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if not isinstance(body, dict) or random.random() < 0.3:
        return body
    if "timestamp" in body:
        body["timestamp"] = datetime.now(timezone.utc).isoformat()
    if isinstance(body.get("requester"), dict):
        body["requester"] |= {"agent_id": "bot", "session_id": SESSION}
        body.pop("atlas_ids", None)
    if isinstance(body.get("execution"), dict):
        body["execution"]["action_id"] = random.choice(ACTIONS)
        body["execution"].pop("resolution_id", None)
    if "session_id" in body and context.operation.path.startswith("/v1/executions"):
        body["session_id"] = SESSION
    for key in ("parent_session_id", "atlas_id", "atlas_ids", "request") if "goal" in body else ():
        body.pop(key, None)
    return body


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    known = {"session_id": [SESSION], "execution_id": EXECUTIONS, "approval_id": APPROVALS}
    is_end = context.operation.method == "delete" or context.operation.path.endswith("/end")
    for key in path_parameters or ():
        if known.get(key) and not is_end and random.random() < 0.6:
            path_parameters[key] = random.choice(known[key])
    return path_parameters
