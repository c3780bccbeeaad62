"""The engine of the server, without HTTP: whose session is which, opened when it is wanted, and what may be read.

Everything here is synchronous and safe under threads. ``Calls`` (in ``calls``) decides; the traces are the record.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import cast

import orjson

from cra_middleware._canonical import canonical
from cra_middleware._clock import Clock, SystemClock, parse_us, timestamp_text
from cra_middleware._ids import is_id, new_id
from cra_middleware.atlas.loader import Atlas
from cra_middleware.carp.messages import Request, Resolution
from cra_middleware.carp.policy import RANK
from cra_middleware.errors import ChainBroken, SessionEnded, SinkError
from cra_middleware.local_session import LocalSession
from cra_middleware.runtime import Runtime
from cra_middleware.server.access import Caller
from cra_middleware.server.atlas_folder import AtlasFolder
from cra_middleware.server.book import Book, SessionRow, State
from cra_middleware.server.faults import Fault, not_found
from cra_middleware.server.recall import CREATOR, GIVEN, recalled, sealed_us
from cra_middleware.server.table import Table
from cra_middleware.server.wire import CreateSession
from cra_middleware.session import EndReason
from cra_middleware.trace.sink import Query, TraceStore

LEFT = ("outcome_unknown", "the session ended before anybody said how it came out")
MAX_SKEW_US = 300 * 1_000_000
MAX_METADATA_BYTES = 16 * 1024
MAX_OPEN = 512
MAX_ROWS = 4096
IDLE_SECONDS = 900.0


class Host:
    """One governed runtime, for many agents."""

    def __init__(
        self,
        runtime: Runtime,
        store: TraceStore,
        book: Book,
        *,
        folder: AtlasFolder | None = None,
        clock: Clock | None = None,
        max_open: int = MAX_OPEN,
        idle_seconds: float = IDLE_SECONDS,
        is_shared: bool = False,
    ) -> None:
        """``store`` is the sink that ``runtime`` writes to, ``book`` the index beside it; ``is_shared`` when other
        processes write the same sessions."""
        self.runtime = runtime
        self.store = store
        self.book = book
        self.folder = folder
        self.clock: Clock = clock or SystemClock()
        self.began_us = self.clock.wall_us()
        self.table = Table(self._resume, self.clock.monotonic_ns, max_open)
        self._idle_seconds = idle_seconds
        self.is_shared = is_shared
        self._rows: dict[str, SessionRow] = {}  # of sessions that are called: nothing but their end changes them
        self._is_stopping = False

    # sessions

    def create(self, caller: Caller, body: CreateSession) -> tuple[SessionRow, Resolution]:
        """Begin a session; one that the same caller has begun with the same id is given again.

        Raises:
            Fault: when the caller may not, or the id is taken.
        """
        self._check_agent(caller, body.agent_id)
        named = [body.atlas_id] if body.atlas_id is not None and body.atlas_ids is None else body.atlas_ids
        request = body.request
        if request is not None:
            named = self._agree(body, request, named)
            tier = max(body.risk_tier, request.task.risk_tier, key=RANK.__getitem__)
            body = body.model_copy(update={"context": {**request.context, **body.context}, "risk_tier": tier})
        atlas_ids = self._usable(caller, named)
        wanted = body.session_id or (request.requester.session_id if request is not None else None)
        if wanted is not None and self.session_row(wanted) is not None:
            return self._again(caller, wanted, body)
        session_id = wanted or new_id()
        row = SessionRow(
            session_id,
            body.agent_id,
            caller.identity,
            body.goal,
            self.clock.wall_us(),
            None,
            tuple(named or ()),
            body.parent_session_id,
            _json(body.metadata, "metadata"),
            _json(body.context, "context"),
        )
        if body.parent_session_id is None:
            return self._begin(row, body, request, atlas_ids, None)
        with self.owned(caller, body.parent_session_id) as parent:
            if named is not None and parent.facts.atlas_ids is not None:
                wider = set(named) - set(parent.facts.atlas_ids)
                if wider:
                    raise Fault("ATLAS_NOT_FOUND", f"the parent has no Atlas {min(wider)[:256]}")
            return self._begin(row, body, request, atlas_ids, parent)

    def resolve(self, caller: Caller, request: Request) -> Resolution:
        """Answer a request in a session of the caller's.

        Raises:
            Fault: when there is no such session, or an Atlas is not loaded.
        """
        self.check_time(request.timestamp)
        self._usable(caller, list(request.atlas_ids) if request.atlas_ids else None)
        with self.owned(caller, request.requester.session_id, request.requester.agent_id) as session:
            return session.resolve(request)

    def end(self, caller: Caller, session_id: str, reason: EndReason = "completed", error: str | None = None) -> None:
        """Seal a session, and those below it; one that is sealed already stays as it is.

        Raises:
            Fault: when it is not the caller's.
        """
        row = self.readable(caller, session_id)
        if caller.identity != row.creator and not caller.is_any("admin"):
            raise Fault("FORBIDDEN", "only who opened a session may end it")
        if row.ended_us is not None:
            return
        self._end(session_id, reason, error)

    def listed(self, caller: Caller, state: State, limit: int, offset: int) -> tuple[Sequence[SessionRow], int]:
        """A page of the sessions that the caller may see."""
        mine = None if caller.is_any("auditor") else caller.identity
        return self.book.sessions(state, mine, limit, offset)

    def readable(self, caller: Caller, session_id: str) -> SessionRow:
        """A session that the caller may look at.

        Raises:
            Fault: when there is none.
        """
        row = self.session_row(session_id)
        if row is None or not (caller.is_any("auditor") or caller.identity == row.creator):
            raise not_found(session_id)
        return row

    @contextmanager
    def owned(self, caller: Caller, session_id: str, agent_id: str | None = None) -> Iterator[LocalSession]:
        """A session that the caller opened, itself open for as long as this is entered.

        Raises:
            Fault: when there is none, or it has ended.
        """
        row = self._rows.get(session_id) or self.session_row(session_id)
        if row is None or not _is_same(row.creator, caller.identity):
            raise not_found(session_id)
        if row.ended_us is None and self._rows.setdefault(session_id, row) is row and len(self._rows) > MAX_ROWS:
            self._rows.clear()
        if agent_id is not None and row.agent_id != agent_id:
            raise not_found(session_id)
        with self.opened(row) as session:
            yield session

    @contextmanager
    def opened(self, row: SessionRow) -> Iterator[LocalSession]:
        """A session, open for as long as this is entered.

        Raises:
            Fault: when it has ended.
        """
        if row.ended_us is not None:
            raise _over(row.session_id)
        try:
            with self.table.borrow(row.session_id) as session:
                yield session
        except (SessionEnded, ChainBroken) as error:
            ended_us = sealed_us(self.store, row.session_id)
            if ended_us is None and self._is_stopping:
                raise Fault("UNAVAILABLE", "the server is stopping; try again", recoverable=True) from error
            if ended_us is None:
                raise
            self._note_end(row.session_id, ended_us)
            raise _over(row.session_id) from error

    # reading

    def lines(self, session_id: str, query: Query) -> Iterator[bytes]:
        """Lines of a trace, with what is owed in it."""
        return self.store.find(session_id, query)

    def check_time(self, timestamp: str | None) -> None:
        """Refuse a request that was made at another time.

        Raises:
            Fault: when its clock and ours are more than five minutes apart.
        """
        if timestamp is None:
            return
        now_us = self.clock.wall_us()
        try:
            made_us = parse_us(timestamp)
        except ValueError:
            raise Fault("INVALID_CARP_REQUEST", "timestamp is no time with an offset") from None
        if abs(made_us - now_us) > MAX_SKEW_US:
            details = {"server_time": timestamp_text(now_us)}
            raise Fault("INVALID_CARP_REQUEST", "timestamp is more than five minutes off", details=details)

    # Atlases

    def reload(self, atlases: list[Atlas]) -> None:
        """Put other Atlases in force.

        Raises:
            AtlasError: when one has errors; the old ones stay.
            ValueError: when they do not go together.
        """
        self.runtime.reload(atlases)

    # tending

    def tend(self) -> None:
        """Look after what time changes: Atlases on the disk, idle sessions. Called about once a second."""
        if self.folder is not None:
            self.folder.refresh(self.reload)
        for session_id in self.table.idle(self._idle_seconds):
            self.table.let_go(session_id)

    def close(self) -> None:
        """Flush every open session and let go of it, unsealed, so that a later process goes on with it."""
        self._is_stopping = True
        self.table.detach_all()
        self.runtime.detach()
        self.book.close()

    # inside

    def _begin(
        self,
        row: SessionRow,
        body: CreateSession,
        request: Request | None,
        atlas_ids: Sequence[str] | None,
        parent: LocalSession | None,
    ) -> tuple[SessionRow, Resolution]:
        if request is not None:
            self.check_time(request.timestamp)
        given = orjson.loads(row.metadata)
        try:
            session = self.runtime.session(
                body.agent_id,
                body.goal,
                body.risk_tier,
                body.context,
                atlas_ids=atlas_ids if request is None or request.atlas_ids is None else None,
                external_id=body.external_id,
                subject=body.subject,
                parent=parent,
                session_id=row.session_id,
                metadata={CREATOR: row.creator, **({GIVEN: given} if given else {})},
                request=request,
            )
        except ValueError as error:
            raise Fault("INVALID_CARP_REQUEST", str(error)) from error
        except SinkError:
            if self.session_row(row.session_id) is None:
                raise
            message = f"there is a session {row.session_id} already"  # another request was faster
            raise Fault("SESSION_ALREADY_EXISTS", message, recoverable=True) from None
        assert isinstance(session, LocalSession)
        try:
            self.book.add_session(row)
        except BaseException:  # whatever it was, nothing may stay half begun
            session.end("error", "it could not be begun")
            raise
        self.table.put(session)
        return row, session.resolution

    def _again(self, caller: Caller, session_id: str, body: CreateSession) -> tuple[SessionRow, Resolution]:
        row = self.session_row(session_id)
        same = row is not None and (row.creator, row.agent_id, row.goal) == (caller.identity, body.agent_id, body.goal)
        if row is None or not same:
            raise Fault("SESSION_ALREADY_EXISTS", f"there is a session {session_id} already")
        with self.opened(row) as session:
            return row, session.resolution

    def _end(self, session_id: str, reason: EndReason, error: str | None) -> None:
        row = self.session_row(session_id)
        if row is None or row.ended_us is not None:
            return
        for child in self.book.children(session_id):
            self._end(child, reason, None)
        try:
            with self.opened(row) as session:
                session.refresh()
                for call in session.untold:
                    with suppress(ValueError):  # somebody tells of it at this very moment
                        session.tell(call, "server", LEFT)
                session.end(reason, error)
        except Fault as fault:
            if fault.code != "SESSION_ALREADY_ENDED":
                raise
            return
        ended_us = sealed_us(self.store, session_id)
        if ended_us is None:  # a call of it still runs here; it is sealed when that is done
            ended_us = self.clock.wall_us()
        self._note_end(session_id, ended_us)

    def _note_end(self, session_id: str, ended_us: int) -> None:
        self._rows.pop(session_id, None)
        self.book.end_session(session_id, ended_us)

    def _resume(self, session_id: str) -> LocalSession:
        row = self.book.session(session_id)
        context = cast(Mapping[str, object], orjson.loads(row.context)) if row is not None else None
        session = self.runtime.resume(session_id, context=context, renew=False)
        assert isinstance(session, LocalSession)
        return session

    def session_row(self, session_id: str) -> SessionRow | None:
        """What is known of a session: from the book, or from its own trace where the book is a new one."""
        row = self.book.session(session_id)
        if row is None and is_id(session_id):
            row = recalled(self.store, session_id)
            if row is not None:
                self.book.add_session(row)
        return row

    def _check_agent(self, caller: Caller, agent_id: str) -> None:
        if not caller.may_be(agent_id):
            raise Fault("FORBIDDEN", "this key may not speak for that agent")

    def _usable(self, caller: Caller, named: Sequence[str] | None) -> Sequence[str] | None:
        """The Atlases a session may use: None for all of them, those loaded later too."""
        loaded = [atlas.manifest.atlas_id for atlas in self.runtime.atlases]
        if named is None and "*" in caller.atlas_ids:
            return None
        found = [name for name in loaded if caller.may_use(name) and (named is None or name in named)]
        missing = [name for name in named or () if name not in found]
        if missing or not found:  # none at all must never be taken for all of them
            what = f"no Atlas {missing[0][:256]}" if missing else "no Atlas that this key may use"
            raise Fault("ATLAS_NOT_FOUND", f"{what} is loaded")
        return list(named) if named is not None else found

    def _agree(self, body: CreateSession, request: Request, named: list[str] | None) -> list[str] | None:
        who = request.requester
        if (who.agent_id, request.task.goal) != (body.agent_id, body.goal) or body.session_id not in (
            None,
            who.session_id,
        ):
            raise Fault("INVALID_CARP_REQUEST", "request speaks of another agent, goal or session than the body")
        return list(request.atlas_ids) if request.atlas_ids else named


def _is_same(one: str, other: str) -> bool:
    return bool(one) and hmac.compare_digest(one.encode(), other.encode())


def _over(session_id: str) -> Fault:
    return Fault("SESSION_ALREADY_ENDED", f"session {session_id} has ended; start a new one")


def _json(value: Mapping[str, object], name: str) -> str:
    try:
        text = canonical(value)
    except (ValueError, RecursionError) as error:
        raise Fault("INVALID_CARP_REQUEST", f"{name} cannot be written down") from error
    if len(text) > MAX_METADATA_BYTES:
        raise Fault("INVALID_CARP_REQUEST", f"{name} has more than {MAX_METADATA_BYTES} bytes")
    return text.decode()
