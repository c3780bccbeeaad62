"""A whole server from names: where Atlases lie, where traces go, where the server keeps what is its own.

Without other stores, approvals, counters, keys and the index are SQLite files in one folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from fastapi import FastAPI

from cra_middleware._clock import Clock, SystemClock
from cra_middleware.approvals.approval import ApprovalStore
from cra_middleware.approvals.sqlite_store import SqliteApprovals
from cra_middleware.carp.quota import Counters
from cra_middleware.carp.redis_counters import RedisCounters
from cra_middleware.carp.sqlite_counters import SqliteCounters
from cra_middleware.keys import load_signer
from cra_middleware.runtime import Runtime
from cra_middleware.server.access import ApiKeys, Guard, Tokens
from cra_middleware.server.app import Extend, create_app
from cra_middleware.server.atlas_folder import AtlasFolder
from cra_middleware.server.book import Book
from cra_middleware.server.calls import Executor
from cra_middleware.server.expiry import EXPIRES_SECONDS
from cra_middleware.server.failures import Failures, SharedFailures
from cra_middleware.server.host import IDLE_SECONDS, MAX_OPEN, Host
from cra_middleware.server.logins import Logins
from cra_middleware.server.places import approvals_file, book_file, counters_file, open_logins, state_folder
from cra_middleware.server.reports import DEFAULT_TIMEOUT_SECONDS
from cra_middleware.server.routing import Limits
from cra_middleware.server.shared_atlases import SharedAtlases
from cra_middleware.server.shelf import AtlasShelf
from cra_middleware.server.sqlite_book import SqliteBook
from cra_middleware.sinks_by_name import POSTGRES, is_folder, sink_for
from cra_middleware.trace.sink import Sink, TraceStore
from cra_middleware.trace.sinks.postgres import PostgresSink

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider


def assemble(
    atlas: Sequence[str | Path],
    trace: str | Path | Sink,
    *,
    state: str | Path | None = None,
    keys: ApiKeys | None = None,
    tokens: Tokens | None = None,
    approvals: ApprovalStore | None = None,
    counters: Counters | None = None,
    book: Book | None = None,
    logins: Logins | None = None,
    shelf: AtlasShelf | None = None,
    executors: Mapping[str, Executor] | None = None,
    record: Literal["hash", "full"] = "hash",
    mode: Literal["enforce", "observe"] = "enforce",
    durability: Literal["write_through", "sync"] = "write_through",
    signing_key: str | Path | None = None,
    sidecar: str | Path | None = None,
    redact: Sequence[str] = (),
    project: str | Path | None = None,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    expires_seconds: float = EXPIRES_SECONDS,
    max_open: int = MAX_OPEN,
    idle_seconds: float = IDLE_SECONDS,
    limits: Limits | None = None,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    clock: Clock | None = None,
    extend: Extend | None = None,
) -> FastAPI:
    """The application; ``app.state.cra`` is its ``Service``.

    Args:
        atlas: Atlases, or folders of them.
        trace: a folder, ``sqlite:FILE``, ``postgresql://…``, or a sink that can be asked about what it holds.
        state: a folder for the server's own files; left out, beside the traces.
        keys: who may come in; without them and ``tokens`` everybody, under a local name only.
        approvals: where questions are kept, ``counters`` where limits are counted, ``book`` the index; left out, files
            in ``state``.
        logins: where it is kept who is logged in at the page; left out, a file in ``state``, or memory where there is
            no such folder.
        shelf: where posted Atlases are kept for several servers; left out, they are files.
        extend: adds endpoints.

    The other arguments are those of ``Runtime``, ``Host`` and ``create_app``.

    Raises:
        CRAError: when an Atlas has errors, or a place cannot be used.
        ValueError: as when a ``Runtime`` is made.
    """
    time = clock or SystemClock()
    folder = AtlasFolder(atlas, time.wall_us) if shelf is None else SharedAtlases(atlas, time.wall_us, shelf)
    lacks = None in (approvals, counters, book)
    own = state_folder(trace if isinstance(trace, (str, Path)) else "postgresql:", state) if lacks else None
    if own is not None:
        approvals = approvals or SqliteApprovals(approvals_file(own))
        counters = counters or SqliteCounters(counters_file(own))
        book = book or SqliteBook(book_file(own))
        logins = logins or open_logins(own)
    assert book is not None
    store = _store(trace, signing_key, shared=not lacks)
    runtime = Runtime(
        folder.atlases,
        trace=store,
        approvals=approvals,
        counters=counters,
        mode=mode,
        record=record,
        durability=durability,
        sidecar=sidecar,
        redact=redact,
        project=project,
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
        clock=time,
    )
    host = Host(
        runtime,
        store,
        book,
        folder=folder,
        clock=time,
        max_open=max_open,
        idle_seconds=idle_seconds,
        is_shared=not lacks,
    )
    failures = SharedFailures(counters) if isinstance(counters, RedisCounters) else Failures()
    is_on_disk = isinstance(trace, (str, Path)) and is_folder(str(trace))
    return create_app(
        host,
        Guard(keys, tokens, time.wall_us, failures),
        executors=executors,
        record_full=record == "full",
        timeout_seconds=timeout_seconds,
        expires_seconds=expires_seconds,
        counters=counters,
        disk=Path(str(trace)) if is_on_disk else own,
        limits=limits,
        logins=logins,
        extend=extend,
    )


def _store(trace: str | Path | Sink, signing_key: str | Path | None, shared: bool) -> TraceStore:
    """The sink; a database whose sessions several processes write, where nothing else of the server's is its own."""
    if shared and isinstance(trace, str) and trace.startswith(POSTGRES):
        return PostgresSink(trace, shared=True, signer=None if signing_key is None else load_signer(signing_key))
    return cast(TraceStore, sink_for(trace, signing_key))
