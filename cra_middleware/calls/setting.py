"""What the sessions of one runtime share, and what tells them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from cra_middleware._clock import Clock
from cra_middleware.calls.desk import Desk
from cra_middleware.calls.keeping import Keeping
from cra_middleware.carp.call import Shadow, ToolCall
from cra_middleware.carp.messages import Resolution
from cra_middleware.carp.policy import Facts
from cra_middleware.carp.quota import Counters
from cra_middleware.carp.resolve import Options
from cra_middleware.observer import Observer, Subject
from cra_middleware.policies import Epoch, InForce
from cra_middleware.sidecar import Sidecar


@dataclass(frozen=True, slots=True)
class Setting:
    """What every session of one runtime shares."""

    policies: InForce
    counters: Counters
    clock: Clock
    desk: Desk
    observer: Observer
    options: Options
    keeping: Keeping
    sidecar: Sidecar | None = None
    """Where personal values are kept."""
    on_shadow: Callable[[ToolCall, Shadow], None] | None = None
    """Hears of each call that runs only because a policy is not enforced."""


class Identity(NamedTuple):
    """Who a session is."""

    session_id: str
    trace_id: str
    span_id: str
    goal: str
    facts: Facts
    behalf: str | None = None
    """On whose behalf it acts, where that is told."""

    @property
    def data_subject(self) -> str:
        """Under whose name its personal values are kept."""
        return self.behalf or self.session_id

    @property
    def subject(self) -> Subject:
        """Who it is, to an observer."""
        return Subject(self.session_id, self.trace_id, self.facts.agent_id)


class Resolved(NamedTuple):
    """The resolution that calls are made under."""

    resolution: Resolution
    resolution_id: str
    span_id: str
    expires_us: int
    epoch: Epoch
    """The policies it was made under."""
