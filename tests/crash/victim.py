"""A process that calls tools until it is killed, and tells over a pipe what it was promised."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple

from cra_middleware import Atlas, Runtime, Session
from cra_middleware.trace.note import Signer
from cra_middleware.trace.sinks.jsonl import JsonlSink
from tests.conftest import manifest

SIGNER = Signer("example.com/crash", bytes(range(32)))
SEGMENT_BYTES = 20_000


class Life(NamedTuple):
    """How a victim works."""

    folder: Path
    durability: Literal["write_through", "sync"]
    with_key: bool
    style: Literal["plain", "threads", "asyncio"]

    def runtime(self) -> Runtime:
        signer = SIGNER if self.with_key else None
        sink = JsonlSink(self.folder, segment_bytes=SEGMENT_BYTES, signer=signer)
        return Runtime(Atlas.from_dict(manifest()), trace=sink, durability=self.durability, record="full")


class Told(NamedTuple):
    """One line from the pipe."""

    kind: str
    """``session``: it is open. ``tool``: inside call ``number``, ``value`` was durable. ``kept``: the call is over."""
    session_id: str
    number: int
    value: int


def parse(line: str) -> Told:
    kind, session_id, number, value = line.split()
    return Told(kind, session_id, int(number), int(value))


def live(life: Life, session_ids: list[str], sessions: int, pipe: int, *, first: int) -> None:
    """Resume what there is, begin what is missing, and call tools for ever; calls are numbered from ``first``."""
    runtime = life.runtime()
    opened = [runtime.resume(name) for name in session_ids]
    opened += [runtime.session() for _ in range(sessions - len(opened))]
    for session in opened:
        _tell(pipe, "session", session, 0, 0)
    numbers = count(first)
    if life.style == "asyncio":
        asyncio.run(_call_in_tasks(opened, numbers, pipe))
        return
    workers = 4 if life.style == "threads" else 1
    for place in range(1, workers):
        threading.Thread(target=_call, args=(opened[place % sessions], numbers, pipe), daemon=True).start()
    _call(opened[0], numbers, pipe) if workers > 1 else _call_in_turn(opened, numbers, pipe)


def _tell(pipe: int, kind: str, session: Session, number: int, value: int) -> None:
    os.write(pipe, f"{kind} {session.id} {number} {value}\n".encode())


def _once(session: Session, number: int, pipe: int) -> None:
    session.call("ticket.get", lambda n: _tell(pipe, "tool", session, n, session.durable_sequence), number)
    _tell(pipe, "kept", session, number, 0)


def _call(session: Session, numbers: count[int], pipe: int) -> None:
    while True:
        _once(session, next(numbers), pipe)


def _call_in_turn(sessions: list[Session], numbers: count[int], pipe: int) -> None:
    while True:
        for session in sessions:
            _once(session, next(numbers), pipe)


async def _call_in_tasks(sessions: list[Session], numbers: count[int], pipe: int) -> None:
    async def task(session: Session) -> None:
        async def tool(n: int) -> None:
            _tell(pipe, "tool", session, n, session.durable_sequence)

        while True:
            number = next(numbers)
            await session.acall("ticket.get", tool, number)
            _tell(pipe, "kept", session, number, 0)
            await asyncio.sleep(0)

    await asyncio.gather(*(task(session) for session in sessions * 3))


def spawn(work: Callable[[int], object]) -> tuple[int, int]:
    """A forked child that does ``work`` with the writing end of a pipe; its id and the reading end.

    A child that hangs is killed; one that fails says how, as ``failed`` lines.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        try:
            os.close(reading)
            work(writing)
        except BaseException as error:
            with suppress(OSError):
                os.write(writing, f"failed {type(error).__name__}:{error}\n".replace(" ", "_").encode())
        finally:
            os._exit(1)
    os.close(writing)
    return pid, reading
