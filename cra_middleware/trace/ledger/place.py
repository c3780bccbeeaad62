"""Where a ledger lies, as its followers and its owner see it: a folder, or a database.

The rules (what is noted, what is refused, what is signed) are in ``due`` and ``owner``, once. A place only keeps what
it is given, and says who the owner is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

from cra_middleware.errors import SinkError
from cra_middleware.trace.entry import Entry


class LostError(SinkError):
    """Somebody else owns the ledger now, or may: nothing was noted; take it anew."""


class SessionLines(Protocol):
    """The lines of one session as they are kept, read forward; remembers where it stopped."""

    def read(self, first: int, size: int, /) -> Iterator[bytes]:
        """The lines of events ``first`` to ``size`` - 1, each with its newline, as far as they are there.

        ``first`` is the event behind the last one that was taken; a line counts as taken when the next is asked for.

        Raises:
            SinkError: when they cannot be read.
        """
        ...

    def restart(self) -> None:
        """Begin with event 0 again."""
        ...


class Asked(NamedTuple):
    """What somebody wants noted."""

    name: str
    """Of the piece of the inbox that it lies in."""
    entries: tuple[Entry, ...]
    """Empty when it holds something else; it is then only removed."""


class LedgerHold(Protocol):
    """What the owner of a ledger may do, and nobody else. Every method may raise ``SinkError``."""

    def head(self) -> bytes | None:
        """The last signed head; not checked."""
        ...

    def entries(self, signed: int, /) -> Iterator[Entry]:
        """Every entry in its order. Those behind the first ``signed`` were noted, and never signed.

        Ends before what a crash may have spoiled among those.

        Raises:
            ValueError: at one whose bytes are none, or that no crash of an owner can have left there.
        """
        ...

    def accept(self, entry: Entry, /) -> None:
        """Hear that ``entry`` counts, and is now the last one about its session."""
        ...

    def begin(self, size: int, /) -> None:
        """Only the first ``size`` entries count: put what lies behind them aside."""
        ...

    def last_about(self, session_id: str, /) -> Entry | None:
        """The last entry about a session."""
        ...

    def asked(self) -> list[Asked]:
        """What lies in the inbox, oldest first."""
        ...

    def note(self, before: int, entries: Sequence[Entry], head: bytes, /) -> None:
        """Put ``entries`` behind the first ``before`` ones, and ``head`` over all of them: durable when it returns.

        Raises:
            LostError: when this is not the owner any more, or the ledger is not as it left it.
            SinkError: when it cannot be written; then it may have been, and the next owner finds out.
        """
        ...

    def done(self, names: Sequence[str], /) -> None:
        """Remove these pieces from the inbox."""
        ...

    def close(self, *, is_forked: bool = False) -> None:
        """Let go of the ledger. A forked child lets go of its copies only. Never raises."""
        ...


class LedgerPlace(Protocol):
    """A ledger as one process reaches it."""

    @property
    def name(self) -> str:
        """For messages: ``the ledger in …``."""
        ...

    @property
    def remedy(self) -> str:
        """Where to begin anew, for messages: ``a new folder``."""
        ...

    def lines(self, session_id: str, /) -> SessionLines:
        """A session's lines, from event 0 on."""
        ...

    def ask(self, entries: Sequence[Entry], /) -> str:
        """Put entries into the inbox; a name for ``is_waiting``.

        Raises:
            SinkError: when they cannot be written.
        """
        ...

    def is_waiting(self, names: Collection[str], /) -> bool:
        """Whether something of what was asked under these names still lies in the inbox.

        Raises:
            SinkError: when it cannot be read.
        """
        ...

    def head(self) -> bytes | None:
        """The last signed head, as anybody can read it; not checked.

        Raises:
            SinkError: when it cannot be read.
        """
        ...

    def take(self) -> LedgerHold | None:
        """Become the owner; None when another process is.

        Raises:
            SinkError: when nobody can.
        """
        ...

    def close(self) -> None:
        """Let go of what was opened."""
        ...
