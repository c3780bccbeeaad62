"""A session that is decided and recorded at a server, and whose tools run here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from pydantic import ValidationError

from cra_middleware.approvals.approval import ApprovalError, Approver
from cra_middleware.carp.call import ToolCall
from cra_middleware.carp.messages import Request, Resolution
from cra_middleware.carp.policy import Facts
from cra_middleware.carp.resolve import out_of_reach
from cra_middleware.carp.tool_map import ToolMap
from cra_middleware.client.connection import Connection
from cra_middleware.client.offline import Offline, Spool
from cra_middleware.client.outcomes import Outcomes, Worker
from cra_middleware.client.questions import Questions
from cra_middleware.client.refusals import resolve_error
from cra_middleware.client.remote_calls import RemoteCalls
from cra_middleware.client.toolbook import ToolBook
from cra_middleware.client.wire import resolve_body, would_wait_body
from cra_middleware.errors import CallRefused, RuntimeUnreachable, SinkError
from cra_middleware.interceptor import Flow
from cra_middleware.observer import Observer, Subject
from cra_middleware.open_call import OpenCall
from cra_middleware.sessions.admission import Admitted
from cra_middleware.sessions.session import EndReason, Session
from cra_middleware.trace.chain import Verdict, verify_lines
from cra_middleware.trace.event import Event
from cra_middleware.trace.profiles import read

_PAGE = 1000
_PATIENCE_SECONDS = 10.0
"""How long a server that did not answer is not asked again about what a model may be shown."""
_NDJSON = "application/x-ndjson"

_logger = logging.getLogger("cra_middleware")


class Link(NamedTuple):
    """What the sessions of one runtime share."""

    connection: Connection
    tools: ToolBook
    worker: Worker
    observer: Observer
    spool: Spool | None = None


class RemoteSession(Session):
    """One agent's governed run. Many threads and tasks may share it."""

    def __init__(
        self,
        link: Link,
        who: Admitted,
        resolution: Resolution,
        asked: float,
        *,
        resumed: bool = False,
    ) -> None:
        """``resolution`` was ``asked`` for then; ``resumed`` says that calls of it were made elsewhere."""
        super().__init__()
        self._resumed = resumed
        self._link = link
        self._who = who
        self._outcomes = Outcomes(link.connection, link.worker, self.id)
        self._offline = None if link.spool is None else Offline(link.spool, self.id, who.facts, who.goal)
        self._ask_again = 0.0
        self._take(resolution, asked)
        subject = Subject(self.id, resolution.trace_id, who.facts.agent_id)
        self._calls = RemoteCalls(
            link.connection, link.worker, self._outcomes, subject, link.observer, self, self._path_offline
        )
        if self._offline is not None:
            self._calls.when_refused = self._refused_offline
            self._calls.when_denied = self._offline.hear

    @property
    def id(self) -> str:
        """The session's id, which also names its trace at the server."""
        return self._who.session_id

    @property
    def facts(self) -> Facts:
        """What decisions depend on, as it was told to the server."""
        return self._who.facts

    @property
    def behalf(self) -> str | None:
        """On whose behalf it acts, where that was told."""
        return self._who.behalf

    @property
    def is_busy(self) -> bool:
        """Whether a tool is running, or a stream is open."""
        return self._calls.is_busy

    @property
    def is_observing(self) -> bool:
        """Whether nothing is enforced, only recorded."""
        return self._link.tools.latest.observing

    @property
    def resolution(self) -> Resolution:
        """What the agent may do now; renewed by itself when it has expired.

        Raises:
            CallRefused: when it has, and there is no new one to be had.
        """
        return self._resolution if time.monotonic() < self._expires else self.resolve()

    @property
    def events(self) -> tuple[Event, ...]:
        """Every event so far, as the server keeps them."""
        return tuple(read(line.rstrip(b"\n"), "cra").event for line in self._lines())

    def verify(self) -> Verdict:
        """Verify this session's chain here, from the bytes that the server keeps."""
        return verify_lines(self._lines(), self.id)[0]

    @property
    def _tools(self) -> ToolMap:
        return self._link.tools.now

    def flow(
        self, call: ToolCall, body: object = None, *, stream: bool = False, approver: Approver | None = None
    ) -> Flow:
        self._link.worker.begin()
        return self._calls.flow(call, body, stream=stream, approver=approver)

    def begin(self, call: ToolCall, approver: Approver | None = None) -> OpenCall:
        """Authorise a call whose start and end a framework tells of in two places.

        Raises:
            CallRefused: when the tool must not run.
        """
        self._link.worker.begin()
        return OpenCall.begin(self._calls.flow(call, approver=approver, in_two=True))

    async def abegin(self, call: ToolCall, approver: Approver | None = None) -> OpenCall:
        """As ``begin``, on an event loop."""
        self._link.worker.begin()
        return await OpenCall.abegin(self._calls.flow(call, approver=approver, in_two=True))

    def reject(self, call: ToolCall, reason: str) -> CallRefused:
        """Record a call whose arguments the framework itself refused, and return the refusal.

        Raises:
            CallRefused: when it cannot be recorded, or the session is over.
        """
        return self._calls.reject(call, reason)

    def would_wait(self, call: ToolCall) -> bool:
        """Whether the server would leave ``call`` for a person now; False where it does not say."""
        if call.problem is not None:
            return False
        try:
            body = would_wait_body(call, self.id)
            reply = self._link.connection.ask("POST", "/v1/executions/would-wait", body)
            return reply.problem is None and reply.json().get("waits") is True
        except (RuntimeUnreachable, TypeError, ValueError) as error:  # the call itself finds out, and is refused
            _logger.warning("whether %s waits for a person is not known: %s", call.action_id, error)
            return False

    def can_reach(self, action_id: str) -> bool:
        """Whether some call of the action could be allowed, now or in an hour, with or without a person's yes."""
        tools = self._link.tools.latest
        if tools.observing:
            return True
        if time.monotonic() >= max(self._expires, self._ask_again):
            try:
                self.resolve()
            except (CallRefused, SinkError):  # what a model is shown decides nothing: that is done at the server
                self._ask_again = time.monotonic() + _PATIENCE_SECONDS
        return action_id in tools.actions and action_id not in out_of_reach(self._resolution)

    def note(self, error_code: str, message: str, **details: object) -> None:
        """Record ``error.occurred``: something about the session itself, not about a call.

        Raises:
            SinkError: when it cannot be kept.
        """
        more = ", ".join(f"{key}={value}" for key, value in details.items())
        text = f"{message} ({more})" if more else message
        self._say("POST", f"/v1/traces/{self.id}/note", {"error_code": error_code, "message": text[:1000]})

    def resolve(self, request: Request | None = None) -> Resolution:
        """Answer ``request`` (or a plain one of our own) and make it the resolution that calls are made under.

        Raises:
            CallRefused: when the server does not answer it; the earlier resolution stays.
            SinkError: when the server cannot record it, or the session is over.
            ValueError: when the server does not take the request.
        """
        wanted = request or resolve_body(self.id, self.facts, self._who.goal)
        asked = time.monotonic()
        reply = self._link.connection.ask("POST", "/v1/resolve", wanted.model_dump(mode="json", exclude_none=True))
        if reply.problem is not None:
            if reply.status == 400 or reply.problem.code == "ATLAS_NOT_FOUND":
                raise ValueError(reply.problem.message)
            raise resolve_error(reply.problem)
        self._take(resolution_in(reply.json()), asked, is_own=request is None)
        return self._resolution

    def flush(self) -> None:
        """Wait until the server knows how every call came out.

        Raises:
            SinkError: when it is not to be reached.
        """
        self._outcomes.told_or_kept()

    def end(self, reason: EndReason = "completed", error: str | None = None) -> None:
        """Seal the chain. Calls that are running still record their outcome first; a second end just goes on.

        Sessions opened below this one end before it. Where the server is not to be reached, its trace stays open.
        """
        self._close(lambda: self._seal(reason, error), lambda child: child.end(reason))

    def detach(self) -> None:
        """Let go of the session without sealing it, so that ``runtime.resume`` can go on with it, here or elsewhere."""
        self._close(self._let_go, lambda child: child.detach())

    def _is_asking(self) -> bool:
        if not (self._calls.asked or self._resumed):
            return False
        try:
            found = Questions(self._link.connection).listed(None, self.id)
        except ApprovalError as error:
            _logger.error("open questions of session %s cannot be read: %s", self.id, error)
            return True  # one was open when it was last heard of
        return any(item.state in ("pending", "approved") for item in found)

    def _take(self, resolution: Resolution, asked: float, *, is_own: bool = True) -> None:
        self._resolution = resolution
        self._expires = time.monotonic() + resolution.ttl_seconds
        if self._offline is not None:
            self._offline.learn(resolution, asked, is_own=is_own)

    def _path_offline(self, call: ToolCall) -> Callable[..., Flow] | None:
        if self._offline is None or self._runs_there(call.action_id):
            return None
        path = self._offline.path(call)
        if path is not None:
            self._link.worker.soon(self._is_back)
        return path

    def _refused_offline(self, call: ToolCall, reason: str) -> None:
        assert self._offline is not None
        self._offline.refused(call, reason)
        self._link.worker.soon(self._is_back)

    def _runs_there(self, action_id: str) -> bool:
        """Whether the server runs an action by itself, as far as is known here."""
        try:
            return action_id in self._link.tools.latest.at_server
        except CallRefused:  # nothing is known
            return True

    def _is_back(self) -> bool:
        """Whether the server is there again; if so, what was recorded offline is handed over."""
        assert self._offline is not None
        assert self._link.spool is not None
        try:
            self._link.connection.ask("GET", f"/v1/sessions/{self.id}")
        except RuntimeUnreachable:
            return not self.is_open
        is_over = self._offline.is_over()
        return self._link.spool.upload() and is_over

    def _lines(self) -> Iterator[bytes]:
        self._outcomes.told_or_kept()
        after = -1
        while True:
            query = {"limit": str(_PAGE), **({} if after < 0 else {"since_sequence": str(after)})}
            reply = self._link.connection.ask("GET", f"/v1/traces/{self.id}", query=query, headers={"accept": _NDJSON})
            if reply.problem is not None:
                raise SinkError(reply.problem.message or reply.problem.code)
            lines = reply.data.splitlines(keepends=True)
            yield from lines
            after += len(lines)
            if len(lines) < _PAGE:
                return

    def _close(self, finish: Callable[[], None], first: Callable[[RemoteSession], None]) -> None:
        to_do = self._life.begin_to_close(finish, first)
        if to_do is not None:
            self._calls.close(to_do)

    def _seal(self, reason: EndReason, error: str | None) -> None:
        def last() -> None:
            self._hand_over()
            try:
                body = {"reason": reason, **({} if error is None else {"error": error[:1000]})}
                self._say("POST", f"/v1/sessions/{self.id}/end", body, again=True)
            except SinkError as failure:
                _logger.error("session %s ends unsealed: %s", self.id, failure)

        self._life.finish(last)

    def _let_go(self) -> None:
        self._life.finish(self._hand_over)

    def _hand_over(self) -> None:
        """What the server has to be told yet."""
        if not self._outcomes.retold():
            self._outcomes.give_up()
        spool = self._link.spool
        if self._offline is not None and spool is not None and self._offline.is_begun:
            self._offline.is_over()
            if not spool.upload():
                self._link.worker.soon(spool.upload)

    def _say(self, method: str, path: str, body: Mapping[str, object], *, again: bool = False) -> None:
        try:
            self._outcomes.tell()
            problem = self._link.connection.ask(method, path, body, again=again).problem
        except RuntimeUnreachable as error:
            raise SinkError(error.reason, is_transient=True) from error
        if problem is not None:
            raise SinkError(problem.message or problem.code, is_transient=problem.recoverable)


def resolution_in(told: object) -> Resolution:
    """A resolution, as a server tells it.

    Raises:
        RuntimeUnreachable: when it is none.
    """
    try:
        return Resolution.model_validate(told)
    except (ValidationError, RecursionError) as error:
        raise RuntimeUnreachable("the server's resolution cannot be read") from error
