"""The attack table: what each level of evidence accepts, and by which sentence it catches the rest.

The rows are those of ``docs/security-model.md``. Two columns go beyond what is usually claimed:

- a ledger that lies beside the traces is compared with them even when nobody gives a key (``unkeyed``), so an attacker
  has to rewrite it, too, or remove it;
- a stolen key does not help against a head that was taken before the theft and held elsewhere: it is accepted only
  when the head that is given was signed by the thief.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cra_middleware._ids import new_id
from cra_middleware.keys import generate_key, load_signer
from cra_middleware.trace.entry import ENTRY_BYTES
from cra_middleware.trace.note import Checkpoint
from cra_middleware.trace.pruned import pruned_file, pruned_text
from tests.cli.conftest import Cra, Ran, foreign
from tests.evidence.scene import (
    Scene,
    as_otlp_json,
    as_sdk_json,
    hashes_of,
    rewrite_all,
    rewrite_ledger,
)
from tests.trace.forge import parse, reseal, rewrite, write_trace

OK = ""
"""Accepted: nothing is wrong that this level can see."""
EDITED = "BROKEN at event 0: hash_mismatch: event 0 was changed after it was written"
UNSEALED = "INTACT, NOT SEALED: the end may be missing (14 events, required: SEALED)"
UNSIGNED = "required: SIGNED"
UNWITNESSED = "required: WITNESSED"
GONE = "CHANGED: a signed head covers this folder, and its ledger is not there: it was removed"
OTHER_ENTRIES = (
    "CHANGED: {head} was signed over other entries than the ledger's first {entries}: they were changed, or it is the "
    "head of another folder"
)
FEWER = "CHANGED: {head} covers {entries} entries of the ledger, and there are {left}: {lost} were removed"
TOLD = "its first 15 events are not those that the ledger was told of"
SHORT = "CHANGED: the ledger knows 23 events, and 14 are there: its end was removed"
COPY_SHORT = "CHANGED: the copy knows 23 events, and 14 are there: its end was removed"
COPY_OTHER = "CHANGED: the copy saw another event 0; the copy saw another event 1; the copy saw another event 2"
BESIDE, ELSEWHERE = "the head in the folder", "the head that was held elsewhere"


class Row(NamedTuple):
    """What each level says to one attack."""

    attack: Callable[[Scene], object]
    chain: str
    sealed: str
    unkeyed: str
    """The folder has a ledger, and nobody gives a key."""
    beside: str
    """With the key: the head that lies in the folder counts."""
    elsewhere: str
    """And one that was held elsewhere does, too."""
    witness: str


def everywhere(attack: Callable[[Scene], object], sentence: str) -> Row:
    return Row(attack, *[sentence] * 6)


def nothing(scene: Scene) -> None:
    """The folder as the runtime left it."""


def edit(scene: Scene) -> None:
    change(scene, lambda lines: lines.__setitem__(0, lines[0].replace(b"ticket 42", b"ticket 43")))


def delete_in_the_middle(scene: Scene) -> None:
    change(scene, lambda lines: lines.__delitem__(3))


def reorder(scene: Scene) -> None:
    change(scene, lambda lines: lines.insert(3, lines.pop(4)))


def repeat(scene: Scene) -> None:
    change(scene, lambda lines: lines.insert(4, lines[3]))


def drop_the_tail(scene: Scene) -> None:
    scene.file(scene.b).write_bytes(b"".join(scene.lines(scene.b)[: scene.cut]))


def roll_back(scene: Scene) -> None:
    """To a moment for which there is a head."""
    drop_the_tail(scene)
    if scene.ledger.exists():
        shutil.rmtree(scene.ledger)
        shutil.copytree(scene.middle, scene.ledger)


def forge_the_seal(scene: Scene) -> None:
    """Roll back, and say that it was the end."""
    end = parse(scene.lines(scene.b))[-1]
    roll_back(scene)
    end["payload"]["event_count"] = scene.cut + 1
    events = [*parse(scene.lines(scene.b)), end]
    scene.file(scene.b).write_bytes(b"".join(reseal(events)))


def rewrite_without_the_ledger(scene: Scene) -> None:
    rewrite_all(scene)
    shutil.rmtree(scene.ledger, ignore_errors=True)


def rewrite_with_the_ledger(scene: Scene) -> None:
    resign(scene, None)


def rewrite_with_another_key(scene: Scene) -> None:
    key = scene.folder.parent / "attacker.key"
    generate_key(key, "example.com/bot")  # the same name, and another key
    resign(scene, key)


def rewrite_with_the_stolen_key(scene: Scene) -> None:
    resign(scene, scene.key)


def rewrite_and_hand_out_the_head(scene: Scene) -> None:
    """The thief signs, and everybody gets their head from the thief."""
    resign(scene, scene.key)
    if scene.ledger.exists():
        scene.kept = (scene.ledger / "head").read_bytes()


def delete_a_session(scene: Scene) -> None:
    scene.file(scene.a).unlink()


def delete_a_session_and_the_ledger(scene: Scene) -> None:
    delete_a_session(scene)
    shutil.rmtree(scene.ledger, ignore_errors=True)


def forge_a_session(scene: Scene) -> None:
    """Out of a true one, under an id of its own."""
    session_id = new_id()
    lines = rewrite(scene.lines(scene.a), lambda events: [event.update(session_id=session_id) for event in events])
    scene.file(session_id).write_bytes(b"".join(lines))


def swap_names(scene: Scene) -> None:
    a, b, aside = scene.file(scene.a), scene.file(scene.b), scene.folder / "aside"
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


def copy_from_another_folder(scene: Scene) -> None:
    other = write_trace(scene.folder.parent / "other")
    shutil.copy(other, scene.folder)


def other_form(scene: Scene) -> None:
    """A session of another implementation, whose form allows more, in the place of one."""
    scene.file(scene.a).write_bytes(b"".join(foreign(7, [{"goal": "Answer ticket 43"}, {}])))


def other_form_same_id(scene: Scene) -> None:
    lines = foreign(7, [{"goal": "Answer ticket 43"}])
    [event] = parse(lines)
    event["session_id"] = scene.a
    whole = reseal([event])[0].replace(b'{"trace_version":"1.0",', b'{ "trace_version":"1.0",')
    scene.file(scene.a).write_bytes(whole)


def prune_unasked(scene: Scene) -> None:
    """What was done is gone; that it was done is not."""
    hashes = bytes.fromhex("".join(hashes_of(scene, scene.a)))
    pruned_file(scene.folder, scene.a).write_bytes(pruned_text(hashes))
    scene.file(scene.a).unlink()


def remove_the_ledger(scene: Scene) -> None:
    shutil.rmtree(scene.ledger, ignore_errors=True)


def remove_the_head(scene: Scene) -> None:
    in_the_ledger(scene, "head", lambda head: None)


def drop_an_entry(scene: Scene) -> None:
    in_the_ledger(scene, "entries", lambda data: data[:-ENTRY_BYTES])


def tear_an_entry(scene: Scene) -> None:
    in_the_ledger(scene, "entries", lambda data: data[:-1])


def edit_an_entry(scene: Scene) -> None:
    in_the_ledger(scene, "entries", lambda data: data[:-1] + bytes([data[-1] ^ 1]))


def older_head(scene: Scene) -> None:
    in_the_ledger(scene, "head", lambda head: (scene.middle / "head").read_bytes())


def head_of_another_folder(scene: Scene) -> None:
    """Signed with the same key, and of a log of as many entries."""
    text = Checkpoint(scene.signer.name, scene.noted, bytes(32)).text()
    in_the_ledger(scene, "head", lambda head: scene.signer.sign(text))


ROWS: tuple[Row, ...] = (
    everywhere(nothing, OK),
    everywhere(edit, EDITED),
    everywhere(delete_in_the_middle, "BROKEN at event 3: chain_broken: event 4 does not follow: something was removed"),
    everywhere(reorder, "BROKEN at event 3: chain_broken: event 4 does not follow: something was removed, moved"),
    everywhere(repeat, "BROKEN at event 4: chain_broken: event 3 is repeated or was moved"),
    Row(drop_the_tail, OK, UNSEALED, SHORT, SHORT, SHORT, COPY_SHORT),
    Row(roll_back, OK, UNSEALED, OK, OK, FEWER, COPY_SHORT),
    Row(
        forge_the_seal, OK, OK, OK, UNSIGNED, FEWER, "CHANGED: the copy saw another event 14; the copy knows 23 events"
    ),
    Row(rewrite_all, OK, OK, TOLD, TOLD, TOLD, COPY_OTHER),
    Row(rewrite_without_the_ledger, OK, OK, OK, UNSIGNED, GONE, COPY_OTHER),
    Row(rewrite_with_the_ledger, OK, OK, OK, OTHER_ENTRIES, OTHER_ENTRIES, COPY_OTHER),
    Row(
        rewrite_with_another_key,
        *(OK, OK, OK, "the head in the folder does not count: the head is not signed by example.com/bot+"),
        *(OTHER_ENTRIES, COPY_OTHER),
    ),
    Row(rewrite_with_the_stolen_key, OK, OK, OK, OK, OTHER_ENTRIES, COPY_OTHER),
    Row(rewrite_and_hand_out_the_head, OK, OK, OK, OK, OK, COPY_OTHER),
    Row(
        delete_a_session,
        *(OK, OK, *["CHANGED: session {a} is missing: the ledger knows 15 events of it"] * 3),
        "CHANGED: session {a} is missing: the copy knows 15 events of it",
    ),
    Row(
        delete_a_session_and_the_ledger,
        *(OK, OK, OK, UNSIGNED, GONE, "CHANGED: session {a} is missing: the copy knows 15 events of it"),
    ),
    Row(forge_a_session, OK, OK, OK, UNSIGNED, UNSIGNED, UNWITNESSED),
    everywhere(swap_names, "BROKEN at event 0: malformed_event: belongs to session {b}, not {a}"),
    Row(copy_from_another_folder, OK, OK, OK, UNSIGNED, UNSIGNED, UNWITNESSED),
    Row(other_form, OK, "required: SEALED", *["CHANGED: its file holds other sessions: it was replaced"] * 4),
    Row(
        other_form_same_id,
        *(OK, "required: SEALED", *["CHANGED: the ledger knows 15 events, and 1 are there: its end was removed"] * 3),
        "CHANGED: the copy saw another event 0; the copy knows 15 events, and 1 are there: its end was removed",
    ),
    Row(prune_unasked, OK, "required: SEALED", OK, OK, OK, OK),
    Row(remove_the_ledger, OK, OK, OK, UNSIGNED, GONE, OK),
    Row(remove_the_head, OK, OK, OK, UNSIGNED, OK, OK),
    Row(drop_an_entry, OK, OK, OK, FEWER, FEWER, OK),
    Row(tear_an_entry, OK, OK, OK, FEWER, FEWER, OK),
    Row(edit_an_entry, OK, OK, TOLD.replace("15", "23"), OTHER_ENTRIES, OTHER_ENTRIES, OK),
    Row(older_head, OK, OK, OK, "SIGNED up to event 13, and not the 9 behind it (23 events, ", OK, OK),
    Row(head_of_another_folder, OK, OK, OK, OTHER_ENTRIES, OTHER_ENTRIES.replace("{head}", BESIDE), OK),
)


def change(scene: Scene, how: Callable[[list[bytes]], object]) -> None:
    lines = scene.lines(scene.a)
    how(lines)
    scene.file(scene.a).write_bytes(b"".join(lines))


def resign(scene: Scene, key: Path | None) -> None:
    rewrite_all(scene)
    if scene.ledger.exists():
        rewrite_ledger(scene, None if key is None else load_signer(key))


def in_the_ledger(scene: Scene, name: str, how: Callable[[bytes], bytes | None]) -> None:
    """Change a file of the ledger, where there is one."""
    path = scene.ledger / name
    if path.exists():
        data = how(path.read_bytes())
        path.unlink()
        if data is not None:
            path.write_bytes(data)


@pytest.mark.parametrize("row", ROWS, ids=[row.attack.__name__ for row in ROWS])
def test_a_folder_that_nobody_signed(cra: Cra, plain: Scene, row: Row) -> None:
    """The chain alone, and with --require sealed."""
    row.attack(plain)
    expect(plain, row.chain, cra("trace", "verify", plain.folder))
    expect(plain, row.sealed, cra("trace", "verify", plain.folder, "--require", "sealed"))


@pytest.mark.parametrize("row", ROWS, ids=[row.attack.__name__ for row in ROWS])
def test_a_folder_with_a_ledger(cra: Cra, signed: Scene, row: Row) -> None:
    """Without the key, with the key, and with the key and a head that was held elsewhere."""
    row.attack(signed)
    held = signed.folder.parent / "held.head"
    held.write_bytes(signed.kept)
    key = ("--key", f"{signed.key}.pub", "--require", "signed")
    expect(signed, row.unkeyed, cra("trace", "verify", signed.folder))
    expect(signed, row.beside, cra("trace", "verify", signed.folder, *key), BESIDE)
    expect(signed, row.elsewhere, cra("trace", "verify", signed.folder, *key, "--head", held), ELSEWHERE)


@pytest.mark.parametrize("form", [as_sdk_json, as_otlp_json])
@pytest.mark.parametrize("row", ROWS, ids=[row.attack.__name__ for row in ROWS])
def test_a_folder_with_a_witness(
    cra: Cra, plain: Scene, spans: list[Any], row: Row, form: Callable[[list[Any]], str]
) -> None:
    """The spans that the OpenTelemetry SDK carried away, in both forms in which they are kept."""
    if not spans:
        pytest.skip("a witness needs the otel extra")
    row.attack(plain)
    copy = plain.folder.parent / "spans.json"
    copy.write_text(form(spans))
    expect(plain, row.witness, cra("trace", "verify", plain.folder, "--against", copy, "--require", "witnessed"))


def expect(scene: Scene, sentence: str, ran: Ran, head: str = "") -> None:
    """Accepted when there is no sentence, else caught by that one."""
    entries = scene.ledger / "entries"
    left = entries.stat().st_size // ENTRY_BYTES if entries.exists() else 0
    words = {"a": scene.a, "b": scene.b, "head": head, "entries": scene.noted, "left": left, "lost": scene.noted - left}
    assert (ran.code, ran.stderr) == (1 if sentence else 0, ""), ran.stdout
    assert sentence.format(**words) in ran.stdout
