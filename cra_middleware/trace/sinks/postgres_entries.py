"""The entries of a ledger in a PostgreSQL database, page by page: as many as there are, in little memory."""

from __future__ import annotations

from collections.abc import Iterator

from cra_middleware.trace.entry import Entry
from cra_middleware.trace.sinks.postgres_link import PostgresLink, as_bytes, as_number

_PAGE_ROWS = 2000
_BY_PLACE = "SELECT place, entry FROM cra_ledger_entries WHERE place >= %s ORDER BY place LIMIT %s"
_BY_SESSION = (
    "SELECT place, entry FROM cra_ledger_entries WHERE (substr(entry, 1, 16), place) > (%s, %s) "
    "ORDER BY substr(entry, 1, 16), place LIMIT %s"
)
_ABOUT = "SELECT place, entry FROM cra_ledger_entries WHERE substr(entry, 1, 16) = %s ORDER BY place"


class PostgresEntries:
    """They are read anew each time. Every method may raise ``SinkError``, and ``ValueError`` at what is no entry."""

    def __init__(self, link: PostgresLink) -> None:
        self._link = link

    def is_empty(self) -> bool:
        """Whether nothing was ever noted."""
        with self._link.statements() as connection:
            return connection.execute("SELECT EXISTS (SELECT FROM cra_ledger_entries)").fetchone() == (False,)

    def in_order(self) -> Iterator[Entry]:
        """All of them; ``ValueError`` also where one is not there."""
        place = 0
        while True:
            with self._link.statements() as connection:
                page = connection.execute(_BY_PLACE, (place, _PAGE_ROWS)).fetchall()
            for found, entry in page:
                if found != place:
                    raise ValueError(f"entry {place} is not there")
                yield Entry.unpack(as_bytes(entry))
                place += 1
            if not page:
                return

    def by_session(self) -> Iterator[tuple[int, Entry]]:
        """All of them, those about one session one behind the other, each with its place."""
        session, place = b"", -1
        while True:
            with self._link.statements() as connection:
                page = connection.execute(_BY_SESSION, (session, place, _PAGE_ROWS)).fetchall()
            for found, entry in page:
                session, place = as_bytes(entry)[:16], as_number(found)
                yield place, Entry.unpack(as_bytes(entry))
            if not page:
                return

    def about(self, session_id: str, /) -> list[tuple[int, Entry]]:
        """Those about one session, each with its place."""
        with self._link.statements() as connection:
            rows = connection.execute(_ABOUT, (bytes.fromhex(session_id.replace("-", "")),)).fetchall()
        return [(as_number(place), Entry.unpack(as_bytes(entry))) for place, entry in rows]
