"""Counting what traces say was decided: by action, by policy, by verdict, and in the shadow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from cra_middleware.trace.event import Event

OUTCOMES = ("allowed", "denied", "asked", "executed", "failed")


@dataclass(slots=True)
class ActionCount:
    """One action's calls."""

    calls: int = 0
    allowed: int = 0
    denied: int = 0
    asked: int = 0
    """Calls that waited for a person, and attempts to go on with them."""
    approved_by_person: int = 0
    executed: int = 0
    failed: int = 0
    duration_ms: int = 0
    """Of all that ran."""
    codes: Counter[str] = field(default_factory=Counter)
    """Denials by code."""
    shadow: Counter[str] = field(default_factory=Counter)
    """What policies in the shadow would have refused, by policy."""


@dataclass(slots=True)
class Report:
    """What all sessions come to."""

    sessions: int = 0
    sealed: int = 0
    agents: set[str] = field(default_factory=set)
    actions: dict[str, ActionCount] = field(default_factory=dict)
    policies: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often a policy decided, by what: allow, deny, ask, shadow."""

    def add(self, events: Iterable[Event]) -> None:
        """Count one session, event by event."""
        spans: set[str] = set()  # of its calls: a resolution evaluates policies, too
        for event in events:
            if event.event_type == "action.requested":
                spans.add(event.span_id)
            if event.event_type != "policy.evaluated" or event.span_id in spans:
                self._add(event)

    def _add(self, event: Event) -> None:
        payload = event.payload
        match event.event_type:
            case "session.started":
                self.sessions += 1
                self.agents.add(str(payload.get("agent_id")))
            case "session.ended":
                self.sealed += 1
            case "action.requested":
                self._of(event).calls += 1
            case "policy.evaluated" if payload.get("effect") == "shadow_deny":
                self._of(event).shadow[str(payload.get("policy_id"))] += 1
                self._decided(event, "shadow")
            case "policy.evaluated" if payload.get("effect") == "require_approval":
                self._of(event).asked += 1
                self._decided(event, "ask")
            case "action.approved":
                count = self._of(event)
                count.allowed += 1
                count.approved_by_person += "approval_id" in payload
                self._decided(event, "allow")
            case "action.denied":
                count = self._of(event)
                count.denied += 1
                count.codes[str(payload.get("code", "denied"))] += 1
                self._decided(event, "deny")
            case "action.executed" | "action.failed":
                count = self._of(event)
                count.executed += event.event_type == "action.executed"
                count.failed += event.event_type == "action.failed"
                duration = payload.get("duration_ms")
                count.duration_ms += duration if isinstance(duration, int) else 0

    def _of(self, event: Event) -> ActionCount:
        return self.actions.setdefault(str(event.payload.get("action_id")), ActionCount())

    def _decided(self, event: Event, word: str) -> None:
        policy_id = event.payload.get("policy_id")
        if isinstance(policy_id, str):
            self.policies[policy_id, word] += 1

    def as_json(self) -> dict[str, object]:
        """The same numbers for programs."""
        return {
            "sessions": self.sessions,
            "sealed": self.sealed,
            "agents": sorted(self.agents),
            "actions": {
                name: {
                    **{key: getattr(count, key) for key in ("calls", *OUTCOMES, "approved_by_person", "duration_ms")},
                    "codes": dict(sorted(count.codes.items())),
                    "shadow": dict(sorted(count.shadow.items())),
                }
                for name, count in sorted(self.actions.items())
            },
            "policies": [
                {"policy_id": name, "decided": word, "count": count}
                for (name, word), count in sorted(self.policies.items())
            ],
        }
