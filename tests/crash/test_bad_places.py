"""What somebody planted in the folder stops nobody for ever, and is a sentence, not a traceback."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware._ids import new_id
from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.evidence.folder import Against, verify_folder
from cra_middleware.trace.sinks.jsonl import JsonlSink
from tests.conftest import manifest
from tests.crash.victim import SIGNER

Plant = Callable[[Path], object]

PLANTS: dict[str, Plant] = {
    "garbage": lambda path: path.write_bytes(os.urandom(1000)),
    "nothing": lambda path: path.touch(),
    "a link": lambda path: path.symlink_to("/etc/hostname"),
    "a link to nowhere": lambda path: path.symlink_to("/nowhere/at/all"),
    "a pipe": os.mkfifo,
    "a folder": lambda path: path.mkdir(),
}


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """What waits for a planted pipe is interrupted."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def signing(folder: Path, segment_bytes: int = 1 << 20) -> Runtime:
    sink = JsonlSink(folder, signer=SIGNER, segment_bytes=segment_bytes)
    return Runtime(Atlas.from_dict(manifest()), trace=sink)


def detached(folder: Path) -> str:
    """A session in several segments that was let go of."""
    with signing(folder, 2500) as runtime:
        session = runtime.session()
        for _ in range(4):
            session.call("ticket.get", lambda: None)
        session.detach()
    return session.id


@pytest.mark.parametrize("how", list(PLANTS))
@pytest.mark.parametrize("place", ["first", "last", "durable"])
def test_in_place_of_a_file(tmp_path: Path, place: str, how: str) -> None:
    """A session one of whose files is something else is refused or repaired; another one goes on beside it."""
    session_id = detached(tmp_path)
    files = sorted(tmp_path.glob("*.trace.jsonl"), key=lambda path: len(path.name))
    path = {"first": files[0], "last": files[-1], "durable": tmp_path / f"{session_id}.durable"}[place]
    path.unlink()
    PLANTS[how](path)
    with signing(tmp_path) as runtime:
        try:
            runtime.resume(session_id).end()
        except (SinkError, ChainBroken) as error:
            assert "\n" not in str(error)
        else:
            assert place == "durable"
        with runtime.session() as other:
            other.call("ticket.get", lambda: None)
    reports = {report.session_id: report for report in verify_folder(tmp_path, Against(SIGNER.verifier)).sessions}
    assert reports[other.id].sealed
    assert reports[other.id].signed
    assert place == "durable" or not reports[session_id].intact


@pytest.mark.parametrize("how", list(PLANTS))
def test_in_the_inbox(tmp_path: Path, how: str) -> None:
    """Whatever lies in the inbox, the ledger goes on."""
    (tmp_path / "ledger" / "inbox").mkdir(parents=True)
    for name in (new_id(), "..x", "ü", "0" * 200):
        PLANTS[how](tmp_path / "ledger" / "inbox" / name)
    with signing(tmp_path) as runtime:
        with runtime.session() as session:
            session.call("ticket.get", lambda: None)
    (report,) = verify_folder(tmp_path, Against(SIGNER.verifier)).sessions
    assert report.sealed
    assert report.signed
    assert session.id == report.session_id


@pytest.mark.parametrize("how", list(PLANTS))
@pytest.mark.parametrize("name", ["entries", "head", "lock", "inbox", ""])
def test_in_place_of_the_ledger(tmp_path: Path, name: str, how: str) -> None:
    """A ledger that cannot be one is told when the runtime is made, or it is one; nothing hangs."""
    if name:
        (tmp_path / "ledger").mkdir()
    PLANTS[how](tmp_path / "ledger" / name if name else tmp_path / "ledger")
    try:
        with signing(tmp_path) as runtime:
            with runtime.session() as session:
                session.call("ticket.get", lambda: None)
    except (SinkError, ChainBroken) as error:
        assert "\n" not in str(error)
        return
    (report,) = verify_folder(tmp_path).sessions
    assert report.verdict is not None
    assert report.verdict.sealed


def test_a_lock_that_is_held_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When another process keeps the ledger and does nothing, sessions go on, and the end does not wait for ever."""
    monkeypatch.setattr("cra_middleware.trace.ledger.follower.CLOSE_SECONDS", 0.2)
    (tmp_path / "ledger" / "inbox").mkdir(parents=True)
    with (tmp_path / "ledger" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with signing(tmp_path) as runtime:
            with runtime.session() as session:
                session.call("ticket.get", lambda: None)
    assert len(list((tmp_path / "ledger" / "inbox").iterdir())) >= 1
    signing(tmp_path).close()  # the next one signs what was asked for
    (report,) = verify_folder(tmp_path, Against(SIGNER.verifier)).sessions
    assert report.session_id == session.id
    assert report.signed
