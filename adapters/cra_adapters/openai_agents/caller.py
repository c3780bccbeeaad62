"""Who calls: the agent and its run, as the tools that it is given are told."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from cra_middleware import CallRefused, Session
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, GovernedTool


@dataclass(eq=False)
class Run:
    """One run of the SDK's ``Runner``."""

    id: str
    shown: dict[str, frozenset[str]] = field(default_factory=dict)
    """The names that each agent may call, as of its last turn."""
    recorded: set[str] = field(default_factory=set)
    """The ids of calls of unknown tools that were recorded."""


current_run: ContextVar[Run | None] = ContextVar("cra_openai_agents_run", default=None)


@dataclass(frozen=True)
class Caller:
    """One agent, as the enforcement point is told about it."""

    point: EnforcementPoint
    agent: str | None
    pauses: bool = False

    @property
    def run(self) -> str | None:
        """The id of the run that goes on now."""
        run = current_run.get()
        return None if run is None else run.id

    def session(self, resumed: Sequence[str] = ()) -> Session:
        """The session that governs the agent.

        Raises:
            CallRefused: when there is none.
        """
        return self.point.session(run=self.run, agent=self.agent, resumed=resumed)

    def call(self, tool: GovernedTool, arguments: object, call_id: str | None, approver: Any = None) -> GovernedCall:
        """A call of the agent's.

        Raises:
            CallRefused: when no session governs it.
        """
        return tool.call(arguments, call_id=call_id, agent=self.agent, run=self.run, approver=approver)

    def reject(self, tool: GovernedTool, arguments: object, call_id: str | None, reason: str) -> CallRefused:
        """Record a call whose arguments the SDK refused."""
        try:
            return self.call(tool, arguments, call_id).reject(reason)
        except CallRefused as refusal:
            return refusal

    def missing(self, name: str, arguments: object, call_id: str | None) -> CallRefused:
        """Record a call of a tool that the agent does not have."""
        try:
            return self.point.tool(name).missing(arguments, call_id=call_id, agent=self.agent, run=self.run)
        except CallRefused as refusal:
            return refusal
