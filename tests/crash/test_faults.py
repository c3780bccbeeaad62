"""Every call of the operating system fails once, with every error, or is the last thing that the process does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware.errors import AuditUnavailable, CallRefused, ChainBroken, CRAError, SinkError
from cra_middleware.evidence.folder import Against, verify_folder
from cra_middleware.trace.profiles import read
from cra_middleware.trace.sinks.jsonl import JsonlSink
from tests.conftest import manifest
from tests.crash.faults import WHERE, Fault
from tests.crash.rounds import rounds
from tests.crash.victim import SIGNER, parse, spawn

ERRORS = ("EIO", "ENOSPC", "EINTR", "EMFILE")
Tell = Callable[[str, str, int], None]


def runtime_in(folder: Path) -> Runtime:
    """Small segments, a key, and decisions that are waited for."""
    sink = JsonlSink(folder, segment_bytes=2500, signer=SIGNER)
    return Runtime(
        Atlas.from_dict(manifest()), trace=sink, durability="sync", record="full", audit_deadline_seconds=0.05
    )


def script(folder: Path, tell: Tell) -> None:
    """Five calls, over segments; let go; resumed; two more; the end. What cannot be done is told, and left.

    ``tell`` hears ``ran`` inside a tool, and ``kept`` or ``refused`` after its call.
    """
    session_id = ""
    for turn in range(2):
        try:
            with runtime_in(folder) as runtime:
                session = runtime.resume(session_id) if turn else runtime.session()
                session_id = session.id
                tell("session", session_id, 0)
                for number in range(turn * 5, 5 + turn * 2):
                    try:
                        session.call("ticket.get", lambda n: tell("ran", session_id, n), number)  # noqa: B023  called now
                        tell("kept", session_id, number)
                    except AuditUnavailable:
                        tell("refused", session_id, number)
                if turn == 0:
                    session.detach()
        except CRAError as error:
            assert not isinstance(error, (ChainBroken, CallRefused)), error
            assert "\n" not in str(error)
            if not session_id:
                return


Story = list[tuple[str, str, int]]


def check(folder: Path, story: Story, *, was_killed: bool = False) -> None:
    """Somebody goes on, ends what is there, and all that was told is true."""
    session_ids = {name for _, name, _ in story}
    assert len(session_ids) <= 1
    for path in folder.glob("*.trace.jsonl"):
        if was_killed and not session_ids and path.stat().st_size == 0:
            path.unlink()  # it died between the file's making and the first event
    resumed = set()
    with runtime_in(folder) as runtime:
        for name in session_ids:
            if not verify_folder(folder, only=name).sessions[0].sealed:
                runtime.resume(name).call("ticket.list", lambda: None)
                resumed.add(name)
    for name in session_ids:
        events = [read(line[:-1], "cra").event for line in JsonlSink(folder).lines(name)]
        calls = {
            str(event.payload["execution_id"]): event.payload["parameters"]["n"]  # type: ignore[index,call-overload]
            for event in events
            if event.event_type == "action.requested" and event.payload["action_id"] == "ticket.get"
        }

        def numbers(kind: str, events: list = events, calls: dict = calls) -> set[int]:  # type: ignore[type-arg]
            found = [calls.get(event.payload["execution_id"]) for event in events if event.event_type == kind]
            return {number for number in found if number is not None}

        told = {kind: {number for word, _, number in story if word == kind} for kind in ("ran", "kept", "refused")}
        assert told["ran"] <= numbers("action.approved")
        assert told["kept"] <= numbers("action.executed") | numbers("action.failed")
        assert not told["refused"] & numbers("action.executed")
        assert not told["refused"] & told["ran"]
    report = verify_folder(folder, Against(SIGNER.verifier))
    assert report.intact, (report.problems, [str(session) for session in report.sessions])
    for session in report.sessions:
        if session.session_id in session_ids:
            assert session.sealed
            # who is killed between the seal and its signature leaves it unsigned
            assert session.signed or (was_killed and session.session_id not in resumed)
    assert not list(folder.glob("*.new")) or was_killed


def occurrences(folder: Path) -> dict[str, int]:
    """How often each call comes when nothing fails."""
    found = {}
    for name in WHERE:
        fault = Fault(name, 10**6, "EIO", str(folder / name))
        with fault.armed():
            script(folder / name, lambda *_: None)
        found[name] = 10**6 - fault.left
    return found


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    return occurrences(tmp_path_factory.mktemp("counted"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads without waiting: every end asks for one."""
    monkeypatch.setattr("cra_middleware.trace.ledger.follower._LEAST_SECONDS", 0.001)
    monkeypatch.setattr("cra_middleware.trace.ledger.follower.CLOSE_SECONDS", 0.5)


@rounds(1, 1000)
@pytest.mark.parametrize(("name", "what"), [*((name, what) for name in WHERE for what in ERRORS), ("pwrite", "SHORT")])
def test_errors(tmp_path: Path, counted: dict[str, int], name: str, what: str, rounds: int) -> None:
    """After one failure anywhere, what was accepted is there, what was refused did not run, and all verifies."""
    for occurrence in range(1, counted[name] + 1, max(1, counted[name] // rounds)):
        folder = tmp_path / str(occurrence)
        story: Story = []
        fault = Fault(name, occurrence, what, str(folder))
        try:
            with fault.armed():
                script(folder, lambda *told: story.append(told))  # noqa: B023  called in here only
            check(folder, story)
        except BaseException as error:
            error.add_note(f"{name} number {occurrence} of {counted[name]}: {what}")
            raise


@rounds(2, 1000)
@pytest.mark.parametrize("name", list(WHERE))
def test_kills(tmp_path: Path, counted: dict[str, int], name: str, rounds: int) -> None:
    """The same, when the process is killed just before any of the calls."""
    for occurrence in range(1, counted[name] + 1, max(1, counted[name] // rounds)):
        folder = tmp_path / str(occurrence)
        fault = Fault(name, occurrence, "KILL", str(folder))

        def work(pipe: int, folder: Path = folder, fault: Fault = fault) -> None:
            def tell(kind: str, session_id: str, number: int) -> None:
                os.write(pipe, f"{kind} {session_id} {number} 0\n".encode())

            with fault.armed():
                script(folder, tell)

        pid, reading = spawn(work)
        with open(reading) as pipe:
            lines = pipe.readlines()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (-signal.SIGKILL, 1)
        story = [(told.kind, told.session_id, told.number) for told in map(parse, lines)]
        try:
            check(folder, story, was_killed=True)
        except (AssertionError, SinkError, ChainBroken) as error:
            error.add_note(f"{name} number {occurrence} of {counted[name]}: killed")
            raise
