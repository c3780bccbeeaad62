"""``cra trace erase`` and ``cra trace reveal``."""

from __future__ import annotations

import sqlite3
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware.cli import personal
from cra_middleware.sidecar import Sidecar
from tests.cli.conftest import HOSTILE, Cra, assert_harmless, rewrite
from tests.conftest import manifest

VALUES = ["ann@example.org", {"b": [1, None], "a": HOSTILE.replace("\ud800", "")}]


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, Path]:
    """A trace with two personal values of one subject, and its sidecar."""
    with Runtime(
        Atlas.from_dict(manifest()),
        trace=tmp_path / "traces",
        record="full",
        personal=["*.who", "*#/list/*/mail~1x"],
        sidecar=tmp_path / "personal.db",
    ) as runtime:
        with runtime.session(subject="customer-7") as session:
            session.call("ticket.get", lambda who: {"list": [0, {"mail/x": VALUES[1]}]}, VALUES[0])
    return tmp_path / "traces" / f"{session.id}.trace.jsonl", tmp_path / "personal.db"


def states(ran: Any) -> list[str]:
    return [item["state"] for item in ran.json["values"]]


def test_values_are_shown_with_what_checks_them(cra: Cra, kept: tuple[Path, Path]) -> None:
    """Where they stand, what they are, and the salt by which anybody can check them."""
    trace, sidecar = kept
    ran = cra("trace", "reveal", trace, "--sidecar", sidecar, "--format", "json")
    assert (ran.code, states(ran)) == (0, ["revealed"] * 2)
    first, second = ran.json["values"]
    assert (first["pointer"], first["action_id"], first["value"]) == (
        "/parameters/who",
        "ticket.get",
        '"ann@example.org"',
    )
    assert second["pointer"] == "/result/list/1/mail~1x"
    for item in (first, second):
        given = b"cra-redact/1\0" + bytes.fromhex(item["salt"]) + item["value"].encode()
        assert item["commitment"] == "sha256:" + sha256(given).hexdigest()
    ran = cra("trace", "reveal", trace, "--sidecar", sidecar)
    assert ran.code == 0
    assert '4  ticket.get /parameters/who: "ann@example.org"' in ran.stdout
    assert_harmless(ran.stdout)


def test_erased_values_are_marked(cra: Cra, kept: tuple[Path, Path]) -> None:
    """The count is printed, the trace verifies as before, and the places of the values say what became of them."""
    trace, sidecar = kept
    before = trace.read_bytes()
    ran = cra("trace", "erase", "--subject", "customer-7", "--sidecar", sidecar, "--yes")
    assert (ran.code, ran.stdout) == (0, "2 values of customer-7 erased\n")
    assert trace.read_bytes() == before
    assert cra("trace", "verify", "--require", "sealed", trace).code == 0
    ran = cra("trace", "reveal", trace, "--sidecar", sidecar)
    assert ran.code == 0
    assert ran.stdout.count(": erased") == 2
    ran = cra("trace", "erase", "--subject", "customer-7", "--sidecar", sidecar, "--yes", "--format", "json")
    assert ran.json == {"subject": "customer-7", "erased": 0}


def test_a_tampered_sidecar_is_marked(cra: Cra, kept: tuple[Path, Path]) -> None:
    """A value that somebody with the key put in the place of another is not the one that the trace committed to."""
    trace, sidecar = kept
    ran = cra("trace", "reveal", trace, "--sidecar", sidecar, "--format", "json")
    ref = ran.json["values"][0]["ref"]
    store = Sidecar(sidecar)
    forged = store.commit("customer-7", "bob@example.org")
    store.close()
    with sqlite3.connect(sidecar) as raw:
        raw.execute("DELETE FROM personal WHERE ref = ?", (ref,))
        raw.execute("UPDATE personal SET ref = ? WHERE ref = ?", (ref, forged["ref"]))
    raw.close()
    ran = cra("trace", "reveal", trace, "--sidecar", sidecar, "--format", "json")
    assert (ran.code, states(ran)) == (1, ["altered", "revealed"])
    assert "bob" not in ran.stdout


def test_a_whole_forgery_is_marked(
    cra: Cra, kept: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sidecar made anew so that everything in it fits together still does not fit the trace."""
    trace, _ = kept
    forged = Sidecar(tmp_path / "forged.db")
    other = forged.commit("customer-7", "bob@example.org")
    reveal = forged.reveal
    monkeypatch.setattr(Sidecar, "reveal", lambda self, ref: reveal(other["ref"]))
    ran = cra("trace", "reveal", trace, "--sidecar", tmp_path / "forged.db")
    assert ran.code == 1
    assert ran.stdout.count("DOES NOT MATCH") == 2
    assert "bob" not in ran.stdout


def test_another_traces_sidecar(cra: Cra, kept: tuple[Path, Path], tmp_path: Path) -> None:
    """What it never had is not called erased."""
    Sidecar(tmp_path / "other.db").close()
    ran = cra("trace", "reveal", kept[0], "--sidecar", tmp_path / "other.db")
    assert ran.code == 1
    assert ran.stdout.count("not in this sidecar") == 2


def test_a_broken_trace_reveals_nothing(cra: Cra, kept: tuple[Path, Path]) -> None:
    """Values are evidence only next to a trace that verifies."""
    trace, sidecar = kept
    rewrite(trace, lambda lines: lines.__setitem__(4, lines[4].replace(b"ticket.get", b"ticket.set")))
    ran = cra("trace", "reveal", trace, "--sidecar", sidecar)
    assert (ran.code, ran.stdout) == (1, "")
    assert "nothing is revealed" in ran.stderr


def test_a_trace_without_personal_values(cra: Cra, recorded: Path, tmp_path: Path) -> None:
    """That is said, and no error."""
    Sidecar(tmp_path / "p.db").close()
    ran = cra("trace", "reveal", recorded, "--sidecar", tmp_path / "p.db")
    assert (ran.code, ran.stdout) == (0, "No personal values.\n")


class Answering:
    """A terminal at which somebody answers."""

    def __init__(self, answer: str, asked: list[str]) -> None:
        self._answer, self._asked = answer, asked

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def say(self, text: str) -> None:
        self._asked.append(text)

    def ask(self, question: str) -> str:
        self._asked.append(question)
        return self._answer


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 0), ("n", 1, 2), ("", 1, 2)])
def test_a_person_is_asked(
    answer: str, code: int, left: int, cra: Cra, kept: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many, whose; only a yes erases."""
    asked: list[str] = []
    monkeypatch.setattr(personal, "Terminal", lambda: Answering(answer, asked))
    assert cra("trace", "erase", "--subject", "customer-7", "--sidecar", kept[1]).code == code
    assert asked[-1] == "Erase 2 values of customer-7 for good? [y/N]"
    assert Sidecar(kept[1]).count("customer-7") == left


def test_without_a_terminal(cra: Cra, kept: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is erased, and stdin is not read."""

    def none() -> Answering:
        raise personal.NoTerminalError

    monkeypatch.setattr(personal, "Terminal", none)
    ran = cra("trace", "erase", "--subject", "customer-7", "--sidecar", kept[1], stdin="y\n")
    assert (ran.code, ran.stderr) == (1, "cra: there is no terminal to ask on; say --yes\n")
    assert Sidecar(kept[1]).count("customer-7") == 2


@pytest.mark.parametrize("command", [("erase", "--yes", "--subject", "x"), ("reveal", "trace")])
def test_sidecars_that_cannot_be_used(command: tuple[str, ...], cra: Cra, tmp_path: Path) -> None:
    """Each has its sentence and its code; none is made."""
    (tmp_path / "text").write_text("no database, and long enough to be looked at by SQLite as one" * 9)
    given = ["trace", *(str(tmp_path / part) if part == "trace" else part for part in command)]
    assert cra(*given).code == 2
    for name in ("none.db", "text", "."):
        ran = cra(*given, "--sidecar", tmp_path / name)
        assert (ran.code, ran.stdout) == (1, "")
        assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "none.db").exists()


def test_a_hostile_subject(cra: Cra, kept: tuple[Path, Path]) -> None:
    """Nothing acts on the terminal; a text that no file can keep is refused."""
    ran = cra("trace", "erase", "--subject", HOSTILE, "--sidecar", kept[1], "--yes")
    assert ran.code == 1
    ran = cra("trace", "erase", "--subject", HOSTILE.replace("\ud800", ""), "--sidecar", kept[1], "--yes")
    assert ran.code == 0
    assert_harmless(ran.stdout + ran.stderr)
