"""What is said about a folder of traces: each session's chain, and what the ledger, the notes and a copy know of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware.errors import SinkError
from cra_middleware.evidence.folder import Against, verify_folder
from cra_middleware.evidence.reports import FolderReport, SessionReport
from cra_middleware.trace.note import NoteError, Signer
from cra_middleware.trace.pruned import pruned_file, pruned_text
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.witness import Seen, Witness
from tests.cli.conftest import foreign
from tests.conftest import manifest
from tests.evidence.scene import Scene, hashes_of, rewrite_ledger, work
from tests.trace.forge import lines_of, write_trace


def report_on(folder: Path, session_id: str, against: Against | None = None) -> SessionReport:
    found = verify_folder(folder, against or Against())
    [report] = [report for report in found.sessions if report.session_id == session_id]
    return report


def copy_of(scene: Scene, *session_ids: str) -> Witness:
    events = [Seen(name, place, item) for name in session_ids for place, item in enumerate(hashes_of(scene, name))]
    return Witness(iter(events))


def signed_by(scene: Scene) -> Against:
    return Against(scene.signer.verifier)


def durable(scene: Scene, session_id: str, content: bytes) -> None:
    (scene.folder / f"{session_id}.durable").write_bytes(content)


@pytest.fixture
def segmented(tmp_path: Path) -> tuple[Path, str]:
    """A session in many files."""
    folder = tmp_path / "segmented"
    sink = JsonlSink(folder, segment_bytes=3000)
    with Runtime(Atlas.from_dict(manifest()), trace=sink) as runtime, runtime.session() as session:
        work(runtime, session, 4)
    return folder, session.id


def test_a_good_folder(signed: Scene) -> None:
    """Both sessions, in the order of their ids, covered by the largest head that fits."""
    found = verify_folder(str(signed.folder), signed_by(signed))
    assert [report.session_id for report in found.sessions] == [signed.a, signed.b]
    assert [(report.signed_events, report.total_events) for report in found.sessions] == [(15, 15), (23, 23)]
    assert all(report.sealed and report.signed and not report.witnessed for report in found.sessions)
    assert (found.path, found.missing, found.problems, found.intact) == (str(signed.folder), (), (), True)
    assert found.head is not None
    assert (found.head.origin, found.head.size) == ("example.com/bot", signed.noted)


def test_without_a_key_no_head_counts(signed: Scene) -> None:
    """And none is even read."""
    (signed.ledger / "head").write_bytes(b"garbage")
    found = verify_folder(signed.folder)
    assert (found.head, found.problems, found.intact) == (None, (), True)
    assert [report.signed_events for report in found.sessions] == [0, 0]


def test_an_empty_folder(tmp_path: Path) -> None:
    """Nothing is there, and nothing is missing."""
    assert verify_folder(tmp_path) == FolderReport(str(tmp_path), ())


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    """It cannot be read."""
    with pytest.raises(SinkError, match="nowhere cannot be read"):
        verify_folder(tmp_path / "nowhere")


def test_the_larger_of_two_heads_counts(signed: Scene) -> None:
    """An old head that was held elsewhere is no reason to believe less."""
    old = (signed.middle / "head").read_bytes()
    found = verify_folder(signed.folder, Against(signed.signer.verifier, old))
    assert all(report.signed for report in found.sessions)
    (signed.ledger / "head").write_bytes(old)
    again = verify_folder(signed.folder, Against(signed.signer.verifier, signed.kept))
    assert all(report.signed for report in again.sessions)
    assert found.head == again.head


@pytest.mark.parametrize("head", [b"", b"garbage", Signer("other", bytes(32)).sign("other\n0\nAAAA\n")])
def test_a_head_held_elsewhere_that_is_none(signed: Scene, head: bytes) -> None:
    """Whoever gives it hears of it: that is no fault of the folder's."""
    with pytest.raises(NoteError):
        verify_folder(signed.folder, Against(signed.signer.verifier, head))


@pytest.mark.parametrize("damage", ["ledger", "entries"])
def test_no_head_is_shown_that_does_not_fit(signed: Scene, damage: str) -> None:
    """Where the ledger is gone, or another, nothing is said to be signed."""
    if damage == "ledger":
        shutil.rmtree(signed.ledger)
    else:
        (signed.ledger / "entries").write_bytes(b"")
    found = verify_folder(signed.folder, Against(signed.signer.verifier, signed.kept))
    assert found.head is None
    assert found.problems
    assert not found.intact
    assert not any(report.signed_events for report in found.sessions)


def test_one_session_only(signed: Scene) -> None:
    """With all that is known of it; what is missing beside it is not told."""
    signed.file(signed.a).unlink()
    against = Against(signed.signer.verifier, signed.kept, copy_of(signed, signed.b))
    found = verify_folder(signed.folder, against, only=signed.b)
    [report] = found.sessions
    assert (report.session_id, report.signed, report.witnessed, found.missing) == (signed.b, True, True, ())
    [gone] = verify_folder(signed.folder, only=signed.a).sessions
    assert "truncated" in str(gone)


def test_a_session_in_many_files(segmented: tuple[Path, str]) -> None:
    """They are one chain, and told in their order."""
    folder, session_id = segmented
    report = report_on(folder, session_id)
    assert len(report.paths) > 3
    assert [Path(path).name for path in report.paths][:1] == [f"{session_id}.trace.jsonl"]
    assert report.sealed
    assert report.total_events == sum(len(lines_of(Path(path))) for path in report.paths)


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        (0, "BROKEN at event 0: invalid_genesis"),
        (1, "truncated: events are missing here"),
        (-1, "INTACT, NOT SEALED"),
    ],
)
def test_a_file_that_is_gone(segmented: tuple[Path, str], gone: int, sentence: str) -> None:
    """The first, one in the middle, or the last, which only the seal shows."""
    folder, session_id = segmented
    Path(report_on(folder, session_id).paths[gone]).unlink()
    assert sentence in str(report_on(folder, session_id))


def test_what_stands_twice_counts_once(segmented: tuple[Path, str]) -> None:
    """A file counts up to where the next one begins."""
    folder, session_id = segmented
    first, second = report_on(folder, session_id).paths[:2]
    with Path(first).open("ab") as file:
        file.write(Path(second).read_bytes() + b"torn")
    assert report_on(folder, session_id).sealed


def prune(folder: Path, session_id: str, hashes: list[str], *, removed: int) -> None:
    """As pruning leaves it: the hashes of the first events, and the files from ``removed`` on."""
    paths = report_on(folder, session_id).paths
    pruned_file(folder, session_id).write_bytes(pruned_text(bytes.fromhex("".join(hashes))))
    for path in paths[:removed]:
        Path(path).unlink()


def hashes_in(folder: Path, session_id: str, files: int) -> list[str]:
    scene = Scene(folder, folder, "", "", folder, 0)
    paths = report_on(folder, session_id).paths[:files]
    return [item for path in paths for item in hashes_of(scene, Path(path).name.removesuffix(".trace.jsonl"))]


@pytest.mark.parametrize("removed", [2, 1])
def test_a_pruned_session(segmented: tuple[Path, str], removed: int) -> None:
    """What is left verifies from there on; a file that should have gone, too, counts for what was not pruned."""
    folder, session_id = segmented
    hashes = hashes_in(folder, session_id, 2)
    total = report_on(folder, session_id).total_events
    prune(folder, session_id, hashes, removed=removed)
    report = report_on(folder, session_id)
    assert str(report) == f"INTACT FROM EVENT {len(hashes)}, SEALED"
    assert (report.pruned_events, report.total_events) == (len(hashes), total)


def test_pruned_hashes_must_lead_to_what_is_left(segmented: tuple[Path, str]) -> None:
    """One fewer, or another last one, is a broken chain."""
    folder, session_id = segmented
    hashes = hashes_in(folder, session_id, 2)
    for wrong in (hashes[:-1], [*hashes[:-1], "0" * 64], [*hashes, "0" * 64]):
        prune(folder, session_id, wrong, removed=2)
        assert "BROKEN at event" in str(report_on(folder, session_id))
        shutil.copytree(folder, folder.with_name("again"), dirs_exist_ok=True)


def test_nothing_is_left_of_a_session(signed: Scene) -> None:
    """Its hashes are compared with the ledger and the copy, and must be those of its events."""
    hashes = hashes_of(signed, signed.a)
    against = Against(signed.signer.verifier, None, copy_of(signed, signed.a, signed.b))
    prune(signed.folder, signed.a, hashes, removed=1)
    report = report_on(signed.folder, signed.a, against)
    assert (report.verdict, report.signed, report.witnessed, report.sealed) == (None, True, True, True)
    assert str(report) == (
        "PRUNED: 15 events were removed, and their hashes kept, SIGNED up to event 14, WITNESSED up to event 14"
    )
    for wrong in (hashes[:-1], ["0" * 64, *hashes[1:]]):
        prune(signed.folder, signed.a, wrong, removed=0)
        assert not report_on(signed.folder, signed.a, against).intact


@pytest.mark.parametrize("data", [b"", b"cra-pruned/1\n", b"cra-pruned/1\nx", b"x" * 45])
def test_a_note_of_pruned_events_that_is_none(plain: Scene, data: bytes) -> None:
    """The session is told as one that cannot be read."""
    pruned_file(plain.folder, plain.a).write_bytes(data)
    report = report_on(plain.folder, plain.a)
    assert str(report) == f"CHANGED: {pruned_file(plain.folder, plain.a)} is not what `cra trace prune` writes"
    assert not report.sealed


def test_other_files_are_no_sessions(plain: Scene) -> None:
    """Only what is named after an id is a session's, whatever its ending."""
    for name in (".pruned", "x.pruned", "x.trace.jsonl", f"{plain.a}.0.trace.jsonl", f"{plain.a}.torn", "ledger"):
        (plain.folder / name).write_bytes(b"x")
    with pytest.raises(SinkError, match="entries cannot be read"):
        verify_folder(plain.folder)
    (plain.folder / "ledger").unlink()
    assert [report.session_id for report in verify_folder(plain.folder).sessions] == [plain.a, plain.b]


@pytest.mark.parametrize("content", [b"%020d\n" % 14, b"14", b"0", b"", b"\0" * 21])
def test_a_note_of_what_reached_the_disk(plain: Scene, content: bytes) -> None:
    """As much as is there, or less, is no reason for doubt."""
    plain.file(plain.b).write_bytes(b"".join(plain.lines(plain.b)[:14]))
    durable(plain, plain.b, content)
    assert str(report_on(plain.folder, plain.b)) == "INTACT, NOT SEALED: the end may be missing"


def test_more_had_reached_the_disk(plain: Scene) -> None:
    """Then the end was removed, even of a chain that is whole."""
    plain.file(plain.b).write_bytes(b"".join(plain.lines(plain.b)[:14]))
    durable(plain, plain.b, b"%020d\n" % 15)
    report = report_on(plain.folder, plain.b)
    assert str(report) == "CHANGED: 15 events had reached the disk, and 14 are there: its end was removed"
    durable(plain, plain.b, b"x")
    assert "does not hold a number of events" in str(report_on(plain.folder, plain.b))


def test_a_broken_chain_says_what_is_broken(signed: Scene) -> None:
    """What follows from that (events that are not there) is not told beside it."""
    lines = signed.lines(signed.b)
    signed.file(signed.b).write_bytes(b"".join([*lines[:3], *lines[4:]]))
    durable(signed, signed.b, b"23")
    report = report_on(signed.folder, signed.b, signed_by(signed))
    assert str(report).startswith("BROKEN at event 3: chain_broken")
    assert report.problems == ()
    assert (report.signed, report.sealed, report.intact) == (False, False, False)


def test_every_entry_is_compared(signed: Scene) -> None:
    """Not only the last: the ledger says what a session was at each time."""
    rewrite_ledger(signed, None)  # nothing was rewritten: the same entries
    data = (signed.ledger / "entries").read_bytes()
    first_about_b = next(place for place, entry in enumerate(signed.entries()) if entry.session_id == signed.b)
    place = first_about_b * 88 + 30  # in the hash of its last event
    (signed.ledger / "entries").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    report = report_on(signed.folder, signed.b)
    assert str(report) == "CHANGED: its first 14 events are not those that the ledger was told of"


def test_what_follows_says_nothing_new(signed: Scene) -> None:
    """At most three problems are told of a session."""
    many = [Seen(signed.a, place, "x") for place in range(15)]
    report = report_on(signed.folder, signed.a, Against(witness=Witness(iter(many))))
    assert report.problems == tuple(f"the copy saw another event {place}" for place in range(3))
    assert report.witnessed_events == 0


def test_a_copy_with_gaps(plain: Scene) -> None:
    """A later event vouches for all before it: the chain leads to it."""
    hashes = hashes_of(plain, plain.a)
    witness = Witness(iter([Seen(plain.a, 2, hashes[2]), Seen(plain.a, 9, hashes[9])]))
    report = report_on(plain.folder, plain.a, Against(witness=witness))
    assert (report.witnessed_events, report.witnessed) == (10, False)
    assert str(report) == "INTACT, SEALED, WITNESSED up to event 9, and not the 5 behind it"


def test_a_copy_that_names_no_session(plain: Scene) -> None:
    """Its events are recognised by place and hash; others of them are somebody else's."""
    hashes = hashes_of(plain, plain.a)
    events = [Seen(None, place, item) for place, item in enumerate(hashes)] + [Seen(None, 3, "0" * 64)]
    against = Against(witness=Witness(iter(events)))
    assert report_on(plain.folder, plain.a, against).witnessed
    assert report_on(plain.folder, plain.b, against).witnessed_events == 0


def test_two_stories(plain: Scene) -> None:
    """A copy that saw two events at one place shows that there were two, whichever is here."""
    hashes = hashes_of(plain, plain.a)
    witness = Witness(iter([Seen(plain.a, 4, hashes[4]), Seen(plain.a, 4, "0" * 64)]))
    report = report_on(plain.folder, plain.a, Against(witness=witness))
    assert str(report) == "CHANGED: the copy saw another event 4"


def test_what_is_missing_is_named_once(signed: Scene) -> None:
    """By the ledger, or else by the copy; in both cases with what is known of it."""
    witness = copy_of(signed, signed.a, signed.b)
    signed.file(signed.a).unlink()
    found = verify_folder(signed.folder, Against(witness=witness))
    assert found.missing == (f"session {signed.a} is missing: the ledger knows 15 events of it",)
    assert not found.intact
    shutil.rmtree(signed.ledger)
    found = verify_folder(signed.folder, Against(witness=witness))
    assert found.missing == (f"session {signed.a} is missing: the copy knows 15 events of it",)


def test_several_sessions_of_another_implementation(plain: Scene) -> None:
    """A file of theirs may hold several, under any id's name, when nobody here knows that id."""
    name = "01900000-0000-7000-8000-000000000009"
    plain.file(name).write_bytes(b"".join([*foreign(1, [{}, {}]), *foreign(2, [{}])]))
    whole = verify_folder(plain.folder)
    found = [report for report in whole.sessions if report.session_id not in (plain.a, plain.b)]
    assert whole.intact
    assert [(report.total_events, report.verdict and report.verdict.profile) for report in found] == [
        (2, "appendix-b"),
        (1, "appendix-b"),
    ]
    assert {report.paths for report in found} == {(str(plain.file(name)),)}
    durable(plain, name, b"")
    assert str(report_on(plain.folder, name)) == "CHANGED: its file holds other sessions: it was replaced"


def test_a_session_of_another_implementation_is_compared(plain: Scene) -> None:
    """A copy may have it, too."""
    [line] = foreign(7, [{"goal": "x"}])
    path = plain.file("00000000-0000-0000-0000-000000000007")
    path.write_bytes(line)
    [event] = [line for line in hashes_of(plain, path.name.removesuffix(".trace.jsonl"))]
    name = path.name.removesuffix(".trace.jsonl")
    for hash_, words in ((event, "WITNESSED up to event 0"), ("0" * 64, "CHANGED: the copy saw another event 0")):
        report = report_on(plain.folder, name, Against(witness=Witness(iter([Seen(name, 0, hash_)]))))
        assert words in str(report)


@pytest.mark.parametrize(
    "plant",
    [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to("/dev/zero")],
)
def test_what_is_no_plain_file(plain: Scene, plant: Callable[[Path], object]) -> None:
    """It is told, and not waited for; the other session is verified."""
    plain.file(plain.a).unlink()
    plant(plain.file(plain.a))
    first, second = verify_folder(plain.folder).sessions
    assert str(first) == f"CHANGED: {plain.file(plain.a)} is not a plain file"
    assert second.sealed


def test_progress(plain: Scene) -> None:
    """It is told every byte."""
    counts: list[int] = []
    verify_folder(plain.folder, progress=counts.append)
    assert sum(counts) == sum(plain.file(name).stat().st_size for name in (plain.a, plain.b))


def test_other_traces_beside(signed: Scene) -> None:
    """A session that the ledger does not know is not signed, and no fault."""
    other = write_trace(signed.folder)
    report = report_on(signed.folder, other.name.removesuffix(".trace.jsonl"), signed_by(signed))
    assert (report.intact, report.signed, report.signed_events) == (True, False, 0)


def test_a_key_that_was_changed(tmp_path: Path) -> None:
    """After a rotation the old key's last head, held elsewhere, still proves what it covered; the new key the rest."""
    old, new = Signer("example.com/old", bytes(32)), Signer("example.com/new", bytes(range(32)))
    heads = []
    for signer in (old, new):
        with Runtime(Atlas.from_dict(manifest()), trace=JsonlSink(tmp_path, signer=signer)) as runtime:
            with runtime.session("bot") as session:
                session.call("ticket.get", lambda: None)
        heads.append((tmp_path / "ledger" / "head").read_bytes())
    before = verify_folder(tmp_path, Against(old.verifier, heads[0]))
    assert before.intact
    assert [report.signed for report in before.sessions] == [True, False]
    after = verify_folder(tmp_path, Against(new.verifier))
    assert after.intact
    assert [report.signed for report in after.sessions] == [True, True]
    assert not verify_folder(tmp_path, Against(old.verifier)).intact  # nothing that is there is signed by it
