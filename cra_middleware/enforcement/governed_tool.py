"""A framework's tool, and its calls before they are decided: the arguments that its body is about to get."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import orjson

from cra_middleware.approvals.approval import Approver
from cra_middleware.atlas.lock import tool_digest
from cra_middleware.carp.call import Target
from cra_middleware.enforcement.governed_call import GovernedCall
from cra_middleware.errors import AuditUnavailable, CallRefused, RuntimeUnreachable
from cra_middleware.sessions.session import Session


class Point(Protocol):
    """The enforcement point that a tool belongs to, as far as its calls need it."""

    def session(
        self,
        *,
        run: str | None = None,
        agent: str | None = None,
        resumed: Collection[str] = (),
        kept: str | None = None,
        keep: bool = False,
        call_id: str | None = None,
    ) -> Session:
        """The session that governs a call."""
        ...

    def target(self, name: str, declared: str | None = None, server: str | None = None) -> Target:
        """What a tool stands for now."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class GovernedTool:
    """A tool of a framework, as the runtime is told about it."""

    point: Point
    name: str
    source: str
    """Where it comes from, as ``atlas.lock`` says it."""
    title: str
    """How the trace names it: module and qualified name, or server and tool."""
    declared: str | None
    body: Callable[..., object] | None
    description: str
    schema: Mapping[str, Any] | None
    defaults: Mapping[str, object]
    """What its body fills in for arguments that are not given."""
    without: frozenset[str]
    """What the framework gives the body beside the arguments."""
    server: str | None = None  # as the operator named it

    def call(
        self,
        arguments: object,
        *,
        call_id: str | None = None,
        agent: str | None = None,
        run: str | None = None,
        approver: Approver | None = None,
        session: Session | None = None,
    ) -> GovernedCall:
        """A call of it, not yet decided.

        Args:
            arguments: by name, as the body is about to get them, its defaults aside; what is no mapping is refused
                and recorded. A dictionary that holds something else when the body would run is refused, too.
            call_id: the framework's id of the call.
            agent: the framework's name of the agent that calls.
            run: the framework's id of the run, thread or conversation.
            approver: the framework's way to ask a person, for when the runtime has none.
            session: which governs it, where the adapter knows; else ``EnforcementPoint.session`` says.

        Raises:
            CallRefused: when no session governs it.
        """
        if session is None:
            session = self.point.session(run=run, agent=agent, call_id=call_id)
        target = self.point.target(self.name, self.declared, self.server)
        try:
            if not isinstance(arguments, Mapping):
                raise TypeError(f"the arguments are no object but a {type(arguments).__name__}")
            given = {key: value for key, value in arguments.items() if key not in self.without}
            frozen = target.call(self.title, {**self.defaults, **given}, call_id)
            if isinstance(arguments, dict):
                frozen = frozen._replace(is_held=partial(_still_holds, arguments, given, self.without))
        except Exception as error:  # noqa: BLE001  foreign arguments: a call that cannot be read is recorded and denied
            frozen = target.call(self.title, {}, call_id)._replace(problem=str(error) or type(error).__name__)
        if agent is not None:
            frozen = frozen._replace(agent_name=agent)
        distrust = self._distrust(session)
        if distrust is not None:
            frozen = frozen._replace(distrust=distrust)
        return GovernedCall(session, frozen, _governed_inside(self.body), approver, agent)

    def missing(self, arguments: object, *, call_id: str | None, agent: str | None, run: str | None) -> CallRefused:
        """Record a call of a tool that the framework does not have, and return the refusal.

        Raises:
            CallRefused: when it cannot be recorded.
        """
        call = self.call(_object(arguments), call_id=call_id, agent=agent, run=run)
        try:
            return call.run(_no_tool)
        except AuditUnavailable:
            raise
        except CallRefused as refusal:
            return refusal
        except LookupError:  # its name is one of an action that is allowed: recorded as failed
            return CallRefused(f"there is no tool named {self.name!r}", code="unknown_action")

    def is_shown(self, session: Session) -> bool:
        """Whether some call of it could ever be allowed: a model need not be shown the others, nor be told by one that
        changed since it was looked at. Where the server that decides does not say, it is shown, and its calls are
        refused."""
        try:
            if self._distrust(session) is not None and not session.is_observing:
                return False
            return session.can_reach(self.point.target(self.name, self.declared, self.server).action_id)
        except RuntimeUnreachable:
            return True

    def _distrust(self, session: Session) -> str | None:
        return session.distrust(self.source, self.name, lambda: tool_digest(self.name, self.description, self.schema))


def _still_holds(caller: dict[str, object], given: Mapping[str, object], without: frozenset[str]) -> bool:
    """Whether the very objects are still in it; what is in those, the call looks at itself."""
    now = {key: value for key, value in caller.items() if key not in without}
    return now.keys() == given.keys() and all(now[key] is value for key, value in given.items())


def _object(arguments: object) -> object:
    """Arguments that a model wrote as JSON text, read."""
    if isinstance(arguments, (str, bytes)):
        try:
            return orjson.loads(arguments or b"{}")
        except ValueError:
            return arguments
    return {} if arguments is None else arguments


def _no_tool() -> CallRefused:
    raise LookupError("there is no such tool")


def _governed_inside(body: object) -> object:
    """The ``@governed`` function in a body, below whatever other decorators copied its attributes."""
    while hasattr(getattr(body, "__wrapped__", None), "cra_action"):
        body = body.__wrapped__  # type: ignore[attr-defined]
    return body
