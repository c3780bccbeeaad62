"""A ledger in a PostgreSQL database, for the processes of many machines.

cra_ledger_entries   88 bytes an entry, at its place
cra_ledger_head      one row: the last signed head
cra_ledger_inbox     entries that a process wants noted, and since when

The owner holds an advisory lock, which is gone with its connection. That alone would not do: whoever lost it may not
have heard yet. So the owner's transaction asks for the lock again, and finds the head as it left it, or notes nothing.
Entries and their head are one commit: there are never entries that nobody signed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.trace.entry import ENTRY_BYTES, Entry
from cra_middleware.trace.ledger.backlog import COUNTED, Backlog
from cra_middleware.trace.ledger.book import MAX_INBOX_BYTES, LedgerBook
from cra_middleware.trace.ledger.place import Asked, LostError
from cra_middleware.trace.ledger.session_tree import SessionTree
from cra_middleware.trace.sinks.postgres_link import PostgresLink, as_bytes, as_number
from cra_middleware.trace.storage.rows import lines_of

if TYPE_CHECKING:
    from cra_middleware._postgres import Connection

_KEY = "'cra_ledger_head'::regclass::oid::bigint << 32"
"""Of the lock: another one in each schema; sessions have those of another table."""
_PAGE_ROWS = 5000
_REMEMBERED = 4096
"""Last entries that need not be looked up."""
_PAGE = "SELECT place, entry FROM cra_ledger_entries WHERE place >= %s ORDER BY place LIMIT %s"
_WAITING = (
    "SELECT count(*), coalesce(sum(greatest(1, length(entries) / %s)), 0)::bigint, "
    "coalesce(max(extract(epoch FROM clock_timestamp() - asked)), 0)::float8 "
    "FROM (SELECT entries, asked FROM cra_ledger_inbox ORDER BY number LIMIT %s) AS oldest"
)
_LAST = "SELECT entry FROM cra_ledger_entries WHERE substr(entry, 1, 16) = %s ORDER BY place DESC LIMIT 1"

_logger = logging.getLogger("cra_middleware.trace")


class PostgresPlace:
    """The ledger of a database, over a connection of its own: the lock hangs on it."""

    remedy = "a new schema"

    def __init__(self, conninfo: str, timeout_seconds: float) -> None:
        """Connect, and make the tables where there are none.

        Raises:
            SinkError: when the database cannot be used.
        """
        self._link = PostgresLink(conninfo, timeout_seconds)

    @property
    def name(self) -> str:
        return f"the ledger in {self._link.place}"

    def lines(self, session_id: str, /) -> PostgresLines:
        return PostgresLines(self._link, session_id)

    def ask(self, entries: Sequence[Entry], /) -> str:
        data = b"".join(entry.pack() for entry in entries)
        with self._link.statements() as connection:
            row = connection.execute(
                "INSERT INTO cra_ledger_inbox (entries) VALUES (%s) RETURNING number", (data,)
            ).fetchone()
        return "" if row is None else str(row[0])

    def is_waiting(self, names: Collection[str], /) -> bool:
        with self._link.statements() as connection:
            row = connection.execute(
                "SELECT EXISTS (SELECT FROM cra_ledger_inbox WHERE number = ANY(%s))", ([*map(int, names)],)
            ).fetchone()
        return row == (True,)

    def head(self) -> bytes | None:
        return read_head(self._link)

    def take(self) -> PostgresHold | None:
        with self._link.statements() as connection:
            if connection.execute(f"SELECT pg_try_advisory_lock({_KEY})").fetchone() != (True,):
                return None
            return PostgresHold(self._link, self.name)

    def close(self) -> None:
        self._link.close()


class PostgresHold:
    """The lock of a database's ledger, as long as the connection lives that took it."""

    def __init__(self, link: PostgresLink, name: str) -> None:
        """``link`` has just got the lock."""
        self._link = link
        self._name = name
        self._taken_in = link.generation
        self._left: bytes | None = None  # the head, as we know it
        self._last: dict[str, Entry] = {}

    def head(self) -> bytes | None:
        with self._owned() as connection:
            rows = connection.execute("SELECT note FROM cra_ledger_head").fetchall()
        if len(rows) != 1:
            raise ChainBroken(f"the head of {self._name} was removed: it is not signed any more")
        self._left = None if rows[0][0] is None else as_bytes(rows[0][0])
        return self._left

    def entries(self, signed: int, /) -> Iterator[Entry]:
        place = 0
        while True:
            with self._owned() as connection:
                page = connection.execute(_PAGE, (place, _PAGE_ROWS)).fetchall()
            for found, entry in page:
                if found != place:
                    raise ValueError(f"entry {place} is not there")
                if place >= signed:
                    raise ValueError("entries lie behind its last head, and its owner never leaves any there")
                yield Entry.unpack(as_bytes(entry))
                place += 1
            if not page:
                return

    def accept(self, entry: Entry, /) -> None:
        self._last.pop(entry.session_id, None)
        self._last[entry.session_id] = entry
        if len(self._last) > _REMEMBERED:
            del self._last[next(iter(self._last))]

    def begin(self, size: int, /) -> None:
        pass  # nothing lies behind the head: it is one commit with its entries

    def last_about(self, session_id: str, /) -> Entry | None:
        known = self._last.get(session_id)
        if known is None:
            with self._owned() as connection:
                known = _last_entry(connection, session_id, self._name)
        return known

    def asked(self) -> list[Asked]:
        with self._owned() as connection:
            if connection.execute("SELECT note FROM cra_ledger_head").fetchall() != [(self._left,)]:
                raise self._moved()  # told at once, and not only when there is something to sign
            rows = connection.execute(
                "SELECT number, substr(entries, 1, %s) FROM cra_ledger_inbox ORDER BY number LIMIT %s",
                (MAX_INBOX_BYTES, _PAGE_ROWS),
            ).fetchall()
        return [self._asked(str(as_number(number)), as_bytes(data)) for number, data in rows]

    def note(self, before: int, entries: Sequence[Entry], head: bytes, /) -> None:
        with self._link.transaction() as connection:
            self._check()
            if connection.execute(f"SELECT pg_try_advisory_xact_lock({_KEY})").fetchone() != (True,):
                raise self._lost("another process owns it")
            done = connection.execute(
                "UPDATE cra_ledger_head SET note = %s WHERE note IS NOT DISTINCT FROM %s", (head, self._left)
            )
            if done.rowcount != 1:
                raise self._moved()
            connection.execute(
                "INSERT INTO cra_ledger_entries (place, entry) SELECT %s + number - 1, entry "
                "FROM unnest(%s::bytea[]) WITH ORDINALITY AS new (entry, number)",
                (before, [entry.pack() for entry in entries]),
            )
        self._left = head

    def done(self, names: Sequence[str], /) -> None:
        with self._owned() as connection:
            connection.execute("DELETE FROM cra_ledger_inbox WHERE number = ANY(%s)", ([*map(int, names)],))

    def close(self, *, is_forked: bool = False) -> None:
        if is_forked:
            return
        with suppress(SinkError), self._owned() as connection:  # else the lock went with the connection
            connection.execute(f"SELECT pg_advisory_unlock({_KEY})")

    @contextmanager
    def _owned(self) -> Iterator[Connection]:
        """The connection that the lock hangs on.

        Raises:
            LostError: when that one is gone.
        """
        with self._link.statements() as connection:
            self._check()
            yield connection

    def _check(self) -> None:
        if self._link.generation != self._taken_in:
            raise self._lost("the connection was lost, and its lock with it")

    def _lost(self, why: str) -> LostError:
        return LostError(f"{self._name} is taken anew: {why}", is_transient=True)

    def _moved(self) -> LostError:
        return self._lost("its head is not the one that this process left")

    def _asked(self, name: str, data: bytes) -> Asked:
        try:
            return Asked(name, Entry.unpack_all(data))
        except ValueError as error:
            _logger.error("not noted in the ledger: row %s of its inbox holds something else (%s)", name, error)
            return Asked(name, ())


class PostgresLines:
    """The lines of a session, wherever reading stopped."""

    def __init__(self, link: PostgresLink, session_id: str) -> None:
        self._link = link
        self._session_id = session_id
        self.restart()

    def restart(self) -> None:
        self._number: int | None = None
        self._offset = 0

    def read(self, first: int, size: int, /) -> Iterator[bytes]:
        if self._number is None:
            with self._link.statements() as connection:
                row = connection.execute(
                    "SELECT number FROM cra_sessions WHERE session_id = %s", (self._session_id,)
                ).fetchone()
            if row is None:
                return
            self._number = as_number(row[0])
        lines = lines_of(self._link.pieces(self._number, self._offset))
        for _ in range(first, size):
            line = next(lines, b"")
            if not line.endswith(b"\n"):
                return
            yield line
            self._offset += len(line)


def read_head(link: PostgresLink) -> bytes | None:
    """The last signed head in a database, or None; not checked.

    Raises:
        SinkError: when it cannot be read.
    """
    with link.statements() as connection:
        row = connection.execute("SELECT note FROM cra_ledger_head").fetchone()
    return None if row is None or row[0] is None else as_bytes(row[0])


def read_backlog(link: PostgresLink) -> Backlog:
    """What lies in a database's inbox; only so much of it is read as is counted.

    Raises:
        SinkError: when it cannot be read.
    """
    with link.statements() as connection:
        row = connection.execute(_WAITING, (ENTRY_BYTES, COUNTED + 1)).fetchone()
    if row is None or not isinstance(row[2], float):
        return Backlog()
    return Backlog(as_number(row[1]), max(0.0, row[2]), as_number(row[0]) > COUNTED)


def read_book(link: PostgresLink) -> LedgerBook | None:
    """The ledger in a database, or None when nothing was ever noted there.

    Raises:
        SinkError: when it cannot be read.
    """
    data, begin = bytearray(), 0
    while True:
        with link.statements() as connection:
            page = connection.execute(_PAGE, (begin, _PAGE_ROWS)).fetchall()
        for place, entry in page:
            data += as_bytes(entry)
            begin = as_number(place) + 1
        if not page:
            return LedgerBook(bytes(data)) if data else None


def check_signed(link: PostgresLink, session_id: str) -> None:
    """See that a session is what the ledger says of it.

    Raises:
        ChainBroken: when it is not: what a head may cover was changed.
        SinkError: when it cannot be read.
    """
    with link.statements() as connection:
        entry = _last_entry(connection, session_id, f"the ledger in {link.place}")
    if entry is None:
        return
    tree = SessionTree(session_id, PostgresLines(link, session_id))
    tree.grow(entry.size)
    if tree.entry() != entry:
        raise ChainBroken(
            f"session {session_id} is not what the ledger says of its first {entry.size} events: it was changed. "
            "It is left as it is; look at it with `cra trace verify`"
        )


def _last_entry(connection: Connection, session_id: str, name: str) -> Entry | None:
    row = connection.execute(_LAST, (bytes.fromhex(session_id.replace("-", "")),)).fetchone()
    try:
        return None if row is None else Entry.unpack(as_bytes(row[0]))
    except ValueError as error:
        raise ChainBroken(f"{name} holds something else than entries ({error})") from error
