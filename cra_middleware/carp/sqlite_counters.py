"""Counters for several processes of one machine, in one SQLite file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from sqlite3 import Connection

from cra_middleware._ids import new_id
from cra_middleware._sqlite_file import SqliteFile
from cra_middleware.carp.quota import CountersError, Exhausted, Limit, Reservation
from cra_middleware.carp.windows import Count, exhausted

_SCHEMA = "CREATE TABLE counts (key TEXT PRIMARY KEY, state TEXT NOT NULL, over_us INTEGER) WITHOUT ROWID"
_FOREVER = 2**62
_SWEEP_EVERY = 1000


class SqliteCounters:
    """As ``MemoryCounters``, in a file on a local disk.

    A process that is killed while its tool runs has used its places up; a power loss may forget the last calls.
    """

    def __init__(self, path: str | Path, timeout_seconds: float = 5.0) -> None:
        """Open or make the file.

        Raises:
            CountersError: when it cannot be used.
        """
        self._file = SqliteFile(path, _SCHEMA, 1, timeout_seconds, CountersError, survives_power_loss=False)
        self._until_sweep = _SWEEP_EVERY

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def peek(self, limits: Sequence[Limit], now_us: int) -> Exhausted | None:
        with self._file.transaction(writes=False) as connection:
            return exhausted([(_read(connection, limit), limit) for limit in limits], now_us)

    def reserve(self, limits: Sequence[Limit], now_us: int) -> Reservation | Exhausted:
        name = new_id()
        with self._file.transaction() as connection:
            counts = [(_read(connection, limit), limit) for limit in limits]
            full = exhausted(counts, now_us)
            if full is not None:
                return full
            for count, limit in counts:
                count.hold(name, limit, now_us)
                _write(connection, limit, count)
            self._until_sweep -= 1
            if self._until_sweep <= 0:
                self._until_sweep = _SWEEP_EVERY
                connection.execute("DELETE FROM counts WHERE over_us <= ?", (now_us,))
        return Reservation(tuple(limits), now_us, name)

    def commit(self, reservation: Reservation) -> None:
        with self._file.transaction() as connection:
            for limit in reservation.limits:
                count = _read(connection, limit)
                count.commit(reservation.id, limit)
                _write(connection, limit, count)

    def release(self, reservation: Reservation) -> None:
        with self._file.transaction() as connection:
            for limit in reservation.limits:
                count = _read(connection, limit)
                count.release(reservation.id)
                _write(connection, limit, count)

    def forget(self, session_id: str) -> None:
        with self._file.transaction() as connection:
            rows = connection.execute("SELECT key FROM counts WHERE over_us = ?", (_FOREVER,)).fetchall()
            over = [(key,) for (key,) in rows if session_id in json.loads(key)]
            connection.executemany("DELETE FROM counts WHERE key = ?", over)


def _read(connection: Connection, limit: Limit) -> Count:
    row = connection.execute("SELECT state FROM counts WHERE key = ?", (json.dumps(limit.key),)).fetchone()
    if row is None:
        return Count()
    try:
        start, used, log, held = json.loads(row[0])
        return Count(
            start,
            int(used),
            [(int(at), int(amount)) for at, amount in log],
            {str(name): (int(at), int(amount)) for name, (at, amount) in held.items()},
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise CountersError(f"the count of {limit.policy_id} is damaged; move the counters' file away") from error


def _write(connection: Connection, limit: Limit, count: Count) -> None:
    state = json.dumps([count.start_us, count.used, count.log, count.held], separators=(",", ":"))
    latest = [at for at, _ in (*count.log[-1:], *count.held.values())]
    latest += [count.start_us] if count.start_us is not None else []
    over = _FOREVER if limit.window_us is None else max(latest, default=0) + limit.window_us
    connection.execute("REPLACE INTO counts VALUES (?, ?, ?)", (json.dumps(limit.key), state, over))
