"""kill -9 at any moment: nothing that was accepted is lost, and whoever comes next goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from random import Random

import pytest

from cra_middleware.evidence.folder import Against, verify_folder
from cra_middleware.trace.event import Event
from cra_middleware.trace.profiles import read
from cra_middleware.trace.sinks.jsonl import JsonlSink
from tests.crash.rounds import rounds
from tests.crash.victim import SIGNER, Life, Told, live, parse, spawn

KILLS = 7
"""Of one folder, before its sessions are ended."""


def kill_one(life: Life, session_ids: list[str], sessions: int, random: Random, first: int) -> list[Told]:
    """Let a victim live for some lines, and kill it in the middle of what it does then; what it told."""
    pid, reading = spawn(lambda pipe: live(life, session_ids, sessions, pipe, first=first))
    wanted = sessions + random.choice((0, random.randint(0, 5), random.randint(0, 80)))
    with open(reading) as pipe:
        lines = [line for line in (pipe.readline() for _ in range(wanted)) if line]
        os.kill(pid, signal.SIGKILL)
        lines += [line for line in pipe if line.endswith("\n")]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, lines[-1:]
    return [parse(line) for line in lines]


def events_of(folder: Path, session_id: str) -> list[Event]:
    return [read(line[:-1], "cra").event for line in JsonlSink(folder).lines(session_id) if line.endswith(b"\n")]


def check(life: Life, told: list[Told]) -> None:
    """Every promise is kept by what lies in the folder now."""
    for session_id in {item.session_id for item in told}:
        approved: dict[int, int] = {}
        executed: set[int] = set()
        numbers: dict[str, int] = {}
        for event in events_of(life.folder, session_id):
            call = str(event.payload.get("execution_id"))
            if event.event_type == "action.requested":
                arguments = event.payload["parameters"]
                assert isinstance(arguments, dict)
                numbers[call] = arguments["n"]
            elif event.event_type == "action.approved":
                approved[numbers[call]] = event.sequence
            elif event.event_type == "action.executed":
                executed.add(numbers[call])
        for item in told:
            if item.session_id != session_id or item.kind == "session":
                continue
            if item.kind == "kept":
                assert item.number in executed
            elif life.durability == "sync":
                assert approved[item.number] <= item.value
            else:
                assert item.number in approved


@rounds(1, 6)
@pytest.mark.parametrize("style", ["plain", "threads", "asyncio"])
@pytest.mark.parametrize("with_key", [True, False])
@pytest.mark.parametrize("durability", ["write_through", "sync"])
def test_kill(tmp_path: Path, durability: str, with_key: bool, style: str, rounds: int) -> None:
    """Accepted calls are in the trace, sync decisions were durable, sessions go on, and all ends sealed and signed."""
    for seed in range(rounds):
        random = Random(seed)
        life = Life(tmp_path / str(seed), durability, with_key, style)  # type: ignore[arg-type]
        session_ids: list[str] = []
        told: list[Told] = []
        for turn in range(KILLS if rounds > 1 else 2):
            told += kill_one(life, session_ids, 3, random, first=turn * 100_000)
            session_ids = sorted({item.session_id for item in told if item.kind == "session"})
            check(life, told)
            for session in verify_folder(life.folder).sessions:
                verdict = session.verdict
                assert verdict is not None
                # a signal may cut a write short where a page ends: whoever resumes names what is set aside
                assert verdict.error is None or verdict.error.kind == "truncated", session
        with life.runtime() as runtime:
            for session_id in session_ids:
                runtime.resume(session_id)
        check(life, told)
        report = verify_folder(life.folder, Against(SIGNER.verifier if with_key else None))
        assert report.intact
        assert all(session.sealed and session.signed is with_key for session in report.sessions)
