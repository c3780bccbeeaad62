"""CARP/1.0 on the wire: the request an agent sends and the resolution it gets.

Source: the published ``carp-request.schema.json`` and ``carp-resolution.schema.json``. Read but never
written: a flat body (``agent_id``, ``goal`` … at the top level) and ``requested_capabilities``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from cra_middleware._ids import UUID_TEXT
from cra_middleware.atlas.manifest import ATLAS_ID, ContentType, RateLimit, RiskTier

DecisionType = Literal["allow", "deny", "partial", "requires_approval"]
Uuid = Annotated[str, Field(pattern=f"^{UUID_TEXT.pattern}$")]
DEFAULT_TTL_SECONDS = 3600
MAX_TTL_SECONDS = 86_400


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Requester(_Message):
    """Who asks."""

    agent_id: Annotated[str, Field(min_length=1, max_length=255)]
    session_id: Uuid
    parent_session_id: Uuid | None = None


class Task(_Message):
    """What for."""

    goal: Annotated[str, Field(min_length=1, max_length=10_000)]
    risk_tier: RiskTier = "low"
    context_hints: tuple[str, ...] = ()
    required_capabilities: tuple[str, ...] = ()


class Request(_Message):
    """A CARP request, operation ``resolve``."""

    carp_version: Literal["1.0"] = "1.0"
    request_id: Uuid
    timestamp: str | None = None
    operation: Literal["resolve"] = "resolve"
    requester: Requester
    task: Task
    atlas_ids: tuple[Annotated[str, Field(pattern=ATLAS_ID)], ...] | None = None
    context: dict[str, JsonValue] = {}

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, body: object) -> object:
        """Read the older flat body, and the older name of ``required_capabilities``."""
        if not isinstance(body, dict):
            return body
        body = dict(body)
        for part, keys in (
            ("requester", ("agent_id", "session_id", "parent_session_id")),
            ("task", ("goal", "risk_tier", "context_hints", "required_capabilities", "requested_capabilities")),
        ):
            flat = {key: body.pop(key) for key in keys if key in body}
            if flat and part not in body:
                body[part] = flat
            elif flat:
                raise ValueError(f"{part} is given twice, flat and nested")
        task = body.get("task")
        if isinstance(task, dict) and "requested_capabilities" in task:
            task = dict(task)
            older = task.pop("requested_capabilities")
            if task.setdefault("required_capabilities", older) != older:
                raise ValueError("required_capabilities is given twice, under two names")
            body["task"] = task
        return body


class ResolutionDecision(_Message):
    """The answer in one word, and why."""

    type: DecisionType
    reason: str | None = None
    approval_id: str | None = None
    expires_at: str | None = None


class ContextBlockMessage(_Message):
    """A document for the agent."""

    block_id: str
    source: str
    content_type: ContentType
    content: str
    priority: int
    token_estimate: int


class _Sparse(_Message):
    """Absent values are left out."""

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {key: value for key, value in handler(self).items() if value is not None}


class AllowedAction(_Sparse):
    """An action the agent may call."""

    action_id: str
    name: str
    description: str
    parameters_schema: dict[str, JsonValue] | None = None
    returns_schema: dict[str, JsonValue] | None = None
    risk_tier: RiskTier
    requires_confirmation: bool
    idempotent: bool
    rate_limit: RateLimit | None = None


class DeniedAction(_Sparse):
    """An action the agent may not call, and by which policy."""

    action_id: str
    reason: str
    policy_id: str | None = None


class Constraint(_Message):
    """Something that is decided only at the call."""

    constraint_id: str
    type: Literal["rate_limit", "budget", "time_window", "require_approval", "scope"]
    parameters: dict[str, JsonValue] = {}


class Resolution(_Message):
    """What an agent may do, what it may not, and what it should know."""

    carp_version: Literal["1.0"] = "1.0"
    resolution_id: str
    request_id: str
    timestamp: str
    decision: ResolutionDecision
    context_blocks: tuple[ContextBlockMessage, ...]
    allowed_actions: tuple[AllowedAction, ...]
    denied_actions: tuple[DeniedAction, ...]
    constraints: tuple[Constraint, ...]
    ttl_seconds: Annotated[int, Field(ge=0, le=MAX_TTL_SECONDS)] = DEFAULT_TTL_SECONDS
    trace_id: str
