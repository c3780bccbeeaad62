"""The seam for adapters: one enforcement point for whatever a framework governs its tools with.

An adapter says what a tool is (``EnforcementPoint.tool``) and what its body is about to get (``GovernedTool.call``).
The call is then run: ``run`` and ``arun`` around a body, ``begin`` where a framework tells of the start and of the
end in two places, ``reject`` for what the framework refuses by itself. Whatever goes wrong before a tool runs is a
``CallRefused``: an adapter that turns this one type into its framework's own denial misses none.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

from cra_middleware.approvals import ApprovalError, Approver
from cra_middleware.atlas.lock import tool_digest
from cra_middleware.carp.call import Target, ToolCall
from cra_middleware.errors import AuditUnavailable, CallRefused, NoActiveSession, SinkError
from cra_middleware.open_call import OpenCall
from cra_middleware.run_sessions import RunSessions
from cra_middleware.runtime import Runtime
from cra_middleware.seams import require
from cra_middleware.session import Session, current_session
from cra_middleware.signatures import bind_arguments, describe

__all__ = ["EnforcementPoint", "GovernedCall", "GovernedTool", "OpenCall", "bind_arguments"]
__all__ += ["govern_function", "require"]

T = TypeVar("T")

_logger = logging.getLogger("cra_middleware")
_running: ContextVar[GovernedCall | None] = ContextVar("cra_running", default=None)


class EnforcementPoint:
    """Where the tools of one framework meet the runtime: which session governs a call, and what a tool stands for."""

    def __init__(
        self,
        runtime: Runtime | None,
        framework: str,
        *,
        actions: Mapping[str, str] | None = None,
        agent_id: str | None = None,
        goal: str | None = None,
    ) -> None:
        """Govern with ``runtime``.

        Args:
            runtime: None leaves it to the session that is current at a call; a call outside any is refused.
            framework: the section of ``adapters`` in an Atlas that maps this framework's tools.
            actions: tool names to action ids, before what the Atlas maps.
            agent_id: how policies and traces name an agent that the framework has no name for.
            goal: the operator's sentence for sessions that are opened here. Never a user's message.
        """
        self.framework = framework
        self._runtime = runtime
        self._actions = dict(actions or {})
        agent_id = agent_id or f"{framework.replace('_', '-')}-agent"
        self._sessions = RunSessions(runtime, agent_id, goal or f"Calls of governed tools ({framework})")

    def tool(
        self,
        name: str,
        *,
        body: Callable[..., object] | None = None,
        declared: str | None = None,
        description: str = "",
        schema: Mapping[str, Any] | None = None,
        origin: str | None = None,
        source: str | None = None,
        without: Collection[str] = (),
        server: str | None = None,
        names_itself: bool = False,
    ) -> GovernedTool:
        """One of the framework's tools.

        Args:
            name: as the model knows it.
            body: the Python function that it runs, if there is one; a ``@governed`` one is decided once.
            declared: the action that an in-process tool names itself; what ``@governed`` says is found in ``body``.
            description: what a model is told about it. ``atlas.lock`` holds a tool to it and to ``schema``.
            schema: of its arguments, as a model is shown it.
            origin: the server or the class it comes from, for the trace, where it has no function.
            source: whose tools an ``atlas.lock`` lists it under; the framework, if nothing is said.
            without: parameters of ``body`` that the framework fills itself, which are no arguments of a call.
            server: that it is on; begins keys ``server/tool``, unless that name is its own word (``names_itself``).
        """
        title = f"{origin or self.framework}.{name}" if body is None else describe(body)
        if server is not None:
            title, source = f"{self.framework}.{server}/{name}", source or f"{self.framework}:{server}"
        elif not title.endswith(f".{name}"):
            title = f"{title}/{name}"
        named = declared or getattr(body, "cra_action", None)
        declared = named if isinstance(named, str) else None
        defaults = {} if body is None else _defaults(body, without)
        source, hidden = source or self.framework, frozenset(without)
        server = None if names_itself else server
        return GovernedTool(self, name, source, title, declared, body, description, schema, defaults, hidden, server)

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
        """The session that governs a call of ``agent`` in ``run``.

        The current session, where there is one; else one for each run, and one for all calls that belong to none. An
        agent other than the one that a run began with, and one inside another's tool, gets its own below that. A run
        that is gone on with finds its session by its calls that were stopped, ``resumed``, or by the id that a
        framework stored with it, ``kept``; one of the same id by the call made now. ``keep``: outlives the runtime.

        Raises:
            CallRefused: when there is none, or none can be opened.
        """
        inside = _running.get()
        caller = None if inside is None else (inside.session, inside.agent)
        try:
            return self._sessions.find(run, agent, resumed, caller, kept, keep, call_id)
        except CallRefused:
            raise
        except SinkError as error:
            raise AuditUnavailable(f"no session could be opened ({error}), so the tool did not run") from error
        except Exception as error:  # an adapter relies on the one type, whatever a store or a name brings up
            _logger.exception("no session could be opened; the call is refused")
            raise NoActiveSession(f"no session could be opened ({type(error).__name__}: {error})") from error

    def end(self, run: str | None, *, can_wait: bool = True) -> None:
        """The framework says that ``run`` is over: its session ends, unless a person is still being asked in it.

        ``can_wait=False`` says that nobody could go on with it.
        """
        self._sessions.end(run, can_wait)

    def answer(self, call_id: str, *, approved: bool, by: str, reason: str | None = None) -> None:
        """A person answered the question about a call by the framework's own means, which does not call it again.

        Nothing happens where no question about a call of this id is open.
        """
        if self._runtime is None:
            return
        for waiting in self._runtime.approvals.list("pending"):
            if waiting.pending.tool_call_id == call_id:
                try:
                    approvals = self._runtime.approvals
                    answer = approvals.approve if approved else approvals.reject
                    answer(waiting.pending.approval_id, by=by, reason=reason)
                except ApprovalError as error:  # answered or expired meanwhile: it counts as it stands
                    _logger.warning("an answer does not count: %s", error)

    def target(self, name: str, declared: str | None = None, server: str | None = None) -> Target:
        """What a tool stands for now.

        Raises:
            NoActiveSession: when no runtime was given, and no session is current.
        """
        owner = self._runtime or current_session()
        if owner is None:
            raise NoActiveSession("no session is active; open one: with runtime.session(...):, or pass a runtime")
        return owner.target_for(name, self.framework, actions=self._actions, declared=declared, server=server)

    def caught(self, error: BaseException) -> CallRefused:
        """A refusal for a failure of ours, which is logged: nothing but a refusal may leave a hook."""
        if isinstance(error, CallRefused):
            return error
        _logger.error("a call could not be decided and is refused", exc_info=error)
        return CallRefused(f"the call could not be decided ({type(error).__name__})", code="internal_error")


@dataclass(frozen=True, slots=True, eq=False)
class GovernedTool:
    """A tool of a framework, as the runtime is told about it."""

    point: EnforcementPoint
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
                and recorded.
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
        changed since it was looked at."""
        if self._distrust(session) is not None and not session.is_observing:
            return False
        return session.can_reach(self.point.target(self.name, self.declared, self.server).action_id)

    def _distrust(self, session: Session) -> str | None:
        return session.distrust(self.source, self.name, lambda: tool_digest(self.name, self.description, self.schema))


@dataclass(frozen=True, slots=True, eq=False)
class GovernedCall:
    """One call, with the session that governs it."""

    session: Session
    call: ToolCall
    body: object = None
    approver: Approver | None = None
    agent: str | None = None

    def run(self, tool: Callable[[], T]) -> T:
        """Run ``tool`` once, or not at all.

        Raises:
            CallRefused: when it did not run.
        """

        def inside() -> T:
            with self._inside():
                return tool()

        return self.session.run(self.call, inside, self.body, self.approver)

    async def arun(self, tool: Callable[[], Awaitable[T]]) -> T:
        """As ``run``, for what has to be awaited."""

        async def inside() -> T:
            with self._inside():
                return await tool()

        return await self.session.arun(self.call, inside, self.body, self.approver)

    def begin(self) -> OpenCall:
        """Authorise the call; say later how it came out.

        Raises:
            CallRefused: when the tool must not run.
        """
        return self.session.begin(self.call, self.approver)

    async def abegin(self) -> OpenCall:
        """As ``begin``, on an event loop."""
        return await self.session.abegin(self.call, self.approver)

    def reject(self, reason: str) -> CallRefused:
        """Record that the framework itself refused the arguments, and return the refusal.

        Raises:
            CallRefused: when it cannot be recorded.
        """
        return self.session.reject(self.call, reason)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)


def govern_function(
    fn: Callable[..., Any],
    prepare: Callable[[dict[str, object]], GovernedCall],
    refused: Callable[[CallRefused], Any],
) -> Callable[..., Any]:
    """``fn``, decided each time it is called; a coroutine function stays one, and signature and hints stay.

    Args:
        fn: a function or a coroutine function.
        prepare: makes the call from the arguments that the body of ``fn`` gets, defaults included.
        refused: what the framework is given instead of a result; it may raise.
    """

    def asked(args: tuple[object, ...], kwargs: dict[str, object]) -> GovernedCall:
        try:
            arguments = bind_arguments(fn, args, kwargs)
        except TypeError as error:
            raise prepare(dict(kwargs)).reject(str(error)) from None
        return prepare(arguments)

    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def governed_coroutine(*args: Any, **kwargs: Any) -> Any:
            try:
                return await asked(args, kwargs).arun(lambda: fn(*args, **kwargs))
            except CallRefused as refusal:
                return refused(refusal)

        return governed_coroutine

    @functools.wraps(fn)
    def governed_function(*args: Any, **kwargs: Any) -> Any:
        try:
            return asked(args, kwargs).run(lambda: fn(*args, **kwargs))
        except CallRefused as refusal:
            return refused(refusal)

    return governed_function


def _defaults(body: Callable[..., object], without: Collection[str]) -> dict[str, object]:
    try:
        parameters = inspect.signature(body).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return {}
    return {
        item.name: item.default for item in parameters if item.default is not item.empty and item.name not in without
    }


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
