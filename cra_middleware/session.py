"""A governed run of one agent: who it is, what it may do, its calls, its chain, its end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Literal, ParamSpec, TypeVar

from cra_middleware._fork import tell_child
from cra_middleware.approvals import Approver
from cra_middleware.call_flow import CallPath
from cra_middleware.carp.call import Target, ToolCall
from cra_middleware.carp.messages import ContextBlockMessage, Request, Resolution
from cra_middleware.carp.policy import Facts
from cra_middleware.carp.resolve import out_of_reach
from cra_middleware.errors import CallRefused, SinkError
from cra_middleware.interceptor import Flow, arun, run
from cra_middleware.keeping import Recorder
from cra_middleware.open_call import OpenCall
from cra_middleware.setting import Identity, Setting
from cra_middleware.signatures import bind_arguments, describe
from cra_middleware.standing import Standing
from cra_middleware.trace.chain import Verdict, verify_lines
from cra_middleware.trace.event import Event, EventType
from cra_middleware.trace.payloads import render
from cra_middleware.trace.profiles import read
from cra_middleware.trace.sink import SessionLog
from cra_middleware.trace.writer import ChainWriter, Entry

T = TypeVar("T")
P = ParamSpec("P")
EndReason = Literal["completed", "timeout", "error", "cancelled"]

_logger = logging.getLogger("cra_middleware")
_current: ContextVar[object] = ContextVar("cra_session", default=None)


def current_session() -> Session | None:
    """The session of this thread or task, if there is one."""
    session = _current.get()
    return session if isinstance(session, Session) else None


class Session:
    """One agent's governed run. Many threads and tasks may share it; its chain stays one chain."""

    def __init__(
        self, setting: Setting, identity: Identity, writer: ChainWriter, log: SessionLog, actions: int = 0
    ) -> None:
        self._setting = setting
        self._identity = identity
        self._writer = writer
        self._recorder = Recorder(writer, setting.keeping)
        self._log = log
        self._lock = threading.RLock()  # around the end; never held while a tool runs
        self._standing = Standing(setting, identity, writer, self._recorder, self.note)
        self._calls = CallPath(setting, identity, writer, self._standing.at, self, _current, actions)
        self._state: Literal["open", "closing", "closed"] = "open"
        self._began_ns = setting.clock.monotonic_ns()
        self._tokens: list[Token[object]] = []
        self._children: list[Session] = []
        tell_child(self)

    def forked(self) -> None:
        """In a forked child, where nobody lets go of the lock that another thread held."""
        self._lock = threading.RLock()

    @property
    def id(self) -> str:
        """The session's id, which also names its file."""
        return self._identity.session_id

    @property
    def facts(self) -> Facts:
        """What decisions depend on."""
        return self._identity.facts

    @property
    def behalf(self) -> str | None:
        """On whose behalf it acts, where that was told."""
        return self._identity.behalf

    @property
    def is_open(self) -> bool:
        """Whether calls are accepted."""
        return self._state == "open"

    @property
    def is_closed(self) -> bool:
        """Whether its log has been let go of."""
        return self._state == "closed"

    @property
    def is_observing(self) -> bool:
        """Whether nothing is enforced, only recorded."""
        return self._setting.policies.epoch.resolver.is_observing

    @property
    def is_busy(self) -> bool:
        """Whether a tool is running, or a stream is open."""
        return self._calls.is_busy

    @property
    def is_waiting(self) -> bool:
        """Whether a person is being asked about one of its calls, or has said yes to one that has not run yet.

        A call of an open session below it is one of its calls.
        """
        return self._setting.desk.is_asking(self.id) or any(
            child.is_open and child.is_waiting for child in self._children
        )

    @property
    def accepted_sequence(self) -> int:
        """The last event that was accepted: it survives the death of this process."""
        return self._writer.end.sequence - 1

    @property
    def durable_sequence(self) -> int:
        """The last event that survives the death of the machine; -1 when there is none yet."""
        return self._writer.durable_events - 1

    @property
    def witnessed_sequence(self) -> int:
        """The last event that a copy elsewhere has confirmed; -1 when there is none."""
        return self._writer.witnessed_events - 1

    def flush(self) -> None:
        """Wait until every event so far is durable.

        Raises:
            SinkError: when the storage says that it is not.
        """
        self._writer.flush()  # a log whose disk failed takes nothing before it has a new file
        self._calls.settle()
        self._writer.flush()

    @property
    def resolution(self) -> Resolution:
        """What the agent may do now; renewed by itself when it has expired."""
        return self._standing.at(self._writer.now_us()).resolution

    @property
    def context(self) -> tuple[ContextBlockMessage, ...]:
        """The documents that the Atlas wants the agent to have."""
        return self.resolution.context_blocks

    @property
    def context_text(self) -> str:
        """The same documents as one text, ready for a system prompt."""
        return "\n\n".join(block.content.strip() for block in self.context)

    @property
    def events(self) -> tuple[Event, ...]:
        """Every event so far, as the sink holds it."""
        self._calls.settle()
        return tuple(read(line.rstrip(b"\n"), "cra").event for line in self._log.lines())

    def verify(self) -> Verdict:
        """Verify this session's chain, from the sink's own bytes."""
        self._calls.settle()
        return verify_lines(self._log.lines(), self.id)[0]

    def call(self, action_id: str, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``fn(*args, **kwargs)`` as ``action_id``, or refuse to.

        A name that no Atlas declares may be that of a tool which one maps (``adapters.any.tools``).

        Raises:
            CallRefused: when the function did not run; which one says why.
            TypeError: when the arguments do not fit the function's signature.
        """
        call = self.freeze(action_id, describe(fn), bind_arguments(fn, args, kwargs))
        return self.run(call, lambda: fn(*args, **kwargs))

    async def acall(self, action_id: str, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As ``call``, for a coroutine function."""
        call = self.freeze(action_id, describe(fn), bind_arguments(fn, args, kwargs))
        return await self.arun(call, lambda: fn(*args, **kwargs))

    def freeze(self, action_id: str, tool_name: str, arguments: Mapping[str, object]) -> ToolCall:
        """A call of an action, or of a tool that an Atlas maps to one, before it is decided.

        Raises:
            TypeError: when a name is no string, or two arguments would have one name.
        """
        return self._setting.policies.epoch.freeze(action_id, tool_name, arguments)

    def run(self, call: ToolCall, tool: Callable[[], T], body: object = None, approver: Approver | None = None) -> T:
        """Run ``tool`` for a call that an adapter froze.

        ``body`` is the ``@governed`` function inside it, if any; ``approver`` is the framework's way to ask a
        person, for when the runtime has none.
        """
        return run(self._calls.flow(call, body, approver=approver), tool)

    async def arun(
        self, call: ToolCall, tool: Callable[[], Awaitable[T]], body: object = None, approver: Approver | None = None
    ) -> T:
        """As ``run``, for a coroutine function."""
        return await arun(self._calls.flow(call, body, approver=approver), tool)

    def flow(self, call: ToolCall, *, stream: bool = False) -> Flow:
        """The bare path of one call, for the drivers of ``interceptor``."""
        return self._calls.flow(call, stream=stream)

    def begin(self, call: ToolCall, approver: Approver | None = None) -> OpenCall:
        """Authorise a call whose start and end a framework tells of in two places.

        Raises:
            CallRefused: when the tool must not run.
        """
        return OpenCall.begin(self._calls.flow(call, approver=approver))

    async def abegin(self, call: ToolCall, approver: Approver | None = None) -> OpenCall:
        """As ``begin``, on an event loop."""
        return await OpenCall.abegin(self._calls.flow(call, approver=approver))

    def would_wait(self, call: ToolCall) -> bool:
        """Whether ``call`` would be left for a person now. Nothing is recorded, and no limit is used up."""
        return self._calls.would_wait(call)

    def reject(self, call: ToolCall, reason: str) -> CallRefused:
        """Record a call whose arguments the framework itself refused, and return the refusal.

        Raises:
            CallRefused: when it cannot be recorded, or the session is over.
        """
        return self._calls.reject(call, reason)

    def target_for(
        self, tool_name: str, framework: str, *, actions: Mapping[str, str] | None = None, declared: str | None = None
    ) -> Target:
        """What a tool stands for, as ``Runtime.target_for`` says."""
        return self._setting.policies.epoch.target_for(tool_name, framework, declared, actions)

    def distrust(self, source: str, tool_name: str, described: Callable[[], str]) -> str | None:
        """Why a tool is not one that was looked at, as ``atlas.lock`` says; ``described`` gives its digest."""
        return self._setting.policies.epoch.distrust(source, tool_name, described)

    def can_reach(self, action_id: str) -> bool:
        """Whether some call of the action could be allowed, now or in an hour, with or without a person's yes."""
        if self.is_observing:
            return True
        return action_id in self._setting.policies.epoch.resolver.actions and action_id not in out_of_reach(
            self.resolution
        )

    def start(self, payload: dict[str, object]) -> None:
        """Write the first event. Called once, by the runtime.

        Raises:
            SinkError: when it cannot be kept.
        """
        self._record("session.started", payload)

    def note(self, error_code: str, message: str, **details: object) -> None:
        """Record ``error.occurred``: something about the session itself, not about a call.

        Raises:
            SinkError: when it cannot be kept.
        """
        self._record("error.occurred", {"error_code": error_code, "message": message, **details})

    def resolve(self, request: Request | None = None) -> Resolution:
        """Answer ``request`` (or a plain one of our own) and make it the resolution that calls are made under.

        Raises:
            SinkError: when it cannot be recorded; the earlier resolution stays.
        """
        return self._standing.renew(request).resolution

    def end(self, reason: EndReason = "completed", error: str | None = None) -> None:
        """Seal the chain. Calls that are running still record their outcome first; a second end does nothing.

        Sessions opened below this one end before it.
        """
        for child in self._children:
            child.end(reason)
        self._close(lambda: self._seal(reason, error))

    def detach(self) -> None:
        """Let go of the session without sealing it, so that ``runtime.resume`` can go on with it, here or elsewhere."""
        for child in self._children:
            child.detach()
        self._close(self._let_go)

    def __enter__(self) -> Session:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        self._end_after(error)

    async def __aenter__(self) -> Session:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        await asyncio.shield(asyncio.to_thread(self._end_after, error))  # an end waits for the disk

    def _leave(self) -> None:
        with suppress(ValueError):  # left in another context than it was entered in: nothing to put back there
            _current.reset(self._tokens.pop())

    def _end_after(self, error: BaseException | None) -> None:
        if error is None or isinstance(error, GeneratorExit):
            self.end("completed")
        elif isinstance(error, (asyncio.CancelledError, KeyboardInterrupt, SystemExit)):
            self.end("cancelled", type(error).__name__)
        else:
            self.end("error", type(error).__name__)

    def adopt(self, child: Session) -> None:
        """Make ``child`` end before this session does."""
        self._children = [known for known in self._children if known.is_open]
        self._children.append(child)

    def _close(self, finish: Callable[[], None]) -> None:
        with self._lock:
            if self._state != "open":
                return
            self._state = "closing"
        self._calls.close(finish)

    def _seal(self, reason: EndReason, error: str | None) -> None:
        with self._lock:
            if self._state == "closed":
                return
            payload: dict[str, object] = {
                "reason": reason,
                "duration_ms": max(0, (self._setting.clock.monotonic_ns() - self._began_ns) // 1_000_000),
                "action_count": self._calls.actions_run(),
                "error": error,
            }
            try:
                self._recorder.keep_now()  # what is owed, tried again where it may go through
                self._calls.settle()
                payload["event_count"] = self._writer.end.sequence + 1
                self._record("session.ended", payload)
                self._forget()
            except SinkError as failure:
                _logger.error("session %s ends unsealed: %s", self.id, failure)
            finally:  # an interrupt, too, must not leave the log locked
                self._let_go()

    def _forget(self) -> None:
        """Nobody need answer for this session any more, nor know what only it and those below it have spent."""
        self._setting.desk.close(self.id)
        if self._identity.facts.root_session_id == self.id:
            try:
                self._setting.counters.forget(self.id)
            except Exception as failure:  # noqa: BLE001  a foreign store: the session is sealed all the same
                _logger.error("what session %s has spent stays counted: %s", self.id, failure)

    def _let_go(self) -> None:
        with self._lock:
            if self._state == "closed":
                return
            self._state = "closed"
            for last in (self._calls.settle, self._log.close):
                try:
                    last()
                except SinkError as failure:
                    _logger.error("session %s could not be written to its end: %s", self.id, failure)

    def _record(self, event_type: EventType, payload: dict[str, object]) -> None:
        identity = self._identity
        entry = Entry(identity.span_id, None, event_type, render(payload), self._writer.now_us())
        keep = self._recorder.keep_now if event_type != "session.started" else self._writer.write
        self._setting.observer.session(identity.subject, keep(entry))
