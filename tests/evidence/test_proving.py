"""Proofs from a folder: of every event that a head covers, and of nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cra_middleware.evidence.proving import head_of, prove_event, prove_growth
from cra_middleware.trace.note import NoteError, Signer
from cra_middleware.trace.profiles import read
from cra_middleware.trace.proof import ProofError, verify_consistency_proof, verify_inclusion_proof
from cra_middleware.trace.pruned import pruned_file, pruned_text
from cra_middleware.trace.storage.segments import segment
from tests.evidence.scene import Scene, hashes_of, rewrite_all

OTHER = Signer("example.com/other", bytes(32))
NOT_WHAT_WAS_SIGNED = "is not what its head was signed for: look with `cra trace verify`"


def test_every_event_is_proved(signed: Scene) -> None:
    """Each by itself, and the proof shows that event, of that session, in the log of the folder's head."""
    key = signed.signer.verifier
    for session_id in (signed.a, signed.b):
        for place, line in enumerate(signed.lines(session_id)):
            proven = verify_inclusion_proof(prove_event(signed.folder, session_id, place), key)
            assert proven.event == read(line.removesuffix(b"\n"), "cra").event
            assert (proven.session_id, proven.sequence, proven.head.size) == (session_id, place, signed.noted)


def test_a_session_in_many_files(signed: Scene) -> None:
    """Wherever its files begin."""
    lines = signed.lines(signed.b)
    for first, end in ((0, 9), (9, 20), (20, 23)):
        segment(signed.folder, signed.b, first).path.write_bytes(b"".join(lines[first:end]))
    for place in (0, 8, 9, 19, 20, 22):
        proof = prove_event(signed.folder, signed.b, place)
        assert verify_inclusion_proof(proof, signed.signer.verifier).sequence == place


def test_what_was_written_since_is_not_in_the_way(signed: Scene) -> None:
    """Events behind the head, torn or not, change no proof."""
    (signed.ledger / "head").write_bytes((signed.middle / "head").read_bytes())
    proof = prove_event(signed.folder, signed.b, 13)
    lines = signed.lines(signed.b)
    signed.file(signed.b).write_bytes(b"".join(lines[:14]) + b"torn")
    assert prove_event(signed.folder, signed.b, 13) == proof
    with pytest.raises(ProofError, match="the signed head covers events 0 to 13 of the session, not 14"):
        prove_event(signed.folder, signed.b, 14)


def test_a_session_that_no_head_covers(signed: Scene) -> None:
    """An unknown one, or one that is noted behind the head only."""
    with pytest.raises(ProofError, match=r"no signed head covers session 01900000-.* yet"):
        prove_event(signed.folder, "01900000-0000-7000-8000-000000000001", 0)
    for size in range(1, signed.noted):
        root = signed.entries()[: size + 1]
        if root[-1].session_id == signed.b and all(entry.session_id == signed.a for entry in root[:-1]):
            (signed.ledger / "head").write_bytes(head_over(signed, size))
            with pytest.raises(ProofError, match=f"no signed head covers session {signed.b} yet"):
                prove_event(signed.folder, signed.b, 0)
            return
    pytest.fail("no entry about the first session alone")


def head_over(scene: Scene, size: int) -> bytes:
    from cra_middleware.trace.note import Checkpoint
    from cra_middleware.trace.tree import Frontier

    tree = Frontier()
    for entry in scene.entries()[:size]:
        tree.append(entry.leaf())
    return scene.signer.sign(Checkpoint(scene.signer.name, size, tree.root()).text())


def edit(scene: Scene) -> None:
    path = scene.file(scene.a)
    path.write_bytes(path.read_bytes().replace(b"ticket 42", b"ticket 43"))


def cut(scene: Scene) -> None:
    scene.file(scene.a).write_bytes(b"".join(scene.lines(scene.a)[:-1]))


def garble(scene: Scene) -> None:
    lines = scene.lines(scene.a)
    scene.file(scene.a).write_bytes(b"".join([*lines[:2], b"\xff\n", *lines[3:]]))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (edit, "event 0 of session .* was changed after it was written"),
        (cut, "session .* has 14 events where the ledger knows 15"),
        (lambda scene: scene.file(scene.a).write_bytes(b""), "session .* has 0 events where the ledger knows 15"),
        (lambda scene: scene.file(scene.a).unlink(), "session .* has 0 events where the ledger knows 15"),
        (garble, "event 2 of session .* cannot be read: not JSON"),
        (rewrite_all, "session .* is not what the ledger was told of: look at it with `cra trace verify`"),
        (lambda scene: shutil.rmtree(scene.ledger), "has no signed head; give the runtime a signing key"),
        (lambda scene: (scene.ledger / "head").unlink(), "has no signed head; give the runtime a signing key"),
        (lambda scene: (scene.ledger / "entries").unlink(), NOT_WHAT_WAS_SIGNED),
        (lambda scene: (scene.ledger / "entries").write_bytes(bytes(880)), NOT_WHAT_WAS_SIGNED),
        (lambda scene: (scene.ledger / "entries").write_bytes(scene.entries()[0].pack() * 10), NOT_WHAT_WAS_SIGNED),
    ],
)
def test_a_folder_that_was_changed(signed: Scene, damage: Callable[[Scene], object], why: str) -> None:
    """Nothing is proved from it, of any event."""
    damage(signed)
    for place in (0, 14):
        with pytest.raises(ProofError, match=why):
            prove_event(signed.folder, signed.a, place)


@pytest.mark.parametrize("head", [b"", b"\xff", b"garbage", b"a\n1\nAAAA\n\n", b"x" * 2_000_000])
def test_a_head_that_is_none(signed: Scene, head: bytes) -> None:
    """It is no reason for a traceback, and is not shown to anybody."""
    (signed.ledger / "head").write_bytes(head)
    for use in (
        lambda: prove_event(signed.folder, signed.a, 0),
        lambda: prove_growth(signed.folder, signed.kept),
        lambda: head_of(signed.folder),
    ):
        with pytest.raises(NoteError):
            use()


def test_the_head_itself(signed: Scene, plain: Scene) -> None:
    """To the byte; who signed it is for others to check."""
    assert head_of(signed.folder) == signed.kept
    foreign = OTHER.sign("example.com/other\n1\n" + "A" * 43 + "=\n")
    (signed.ledger / "head").write_bytes(foreign)
    assert head_of(signed.folder) == foreign
    with pytest.raises(ProofError, match="plain has no signed head"):
        head_of(plain.folder)


def test_pruned_events(signed: Scene) -> None:
    """Their hashes are kept: they are not proved, and stand in nobody's way."""
    lines, hashes = signed.lines(signed.b), hashes_of(signed, signed.b)
    pruned_file(signed.folder, signed.b).write_bytes(pruned_text(bytes.fromhex("".join(hashes[:9]))))
    signed.file(signed.b).unlink()
    for first in (9, 6):  # a file that should have gone with the others may be there still
        path = segment(signed.folder, signed.b, first).path
        path.write_bytes(b"".join(lines[first:]))
        for place in (9, 22):
            proof = prove_event(signed.folder, signed.b, place)
            assert verify_inclusion_proof(proof, signed.signer.verifier).sequence == place
        with pytest.raises(ProofError, match="event 8 was removed by `cra trace prune`; only its hash was kept"):
            prove_event(signed.folder, signed.b, 8)
        path.unlink()


def test_growth(signed: Scene) -> None:
    """From every earlier head of the log to the one that is there."""
    key = signed.signer.verifier
    for size in range(1, signed.noted + 1):
        found = verify_consistency_proof(prove_growth(signed.folder, head_over(signed, size)), key)
        assert (found.old.size, found.new.size) == (size, signed.noted)


@pytest.mark.parametrize(
    "old",
    [
        lambda scene: scene.signer.sign(f"example.com/bot\n{scene.noted + 1}\n" + "A" * 43 + "=\n"),
        lambda scene: scene.signer.sign("example.com/bot\n1\n" + "A" * 43 + "=\n"),
        lambda scene: scene.signer.sign(f"example.com/bot\n{scene.noted}\n" + "A" * 43 + "=\n"),
    ],
)
def test_no_growth(signed: Scene, old: Callable[[Scene], bytes]) -> None:
    """A head of more entries, or of others, is not where this log began."""
    with pytest.raises(ProofError, match="the folder's log does not begin with the one that this head was signed for"):
        prove_growth(signed.folder, old(signed))


def test_an_old_head_that_is_none(signed: Scene) -> None:
    """Said as of any head."""
    with pytest.raises(NoteError):
        prove_growth(signed.folder, b"garbage")


def test_nothing_is_written(signed: Scene, tmp_path: Path) -> None:
    """Proving only reads."""
    before = {path: path.read_bytes() for path in signed.folder.rglob("*") if path.is_file()}
    prove_event(signed.folder, signed.a, 3)
    prove_growth(signed.folder, signed.kept)
    assert {path: path.read_bytes() for path in signed.folder.rglob("*") if path.is_file()} == before
