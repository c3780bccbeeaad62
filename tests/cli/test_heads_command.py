"""``cra trace head``, ``prove`` and ``verify-proof``: exact words, JSON, exit codes, and hostile input."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cra_middleware.cli import heads as module
from cra_middleware.trace.note import Signer
from cra_middleware.trace.proof import MAX_PROOF_BYTES, verify_inclusion_proof
from tests.cli.conftest import HOSTILE, Cra, assert_harmless
from tests.evidence.scene import Scene, rewrite_ledger
from tests.trace.forge import rewrite

OTHER = Signer("example.com/other", bytes(32))
SOME_ROOT = "A" * 43 + "="


@pytest.fixture
def proof(cra: Cra, signed: Scene, tmp_path: Path) -> Path:
    """Of event 3 of the first session."""
    path = tmp_path / "event-3.json"
    ran = cra("trace", "prove", signed.file(signed.a), "--sequence", 3, "--out", path)
    assert (ran.code, ran.stdout, ran.stderr) == (0, "", "")
    return path


def pub(scene: Scene) -> str:
    return f"{scene.key}.pub"


def test_the_head_and_nothing_else(cra: Cra, signed: Scene) -> None:
    """The signed note to the byte: it is made to be redirected into a file."""
    ran = cra("trace", "head", signed.folder)
    assert (ran.code, ran.stdout.encode(), ran.stderr) == (0, signed.kept, "")
    assert ran.stdout.startswith(f"example.com/bot\n{signed.noted}\n")


def test_no_head(cra: Cra, plain: Scene, tmp_path: Path) -> None:
    """Exit 1, and what to do."""
    message = f"{plain.folder} has no signed head; give the runtime a signing key (`cra keys generate`)"
    ran = cra("trace", "head", plain.folder)
    assert (ran.code, ran.stdout, ran.stderr) == (1, "", f"cra: {message}\n")
    assert cra("trace", "head", tmp_path / "nowhere").code == 1
    assert cra("trace", "head").code == 2


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"", "the head is no signed note"),
        (b"garbage\xff", "the head is not UTF-8"),
        (b"\x1b[31mred", "the head holds a control character"),
        (OTHER.sign(f"a\x9b\u202eb\n1\n{SOME_ROOT}\n"), "holds letters that cannot be printed"),
        (OTHER.sign(f"a\n1\n{SOME_ROOT}\n\x7f\n"), "holds letters that cannot be printed"),
        (b"x" * 2_000_000, "the head is longer than 1000000 bytes"),
    ],
)
def test_a_head_that_is_none(cra: Cra, signed: Scene, head: bytes, message: str) -> None:
    """Whoever can write the folder cannot make it act on a terminal."""
    (signed.ledger / "head").write_bytes(head)
    ran = cra("trace", "head", signed.folder)
    assert (ran.code, ran.stdout) == (1, "")
    assert message in ran.stderr
    assert_harmless(ran.stderr)


def test_a_head_of_others_is_shown(cra: Cra, signed: Scene) -> None:
    """With its further lines and signatures: who signed it, the reader checks."""
    note = OTHER.sign(f"elsewhere\n7\n{SOME_ROOT}\nan extension\n") + Signer("b", bytes(32)).sign("x\n")[3:]
    (signed.ledger / "head").write_bytes(note)
    assert cra("trace", "head", signed.folder).stdout.encode() == note


def test_a_proof_is_checked_without_the_trace(cra: Cra, signed: Scene, proof: Path) -> None:
    """The sentence, and the event as one line of JSON."""
    event = json.loads(signed.lines(signed.a)[3])
    shutil.rmtree(signed.folder)
    ran = cra("trace", "verify-proof", proof, "--key", pub(signed))
    sentence, shown = ran.stdout.splitlines()
    assert (ran.code, ran.stderr) == (0, "")
    assert sentence == f"PROVEN: event 3 of session {signed.a} is in the log that example.com/bot signed"
    assert json.loads(shown) == event
    as_json = cra("trace", "verify-proof", proof, "--key", Path(pub(signed)).read_text(), "--format", "json").json
    head = as_json.pop("head")
    assert as_json == {"sentence": sentence, "proven": True, "event": event}
    assert head.keys() == {"origin", "size", "root"}


def test_a_proof_on_stdout(cra: Cra, signed: Scene, proof: Path) -> None:
    """The same document."""
    ran = cra("trace", "prove", signed.file(signed.a), "--sequence", 3)
    assert (ran.code, ran.stdout.encode(), ran.stderr) == (0, proof.read_bytes(), "")


def test_a_proof_file_is_new(cra: Cra, signed: Scene, proof: Path, tmp_path: Path) -> None:
    """Nothing is overwritten, no link is followed, and everybody may read it."""
    before = proof.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for place, why in (
        (proof, "File exists"),
        (tmp_path / "link", "File exists"),
        (tmp_path / "nowhere" / "x", "No such file or directory"),
    ):
        ran = cra("trace", "prove", signed.file(signed.a), "--sequence", 3, "--out", place)
        assert (ran.code, ran.stdout, ran.stderr) == (1, "", f"cra: {place} cannot be written: {why}\n")
    assert proof.read_bytes() == before
    assert stat.S_IMODE(proof.stat().st_mode) == 0o644 & ~current_umask()
    assert not (tmp_path / "target").exists()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_growth(cra: Cra, signed: Scene, tmp_path: Path) -> None:
    """From a head that was kept to the one that is there."""
    old, out = tmp_path / "old.head", tmp_path / "growth.json"
    old.write_bytes((signed.middle / "head").read_bytes())
    size = int(old.read_text().split("\n")[1])
    assert cra("trace", "prove", signed.folder, "--since", old, "--out", out).code == 0
    ran = cra("trace", "verify-proof", out, "--key", pub(signed))
    sentence = f"PROVEN: the log of {signed.noted} entries begins with the one of {size}; example.com/bot signed both"
    assert (ran.code, ran.stdout, ran.stderr) == (0, f"{sentence}\n", "")
    as_json = cra("trace", "verify-proof", out, "--key", pub(signed), "--format", "json").json
    assert as_json == {"sentence": sentence, "proven": True, "old_size": size, "new_size": signed.noted}


def test_no_growth(cra: Cra, signed: Scene, tmp_path: Path) -> None:
    """A log that was rewritten with the stolen key does not begin with what it was."""
    old = tmp_path / "old.head"
    old.write_bytes(signed.kept)
    lines = rewrite(signed.lines(signed.a), lambda events: events[0]["payload"].update(goal="Another"))
    signed.file(signed.a).write_bytes(b"".join(lines))
    rewrite_ledger(signed, signed.signer)
    ran = cra("trace", "prove", signed.folder, "--since", old)
    message = "the folder's log does not begin with the one that this head was signed for"
    assert (ran.code, ran.stdout, ran.stderr) == (1, "", f"cra: {message}\n")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "the head is no signed note"),
        (b"x" * 2_000_000, "the head is longer than 1000000 bytes"),
    ],
)
def test_an_old_head_that_is_none(cra: Cra, signed: Scene, tmp_path: Path, head: bytes | None, message: str) -> None:
    """Exit 1 and a sentence."""
    if head is not None:
        (tmp_path / "old").write_bytes(head)
    ran = cra("trace", "prove", signed.folder, "--since", tmp_path / "old")
    assert (ran.code, ran.stdout) == (1, "")
    assert message in ran.stderr


WHICH = "say what to prove: --sequence N of a session's file, or --since HEAD of a folder"


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        ("file", (), WHICH),
        ("file", ("--sequence", 3, "--since", "x"), WHICH),
        ("folder", ("--sequence", 3), "is not the trace file of a session; it is named after the session's id"),
        ("nowhere", ("--sequence", 3), "is not the trace file of a session; it is named after the session's id"),
        ("gone", ("--sequence", 3), "is not the trace file of a session; it is named after the session's id"),
    ],
)
def test_wrong_usage(cra: Cra, signed: Scene, place: str, options: tuple[Any, ...], message: str) -> None:
    """Exit 2 and a sentence."""
    places = {"file": signed.file(signed.a), "folder": signed.folder, "nowhere": signed.folder / "x"}
    gone = signed.file("01900000-0000-7000-8000-000000000001")
    ran = cra("trace", "prove", places.get(place, gone), *options)
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr.endswith(f"{message}\n")


@pytest.mark.parametrize("options", [("--sequence", -1), ("--sequence", "x"), ("--out",)])
def test_unknown_options(cra: Cra, signed: Scene, options: tuple[Any, ...]) -> None:
    """Exit 2."""
    assert cra("trace", "prove", signed.file(signed.a), *options).code == 2
    assert cra("trace", "verify-proof", signed.file(signed.a)).code == 2


def test_an_event_that_is_not_there(cra: Cra, signed: Scene) -> None:
    """Exit 1, and how far the head goes."""
    ran = cra("trace", "prove", signed.file(signed.a), "--sequence", 15)
    message = "the signed head covers events 0 to 14 of the session, not 15"
    assert (ran.code, ran.stdout, ran.stderr) == (1, "", f"cra: {message}\n")
    assert cra("trace", "prove", signed.file(signed.a), "--sequence", 10**30).code == 1


def test_no_head_to_prove_by(cra: Cra, plain: Scene) -> None:
    """Exit 1, and what to do."""
    ran = cra("trace", "prove", plain.file(plain.a), "--sequence", 3)
    assert (ran.code, "has no signed head; give the runtime a signing key" in ran.stderr) == (1, True)


def test_letters_that_a_terminal_acts_on(cra: Cra, signed: Scene, tmp_path: Path) -> None:
    """On stdout they are written as JSON writes them; the proof is the same."""
    hostile = HOSTILE.replace("\ud800", "") + "\u2028\U000e0001"
    lines = rewrite(signed.lines(signed.a), lambda events: events[0]["payload"].update(goal=hostile))
    signed.file(signed.a).write_bytes(b"".join(lines))
    rewrite_ledger(signed, signed.signer)
    ran = cra("trace", "prove", signed.file(signed.a), "--sequence", 0)
    assert ran.code == 0
    assert_harmless(ran.stdout)
    path = tmp_path / "proof"
    assert cra("trace", "prove", signed.file(signed.a), "--sequence", 0, "--out", path).code == 0
    assert json.loads(ran.stdout) == json.loads(path.read_text())
    path.write_text(ran.stdout)
    assert verify_inclusion_proof(path.read_bytes(), signed.signer.verifier).event.payload["goal"] == hostile
    shown = cra("trace", "verify-proof", path, "--key", pub(signed))
    assert shown.code == 0
    assert_harmless(shown.stdout)


def change(name: str, value: object) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), name: value}).encode()


def twice(data: bytes) -> bytes:
    return data.replace(b'"kind"', b'"kind": "cra-inclusion/1", "kind"', 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: b"", "the proof cannot be read: not JSON, or nested too deeply"),
        (lambda data: b"\xff" + data, "the proof cannot be read: not JSON, or nested too deeply"),
        (lambda data: b"[" * 100_000, "the proof cannot be read: not JSON, or nested too deeply"),
        (lambda data: b"[]", "the proof cannot be read: not a JSON object"),
        (twice, "the proof cannot be read: a key occurs twice"),
        (
            lambda data: data.replace(b'"index"', b'"index": 3, "index"', 1),
            "the proof cannot be read: a key occurs twice",
        ),
        (lambda data: b"{}", "this is not a proof of the kind cra-inclusion/1"),
        (change("kind", "cra-inclusion/2"), "this is not a proof of the kind cra-inclusion/1"),
        (change("kind", ["cra-consistency/1"]), "this is not a proof of the kind cra-inclusion/1"),
        (
            change("kind", "cra-consistency/1"),
            "the proof is not an object with the keys kind, old, new, path and no others",
        ),
        (
            change("note", 1),
            "the proof is not an object with the keys kind, event, session, ledger, head and no others",
        ),
        (
            lambda data: data.replace(b'sequence\\":3', b'sequence\\":4'),
            "was changed: it has not the hash that it names",
        ),
        (change("head", "x\n"), "the head is no signed note"),
        (lambda data: data.rstrip().ljust(MAX_PROOF_BYTES + 1), f"the proof is longer than {MAX_PROOF_BYTES} bytes"),
    ],
)
def test_what_is_no_proof(cra: Cra, signed: Scene, proof: Path, make: Callable[[bytes], bytes], message: str) -> None:
    """Exit 1 and why; never a traceback."""
    proof.write_bytes(make(proof.read_bytes()))
    for form in ("text", "json"):
        ran = cra("trace", "verify-proof", proof, "--key", pub(signed), "--format", form)
        assert (ran.code, ran.stdout) == (1, "")
        assert message in ran.stderr


def test_a_proof_that_is_too_long_is_not_parsed(
    cra: Cra, signed: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred megabytes are refused by their length."""
    with (tmp_path / "big").open("wb") as file:
        file.truncate(100_000_000)
    monkeypatch.setattr(module, "read_object", lambda data: pytest.fail("it was parsed"))
    ran = cra("trace", "verify-proof", tmp_path / "big", "--key", pub(signed))
    assert (ran.code, ran.stderr) == (1, f"cra: the proof is longer than {MAX_PROOF_BYTES} bytes\n")


def test_a_proof_of_another_key(cra: Cra, signed: Scene, proof: Path) -> None:
    """It proves nothing to whoever trusts this one, of another name or the same."""
    for key in (OTHER, Signer("example.com/bot", bytes(32))):
        ran = cra("trace", "verify-proof", proof, "--key", key.verifier)
        assert (ran.code, ran.stdout) == (1, "")
        assert f"the head is not signed by {key.name}+{key.key_id.hex()}; is this the key of that log?" in ran.stderr


@pytest.mark.parametrize("part", ["event", "session", "ledger"])
def test_a_proof_for_another_event(cra: Cra, signed: Scene, proof: Path, tmp_path: Path, part: str) -> None:
    """No part of the proof of one fits another."""
    other = tmp_path / "other.json"
    assert cra("trace", "prove", signed.file(signed.b), "--sequence", 4, "--out", other).code == 0
    proof.write_bytes(change(part, json.loads(other.read_bytes())[part])(proof.read_bytes()))
    ran = cra("trace", "verify-proof", proof, "--key", pub(signed))
    assert (ran.code, ran.stdout) == (1, "")
    assert ran.stderr.startswith("cra: the ")


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "cannot be read: No such file or directory"), (".", "cannot be read: Is a directory")],
)
def test_files_that_cannot_be_read(cra: Cra, signed: Scene, proof: Path, name: str, message: str) -> None:
    """Proof or key: exit 1 and which."""
    ran = cra("trace", "verify-proof", proof.parent / name, "--key", pub(signed))
    assert (ran.code, ran.stdout, ran.stderr) == (1, "", f"cra: {proof.parent / name} {message}\n")
    ran = cra("trace", "verify-proof", proof, "--key", proof.parent / name)
    assert (ran.code, ran.stdout) == (1, "")
    assert str(proof.parent / name) in ran.stderr


def test_a_secret_key_is_not_taken(cra: Cra, signed: Scene, proof: Path) -> None:
    """Nor shown."""
    ran = cra("trace", "verify-proof", proof, "--key", signed.key)
    assert (ran.code, "is a private key" in ran.stderr) == (1, True)
    assert signed.key.read_text().strip() not in ran.stderr
