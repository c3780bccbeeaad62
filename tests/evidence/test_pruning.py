"""What was removed cannot be shown any more; that it was there, and that the rest is whole, still can."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware._clock import parse_us
from cra_middleware.errors import SinkError
from cra_middleware.evidence.folder import Against, verify_folder
from cra_middleware.evidence.pruning import PrunedSession, older_than, prune_folder
from cra_middleware.evidence.reports import SessionReport
from cra_middleware.testing import FrozenClock
from cra_middleware.trace.ledger.book import read_head
from cra_middleware.trace.note import Signer
from cra_middleware.trace.pruned import pruned_file, read_pruned
from cra_middleware.trace.sinks.jsonl import JsonlSink
from tests.conftest import NOON, manifest

SIGNER = Signer("example.com/bot", bytes(32))
KEY = SIGNER.verifier
DAY = 86_400.0


def recorded(folder: Path, *, ends: bool = True, signer: Signer | None = SIGNER) -> str:
    """A session of ten days, a call a day, in several files."""
    clock = FrozenClock(NOON)
    sink = JsonlSink(folder, signer=signer, segment_bytes=4000)
    with Runtime(Atlas.from_dict(manifest()), trace=sink, clock=clock) as runtime:
        session = runtime.session("bot", keep=not ends)
        for _ in range(10):
            session.call("ticket.get", lambda: None)
            clock.advance(DAY)
    return session.id


def prune(folder: Path, days: float, **more: object) -> PrunedSession:
    (found,) = prune_folder(folder, KEY, parse_us(NOON) + int(days * DAY * 1_000_000), **more)  # type: ignore[arg-type]
    return found


def verified(folder: Path, head: bytes | None) -> SessionReport:
    (report,) = verify_folder(folder, Against(KEY, head)).sessions
    return report


def test_the_rest_still_verifies(tmp_path: Path) -> None:
    """After each cut what is left is intact, sealed, and covered by a head that was kept before."""
    session_id = recorded(tmp_path)
    head = read_head(tmp_path)
    whole = verified(tmp_path, head)
    files = len(whole.paths)
    assert whole.signed
    assert whole.sealed
    removed = 0
    for days in (2.5, 5.5, 30):
        found = prune(tmp_path, days)
        assert found.why_not is None
        assert found.files
        removed += found.events
        report = verified(tmp_path, head)
        assert (report.signed, report.sealed, report.pruned_events) == (True, True, removed)
        assert report.total_events == whole.total_events
        assert len(report.paths) < files
        files = len(report.paths)
    assert (removed, files) == (whole.total_events, 0)
    assert str(verified(tmp_path, head)).startswith(f"PRUNED: {removed} events were removed")
    kept = read_pruned(tmp_path, session_id)
    assert kept is not None
    assert len(kept) == removed


def test_a_changed_hash_is_noticed(tmp_path: Path) -> None:
    """The kept hashes are bound by the signed head: none can be changed, added or taken away."""
    session_id = recorded(tmp_path)
    head = read_head(tmp_path)
    prune(tmp_path, 5.5)
    path = pruned_file(tmp_path, session_id)
    good = path.read_bytes()
    for bad in (good[:20] + bytes([good[20] ^ 1]) + good[21:], good[:-32], good + bytes(32), good[:-1], b"", b"x"):
        path.write_bytes(bad)
        assert not verified(tmp_path, head).intact
    path.unlink()
    assert not verified(tmp_path, head).intact
    path.write_bytes(good)
    assert verified(tmp_path, head).signed


@pytest.mark.parametrize("how", ["open", "unsigned", "changed"])
def test_what_is_kept(tmp_path: Path, how: str) -> None:
    """A session that was not ended, is not signed, or was changed loses nothing, and the reason is told."""
    recorded(tmp_path, ends=how != "open", signer=None if how == "unsigned" else SIGNER)
    if how == "changed":
        victim = max(tmp_path.glob("*.trace.jsonl"), key=lambda path: b"ticket.get" in path.read_bytes())
        victim.write_bytes(victim.read_bytes().replace(b"ticket.get", b"ticket.bet", 1))
    before = sorted(path.name for path in tmp_path.iterdir())
    words = {"open": "not ended", "unsigned": "no signed head", "changed": "BROKEN|CHANGED"}
    found = prune(tmp_path, 5.5)
    assert found.files == ()
    assert found.why_not is not None
    assert any(word in found.why_not for word in words[how].split("|"))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert prune(tmp_path, -1).why_not is None  # nothing of it is old


def test_a_rehearsal_removes_nothing(tmp_path: Path) -> None:
    """It says what would go, exactly."""
    recorded(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    told = prune(tmp_path, 5.5, is_rehearsal=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert prune(tmp_path, 5.5) == told


def test_a_cut_that_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes are kept before files go; what an interrupted cut left verifies, and the next one finishes it."""
    recorded(tmp_path)
    head = read_head(tmp_path)
    real, left = os.unlink, [2]

    def unlink(path: object, **more: object) -> None:
        if str(path).endswith(".trace.jsonl"):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(5, "Input/output error")
        real(path, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        with pytest.raises(SinkError, match="cannot be pruned"):
            prune(tmp_path, 8.5)
    report = verified(tmp_path, head)
    assert report.signed
    assert report.sealed
    assert prune(tmp_path, 8.5).files
    report = verified(tmp_path, head)
    assert report.signed
    assert report.total_events == report.pruned_events + (report.verdict.events if report.verdict else 0)


def test_spans() -> None:
    """Hours, days and weeks, backwards from now."""
    assert [older_than(text, 0) // 1_000_000 for text in ("12h", "30d", "2w")] == [-43_200, -2_592_000, -1_209_600]
