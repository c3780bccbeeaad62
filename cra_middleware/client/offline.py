"""Calls that run although the server is not to be reached: only what it let run without any condition.

What those are, the session's last resolution says. While it is valid, such a call goes through an embedded runtime
of exactly these actions, whose session is recorded in a folder (the spool), and handed to the server when it is
back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import JsonValue

from cra_middleware._clock import SystemClock, parse_us
from cra_middleware._fork import tell_child
from cra_middleware._ids import is_id
from cra_middleware.atlas.loader import Atlas
from cra_middleware.carp.call import Deny, ToolCall
from cra_middleware.carp.messages import AllowedAction, Resolution
from cra_middleware.carp.policy import Facts
from cra_middleware.client.connection import Connection
from cra_middleware.errors import CallRefused, CRAError, NoActiveSession, RuntimeUnreachable, SessionEnded
from cra_middleware.interceptor import Flow
from cra_middleware.runtime import Runtime
from cra_middleware.sessions.local_session import LocalSession
from cra_middleware.sessions.session import OFFLINE_OF
from cra_middleware.trace.query import is_end

SUFFIX = ".trace.jsonl"
MOST_EVENTS = 10_000
"""A longer session goes on in another one: a server takes over so many bytes at once and no more."""

_NEVER = frozenset({400, 409, 413, 415, 422})
"""The status of what the same bytes, sent again, would be answered again."""
_NOT_NOW = frozenset({401, 408, 429, 503})
"""Of what is so for every session alike, until a key, the time or the server changes it."""
_NO_NEWS = ("invalid_parameters", "arguments_changed", "audit_unavailable", "runtime_unreachable")
"""Refusals for a call's own arguments, or because the server can keep nothing now."""

_logger = logging.getLogger("cra_middleware")


def unconditional(resolution: Resolution) -> list[AllowedAction]:
    """The actions that a resolution allows whatever their arguments, the time, and what was called before."""
    conditional: set[str] = set()
    for constraint in resolution.constraints:
        names = constraint.parameters.get("actions")
        if not isinstance(names, list):  # about what is not said: about anything
            return []
        conditional.update(str(name) for name in names)
    return [
        action
        for action in resolution.allowed_actions
        if action.action_id not in conditional and action.rate_limit is None and not action.requires_confirmation
    ]


class Spool:
    """The folder of what was recorded offline, and the way from there to the server."""

    def __init__(self, folder: str | Path, connection: Connection, begin: Callable[..., Runtime]) -> None:
        """``begin`` makes a runtime, which tells of itself where the one at the server does."""
        self.folder = Path(folder)
        self.begin = begin
        self._connection = connection
        self._lock = threading.Lock()
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: another thread of the parent's may have held the lock."""
        self._lock = threading.Lock()

    def still_counts(self, asked: float) -> bool:
        """Whether what was answered to a question of that moment does: nobody who uses the connection was told since
        that its key counts no more."""
        return asked > self._connection.turned_away

    def upload(self) -> bool:
        """Hand over every session that has ended; False when something has to be tried again.

        Nothing is deleted: a file that the server has, or will never take, gets another name.
        """
        is_done = True
        with self._lock:
            for path in sorted(self.folder.glob(f"*{SUFFIX}")):
                try:
                    is_done = self._handed_over(path) and is_done
                except RuntimeUnreachable as error:
                    _logger.warning("offline sessions wait in %s: %s", self.folder, error.reason)
                    return False
        return is_done

    def _handed_over(self, path: Path) -> bool:
        """Whether it was, or has not ended, or is not ours to hand over; False when it has to be tried again.

        Raises:
            RuntimeUnreachable: when the server takes nothing now.
        """
        session_id = path.name.removesuffix(SUFFIX)
        data = _read(path)
        if data is None or not is_id(session_id) or not is_end(data):
            return True
        reply = self._connection.ask(
            "PUT", f"/v1/traces/{session_id}", data, headers={"content-type": "application/x-ndjson"}
        )
        problem = reply.problem
        if problem is not None and reply.status in _NOT_NOW:
            raise RuntimeUnreachable(problem.message or problem.code)
        if problem is not None and (problem.recoverable or reply.status not in _NEVER):
            _logger.warning("offline session %s waits in %s: %s", session_id, self.folder, problem.message)
            return reply.status == 403  # it is another key's to hand over
        if problem is not None:
            _logger.error("the server does not take offline session %s: %s", session_id, problem.message)
        how = "uploaded" if problem is None else "refused"
        with suppress(FileNotFoundError):
            path.rename(path.with_name(f"{path.name}.{how}"))
        return True

    def seal_left_behind(self) -> None:
        """End the sessions of processes that died."""
        if not any(self.folder.glob(f"*{SUFFIX}")):
            return
        with self.begin((), trace=self.folder) as runtime:
            for path in self.folder.glob(f"*{SUFFIX}"):
                session_id = path.name.removesuffix(SUFFIX)
                data = _read(path)
                if data is None or not is_id(session_id) or is_end(data):
                    continue
                try:
                    runtime.resume(session_id, renew=False).end("error", "the process died")
                except CRAError as error:  # another process has it open
                    _logger.info("offline session %s is left as it is: %s", session_id, error)


class Offline:
    """What one session may do while the server is away."""

    def __init__(self, spool: Spool, session_id: str, facts: Facts, goal: str) -> None:
        self._spool = spool
        self._session_id = session_id
        self._facts = facts
        self._goal = goal
        self._lock = threading.Lock()
        self._asked = 0.0
        self._until = 0.0
        self._until_us = 0
        self._actions: dict[str, AllowedAction] = {}
        self._open: tuple[Runtime, LocalSession] | None = None
        self._ending: list[tuple[Runtime, LocalSession]] = []
        """A tool of theirs still runs; what comes of it is their last event but one."""
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: an offline session that is open is the parent's."""
        self._lock = threading.Lock()
        self._open, self._ending = None, []

    def learn(self, resolution: Resolution, asked: float, *, is_own: bool = True) -> None:
        """This is what the server says to what was ``asked`` then; to a request that is not the session's ``own`` only
        a no counts, as it may suppose facts that no call is decided by."""
        actions = {action.action_id: action for action in unconditional(resolution)}
        with self._lock:
            if is_own:
                if actions != self._actions:  # what is open was begun for others
                    self._retire()
                self._actions, self._asked = actions, asked
                self._until = time.monotonic() + resolution.ttl_seconds
                self._until_us = _made_us(resolution) + resolution.ttl_seconds * 1_000_000
                return
            named = {action.action_id for action in resolution.allowed_actions}
            named |= {action.action_id for action in resolution.denied_actions}
            self._actions = {
                name: known for name, known in self._actions.items() if name in actions or name not in named
            }

    def hear(self, call: ToolCall, refusal: CallRefused) -> None:
        """The server refused a call. When it was to be let run, the server says something else now than it did."""
        is_over = isinstance(refusal, (SessionEnded, NoActiveSession))
        with self._lock:
            is_news = call.action_id in self._actions and call.distrust is None and refusal.code not in _NO_NEWS
            if is_over or is_news:
                self._actions = {}

    def path(self, call: ToolCall) -> Callable[..., Flow] | None:
        """The path of a call that may run; None for one that may not."""
        with self._lock:
            if call.action_id not in self._actions or self._has_expired() or not self._spool.still_counts(self._asked):
                return None
            try:
                if self._open is not None and self._open[1].accepted_sequence >= MOST_EVENTS:
                    self._retire()
                if self._open is None:
                    self._open = self._begin()
            except (CRAError, ValueError) as error:
                _logger.error("no session can be recorded in %s: %s", self._spool.folder, error)
                return None
            return self._open[1].flow

    def refused(self, call: ToolCall, reason: str) -> None:
        """Record that a call did not run, because the server was not to be reached."""
        with self._lock:
            try:
                if self._open is None:
                    self._open = self._begin()
                self._open[1].reject(call, reason, Deny("runtime_unreachable", "default", reason))
            except (CRAError, ValueError) as error:
                _logger.error("a refusal of %s is not recorded: %s", call.action_id, error)

    @property
    def is_begun(self) -> bool:
        """Whether something is recorded that was not handed over."""
        return self._open is not None or bool(self._ending)

    def is_over(self) -> bool:
        """End the offline session, if there is one; whether nothing of it runs any more."""
        with self._lock:
            self._retire()
            ended, self._ending = self._ending, []
        for runtime, session in ended:
            session.end()
            if session.is_closed:
                runtime.close()
            else:
                with self._lock:
                    self._ending.append((runtime, session))
        return not self._ending

    def _retire(self) -> None:
        if self._open is not None:
            self._ending.append(self._open)
            self._open = None

    def _has_expired(self) -> bool:
        """By either clock: one of them stands still while the machine sleeps, the other may be set back."""
        return time.monotonic() >= self._until or SystemClock().wall_us() >= self._until_us

    def _begin(self) -> tuple[Runtime, LocalSession]:
        atlas = Atlas.from_dict(
            {
                "atlas_version": "1.0",
                "atlas_id": "cra.offline",
                "version": "1.0.0",
                "name": "Offline",
                "description": f"What session {self._session_id} may do without any condition",
                "actions": [_declared(action) for action in self._actions.values()],
                "policies": [{"policy_id": "unconditional", "type": "allow"}],
            }
        )
        runtime = self._spool.begin(atlas, trace=self._spool.folder)
        facts = self._facts
        try:
            session = runtime.session(
                facts.agent_id, self._goal, facts.risk_tier, metadata={OFFLINE_OF: self._session_id}
            )
        except BaseException:  # whatever it was, no file may stay open
            runtime.close()
            raise
        _logger.warning(
            "session %s goes on offline as %s: only unconditional actions run", self._session_id, session.id
        )
        assert isinstance(session, LocalSession)
        return runtime, session


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # another process has just handed it over
        return None
    except OSError as error:
        _logger.error("%s cannot be handed over: %s", path, error.strerror)
        return None


def _made_us(resolution: Resolution) -> int:
    try:
        return parse_us(resolution.timestamp)
    except ValueError:  # no time at all: it has expired
        return 0


def _declared(action: AllowedAction) -> dict[str, JsonValue]:
    told: dict[str, JsonValue] = action.model_dump(
        mode="json", include={"action_id", "name", "description", "risk_tier"}
    )
    if action.parameters_schema is not None:
        told["parameters_schema"] = action.parameters_schema
    return told
