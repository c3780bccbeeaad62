"""What the server itself must remember over a restart: whose a session is, which calls are out, which requests it
has answered. The traces stay the record; this is the index beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from cra_middleware.server.faults import StoreError

State = Literal["active", "ended", "all"]


class BookError(StoreError):
    """The book cannot be read or written now."""


class SessionRow(NamedTuple):
    """One session."""

    session_id: str
    agent_id: str
    creator: str
    """The identity of the key or token that opened it; empty when nobody knows."""
    goal: str
    created_us: int
    ended_us: int | None = None
    atlas_ids: tuple[str, ...] = ()
    """Those that the caller named."""
    parent_session_id: str | None = None
    metadata: str = "{}"
    """What the caller said beside it, as JSON."""
    context: str = "{}"
    """The facts of an open session, as JSON: a trace need not hold them. Forgotten when it ends."""
    is_expired: bool = False
    """Whether it ended because nobody called it any more."""


class ExecutionRow(NamedTuple):
    """A call that was let run elsewhere."""

    execution_id: str
    session_id: str
    caller: str
    deadline_us: int
    report: str | None = None
    """What was told of it, as a digest; None while nobody has."""


class Answer(NamedTuple):
    """What a request was answered with."""

    digest: str
    """Of what was asked."""
    status: int
    body: bytes
    approval_id: str | None = None
    """The question that it waits for."""
    retry_after_seconds: float | None = None


USED_UP = Answer("", 409, b"")
"""Kept as the answer to a request whose call was let run and closed before anybody was told of it."""


class Claim(NamedTuple):
    """Whether a request is a new one."""

    state: Literal["new", "answered", "running"]
    answer: Answer | None = None
    trace_size: int | None = None
    """Of a new one, where the book can see it: how many bytes the session's trace had then."""


class Book(Protocol):
    """Safe under threads. Every method is atomic, and raises ``BookError`` when it cannot be done."""

    def add_session(self, row: SessionRow) -> bool:
        """Keep a new session; False when there is one of this id."""
        ...

    def session(self, session_id: str) -> SessionRow | None:
        """One session."""
        ...

    def end_session(self, session_id: str, ended_us: int, *, is_expired: bool = False) -> None:
        """It has ended: its facts are forgotten."""
        ...

    def children(self, session_id: str) -> Sequence[str]:
        """The open sessions below one."""
        ...

    def last_child_end(self, session_id: str) -> int | None:
        """When the last session below one ended, those left out that expired; None when there is none."""
        ...

    def open_before(self, before_us: int, behind: tuple[int, str] | None, most: int) -> Sequence[SessionRow]:
        """Open sessions that were created before then, the oldest first; ``behind`` is the last one's time and id."""
        ...

    def sessions(self, state: State, creator: str | None, limit: int, offset: int) -> tuple[Sequence[SessionRow], int]:
        """A page of them, the newest first, and how many there are; only those of ``creator`` when one is named."""
        ...

    def claim(self, session_id: str, key: str) -> Claim:
        """Begin to answer a request; of several that are the same, exactly one is told that it is new."""
        ...

    def answer(
        self,
        session_id: str,
        key: str,
        answer: Answer,
        now_us: int,
        call: ExecutionRow | None = None,
        *,
        is_final: bool = True,
    ) -> None:
        """Keep what a claimed request is answered with, and the call that it let run.

        One that is not final counts only when the process dies: the request stays claimed. A call that is already the
        answer to another request is not kept as that to this one.
        """
        ...

    def give_back(self, session_id: str, key: str, *, forget: bool = True) -> None:
        """A claimed request was not answered: it may be made again, or is told the answer that was not final."""
        ...

    def withdraw(self, session_id: str, key: str, approval_id: str) -> None:
        """An answer that waits for this question counts no more: a person has answered it. Any other stays."""
        ...

    def execution(self, execution_id: str) -> ExecutionRow | None:
        """A call that was let run."""
        ...

    def reported(self, execution_id: str, report: str) -> bool:
        """The outcome of a call is known; whether the call is. What was told first stays."""
        ...

    def overdue(self, now_us: int, most: int) -> Sequence[ExecutionRow]:
        """Calls that nobody has told of in time."""
        ...

    def prune(self, before_us: int) -> None:
        """Forget answers and reported calls from before then."""
        ...

    def session_ids(self, behind: str, most: int) -> Sequence[str]:
        """A page of all sessions, by id; ``behind`` is the last one of the page before."""
        ...

    def forget(self, session_ids: Sequence[str]) -> None:
        """Sessions whose traces are gone, and what was answered in them."""
        ...

    def forget_calls(self, before_us: int) -> None:
        """Calls from before then, of sessions that are not here."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...
