"""Where traces are kept: one name for every sink, for ``Runtime(trace=…)``.

JsonlSink      a folder of files, signed or not; the default for a folder's name
SqliteSink     one file, several processes of a machine
PostgresSink   a database, many machines (extra ``postgres``)
HttpSink       a receiver elsewhere, spooled to disk while it is away (extra ``http``)
MemorySink     this process
NullSink       nowhere
BufferedSink   a bounded queue in front of a slow one
TeeSink        one whose word counts, and copies
"""

from __future__ import annotations

from cra_middleware.trace.buffered import BufferedSink
from cra_middleware.trace.sink import Health, Query, SessionLog, Sink, TraceStore
from cra_middleware.trace.sinks.http import HttpSink
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.sinks.memory import MemorySink
from cra_middleware.trace.sinks.null import NullSink
from cra_middleware.trace.sinks.postgres import PostgresSink
from cra_middleware.trace.sinks.sqlite import SqliteSink
from cra_middleware.trace.tee import TeeSink

__all__ = [
    "BufferedSink",
    "Health",
    "HttpSink",
    "JsonlSink",
    "MemorySink",
    "NullSink",
    "PostgresSink",
    "Query",
    "SessionLog",
    "Sink",
    "SqliteSink",
    "TeeSink",
    "TraceStore",
]
