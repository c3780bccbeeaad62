"""Traces in a database, as commands are given them: ``sqlite:FILE`` or ``postgresql://…``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from cra_middleware.cli.output import stop
from cra_middleware.evidence.traces import FolderTraces, StoreTraces, Traces
from cra_middleware.sinks_by_name import POSTGRES, SQLITE, open_existing


def is_database(name: str) -> bool:
    """Whether ``name`` is that of a database, and not of a file or a folder."""
    return name.startswith((SQLITE, *POSTGRES))


@contextmanager
def open_traces(name: str) -> Iterator[Traces]:
    """The traces in a folder or a database, to be read.

    Raises:
        SinkError: when a database is not there, or cannot be used.
    """
    if not is_database(name):
        yield FolderTraces(name)
        return
    with closing(open_existing(name)) as store:
        yield StoreTraces(store, without_password(name))


def refuse_database(name: str, what: str) -> None:
    """End the command when it is given a database, and cannot do ``what`` there."""
    if is_database(name):
        shown = without_password(name)
        raise stop(f"{shown} is a database, and {what} is for files: cra trace export {shown} --to FOLDER", 2)


def without_password(name: str) -> str:
    """The address of a database as it may be shown."""
    if name.startswith(SQLITE) or "://" not in name:
        return name
    scheme, _, rest = name.partition("?")[0].partition("://")
    _, at, place = rest.rpartition("@")
    return f"{scheme}://{'…' if at else ''}{at}{place}"
