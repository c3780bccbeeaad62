"""``cra trace verify`` with a key, a head, a copy and requirements: words, JSON, exit codes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cra_middleware.cli import verify as module
from cra_middleware.evidence import session as session_module
from cra_middleware.trace.note import Signer
from tests.cli.conftest import HOSTILE, Cra, assert_harmless, foreign
from tests.evidence.scene import Scene, as_otlp_json, hashes_of


def pub(scene: Scene) -> str:
    return f"{scene.key}.pub"


def kept(scene: Scene, tmp_path: Path) -> Path:
    path = tmp_path / "kept.head"
    path.write_bytes(scene.kept)
    return path


def copy(tmp_path: Path, spans: list[Any]) -> Path:
    if not spans:
        pytest.skip("needs the otel extra")
    path = tmp_path / "spans.json"
    path.write_text(as_otlp_json(spans))
    return path


def test_signed(cra: Cra, signed: Scene, tmp_path: Path) -> None:
    """A line for each session, up to where it is signed, and nothing else."""
    expected = (
        f"{signed.file(signed.a)}:  INTACT, SEALED, SIGNED up to event 14 (15 events)\n"
        f"{signed.file(signed.b)}:  INTACT, SEALED, SIGNED up to event 22 (23 events)\n"
    )
    for more in ((), ("--head", kept(signed, tmp_path)), ("--require", "signed", "--require", "sealed")):
        ran = cra("trace", "verify", signed.folder, "--key", pub(signed), *more)
        assert (ran.code, ran.stdout, ran.stderr) == (0, expected, "")
    with_text = cra("trace", "verify", signed.folder, "--key", Path(pub(signed)).read_text().strip())
    assert with_text.stdout == expected


def test_signed_in_json(cra: Cra, signed: Scene) -> None:
    """The number of events of each session, and the head of the folder."""
    ran = cra("trace", "verify", signed.folder, "--key", pub(signed), "--format", "json")
    assert ran.code == 0
    assert [session["signed_events"] for file in ran.json["files"] for session in file["sessions"]] == [15, 23]
    [folder] = ran.json["folders"]
    head = folder.pop("head")
    assert folder == {"path": str(signed.folder), "missing": [], "problems": []}
    assert head.keys() == {"origin", "size", "root"}
    assert (head["origin"], head["size"], len(head["root"])) == ("example.com/bot", signed.noted, 64)


def test_one_session(cra: Cra, signed: Scene) -> None:
    """By its file: with what the folder's ledger says of it."""
    ran = cra("trace", "verify", signed.file(signed.b), "--key", pub(signed), "--require", "signed")
    assert ran.code == 0
    assert ran.stdout == f"{signed.file(signed.b)}:  INTACT, SEALED, SIGNED up to event 22 (23 events)\n"


def test_witnessed(cra: Cra, plain: Scene, spans: list[Any], tmp_path: Path) -> None:
    """A copy that agrees is told, in words and in JSON."""
    args = ("trace", "verify", plain.folder, "--against", copy(tmp_path, spans), "--require", "witnessed")
    ran = cra(*args)
    assert (ran.code, ran.stderr) == (0, "")
    assert f"{plain.file(plain.a)}:  INTACT, SEALED, WITNESSED up to event 14 (15 events)\n" in ran.stdout
    files = cra(*args, "--format", "json").json["files"]
    assert [session["witnessed_events"] for file in files for session in file["sessions"]] == [15, 23]


def test_all_that_is_required_and_lacking(cra: Cra, plain: Scene, spans: list[Any], tmp_path: Path) -> None:
    """Each by its word, in one order; what is met is not told."""
    shutil.copy(plain.file(plain.a), tmp_path / "alone")
    plain.file(plain.a).write_bytes(b"".join(plain.lines(plain.a)[:-1]))
    every = [item for word in ("witnessed", "signed", "sealed") for item in ("--require", word)]
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(plain.file(plain.a), only)
    (tmp_path / "other.json").write_text('{"attributes": {"cra.trace.sequence": 0, "cra.trace.event_hash": "x"}}')
    ran = cra("trace", "verify", only, "--key", pub(plain), "--against", tmp_path / "other.json", *every)
    assert ran.code == 1
    assert ran.stdout == (
        f"{only / plain.file(plain.a).name}:  INTACT, NOT SEALED: the end may be missing "
        "(14 events, required: SEALED, required: SIGNED, required: WITNESSED)\n"
    )
    ran = cra("trace", "verify", tmp_path / "alone", "--key", pub(plain), "--require", "signed", "--require", "sealed")
    assert (ran.code, "(15 events, session " in ran.stdout, "required: SEALED" in ran.stdout) == (1, True, False)
    assert ran.stdout.endswith(", required: SIGNED)\n")


def test_what_is_missing(cra: Cra, signed: Scene) -> None:
    """A sentence each, behind the sessions that are there; in JSON by itself."""
    signed.file(signed.a).unlink()
    ran = cra("trace", "verify", signed.folder)
    missing = f"session {signed.a} is missing: the ledger knows 15 events of it"
    assert ran.code == 1
    assert ran.stdout.splitlines()[1:] == [f"{signed.folder}:  CHANGED: {missing}"]
    as_json = cra("trace", "verify", signed.folder, "--format", "json")
    assert (as_json.code, as_json.json["folders"][0]["missing"]) == (1, [missing])


def test_nothing_is_left_but_the_ledger(cra: Cra, signed: Scene) -> None:
    """A folder whose traces were all removed is no empty folder."""
    for name in (signed.a, signed.b):
        signed.file(name).unlink()
    ran = cra("trace", "verify", signed.folder)
    assert (ran.code, ran.stdout.count("is missing")) == (1, 2)
    shutil.rmtree(signed.ledger)
    assert cra("trace", "verify", signed.folder).code == 2


def test_a_head_that_does_not_fit(cra: Cra, signed: Scene, tmp_path: Path) -> None:
    """It is the folder's problem, in words and in JSON, and no head is shown as good."""
    (signed.ledger / "entries").write_bytes(b"")
    ran = cra(
        "trace", "verify", signed.folder, "--key", pub(signed), "--head", kept(signed, tmp_path), "--format", "json"
    )
    [folder] = ran.json["folders"]
    assert (ran.code, folder["head"], folder["missing"]) == (1, None, [])
    assert folder["problems"] == [
        f"{name} covers {signed.noted} entries of the ledger, and there are 0: {signed.noted} were removed"
        for name in ("the head that was held elsewhere", "the head in the folder")
    ]


def test_a_changed_session(cra: Cra, signed: Scene) -> None:
    """Its problems, in words and in JSON; the chain by itself is whole."""
    signed.file(signed.b).write_bytes(b"".join(signed.lines(signed.b)[:14]))
    problem = "the ledger knows 23 events, and 14 are there: its end was removed"
    ran = cra("trace", "verify", signed.file(signed.b))
    assert (ran.code, ran.stdout) == (1, f"{signed.file(signed.b)}:  CHANGED: {problem} (14 events)\n")
    [session] = cra("trace", "verify", signed.file(signed.b), "--format", "json").json["files"][0]["sessions"]
    assert (session["intact"], session["sealed"], session["error"], session["problems"]) == (
        False,
        False,
        None,
        [problem],
    )


def test_a_session_in_several_files(cra: Cra, signed: Scene) -> None:
    """Told once, with the number of its files; any of them may be named."""
    lines = signed.lines(signed.b)
    signed.file(signed.b).write_bytes(b"".join(lines[:9]))
    later = signed.folder / f"{signed.b}.9.trace.jsonl"
    later.write_bytes(b"".join(lines[9:]))
    expected = f"{signed.file(signed.b)}:  INTACT, SEALED, SIGNED up to event 22 (23 events, 2 files)\n"
    for name in (signed.file(signed.b), later):
        assert cra("trace", "verify", name, "--key", pub(signed)).stdout == expected
    assert cra("trace", "verify", signed.folder, "--key", pub(signed)).stdout.endswith(expected)
    [file] = cra("trace", "verify", later, "--format", "json").json["files"]
    assert file["sessions"][0]["paths"] == [str(signed.file(signed.b)), str(later)]


def test_a_pruned_session(cra: Cra, signed: Scene) -> None:
    """It has no file, so its id stands in its place."""
    data = bytes.fromhex("".join(hashes_of(signed, signed.a)))
    (signed.folder / f"{signed.a}.pruned").write_bytes(b"cra-pruned/1\n" + data)
    signed.file(signed.a).unlink()
    ran = cra("trace", "verify", signed.folder, "--key", pub(signed))
    assert ran.code == 0
    assert ran.stdout.startswith(
        f"{signed.a}:  PRUNED: 15 events were removed, and their hashes kept, SIGNED up to event 14 (15 events)\n"
    )
    files = cra("trace", "verify", signed.folder, "--format", "json").json["files"]
    [session] = next(file["sessions"] for file in files if file["path"] == signed.a)
    assert (session["pruned_events"], session["events"], session["profile"]) == (15, 0, "cra")


def test_traces_of_others_beside(cra: Cra, signed: Scene) -> None:
    """Files with other names are verified, each by itself, in both forms."""
    (signed.folder / "theirs.trace.jsonl").write_bytes(b"".join(foreign(1, [{}, {}])))
    ran = cra("trace", "verify", signed.folder, "--key", pub(signed))
    assert ran.code == 0
    assert (
        "theirs.trace.jsonl:  INTACT, NOT SEALED: the end may be missing (2 events, profile appendix-b, " in ran.stdout
    )
    files = cra("trace", "verify", signed.folder, "--format", "json").json["files"]
    assert [Path(file["path"]).name for file in files] == sorted(Path(file["path"]).name for file in files)
    assert len(files) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--head", "h"), "--head needs --key: the public key that the head was signed for"),
        (("--require", "signed"), "--require signed needs --key: the public key whose signed heads count"),
        (("--require", "witnessed"), "--require witnessed needs --against: the copy to compare with"),
        (("--key", "PUB", "--head", "h"), "--head is about a folder of traces, a session's file in it, or a database"),
    ],
)
def test_wrong_usage(cra: Cra, signed: Scene, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    """Exit 2 and a sentence that says what is missing, before anything is read."""
    alone = tmp_path / "alone"
    shutil.copy(signed.file(signed.a), alone)
    (tmp_path / "h").write_bytes(signed.kept)
    named = {"PUB": pub(signed), "h": tmp_path / "h"}
    ran = cra("trace", "verify", alone, *(named.get(item, item) for item in options))
    assert (ran.code, ran.stdout, ran.stderr) == (2, "", f"cra: {message}\n")


@pytest.mark.parametrize("options", [("--require", "good"), ("--require",), ("--format", "xml"), ("--unknown",)])
def test_unknown_options(cra: Cra, plain: Scene, options: tuple[str, ...]) -> None:
    """Exit 2."""
    assert cra("trace", "verify", plain.folder, *options).code == 2
    assert cra("trace", "verify").code == 2


def put(text: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (Path.mkdir, "is a folder; name a key file"),
        (put(b""), "this is not a key made by `cra keys generate`"),
        (put(b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI me@here\n"), "this is not a key made by `cra keys generate`"),
        (put(b"-----BEGIN PUBLIC KEY-----\n"), "this is not a key made by `cra keys generate`"),
        (put(b"example.com/bot+00000000+" + b"A" * 44), "this is not a key made by `cra keys generate`"),
    ],
)
def test_a_key_of_another_kind(
    cra: Cra, signed: Scene, tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    """Exit 1 and a sentence; nothing is verified."""
    make(tmp_path / "key")
    ran = cra("trace", "verify", signed.folder, "--key", tmp_path / "key")
    assert (ran.code, ran.stdout) == (1, "")
    assert ran.stderr.startswith("cra: ")
    assert message in ran.stderr


def test_a_secret_key(cra: Cra, signed: Scene) -> None:
    """It is not taken, and not shown."""
    for given in (signed.key, signed.key.read_text().strip()):
        ran = cra("trace", "verify", signed.folder, "--key", given)
        assert (ran.code, ran.stdout) == (1, "")
        assert signed.key.read_text().strip()[-44:] not in ran.stderr


def test_another_key(cra: Cra, signed: Scene) -> None:
    """The folder's head does not count for it, and says so."""
    ran = cra("trace", "verify", signed.folder, "--key", str(Signer("example.com/other", bytes(32)).verifier))
    assert ran.code == 1
    assert "CHANGED: the head in the folder does not count: the head is not signed by example.com/other+" in ran.stdout


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (Path.mkdir, "cannot be read: Is a directory"),
        (put(b""), "the head is no signed note"),
        (lambda path: path.symlink_to("/dev/zero"), "the head is longer than 1000000 bytes"),
        (put(Signer("example.com/bot", bytes(32)).sign("example.com/bot\n1\n" + "A" * 43 + "=\n")), "is not signed by"),
    ],
)
def test_a_head_held_elsewhere_that_is_none(
    cra: Cra, signed: Scene, tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    """Exit 1 and a sentence; nothing is said about the folder."""
    make(tmp_path / "head")
    ran = cra("trace", "verify", signed.folder, "--key", pub(signed), "--head", tmp_path / "head")
    assert (ran.code, ran.stdout) == (1, "")
    assert message in ran.stderr


@pytest.mark.parametrize(("text", "message"), [("garbage", "is not JSON as a collector"), ("{}", "holds no event")])
def test_a_copy_that_is_none(cra: Cra, plain: Scene, tmp_path: Path, text: str, message: str) -> None:
    """Exit 1 and a sentence."""
    (tmp_path / "spans").write_text(text)
    ran = cra("trace", "verify", plain.folder, "--against", tmp_path / "spans")
    assert (ran.code, ran.stdout) == (1, "")
    assert message in ran.stderr
    assert cra("trace", "verify", plain.folder, "--against", tmp_path / "nowhere").code == 1


def test_hostile_names(cra: Cra, signed: Scene, tmp_path: Path) -> None:
    """No name of a folder or a file, and no text of a copy, acts on a terminal."""
    folder = tmp_path / HOSTILE.replace("\ud800", "").replace("/", "")
    shutil.copytree(signed.folder, folder)
    (folder / f"{signed.a}.trace.jsonl").unlink()
    (folder / "\x1b[31m.trace.jsonl").write_bytes(b"x\n")
    (tmp_path / "spans").write_text(
        '{"attributes": {"cra.session.id": "\\u001b[31m\\ud800", "cra.trace.sequence": 0, "cra.trace.event_hash": "x"}}'
    )
    ran = cra("trace", "verify", folder, "--against", tmp_path / "spans", "--key", pub(signed))
    assert ran.code == 1
    assert_harmless(ran.stdout)
    assert "session \\x1b[31m\\ud800 is missing: the copy knows 1 events of it" in ran.stdout
    for args in ((folder / "nowhere",), (folder, "--key", folder), (folder, "--key", pub(signed), "--head", folder)):
        assert_harmless(cra("trace", "verify", *args).stderr)


def test_an_unreadable_ledger(cra: Cra, signed: Scene) -> None:
    """A sentence on stderr, in JSON an entry; exit 1."""
    shutil.rmtree(signed.ledger)
    signed.ledger.mkdir()
    (signed.ledger / "entries").mkdir()
    ran = cra("trace", "verify", signed.folder)
    message = f"{signed.ledger / 'entries'} cannot be read: Is a directory"
    assert (ran.code, ran.stdout, ran.stderr) == (1, "", f"cra: {message}\n")
    as_json = cra("trace", "verify", signed.folder, "--format", "json")
    assert as_json.json == {"files": [{"path": str(signed.folder), "sessions": [], "error": message}], "folders": []}


@pytest.mark.slow
def test_with_several_processes(cra: Cra, signed: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large inputs are verified by all cores, with the same words."""
    alone = cra("trace", "verify", signed.folder, "--key", pub(signed))
    monkeypatch.setattr(module, "LARGE_BYTES", 1)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(session_module, "PART_BYTES", 2500)
    helped: list[object] = []
    real = session_module._in_parts
    monkeypatch.setattr(session_module, "_in_parts", lambda *args: helped.append(real(*args)) or helped[-1])
    assert cra("trace", "verify", signed.folder, "--key", pub(signed)) == alone
    assert len([found for found in helped if found]) == 2
    monkeypatch.setattr(module.os, "cpu_count", lambda: 1)
    assert cra("trace", "verify", signed.folder, "--key", pub(signed)) == alone
    assert len(helped) == 2
