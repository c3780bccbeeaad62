"""A session that is decided and recorded in this process: its calls, its chain, its end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from cra_middleware.approvals.approval import Approver
from cra_middleware.calls.call_flow import CallPath
from cra_middleware.calls.held_request import HeldRequest
from cra_middleware.calls.keeping import Recorder
from cra_middleware.calls.setting import Identity, Setting
from cra_middleware.carp.call import Ask, Deny, ToolCall
from cra_middleware.carp.explain import LookedAt
from cra_middleware.carp.messages import Request, Resolution
from cra_middleware.carp.policy import Facts
from cra_middleware.carp.resolve import out_of_reach
from cra_middleware.carp.tool_map import ToolMap
from cra_middleware.errors import CallRefused, ChainBroken, SessionEnded, SinkError
from cra_middleware.interceptor import Flow
from cra_middleware.sessions.sealing import Sealing
from cra_middleware.sessions.session import EndReason, Session
from cra_middleware.sessions.standing import Standing
from cra_middleware.trace.chain import Verdict, verify_lines
from cra_middleware.trace.event import Event, EventType, Sealed
from cra_middleware.trace.let_run import LetRun, Told, Untold
from cra_middleware.trace.payloads import render
from cra_middleware.trace.profiles import read
from cra_middleware.trace.shared import EndedElsewhereError
from cra_middleware.trace.sink import SessionLog
from cra_middleware.trace.writer import ChainWriter, Draft

_logger = logging.getLogger("cra_middleware")


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
        self._recorder = recorder = Recorder(writer, setting.keeping, setting.observer)
        self._log = log
        self._untold = untold or Untold()
        self._standing = Standing(setting, identity, writer, recorder, self.note)
        self._calls = CallPath(
            setting, identity, writer, self._recorder, self._standing.at, self, actions, self._untold
        )
        self._sealing = Sealing(setting, identity, writer, recorder, self._calls, self._record)
        writer.heard_by(self._calls.heard)

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
    def ended_us(self) -> int | None:
        """When this process sealed it; None while it has not."""
        return self._sealing.ended_us

    @property
    def is_observing(self) -> bool:
        """Whether nothing is enforced, only recorded."""
        return self._setting.policies.epoch.resolver.is_observing

    @property
    def is_busy(self) -> bool:
        """Whether a tool is running, or a stream is open."""
        return self._calls.is_busy

    @property
    def used_us(self) -> int:
        """When its last event was written: everything that is asked of a session is one."""
        return self._writer.end.timestamp_us

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

    @property
    def _tools(self) -> ToolMap:
        return self._setting.policies.epoch

    def flow(
        self, call: ToolCall, body: object = None, *, stream: bool = False, approver: Approver | None = None
    ) -> Flow:
        return self._calls.flow(call, body, stream=stream, approver=approver)

    def hold(self, request_key: str) -> AbstractContextManager[HeldRequest]:
        """While a request is answered here, which another process may take over."""
        return self._calls.held.hold(request_key)

    def let_run(self, call: ToolCall, held: HeldRequest | None = None) -> LetRun:
        """Authorise a call that another process runs, once; ``tell`` records its outcome, in whatever process.

        Raises:
            CallRefused: when the tool must not run.
            OvertakenError: when another process has taken over the request that is ``held``.
        """
        return self._calls.let_run(call, None if held is None else held.check)

    @property
    def untold(self) -> tuple[LetRun, ...]:
        """The calls that were let run elsewhere, or in a process that died, and whose outcome nobody has told yet."""
        return self._calls.untold

    def untold_call(self, execution_id: str) -> LetRun | None:
        """The call of ``untold`` with this id."""
        return self._untold.find(execution_id)

    def untold_of(self, request_key: str) -> Sequence[LetRun]:
        """The calls of ``untold`` that were let run for this request, the oldest first."""
        return self._untold.asked_by(request_key)

    def tell(self, call: LetRun, outcome: Told) -> None:
        """Record how a call of ``untold`` ended.

        Raises:
            SessionEnded: when the session is over.
            SinkError: when it cannot be kept.
            ValueError: when the call is none of ``untold``.
        """
        self._calls.tell(call, outcome)

    def would_wait(self, call: ToolCall) -> bool:
        identity, now_us = self._identity, self._writer.now_us()
        try:
            epoch = self._standing.at(now_us).epoch
            decision = epoch.resolver.decide(call, identity.facts, now_us, LookedAt(self._setting.counters))
        except Exception:  # noqa: BLE001  whatever breaks here breaks the decision itself, which denies
            return False
        desk = self._setting.desk
        return isinstance(decision, Ask) and desk.would_wait(call, identity.subject, decision, epoch, now_us)

    def reject(self, call: ToolCall, reason: str, deny: Deny | None = None) -> CallRefused:
        """Record a call whose arguments the framework itself refused, or that is refused as ``deny`` says.

        Raises:
            CallRefused: when it cannot be recorded, or the session is over.
        """
        return self._calls.reject(call, reason, deny)

    def can_reach(self, action_id: str) -> bool:
        """Whether some call of the action could be allowed, now or in an hour, with or without a person's yes."""
        if self.is_observing:
            return True
        return action_id in self._setting.policies.epoch.resolver.actions and action_id not in out_of_reach(
            self.resolution
        )

    def start(self, payload: dict[str, object], request: Request | None) -> None:
        """Write the first event, and the first resolution with it: both or nothing. Called once, by the runtime.

        Raises:
            SinkError: when they cannot be kept.
        """
        identity = self._identity
        first = Draft(identity.span_id, None, "session.started", render(payload), self._writer.now_us())
        self._standing.renew(request, first)

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

    def refresh(self, known_size: int | None = None) -> None:
        """Read on what other processes wrote, where the session's log is one that several write.

        ``known_size`` is how many bytes somebody has just seen there: as long as that is all here, nothing is read.

        Raises:
            SessionEnded: when one of them ended it.
            SinkError: when it cannot be read, or was changed.
        """
        try:
            self._writer.refresh(known_size)
        except EndedElsewhereError as error:
            self.detach()
            raise SessionEnded(str(error)) from error
        except ChainBroken as error:
            raise SinkError(str(error)) from error

    def go_on(self, recorded: Event) -> None:
        """Go on under a resolution of an earlier process. Called once, by the runtime."""
        self._standing.go_on(recorded)

    def end(
        self, reason: EndReason = "completed", error: str | None = None, *, left: tuple[str, str] | None = None
    ) -> None:
        """Seal the chain. Calls that are running still record their outcome first; a second end just goes on.

        Sessions opened below this one end before it. ``left`` closes those that run elsewhere, with a code and a
        sentence; without it ``untold`` stays without an outcome.
        """
        self._close(lambda: self._seal(reason, error, left=left), lambda child: child.end(reason))

    def end_behind(self, sequence: int, reason: EndReason, error: str) -> None:
        """As ``end``, but only directly behind event ``sequence``; else the session is let go of, unsealed."""
        self._close(lambda: self._seal(reason, error, sequence))

    def detach(self) -> None:
        """Let go of the session without sealing it, so that ``runtime.resume`` can go on with it, here or elsewhere."""
        self._close(self._let_go, lambda child: child.detach())

    def _is_asking(self) -> bool:
        return self._setting.desk.is_asking(self.id)

    def _close(self, finish: Callable[[], None], first: Callable[[LocalSession], None] | None = None) -> None:
        to_do = self._life.begin_to_close(finish, first)
        if to_do is not None:
            self._calls.close(to_do)

    def _seal(
        self, reason: EndReason, error: str | None, behind: int | None = None, left: tuple[str, str] | None = None
    ) -> None:
        self._life.finish(  # an interrupt, too, must not leave the log locked
            self._close_log, lambda: self._sealing.seal(reason, error, behind, lambda: bool(self._life.below), left)
        )

    def _let_go(self) -> None:
        self._life.finish(self._close_log)

    def _close_log(self) -> None:
        for last in (self._calls.settle, self._log.close):
            try:
                last()
            except SinkError as failure:
                _logger.error("session %s could not be written to its end: %s", self.id, failure)

    def _record(
        self, event_type: EventType, payload: dict[str, object], only_if: Callable[[], None] | None = None
    ) -> Sequence[Sealed]:
        identity = self._identity
        entry = Draft(identity.span_id, None, event_type, render(payload), self._writer.now_us())
        sealed = self._recorder.keep_now(entry, only_if=only_if)
        self._setting.observer.session(identity.subject, sealed)
        return sealed
