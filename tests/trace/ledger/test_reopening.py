"""Who goes on with a session looks at the ledger first: damage below a signed head is no crash's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cra_middleware import Atlas, Runtime, verify
from cra_middleware.errors import ChainBroken
from cra_middleware.trace.sinks.jsonl import JsonlSink
from tests.conftest import manifest
from tests.trace.forge import lines_of, rewrite
from tests.trace.ledger.conftest import SIGNER

ATLAS = Atlas.from_dict(manifest())
CHANGED = "is not what the ledger says of its first 7 events: it was changed"


@pytest.fixture
def open_session(tmp_path: Path) -> Path:
    """A session of seven events that was let go of, and signed to its end."""
    with Runtime(ATLAS, trace=JsonlSink(tmp_path, signer=SIGNER)) as runtime:
        session = runtime.session(goal="Answer ticket 42", keep=True)
        session.call("ticket.get", lambda: 1)
    path = tmp_path / f"{session.id}.trace.jsonl"
    assert len(lines_of(path)) == 7
    return path


def session_of(path: Path) -> str:
    return path.name.split(".")[0]


def rewrite_goal(path: Path) -> None:
    path.write_bytes(b"".join(rewrite(lines_of(path), lambda events: events[0]["payload"].update(goal="Another"))))


def keep(count: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(b"".join(lines_of(path)[:count]))


@pytest.mark.parametrize("signer", [SIGNER, None])
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (keep(6), "has 6 events where 7 were written"),
        (keep(0), "has 0 events where 7 were written"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "has 6 events where 7 were written"),
        (rewrite_goal, CHANGED),
    ],
)
def test_damage_below_the_last_head(
    open_session: Path, damage: Callable[[Path], object], why: str, signer: object
) -> None:
    """It is refused and left as it is, even without its note of what had reached the disk, and without the key."""
    damage(open_session)
    open_session.with_name(f"{session_of(open_session)}.durable").unlink()
    before = open_session.read_bytes()
    sink = JsonlSink(open_session.parent, signer=signer if signer is None else SIGNER)
    for _ in range(2):  # the file is not locked by the first try
        with pytest.raises(ChainBroken, match=why):
            sink.reopen(session_of(open_session))
    assert open_session.read_bytes() == before
    sink.close()


def test_damage_behind_the_last_head(open_session: Path) -> None:
    """A torn line that nobody signed is a crash's: it is set aside, and the session goes on."""
    with open_session.open("ab") as file:
        file.write(b'{"torn')
    with Runtime(ATLAS, trace=JsonlSink(open_session.parent, signer=SIGNER)) as runtime:
        runtime.resume(session_of(open_session)).end()
    report = verify(open_session)
    assert report.sealed
    assert report.sessions[0].recovered is not None


def test_the_last_entry_counts(open_session: Path) -> None:
    """A session that went on is looked at up to where it was signed last."""
    with Runtime(ATLAS, trace=JsonlSink(open_session.parent, signer=SIGNER)) as runtime:
        runtime.resume(session_of(open_session), keep=True).call("ticket.get", lambda: 1)
    count = len(lines_of(open_session))
    keep(count - 1)(open_session)
    with pytest.raises(ChainBroken, match=f"has {count - 1} events where {count} were written"):
        JsonlSink(open_session.parent).reopen(session_of(open_session))


def test_a_ledger_of_garbage(open_session: Path) -> None:
    """Where the entry about the session is none, nothing is gone on with."""
    entries = open_session.parent / "ledger" / "entries"
    entries.write_bytes(entries.read_bytes()[:16] + bytes(72))
    with pytest.raises(ChainBroken, match="holds something else than entries"):
        JsonlSink(open_session.parent).reopen(session_of(open_session))


def test_a_session_that_the_ledger_does_not_know(open_session: Path) -> None:
    """It is gone on with, as without a ledger."""
    with Runtime(ATLAS, trace=open_session.parent) as runtime:
        session = runtime.session(keep=True)
    log = JsonlSink(open_session.parent).reopen(session.id)
    log.close()
