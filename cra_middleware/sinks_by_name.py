"""Where traces are kept, named by a text: a folder, ``sqlite:FILE``, or ``postgresql://…``."""

from __future__ import annotations

import re
from pathlib import Path

from cra_middleware import presence
from cra_middleware.errors import SinkError
from cra_middleware.keys import load_signer
from cra_middleware.trace.sink import Sink, TraceStore
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.sinks.memory import MemorySink
from cra_middleware.trace.sinks.postgres import PostgresSink
from cra_middleware.trace.sinks.sqlite import SqliteSink

SQLITE = "sqlite:"
POSTGRES = ("postgresql://", "postgres://")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:", re.ASCII)
_KINDS = "a folder, sqlite:FILE or postgresql://user@host/database"


def open_sink(text: str) -> TraceStore:
    """The sink that ``text`` names; a folder or a file that is not there is made.

    A folder whose name looks like an address is written with ``./`` in front.

    Raises:
        SinkError: when the text names nothing, or the place cannot be used.
    """
    if text.startswith(POSTGRES):
        return PostgresSink(text)
    if text.startswith(SQLITE):
        name = text.removeprefix(SQLITE)
        if not name or name.startswith("//") or "\0" in name:
            raise SinkError(f"name the file: {SQLITE}FILE, as in {SQLITE}traces.db")
        return SqliteSink(name)
    if text.startswith(("http://", "https://")):
        raise SinkError("a receiver needs a folder to spool in: give HttpSink(url, spool) instead of its address")
    if not text or "\0" in text or _SCHEME.match(text):
        raise SinkError(f"a trace is kept in {_KINDS}; {text.partition(':')[0]!r} is none of them")
    return JsonlSink(text)


def is_folder(text: str) -> bool:
    """Whether ``text`` names a folder, and not another kind of place."""
    return _SCHEME.match(text) is None


def open_existing(text: str) -> TraceStore:
    """The same, to be read: nothing is made.

    Raises:
        SinkError: when nothing is there, or it cannot be used.
    """
    is_file = text.startswith(SQLITE)
    path = Path(text.removeprefix(SQLITE))
    try:
        if not text.startswith(POSTGRES) and not (presence.is_file(path) if is_file else presence.is_dir(path)):
            raise SinkError(f"there is no {'file' if is_file else 'folder'} {path}; traces are in {_KINDS}")
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise SinkError(f"that is no place for traces: {error}") from error
    return open_sink(text)


def sink_for(trace: str | Path | Sink | None, signing_key: str | Path | None) -> Sink:
    """The sink that a runtime is given as ``trace``; nothing is memory.

    Raises:
        SinkError: when the place cannot be used.
        SigningKeyError: when the key cannot.
        ValueError: when there is a key, and neither a folder nor a PostgreSQL database.
    """
    if signing_key is not None:
        if isinstance(trace, str) and trace.startswith(POSTGRES):
            return PostgresSink(trace, signer=load_signer(signing_key))
        if not isinstance(trace, (str, Path)) or not is_folder(str(trace)):
            raise ValueError(
                "signing_key signs a folder of traces, or a PostgreSQL database: name one with trace=, or give "
                "JsonlSink or PostgresSink a signer"
            )
        return JsonlSink(trace, signer=load_signer(signing_key))
    if trace is None:
        return MemorySink()
    if isinstance(trace, Path):
        return JsonlSink(trace)
    return open_sink(trace) if isinstance(trace, str) else trace
