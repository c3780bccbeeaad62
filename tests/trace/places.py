"""Every sink that keeps something, each at a fresh place, for the one suite that they all must pass."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cra_middleware.trace.buffered import BufferedSink
from cra_middleware.trace.sinks.http import HttpSink
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.sinks.memory import MemorySink
from cra_middleware.trace.sinks.postgres import PostgresSink
from cra_middleware.trace.sinks.sqlite import SqliteSink
from cra_middleware.trace.tee import TeeSink
from tests.trace.postgres_server import database
from tests.trace.receiver import Receiver

NAMES = ["memory", "jsonl", "sqlite", "postgres", "http", "buffered-memory", "buffered-sqlite", "tee"]
SURVIVE_KILL = ["jsonl", "sqlite", "postgres", "http", "tee"]
ACROSS_PROCESSES = ["jsonl", "sqlite", "postgres", "http", "buffered-sqlite", "tee"]


class Place(NamedTuple):
    """Where one kind of sink keeps its sessions."""

    name: str
    open: Callable[[], Any]
    """A new sink on what is kept there."""
    arrived: Callable[[str], list[bytes]] | None = None
    """The lines of a session at the far end, where there is one."""


@contextmanager
def place(name: str, folder: Path) -> Iterator[Place]:
    """A fresh place; what was opened there is closed at the end."""
    with ExitStack() as stack:
        opened: list[Any] = []
        made = _place(name, folder, stack)

        def open_it() -> Any:
            opened.append(made.open())
            return opened[-1]

        try:
            yield made._replace(open=open_it)
        finally:
            for sink in opened:
                sink.close()


def _place(name: str, folder: Path, stack: ExitStack) -> Place:
    memory = MemorySink()
    match name:
        case "memory":
            return Place(name, lambda: memory)
        case "jsonl":
            return Place(name, lambda: JsonlSink(folder / "traces"))
        case "sqlite":
            return Place(name, lambda: SqliteSink(folder / "traces.db"))
        case "postgres":
            conninfo = stack.enter_context(database())
            return Place(name, lambda: PostgresSink(conninfo))
        case "http":
            pytest.importorskip("httpx", reason="HttpSink needs the http extra")
            receiver = Receiver()
            stack.callback(receiver.stop)
            return Place(
                name,
                lambda: HttpSink(receiver.url, folder / "spool", interval_seconds=0.01),
                lambda session_id: list(receiver.store.lines(session_id)),
            )
        case "buffered-memory":
            return Place(name, lambda: BufferedSink(memory, interval_seconds=0.01), lambda one: list(memory.lines(one)))
        case "buffered-sqlite":
            return Place(name, lambda: BufferedSink(SqliteSink(folder / "traces.db"), interval_seconds=0.01))
        case "tee":
            return Place(name, lambda: TeeSink(JsonlSink(folder / "t"), memory), lambda one: list(memory.lines(one)))
    raise AssertionError(name)


def in_child(work: Callable[[], object]) -> str:
    """What ``work`` returns, or the type of what it raises, in a forked child that may take 10 seconds."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)  # the default action ends a child that hangs
        try:
            answer = str(work())
        except BaseException as error:
            answer = type(error).__name__
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer
