"""A session that is decided and recorded in this process: its calls, its chain, its end."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Literal

from cra_middleware._fork import tell_child
from cra_middleware.approvals import Approver
from cra_middleware.call_flow import CallPath
from cra_middleware.carp.call import Ask, Target, ToolCall
from cra_middleware.carp.explain import LookedAt
from cra_middleware.carp.messages import Request, Resolution
from cra_middleware.carp.policy import Facts
from cra_middleware.carp.resolve import out_of_reach
from cra_middleware.elsewhere import ELSEWHERE
from cra_middleware.errors import CallRefused, ChainBroken, SessionEnded, SinkError
from cra_middleware.interceptor import Flow
from cra_middleware.keeping import Recorder
from cra_middleware.session import CURRENT, EndReason, Session
from cra_middleware.setting import Identity, Setting
from cra_middleware.standing import Standing
from cra_middleware.trace.chain import Verdict, verify_lines
from cra_middleware.trace.event import Event, EventType
from cra_middleware.trace.let_run import LetRun, Untold
from cra_middleware.trace.payloads import render
from cra_middleware.trace.profiles import read
from cra_middleware.trace.shared import EndedElsewhereError
from cra_middleware.trace.sink import SessionLog
from cra_middleware.trace.writer import ChainWriter, Entry

_logger = logging.getLogger("cra_middleware")


class _NotLastError(Exception):
    """Others wrote while a session's last event was being written."""


class LocalSession(Session):
    """One agent's governed run. Many threads and tasks may share it; its chain stays one chain."""

    def __init__(
        self,
        setting: Setting,
        identity: Identity,
        writer: ChainWriter,
        log: SessionLog,
        actions: int = 0,
        untold: Untold | None = None,
    ) -> None:
        super().__init__()
        self._setting = setting
        self._identity = identity
        self._writer = writer
        self._recorder = Recorder(writer, setting.keeping)
        self._log = log
        self._lock = threading.RLock()  # around the end; never held while a tool runs
        self._standing = Standing(setting, identity, writer, self._recorder, self.note)
        self._calls = CallPath(setting, identity, writer, self._standing.at, self, CURRENT, actions, untold or Untold())
        writer.heard_by(self._calls.heard)
        self._state: Literal["open", "closing", "closed"] = "open"
        self._began_ns = setting.clock.monotonic_ns()
        self._children: list[LocalSession] = []
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
        """Whether a person is being asked about one of its calls, or has said yes to one that has not run yet."""
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
    def events(self) -> tuple[Event, ...]:
        """Every event so far, as the sink holds it."""
        self._calls.settle()
        return tuple(read(line.rstrip(b"\n"), "cra").event for line in self._log.lines())

    def verify(self) -> Verdict:
        """Verify this session's chain, from the sink's own bytes."""
        self._calls.settle()
        return verify_lines(self._log.lines(), self.id)[0]

    def freeze(self, action_id: str, tool_name: str, arguments: Mapping[str, object]) -> ToolCall:
        """A call of an action, or of a tool that an Atlas maps to one, before it is decided.

        Raises:
            TypeError: when a name is no string, or two arguments would have one name.
        """
        return self._setting.policies.epoch.freeze(action_id, tool_name, arguments)

    def flow(
        self, call: ToolCall, body: object = None, *, stream: bool = False, approver: Approver | None = None
    ) -> Flow:
        return self._calls.flow(call, body, stream=stream, approver=approver)

    def let_run(self, call: ToolCall) -> LetRun:
        """Authorise a call that another process runs, once; ``tell`` records its outcome, in whatever process.

        Raises:
            CallRefused: when the tool must not run.
        """
        let_run = self.begin(call).returned(ELSEWHERE)
        assert isinstance(let_run, LetRun)
        return let_run

    @property
    def untold(self) -> tuple[LetRun, ...]:
        """The calls that were let run elsewhere, or in a process that died, and whose outcome nobody has told yet."""
        return self._calls.untold

    def tell(
        self,
        call: LetRun,
        by: str,
        error: tuple[str, str] | None = None,
        duration_ms: int | None = None,
        result_hash: str | None = None,
    ) -> None:
        """Record how a call of ``untold`` ended: ``by`` says so, and ``error`` is a code and a sentence.

        Raises:
            SessionEnded: when the session is over.
            SinkError: when it cannot be kept.
            ValueError: when the call is none of ``untold``.
        """
        self._calls.tell(call, by, error, duration_ms, result_hash)

    def would_wait(self, call: ToolCall) -> bool:
        identity, now_us = self._identity, self._writer.now_us()
        try:
            epoch = self._standing.at(now_us).epoch
            decision = epoch.resolver.decide(call, identity.facts, now_us, LookedAt(self._setting.counters))
        except Exception:  # noqa: BLE001  whatever breaks here breaks the decision itself, which denies
            return False
        return isinstance(decision, Ask) and self._setting.desk.would_wait(call, identity.subject, epoch)

    def reject(self, call: ToolCall, reason: str) -> CallRefused:
        """Record a call whose arguments the framework itself refused, and return the refusal.

        Raises:
            CallRefused: when it cannot be recorded, or the session is over.
        """
        return self._calls.reject(call, reason)

    def target_for(
        self,
        tool_name: str,
        framework: str,
        *,
        actions: Mapping[str, str] | None = None,
        declared: str | None = None,
        server: str | None = None,
    ) -> Target:
        """What a tool stands for, as ``Runtime.target_for`` says."""
        return self._setting.policies.epoch.target_for(tool_name, framework, declared, actions, server)

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

    def refresh(self) -> None:
        """Read on what other processes wrote, where the session's log is one that several write.

        Raises:
            SessionEnded: when one of them ended it.
            SinkError: when it cannot be read, or was changed.
        """
        try:
            self._writer.refresh()
        except EndedElsewhereError as error:
            self.detach()
            raise SessionEnded(str(error)) from error
        except ChainBroken as error:
            raise SinkError(str(error)) from error

    def go_on(self, recorded: Event) -> None:
        """Go on under a resolution of an earlier process. Called once, by the runtime."""
        self._standing.go_on(recorded)

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

    def adopt(self, child: LocalSession) -> None:
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
                "error": error,
            }
            try:
                self._recorder.keep_now()  # what is owed, tried again where it may go through
                self._calls.settle()
                self._record_end(payload)
                self._forget()
            except SinkError as failure:
                _logger.error("session %s ends unsealed: %s", self.id, failure)
            finally:  # an interrupt, too, must not leave the log locked
                self._let_go()

    def _record_end(self, payload: dict[str, object]) -> None:
        """Write the last event, whose counts are those of the whole chain, whoever wrote it."""
        for asked in itertools.count():
            events = self._writer.end.sequence
            payload |= {"event_count": events + 1, "action_count": self._calls.actions_run() - asked}

            def is_last(events: int = events) -> None:
                if self._writer.end.sequence != events:
                    raise _NotLastError

            try:
                self._record("session.ended", payload, is_last)
            except _NotLastError:
                continue
            return

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

    def _record(
        self, event_type: EventType, payload: dict[str, object], only_if: Callable[[], None] | None = None
    ) -> None:
        identity = self._identity
        entry = Entry(identity.span_id, None, event_type, render(payload), self._writer.now_us())
        keep = self._recorder.keep_now if event_type != "session.started" else self._writer.write
        self._setting.observer.session(identity.subject, keep(entry, only_if=only_if))
