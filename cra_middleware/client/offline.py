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
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from cra_middleware._fork import tell_child
from cra_middleware._ids import is_id
from cra_middleware.atlas.loader import Atlas
from cra_middleware.carp.call import ToolCall
from cra_middleware.carp.messages import AllowedAction, Resolution
from cra_middleware.carp.policy import Facts
from cra_middleware.client.connection import Connection
from cra_middleware.errors import CRAError, RuntimeUnreachable
from cra_middleware.interceptor import Flow
from cra_middleware.runtime import Runtime
from cra_middleware.trace.query import is_end

if TYPE_CHECKING:
    from cra_middleware.session import Session

SUFFIX = ".trace.jsonl"
OFFLINE_OF = "offline_of"
"""The metadata of an offline session that names the session it stood in for."""

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

    def __init__(self, folder: str | Path, connection: Connection) -> None:
        self.folder = Path(folder)
        self._connection = connection
        self._lock = threading.Lock()
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: another thread of the parent's may have held the lock."""
        self._lock = threading.Lock()

    def upload(self) -> bool:
        """Hand over every session that has ended; False when the server is not to be reached.

        Nothing is deleted: a file that was taken, or refused, gets another name.
        """
        with self._lock:
            for path in sorted(self.folder.glob(f"*{SUFFIX}")):
                session_id = path.name.removesuffix(SUFFIX)
                if not is_id(session_id):
                    continue
                data = path.read_bytes()
                if not is_end(data):
                    continue
                try:
                    reply = self._connection.ask(
                        "PUT", f"/v1/traces/{session_id}", data, headers={"content-type": "application/x-ndjson"}
                    )
                except RuntimeUnreachable:
                    return False
                problem = reply.problem
                if problem is not None and problem.code != "SESSION_ALREADY_EXISTS":
                    _logger.error("the server does not take offline session %s: %s", session_id, problem.message)
                    path.rename(path.with_name(path.name + ".refused"))
                else:
                    path.rename(path.with_name(path.name + ".uploaded"))
        return True

    def seal_left_behind(self) -> None:
        """End the sessions of processes that died."""
        if not any(self.folder.glob(f"*{SUFFIX}")):
            return
        with Runtime((), trace=self.folder) as runtime:
            for path in self.folder.glob(f"*{SUFFIX}"):
                session_id = path.name.removesuffix(SUFFIX)
                if not is_id(session_id) or is_end(path.read_bytes()):
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
        self._until = 0.0
        self._actions: dict[str, AllowedAction] = {}
        self._open: tuple[Runtime, Session] | None = None
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: an offline session that is open is the parent's."""
        self._lock = threading.Lock()
        self._open = None

    def learn(self, resolution: Resolution) -> None:
        """This is what the server says now."""
        actions = {action.action_id: action for action in unconditional(resolution)}
        with self._lock:
            self._actions = actions
            self._until = time.monotonic() + resolution.ttl_seconds

    def path(self, call: ToolCall) -> Callable[..., Flow] | None:
        """The path of a call that may run; None for one that may not."""
        with self._lock:
            if call.action_id not in self._actions or time.monotonic() >= self._until:
                return None
            try:
                if self._open is None:
                    self._open = self._begin()
            except (CRAError, ValueError) as error:
                _logger.error("no session can be recorded in %s: %s", self._spool.folder, error)
                return None
            return self._open[1].flow

    def is_over(self) -> bool:
        """End the offline session, if there is one; whether there was."""
        with self._lock:
            known, self._open = self._open, None
        if known is None:
            return False
        known[1].end()
        known[0].close()
        return True

    def _begin(self) -> tuple[Runtime, Session]:
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
        runtime = Runtime(atlas, trace=self._spool.folder)
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
        return runtime, session


def _declared(action: AllowedAction) -> dict[str, JsonValue]:
    told: dict[str, JsonValue] = action.model_dump(
        mode="json", include={"action_id", "name", "description", "risk_tier"}
    )
    if action.parameters_schema is not None:
        told["parameters_schema"] = action.parameters_schema
    return told
