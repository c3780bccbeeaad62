"""What clients send: the published bodies with our optional keys. An unknown key is refused, for it may be a misspelt
restriction."""

from __future__ import annotations

import json
from hashlib import sha256
from itertools import islice
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from cra_middleware.atlas.manifest import RiskTier
from cra_middleware.carp.messages import Request, Uuid
from cra_middleware.server.faults import MOST_FINDINGS, Fault

Body = TypeVar("Body", bound=BaseModel)
MAX_NAME, MAX_GOAL = 255, 10_000
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
Names = Annotated[list[Name], Field(fail_fast=True)]  # a mistake for each item would be megabytes of them
Timestamp = Annotated[str, Field(max_length=64)]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class CreateSession(_Body):
    """``POST /v1/sessions``."""

    agent_id: Name
    goal: Annotated[str, Field(min_length=1, max_length=MAX_GOAL)]
    atlas_id: Name | None = None
    metadata: dict[str, JsonValue] = {}
    risk_tier: RiskTier = "low"
    context: dict[str, JsonValue] = {}
    atlas_ids: Names | None = None
    external_id: Name | None = None
    subject: Name | None = None
    parent_session_id: Uuid | None = None
    session_id: Uuid | None = None
    request: Annotated[Request | None, Field(strict=False)] = None


class Requester(_Body):
    """Who asks."""

    agent_id: Name
    session_id: Uuid
    parent_session_id: Uuid | None = None


class Task(_Body):
    """What for; nothing here decides a call."""

    goal: str | None = None


class Execution(_Body):
    """The call."""

    resolution_id: Uuid | None = None
    action_id: Name
    parameters: dict[str, JsonValue]
    idempotency_key: Name | None = None
    tool_name: Name | None = None
    tool_call_id: Name | None = None
    agent_name: Name | None = None
    framework: Name | None = None
    distrust: Text | None = None
    tagged: bool = False


class Execute(_Body):
    """``POST /v1/execute``."""

    carp_version: Literal["1.0"]
    request_id: Uuid
    timestamp: Timestamp
    operation: Literal["execute"]
    requester: Requester
    task: Task | None = None
    execution: Execution


class ReportedError(_Body):
    """What a tool raised."""

    code: Annotated[str, Field(min_length=1, max_length=100)]
    message: Annotated[str, Field(max_length=10_000)] = ""


class Report(_Body):
    """``POST /v1/executions/{execution_id}/report``."""

    session_id: Uuid
    status: Literal["success", "error"]
    duration_ms: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    result_hash: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    error: ReportedError | None = None


class Reject(_Body):
    """``POST /v1/executions/reject``."""

    session_id: Uuid
    action_id: Name
    tool_name: Name
    reason: Text
    parameters: dict[str, JsonValue] = {}
    tool_call_id: Name | None = None
    agent_name: Name | None = None


class WouldWait(_Body):
    """``POST /v1/executions/would-wait``."""

    session_id: Uuid
    action_id: Name
    parameters: dict[str, JsonValue]
    tool_name: Name | None = None
    tool_call_id: Name | None = None
    agent_name: Name | None = None
    distrust: Text | None = None
    tagged: bool = False


class Reply(_Body):
    """``POST /v1/approvals/{approval_id}/approve`` and ``/reject``."""

    reason: Annotated[str, Field(max_length=1000)] | None = None
    groups: Names = []


class End(_Body):
    """``POST /v1/sessions/{session_id}/end``."""

    reason: Literal["completed", "timeout", "error", "cancelled"] = "completed"
    error: Annotated[str, Field(max_length=1000)] | None = None


class Note(_Body):
    """``POST /v1/traces/{session_id}/note``."""

    error_code: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,100}$")]
    message: Text


def read_body(model: type[Body], value: object, code: str = "INVALID_CARP_REQUEST") -> Body:
    """``value`` as a ``model``.

    Raises:
        Fault: with every mistake's place, or their number where they are many; never with the value itself.
    """
    try:
        return model.model_validate(value)
    except RecursionError:
        findings = list[dict[str, str]]()
    except ValidationError as error:
        findings = _findings(model, value, error)
    raise Fault(code, "the body is not what this endpoint takes", details={"findings": findings})


def _findings(model: type[BaseModel], value: object, error: ValidationError) -> list[dict[str, str]]:
    count = error.error_count()
    if count <= MOST_FINDINGS:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)
        return [{"at": "/" + "/".join(str(part)[:100] for part in item["loc"]), "why": item["msg"]} for item in wrong]
    why = f"{count} mistakes are in it, too many to be told one by one"
    if isinstance(value, dict) and issubclass(model, _Body):  # a Request has older names, too
        unknown = islice((str(key)[:100] for key in value if key not in model.model_fields), 3)
        names = ", ".join(unknown)
        why += f"; the first keys that are not known here: {names}" if names else ""
    return [{"at": "/", "why": why}]


def digest_of(value: object) -> str:
    """Whether two requests say the same: SHA-256 over a JSON value."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
