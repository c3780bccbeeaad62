"""One SQLite file that several processes of a machine share: opened, locked, and never half written.

Threads take turns on one connection. SQLite keeps what it has locked in the process's memory, where a fork would copy
it and the kernel's locks would not follow: so every file is closed before a fork, and both sides open it again.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_files: weakref.WeakSet[SqliteFile] = weakref.WeakSet()
_locked_for_fork: list[SqliteFile] = []


class SqliteFile:
    """Transactions on one file, made with mode 0600."""

    def __init__(
        self,
        path: str | Path,
        schema: str,
        version: int,
        timeout_seconds: float,
        error: Callable[[str], Exception],
        *,
        survives_power_loss: bool,
        passing_error: Callable[[str], Exception] | None = None,
        checkpoints: bool = True,
        upgrades: Sequence[str] = (),
        when_damaged: str = "move it away, and a new one is made",
    ) -> None:
        """Open or make the file.

        Args:
            schema: statements that make the tables.
            version: of the tables, kept as ``user_version``.
            timeout_seconds: how long to wait for another writer.
            error: what is raised when the file cannot be used.
            survives_power_loss: whether each transaction waits for the disk.
            passing_error: what is raised instead when the same may go through later: a lock, a full disk.
            checkpoints: whether a transaction now and then moves what was written into the file, and waits for that;
                without it, somebody has to call ``checkpoint``.
            upgrades: statements that bring a file of the version before to this one, before them those from the one
                before that, and so on.
            when_damaged: what to do then.
        """
        self._path = Path(path)
        self._schema = schema
        self._version = version
        self._timeout = timeout_seconds
        self._error = error
        self._passing_error = passing_error or error
        self._checkpoints = checkpoints
        self._upgrades = upgrades
        self._when_damaged = when_damaged
        self._synchronous = "FULL" if survives_power_loss else "NORMAL"
        self._lock = threading.RLock()
        self._known: sqlite3.Connection | None = None
        with self.transaction():
            pass
        _files.add(self)

    def close(self) -> None:
        """Let go of the file; it is opened again when it is used again."""
        with self._lock:
            known, self._known = self._known, None
            if known is not None:
                known.close()

    def hold(self) -> None:
        """Close the file and keep everybody from opening it, until ``go_on``."""
        self._lock.acquire()
        self.close()

    def go_on(self) -> None:
        """After ``hold``."""
        self._lock.release()

    def __del__(self) -> None:
        if hasattr(self, "_known"):  # an opening that failed has nothing to let go of
            self.close()

    def scrub(self) -> None:
        """Write the file anew from what it still holds, so that nothing deleted is left in it or beside it.

        Raises:
            the file's own error: when it cannot be done now, because another process is reading.
        """
        with self._lock:
            try:
                connection = self._connection()
                connection.execute("VACUUM")
                (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.Error as error:
                raise self._error(self._sentence(error)) from error
        if busy:
            raise self._error(f"{self._path} is being read by another process, so old pages are still there; try again")

    @contextmanager
    def transaction(self, *, writes: bool = True) -> Iterator[sqlite3.Connection]:
        """A connection inside a transaction: all of it is kept, or nothing."""
        with self._lock:
            connection: sqlite3.Connection | None = None
            try:
                connection = self._connection()
                connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
                yield connection
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise self._as_told(error) from error
            finally:
                if connection is not None and connection.in_transaction:
                    self._roll_back(connection)

    @contextmanager
    def statement(self) -> Iterator[sqlite3.Connection]:
        """A connection for one statement, which is a transaction by itself: half the work of one with a beginning."""
        with self._lock:
            try:
                yield self._connection()
            except sqlite3.Error as error:
                raise self._as_told(error) from error

    def checkpoint(self) -> None:
        """Move what was written ahead into the file; writers go on meanwhile."""
        with self._lock:
            try:
                self._connection().execute("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlite3.Error as error:
                raise self._as_told(error) from error

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:  # a disk that is full or gone: the next opening rolls back
            self._known = None

    def _connection(self) -> sqlite3.Connection:
        if self._known is None:
            self._known = self._open()
        return self._known

    def _open(self) -> sqlite3.Connection:
        try:  # SQLite itself would make a file that others can read
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise self._error(f"{self._path} cannot be used: {error.strerror}") from error
        connection = sqlite3.connect(self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={self._synchronous}")
            if not self._checkpoints:
                connection.execute("PRAGMA wal_autocheckpoint=0")
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            if found == 0 or 1 <= self._version - found <= len(self._upgrades):
                connection.execute("BEGIN IMMEDIATE")
                (found,) = connection.execute("PRAGMA user_version").fetchone()
                (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
                if found == 0 and tables:
                    raise self._error(f"{self._path} belongs to another program; name another file")
                for step in (self._schema,) if found == 0 else self._upgrades[found - self._version :]:
                    for statement in step.split(";"):
                        connection.execute(statement)
                if found < self._version:
                    connection.execute(f"PRAGMA user_version={self._version}")
                    found = self._version
                connection.execute("COMMIT")
            if found != self._version:
                raise self._error(f"{self._path} was written by another version ({found}); name another file")
        except BaseException:  # whatever it was, no connection may stay half open
            connection.close()
            raise
        return connection

    def _as_told(self, error: sqlite3.Error) -> Exception:
        passes = getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL"))
        return (self._passing_error if passes else self._error)(self._sentence(error))

    def _sentence(self, error: sqlite3.Error) -> str:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return f"{self._path} is locked by another process for more than {self._timeout:g} s"
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return f"{self._path} is damaged; {self._when_damaged}"
        if name.startswith("SQLITE_FULL"):
            return f"{self._path} cannot be written: the disk is full"
        return f"{self._path} cannot be used: {error}"


def _before_fork() -> None:
    for file in list(_files):
        file.hold()
        _locked_for_fork.append(file)


def _after_fork() -> None:
    while _locked_for_fork:
        _locked_for_fork.pop().go_on()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
