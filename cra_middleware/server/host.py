"""The engine of the server, without HTTP: whose session is which, opened when it is wanted, and what may be read.

Everything here is synchronous and safe under threads. ``Calls`` (in ``calls``) decides; the traces are the record.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import orjson

from cra_middleware._canonical import canonical
from cra_middleware._clock import Clock, SystemClock, parse_us, timestamp_text
from cra_middleware._ids import is_id, new_id
from cra_middleware.atlas.loader import Atlas
from cra_middleware.carp.messages import Request, Resolution
from cra_middleware.carp.recorded import recorded_facts
from cra_middleware.errors import ChainBroken, CRAError, SessionEnded, SinkError
from cra_middleware.runtime import Runtime
from cra_middleware.server.access import Caller
from cra_middleware.server.atlas_folder import AtlasFolder
from cra_middleware.server.book import Book, SessionRow, State
from cra_middleware.server.faults import OVER, Fault, not_found, over
from cra_middleware.server.recall import CREATOR, GIVEN, recalled, sealed
from cra_middleware.server.table import Table
from cra_middleware.server.wanted import wanted, written
from cra_middleware.server.wire import CreateSession
from cra_middleware.sessions.admission import Opening, WiderThanParentError
from cra_middleware.sessions.local_session import LocalSession
from cra_middleware.sessions.session import EndReason
from cra_middleware.trace.let_run import Told
from cra_middleware.trace.pruned import PrunedError
from cra_middleware.trace.shared import EndedElsewhereError
from cra_middleware.trace.sink import Query, TraceStore

LEFT = ("outcome_unknown", "the session ended before anybody said how it came out")
MAX_SKEW_US = 300 * 1_000_000
MAX_OPEN = 512
MAX_ROWS = 4096
IDLE_SECONDS = 900.0
WAIT_SECONDS = 5.0
"""How long who calls a session that is being ended waits for what comes of it."""


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
        self.sealing = threading.RLock()
        """Held while a session is sealed because nobody calls it: who calls it then waits for what comes of it."""
        self._is_stopping = False

    # sessions

    def create(self, caller: Caller, body: CreateSession) -> tuple[SessionRow, Resolution]:
        """Begin a session; one that the same caller has begun with the same id is given again.

        Raises:
            Fault: when the caller may not, or the id is taken.
        """
        self._check_agent(caller, body.agent_id)
        opening = wanted(body)
        atlas_ids = self._usable(caller, opening.atlas_ids)
        known = None if opening.session_id is None else self.book.session(opening.session_id)
        if known is not None:
            return self._again(known, (caller.identity, opening.agent_id, opening.goal))
        row = SessionRow(
            opening.session_id or new_id(),
            opening.agent_id,
            caller.identity,
            opening.goal,
            self.clock.wall_us(),
            None,
            tuple(opening.atlas_ids or ()),
            opening.parent_id,
            written(opening.metadata, "metadata"),
            written(opening.context, "context"),
        )
        if row.parent_session_id is None:
            return self._begin(row, opening, atlas_ids, None)
        with self.owned(caller, row.parent_session_id) as parent:
            if self.is_shared:
                parent.refresh()  # another process may have ended it
            if opening.atlas_ids is None and atlas_ids is not None and parent.facts.atlas_ids is not None:
                atlas_ids = self._usable(caller, parent.facts.atlas_ids)  # not what the key may use beside them
            return self._begin(row, opening, atlas_ids, parent)

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
            raise over(row.session_id, row.is_expired)
        try:
            with self.table.borrow(row.session_id) as session:
                yield session
        except (SessionEnded, ChainBroken, EndedElsewhereError) as error:
            known = self.table.peek(row.session_id)
            if known is not None and isinstance(error, EndedElsewhereError):
                known.detach()
            self._await_end(row.session_id)
            with self.sealing:
                seal = sealed(self.store, row.session_id)
            if seal is None and self._is_stopping:
                raise Fault("UNAVAILABLE", "the server is stopping; try again", recoverable=True) from error
            if seal is None and (isinstance(error, SessionEnded) or self._opens(row.session_id)):  # it was not sealed
                message = "the session is being opened again; ask again"
                raise Fault("UNAVAILABLE", message, recoverable=True, retry_after_seconds=1) from error
            if seal is None:
                raise
            self._note_end(row.session_id, *seal)
            raise over(row.session_id, seal.is_expired) from error

    def _await_end(self, session_id: str) -> None:
        """Wait while somebody seals the session: before its last event is kept nobody knows whether it has ended."""
        until = time.monotonic() + WAIT_SECONDS
        while self.table.is_closing(session_id):
            row = self.book.session(session_id)
            if row is not None and row.ended_us is not None:  # a call of it still runs here: it is sealed behind that
                raise over(session_id, row.is_expired)
            if time.monotonic() > until:
                message = "the session is being ended; ask again"
                raise Fault("UNAVAILABLE", message, recoverable=True, retry_after_seconds=1)
            time.sleep(0.01)

    def _opens(self, session_id: str) -> bool:
        try:
            with self.table.borrow(session_id):
                return True
        except CRAError:
            return False

    def note_seal(self, session_id: str) -> bool:
        """Put into the book how a trace was sealed; whether it was."""
        seal = sealed(self.store, session_id)
        if seal is not None:
            self._note_end(session_id, *seal)
        return seal is not None

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
        if self.folder is not None:
            self.folder.close()

    # inside

    def _begin(
        self,
        row: SessionRow,
        opening: Opening,
        atlas_ids: Sequence[str] | None,
        parent: LocalSession | None,
    ) -> tuple[SessionRow, Resolution]:
        request = opening.request
        if request is not None:
            self.check_time(request.timestamp)
        given = orjson.loads(row.metadata)
        try:
            session = self.runtime.session(
                opening.agent_id,
                opening.goal,
                opening.risk_tier,
                opening.context,
                atlas_ids=atlas_ids,
                external_id=opening.external_id,
                subject=opening.subject,
                parent=parent,
                session_id=row.session_id,
                metadata={CREATOR: row.creator, **({GIVEN: given} if given else {})},
                request=request,
            )
        except WiderThanParentError as error:
            raise Fault("ATLAS_NOT_FOUND", str(error)) from error
        except ValueError as error:
            if parent is not None and not parent.is_open:  # it was when it was looked up
                raise SessionEnded(f"session {parent.id} is over") from error
            raise Fault("INVALID_CARP_REQUEST", str(error)) from error
        except SinkError as error:
            if isinstance(error, PrunedError):
                raise Fault("SESSION_ALREADY_EXISTS", str(error)) from error
            known = self.session_row(row.session_id)  # another request was faster, or the book is a new one
            if known is None:
                raise
            return self._again(known, (row.creator, row.agent_id, row.goal))
        assert isinstance(session, LocalSession)
        row = row._replace(context=canonical(dict(session.facts.context)).decode())  # with what is said above it
        try:
            self.book.add_session(row)
        except BaseException:  # whatever it was, nothing may stay half begun
            session.end("error", "it could not be begun")
            raise
        self.table.put(session)
        if parent is not None and sealed(self.store, parent.id) is not None:  # by somebody who may not know of this one
            self._end(row.session_id, "cancelled", None)
            raise over(parent.id, is_expired=False)
        return row, session.resolution

    def _again(self, row: SessionRow, wanted: tuple[str, str, str]) -> tuple[SessionRow, Resolution]:
        if (row.creator, row.agent_id, row.goal) != wanted:
            raise Fault("SESSION_ALREADY_EXISTS", f"there is a session {row.session_id} already")
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
                        session.tell(call, Told("server", LEFT))
                session.end(reason, error, left=LEFT)
                ended_us, is_over = session.ended_us, session.is_closed
        except Fault as fault:
            if fault.code not in OVER:
                raise
            return
        if ended_us is None and is_over and not self.note_seal(session_id):
            message = "the end of the session cannot be kept now; ask again"
            raise Fault("STORAGE_LOCKED", message, recoverable=True, retry_after_seconds=1)
        # where a call of it still runs here, it is sealed when that is done
        self._note_end(session_id, self.clock.wall_us() if ended_us is None else ended_us)
        for child in self.book.children(session_id):  # begun meanwhile
            self._end(child, reason, None)

    def _note_end(self, session_id: str, ended_us: int, is_expired: bool = False) -> None:
        self._rows.pop(session_id, None)
        self.book.end_session(session_id, ended_us, is_expired=is_expired)

    def _resume(self, session_id: str) -> LocalSession:
        row = self.book.session(session_id)
        context = recorded_facts(orjson.loads(row.context)) if row is not None else None
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


def _is_same(one: str, other: str) -> bool:
    return bool(one) and hmac.compare_digest(one.encode(), other.encode())
