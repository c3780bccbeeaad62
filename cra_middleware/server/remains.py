"""What a server keeps of a session beside its trace, and must not keep longer: its row, its answers, its questions.

It is forgotten when all of the trace was pruned. Then the session is in no list, and there is none of its id for who
asks. What a process that died left is found by the next one: whatever names a session that was pruned goes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Protocol

from cra_middleware import presence
from cra_middleware._postgres import has_table
from cra_middleware.approvals.approval import ApprovalError
from cra_middleware.approvals.postgres_store import PostgresApprovals
from cra_middleware.approvals.sqlite_store import SqliteApprovals
from cra_middleware.server.book import Book, BookError
from cra_middleware.server.places import approvals_file, beside, book_file
from cra_middleware.server.postgres_book import PostgresBook
from cra_middleware.server.sqlite_book import SqliteBook
from cra_middleware.sinks_by_name import POSTGRES

_BATCH = 100
_PAGE = 1000
_TIMEOUT_SECONDS = 5.0


class Questions(Protocol):
    """A store of questions that forgets."""

    def session_ids(self) -> Sequence[str]:
        """The sessions that something was asked in."""
        ...

    def forget(self, session_ids: Sequence[str]) -> None:
        """All that was asked and answered in them."""
        ...


class Remains:
    """The stores of one server, or of those that share a database; each may be missing."""

    def __init__(self, book: Book | None, questions: Questions | None) -> None:
        self._book = book
        self._questions = questions
        self._gone: list[str] = []

    def add(self, session_id: str) -> None:
        """The trace of a session is gone; forgotten with others, at the latest by ``flush``.

        Raises:
            CRAError: when a store cannot be changed.
        """
        self._gone.append(session_id)
        if len(self._gone) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Forget those that were added.

        Raises:
            CRAError: when a store cannot be changed.
        """
        gone, self._gone = self._gone, []
        if gone and self._questions is not None:
            self._questions.forget(gone)
        if gone and self._book is not None:
            self._book.forget(gone)

    def sweep(self, gone: Collection[str]) -> None:
        """Forget what is left of sessions of which there are only hashes.

        Raises:
            CRAError: when a store cannot be read or changed.
        """
        if self._questions is not None:
            self._sweep(self._questions.session_ids(), gone)
        behind = ""
        while self._book is not None and (page := self._book.session_ids(behind, _PAGE)):
            behind = page[-1]
            self._sweep(page, gone)
        self.flush()

    def finish(self, before_us: int) -> None:
        """Forget those that were added, and calls from before then whose session nobody knows.

        Raises:
            CRAError: when a store cannot be changed.
        """
        self.flush()
        if self._book is not None:
            self._book.forget_calls(before_us)

    def _sweep(self, names: Sequence[str], gone: Collection[str]) -> None:
        for name in names:
            if name in gone:
                self.add(name)


@contextmanager
def remains_of(place: str, state: str | Path | None = None) -> Iterator[Remains]:
    """What servers keep beside the traces in ``place``; nothing is made where they keep nothing.

    Args:
        place: a folder, ``sqlite:FILE``, or ``postgresql://…``.
        state: the server's own folder, where it is not beside the traces.

    Raises:
        CRAError: when a store cannot be used.
    """
    with ExitStack() as stack:
        if place.startswith(POSTGRES):
            yield _in_database(place, stack)
        else:
            folder = beside(place) if state is None else Path(state)
            yield Remains(None, None) if folder is None else _in_folder(folder, stack)


def _in_database(place: str, stack: ExitStack) -> Remains:
    def has(table: str, failed: Callable[[str, bool], Exception]) -> bool:
        return has_table(place, table, _TIMEOUT_SECONDS, failed)

    book = questions = None
    if has("cra_approvals_layout", lambda message, passes: ApprovalError(message)):
        questions = stack.enter_context(closing(PostgresApprovals(place)))
    if has("cra_book_layout", lambda message, passes: BookError(message)):
        book = stack.enter_context(closing(PostgresBook(place, connections=1)))
    return Remains(book, questions)


def _in_folder(folder: Path, stack: ExitStack) -> Remains:
    book = questions = None
    if presence.is_file(asked := approvals_file(folder)):
        questions = stack.enter_context(closing(SqliteApprovals(asked)))
    if presence.is_file(listed := book_file(folder)):
        book = stack.enter_context(closing(SqliteBook(listed)))
    return Remains(book, questions)
