"""Atlas/1.0 as data: what exists, and what is allowed. Frozen; unknown keys are errors below the top level.

Source: the published ``atlas-manifest.schema.json``, and beyond it inline context blocks,
``conditions.parameters``, ``conditions.arguments``, ``redact``, ``personal``, ``_`` and ``-`` inside ids, and two
older names of ``require_approval``.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    model_validator,
)

RiskTier = Literal["low", "medium", "high", "critical"]
RISK_TIERS: tuple[RiskTier, ...] = ("low", "medium", "high", "critical")
"""In order: a policy on ``high`` is about requests or actions of that tier, whichever of the two is higher."""

PolicyType = Literal["allow", "deny", "require_approval", "rate_limit", "budget", "scope"]
ContentType = Literal["text/markdown", "text/plain", "application/json"]
Scope = Literal["action", "agent", "session", "global"]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

ATLAS_ID = r"^[a-z][a-z0-9]*(\.[a-z][a-z0-9-]*)+$"
ACTION_ID = r"^[a-z][a-z0-9_-]*(\.[a-z][a-z0-9_-]*)+$"
CAPABILITY_ID = r"^[a-z][a-z0-9_-]*(\.[a-z][a-z0-9_-]*)*$"
# https://semver.org/#is-there-a-suggested-regular-expression-regex-to-check-a-semver-string
SEMVER = (
    r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(-((0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(\+([0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*))?$"
)


def _plain(text: str) -> str:
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) <= 0xDFFF for letter in text):
        raise ValueError("control characters and lone surrogates are not allowed here")
    return text


Id = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_plain)]
Strings = Annotated[tuple[Annotated[str, AfterValidator(_plain)], ...], Field(strict=False)]
SomeStrings = Annotated[Strings, Field(min_length=1)]
JsonSchema = dict[str, JsonValue]


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a folder of the zone database
        raise ValueError(f"{name[:64]!r} is no IANA time zone, such as Europe/Berlin") from None
    return name


class TimeWindow(_Closed):
    """When a policy counts, by the clock on the wall of an IANA zone: start inclusive, end exclusive.

    An end before the start wraps midnight. A missing start is 00:00, a missing end 24:00.
    """

    start: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?$")] | None = None
    end: Annotated[str, Field(pattern=r"^(([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?|24:00(:00)?)$")] | None = None
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    days: Annotated[tuple[Day, ...], Field(strict=False, min_length=1)] | None = None
    """Those on which the window opens; left out means all."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.start is not None and self.end is not None and f"{self.start}:00"[:8] == f"{self.end}:00"[:8]:
            raise ValueError("start equals end: write neither for the whole day, or correct one")
        return self


class Conditions(_Closed):
    """Every condition present must hold; inside a list one is enough."""

    risk_tiers: Annotated[tuple[RiskTier, ...], Field(strict=False, min_length=1)] | None = None
    agents: SomeStrings | None = None
    capabilities: SomeStrings | None = None
    context_matches: Annotated[dict[str, str], Field(min_length=1)] | None = None
    time_window: TimeWindow | None = None
    parameters: JsonSchema | None = None
    """A JSON Schema that the call's arguments must satisfy (our extension)."""
    arguments: Annotated[dict[str, JsonValue], Field(min_length=1)] | None = None
    """A test for each argument named, as rules write them (our extension); see ``argument_tests``."""


class Parameters(_Closed):
    """What any policy may say beside its type's own keys."""

    reason: str | None = None
    """The sentence an agent is shown."""
    enforcement: Literal["enforce", "shadow"] = "enforce"


Algorithm = Literal["fixed", "sliding"]
Cost = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class ApprovalParameters(Parameters):
    """Who may say yes, and for how long the question stands."""

    approvers: SomeStrings | None = None
    """Names of persons or of groups; left out means anyone but the agent itself."""
    expires_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = None


WindowSeconds = Annotated[int, Field(ge=1, le=10 * 366 * 86_400)]
"""At most ten years: what is longer is a mistake, and no counter's clock goes that far."""


class RateLimitParameters(Parameters):
    """``max_calls`` in a window of ``window_seconds``, counted by ``scope``."""

    max_calls: Annotated[int, Field(ge=1)]
    window_seconds: WindowSeconds
    algorithm: Algorithm = "fixed"
    scope: Scope | None = None
    """Left out: per policy, agent and action."""


class BudgetParameters(Parameters):
    """At most ``max_cost`` in a window, or in a session when there is no window. A call costs one of three."""

    max_cost: Cost
    window_seconds: WindowSeconds | None = None
    algorithm: Algorithm = "fixed"
    cost: Cost | None = None
    """The same for each call."""
    cost_parameter: Id | None = None
    """What the argument of this name says."""
    cost_function: Id | None = None
    """What ``Runtime(costs={...})`` computes under this name (our extension)."""
    scope: Scope | None = None


PARAMETERS: dict[PolicyType, type[Parameters]] = {
    "allow": Parameters,
    "deny": Parameters,
    "require_approval": ApprovalParameters,
    "rate_limit": RateLimitParameters,
    "budget": BudgetParameters,
}
"""The closed ``parameters`` of each type. ``scope`` restricts nothing and may say anything."""

_OLD_NAMES = {"requires_approval": "require_approval", "approval": "require_approval"}


class Policy(_Closed):
    """One rule: a type, the actions it is about, and when it counts."""

    policy_id: Id
    type: Annotated[
        PolicyType, BeforeValidator(lambda name: _OLD_NAMES.get(name, name) if isinstance(name, str) else name)
    ]
    priority: int = 0
    """Higher is looked at earlier, inside one phase."""
    name: str | None = None
    description: str | None = None
    actions: SomeStrings = ("*",)
    """Globs; left out means all."""
    conditions: Conditions = Conditions()
    parameters: dict[str, JsonValue] = {}
    """As written; ``rules_of`` reads it by type."""

    def rules_of(self) -> Parameters:
        """``parameters``, read by the policy's type.

        Raises:
            pydantic.ValidationError: when a key is unknown, missing or of the wrong type.
        """
        model = PARAMETERS.get(self.type)
        return Parameters() if model is None else model.model_validate(self.parameters)


class RateLimit(_Closed):
    """An action's own limit, in fixed windows, per agent."""

    max_calls: Annotated[int, Field(ge=1)]
    window_seconds: WindowSeconds


class Action(_Closed):
    """Something a tool can do."""

    action_id: Annotated[str, Field(pattern=ACTION_ID, max_length=255)]
    name: str
    description: str
    parameters_schema: JsonSchema | None = None
    returns_schema: JsonSchema | None = None
    risk_tier: RiskTier = "low"
    idempotent: bool = False
    requires_confirmation: bool = False
    executor: str | None = None
    timeout_seconds: Annotated[int, Field(ge=1, le=300)] = 30
    rate_limit: RateLimit | None = None
    examples: Annotated[tuple[dict[str, JsonValue], ...], Field(strict=False)] = ()


class Capability(_Closed):
    """A named group of actions, and the context packs that explain them."""

    capability_id: Annotated[str, Field(pattern=CAPABILITY_ID, max_length=255)]
    name: str
    description: str | None = None
    actions: Strings = ()
    context_packs: Strings = ()


class ContextPack(_Closed):
    """Documents for the agent, one block a file."""

    pack_id: Id
    name: str
    description: str | None = None
    files: SomeStrings
    priority: Annotated[int, Field(ge=0, le=1000)] = 100
    conditions: Conditions = Conditions()
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """Whole blocks are left out beyond it; none is ever cut."""


class ContextBlock(_Closed):
    """A document written inside the manifest."""

    context_id: Annotated[str, Field(min_length=1, validation_alias=AliasChoices("context_id", "block_id"))]
    name: str | None = None
    content: str
    content_type: ContentType = "text/markdown"
    priority: Annotated[int, Field(ge=0, le=1000)] = 100
    keywords: Strings = ()
    risk_tiers: Annotated[tuple[RiskTier, ...], Field(strict=False)] = ()
    inject_mode: Literal["always", "on_match", "on_demand", "risk_based"] = "on_match"
    also_inject: Strings = ()


class ToolTarget(_Closed):
    """The long form of a tool map's entry."""

    action: str
    args: dict[str, str] = {}
    """The tool's argument names to the action's."""


class AdapterConfig(BaseModel):
    """What one framework's adapter is told; open, as published."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    enabled: bool = True
    settings: dict[str, JsonValue] = {}
    tools: dict[str, str | ToolTarget] = {}
    """Tool names to action ids."""


class Manifest(BaseModel):
    """A whole Atlas manifest. Unknown top-level keys are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    atlas_version: Literal["1.0"]
    atlas_id: Annotated[str, Field(pattern=ATLAS_ID, max_length=255)]
    version: Annotated[str, Field(pattern=SEMVER)]
    name: Annotated[str, Field(min_length=1, max_length=100)]
    description: Annotated[str, Field(max_length=1000)]
    authors: Strings = ()
    license: str | None = None
    homepage: str | None = None
    repository: str | None = None
    domains: Strings = ()
    capabilities: Annotated[tuple[Capability, ...], Field(strict=False)] = ()
    context_packs: Annotated[tuple[ContextPack, ...], Field(strict=False)] = ()
    context_blocks: Annotated[tuple[ContextBlock, ...], Field(strict=False)] = ()
    policies: Annotated[tuple[Policy, ...], Field(strict=False)] = ()
    actions: Annotated[tuple[Action, ...], Field(strict=False)] = ()
    adapters: dict[str, AdapterConfig] = {}
    dependencies: dict[str, str] = {}
    metadata: dict[str, JsonValue] = {}
    redact: Strings = ()
    """Values that never reach a sink, as ``redactions`` reads them (our extension)."""
    personal: Strings = ()
    """Values that a trace holds a commitment to, and a sidecar until they are erased (our extension)."""
