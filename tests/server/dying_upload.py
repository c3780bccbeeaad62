"""A server's process that dies while it takes over a session: ``STORE FOLDER FILE STEP``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cra_middleware import Runtime
from cra_middleware.server.access import Caller
from cra_middleware.server.archive import Archive
from cra_middleware.server.host import Host
from cra_middleware.server.sqlite_book import SqliteBook
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.sinks.postgres import PostgresSink
from cra_middleware.trace.sinks.sqlite import SqliteSink

DIED = 9
BOT = Caller("bot", "key:bot", frozenset(("agent",)), ("*",))


def sink_at(store: str) -> Any:
    """The sink of a place; one that servers share where it is a database."""
    if store.startswith("postgresql://"):
        return PostgresSink(store, shared=True)
    return SqliteSink(store.removeprefix("sqlite:")) if store.startswith("sqlite:") else JsonlSink(store)


@contextmanager
def archive_at(store: str, folder: Path) -> Iterator[Archive]:
    """What a server's process has of it."""
    sink = sink_at(store)
    host = Host(Runtime((), trace=sink), sink, SqliteBook(folder / "book.db"))
    try:
        yield Archive(host)
    finally:
        host.close()
        sink.close()


def die(*args: object) -> None:
    """As if killed: nothing is closed, flushed or unlocked by us."""
    os._exit(DIED)


def die_at(step: str, archive: Archive) -> None:
    """See that the process dies there."""
    sink: Any = archive._host.store
    create, pwrite = sink.create, os.pwrite

    def begun(session_id: str) -> Any:
        log = create(session_id)
        if step == "begun":
            die()
        if step == "written":
            log.flush = die
        return log

    def half(fd: int, data: bytes, offset: int) -> int:
        if len(data) > 100:  # no note beside the file
            pwrite(fd, data[: len(data) // 2], offset)
            die()
        return pwrite(fd, data, offset)

    sink.create = begun
    if step == "torn":
        vars(os)["pwrite"] = half
    if step == "kept":
        book: Any = archive._host.book
        book.add_session = die


def main(store: str, folder: str, file: str, step: str) -> None:
    with archive_at(store, Path(folder)) as archive:
        die_at(step, archive)
        path = Path(file)
        archive.upload(BOT, path.name.partition(".")[0], path.read_bytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
