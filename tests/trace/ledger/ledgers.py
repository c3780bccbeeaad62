"""Ledgers in every place that there is, behind one face: what a test does to them, and what it sees of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from cra_middleware.trace.entry import ENTRY_BYTES, Entry
from cra_middleware.trace.ledger.folder import FolderPlace
from cra_middleware.trace.ledger.owner import Owner
from cra_middleware.trace.ledger.place import LedgerPlace
from cra_middleware.trace.ledger.session_tree import SessionTree
from cra_middleware.trace.note import Checkpoint, Signer, open_note
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.sinks.postgres import PostgresSink
from cra_middleware.trace.sinks.postgres_ledger import PostgresPlace
from cra_middleware.trace.storage.rows import rows_of
from tests.trace.forge import lines_of, write_trace
from tests.trace.postgres_server import address_of, database

KINDS = ["folder", "postgres"]
SIGNER = Signer("example.com/bot", bytes(range(32)))
OTHER = Signer("example.com/other", bytes(range(1, 33)))


class Ledger(Protocol):
    """What lies somewhere, to be looked at and spoilt."""

    address: str
    """For ``Runtime(trace=…)``."""

    def open(self) -> LedgerPlace: ...
    def sink(self, **options: Any) -> Any: ...
    def write(self, calls: int = 1) -> str: ...
    def lines(self, session_id: str) -> list[bytes]: ...
    def put(self, session_id: str, lines: Sequence[bytes]) -> None: ...
    def plant(self, data: bytes) -> None: ...
    def waiting(self) -> int: ...
    def entries(self) -> list[bytes]: ...
    def put_entries(self, entries: Sequence[bytes]) -> None: ...
    def head(self) -> bytes | None: ...
    def put_head(self, note: bytes | None) -> None: ...


class FolderLedger:
    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.address = str(folder)
        folder.mkdir()

    def open(self) -> LedgerPlace:
        return FolderPlace(self.folder)

    def sink(self, **options: Any) -> JsonlSink:
        return JsonlSink(self.folder, **options)

    def write(self, calls: int = 1) -> str:
        return write_trace(self.folder, calls).name.split(".")[0]

    def _file(self, session_id: str) -> Path:
        return self.folder / f"{session_id}.trace.jsonl"

    def lines(self, session_id: str) -> list[bytes]:
        return lines_of(self._file(session_id))

    def put(self, session_id: str, lines: Sequence[bytes]) -> None:
        self._file(session_id).write_bytes(b"".join(lines))

    def plant(self, data: bytes) -> None:
        (self.folder / "ledger" / "inbox" / "0").write_bytes(data)

    def waiting(self) -> int:
        return len(os.listdir(self.folder / "ledger" / "inbox"))

    def entries(self) -> list[bytes]:
        path = self.folder / "ledger" / "entries"
        data = path.read_bytes() if path.exists() else b""
        return [data[place : place + ENTRY_BYTES] for place in range(0, len(data), ENTRY_BYTES)]

    def put_entries(self, entries: Sequence[bytes]) -> None:
        (self.folder / "ledger" / "entries").write_bytes(b"".join(entries))

    def head(self) -> bytes | None:
        path = self.folder / "ledger" / "head"
        return path.read_bytes() if path.exists() else None

    def put_head(self, note: bytes | None) -> None:
        path = self.folder / "ledger" / "head"
        if note is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(note)


class PostgresLedger:
    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.conninfo = stack.enter_context(database())
        self.address = address_of(self.conninfo)
        self._stack = stack
        with closing(self.sink()):
            pass

    def open(self) -> LedgerPlace:
        place = PostgresPlace(self.conninfo, 2)
        self._stack.callback(place.close)
        return place

    def sink(self, **options: Any) -> PostgresSink:
        return PostgresSink(self.conninfo, timeout_seconds=2, **options)

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def write(self, calls: int = 1) -> str:
        path = write_trace(self.folder, calls)
        session_id = path.name.split(".")[0]
        with closing(self.sink()) as sink:
            log = sink.create(session_id)
            log.append(0, path.read_bytes(), len(lines_of(path)))
            log.close()
        return session_id

    def lines(self, session_id: str) -> list[bytes]:
        with closing(self.sink()) as sink:
            return list(sink.lines(session_id))

    def put(self, session_id: str, lines: Sequence[bytes]) -> None:
        [(number,)] = self.execute("SELECT number FROM cra_sessions WHERE session_id = %s", session_id)
        self.execute("DELETE FROM cra_lines WHERE session = %s", number)
        for row in rows_of(0, b"".join(lines)):
            self.execute("INSERT INTO cra_lines VALUES (%s, %s, %s, %s, %s)", number, *row)

    def plant(self, data: bytes) -> None:
        self.execute("INSERT INTO cra_ledger_inbox (entries) VALUES (%s)", data)

    def waiting(self) -> int:
        [(count,)] = self.execute("SELECT count(*) FROM cra_ledger_inbox")
        return int(count)

    def entries(self) -> list[bytes]:
        return [entry for (entry,) in self.execute("SELECT entry FROM cra_ledger_entries ORDER BY place")]

    def put_entries(self, entries: Sequence[bytes]) -> None:
        self.execute("DELETE FROM cra_ledger_entries")
        for place, entry in enumerate(entries):
            self.execute("INSERT INTO cra_ledger_entries VALUES (%s, %s)", place, entry)

    def head(self) -> bytes | None:
        [(note,)] = self.execute("SELECT note FROM cra_ledger_head")
        assert note is None or isinstance(note, bytes)
        return note

    def put_head(self, note: bytes | None) -> None:
        self.execute("UPDATE cra_ledger_head SET note = %s", note)


@contextmanager
def ledger_in(kind: str, folder: Path) -> Iterator[Ledger]:
    """A fresh one."""
    with ExitStack() as stack:
        yield FolderLedger(folder, stack) if kind == "folder" else PostgresLedger(folder, stack)


def tree_of(ledger: Ledger, session_id: str, size: int) -> SessionTree:
    tree = SessionTree(session_id, ledger.open().lines(session_id))
    tree.grow(size)
    return tree


def ask(ledger: Ledger, session_id: str, *sizes: int) -> None:
    """Ask for entries about a session as it is now, in one piece."""
    ledger.open().ask([tree_of(ledger, session_id, size).entry() for size in sizes])


def noted(ledger: Ledger) -> list[Entry]:
    return [Entry.unpack(entry) for entry in ledger.entries()]


def sizes(ledger: Ledger) -> list[int]:
    return [entry.size for entry in noted(ledger)]


def head_of(ledger: Ledger, signer: Signer = SIGNER) -> Checkpoint:
    return open_note(ledger.head() or b"", signer.verifier)


class Owners:
    """One owner of a ledger after the other."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._last: Owner | None = None

    def new(self, signer: Signer = SIGNER, known: Checkpoint | None = None) -> Owner:
        """As a new process would be it; the last one lets go before."""
        self.close()
        place = self._ledger.open()
        hold = place.take()
        assert hold is not None
        trees: dict[str, SessionTree] = {}

        def tree(name: str) -> SessionTree:
            return trees.setdefault(name, SessionTree(name, place.lines(name)))

        try:
            self._last = Owner(place, hold, signer, tree, known)
        except BaseException:
            hold.close()
            raise
        return self._last

    def close(self) -> None:
        if self._last is not None:
            self._last.close()
            self._last = None
